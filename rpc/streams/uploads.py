"""What a caller uploads, as its handler takes it: `for item in request.items`, or `async for`."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..core.codecs import Accepted
from ..core.protocol import decode_items
from ..core.streams import GRANT, SEQ, SIZE, Receiving, number_in
from ..errors import BackendUnavailable, RpcError, SerializationError, StreamBroken
from ..threads import blocked
from ..transport import STREAM, Message

WINDOW = 1024
"""Items that are on their way, at most."""


class _Uploads:
    """Filled by the thread that hears the inbox, emptied by the handler."""

    def __init__(self, accept: Accepted, say: Callable[[dict[str, str]], bool]) -> None:
        """What comes is read as `accept` has it. `say` sends a reply with these headers."""
        self._accept, self._say = accept, say
        self._receiving = Receiving(WINDOW)
        self._arrived: deque[tuple[Any, int]] = deque()
        """Items, each with the bytes that are credited again once it is taken."""
        self._end: RpcError | None = None
        self._is_complete = False

    def credit(self) -> dict[str, str]:
        """The headers that say how much may come."""
        return self._receiving.credit()

    def put(self, message: Message) -> None:
        """Items have arrived, or their end. Raises SerializationError."""
        try:
            first = number_in(message, SEQ)
            if STREAM in message.headers:
                items = self._items(message, first)
                again, size = self._receiving.feed(first, len(items), number_in(message, SIZE))
                new = items[again:]
                self._arrived.extend((each, 0) for each in new[:-1])
                self._arrived.extend((each, size) for each in new[-1:])
            else:
                self._receiving.end(first)
                self._is_complete = True
        except StreamBroken as error:
            self.fail(error)
        self._wake()

    def _items(self, message: Message, first: int) -> list[Any]:
        """Those in a message. That they cannot be read, the handler is to know, if they are the next ones."""
        try:
            return decode_items(*self._accept.opened(message))
        except SerializationError as error:
            if first == self._receiving.received:
                self.fail(error)
            raise

    def expect(self, number: int) -> None:
        """So many were sent until now."""
        try:
            self._receiving.expect(number)
        except StreamBroken as error:
            self.fail(error)

    def fail(self, error: RpcError) -> None:
        """Nothing more will come."""
        self._end = self._end or error
        self._wake()

    def _wake(self) -> None:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        return bool(self._arrived or self._is_complete or self._end)

    def _take(self) -> Any:
        """The next item, as the only one of a tuple; None at the end. Raises what hinders it."""
        if not self._arrived:
            if self._is_complete:
                return None
            raise self._end or StreamBroken("nothing has arrived")
        item, size = self._arrived.popleft()
        self._receiving.take(1, size)
        if self._receiving.renew():
            with suppress(BackendUnavailable):  # it is said again with the next sign of life
                self._say({STREAM: GRANT, **self._receiving.credit()})
        return (item,)


class Uploads(_Uploads):
    """An iterator that holds its thread while it waits. Raises StreamBroken if items were lost on their way,
    and Cancelled if the caller has left."""

    def __init__(self, accept: Accepted, say: Callable[[dict[str, str]], bool]) -> None:
        super().__init__(accept, say)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with blocked(), self._lock:
            self._changed.wait_for(self._is_ready)
        taken = self._take()
        if taken is None:
            raise StopIteration
        return taken[0]

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()


class AsyncUploads(_Uploads):
    """The same, asynchronously."""

    _waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncUploads:
        return self

    async def __anext__(self) -> Any:
        loop = asyncio.get_running_loop()
        while not self._is_ready():
            self._waiter = loop.create_future()
            if not self._is_ready():  # else it came just now, and nobody was seen to wait
                await self._waiter
            self._waiter = None
        taken = self._take()
        if taken is None:
            raise StopAsyncIteration
        return taken[0]

    def _wake(self) -> None:
        if waiter := self._waiter:
            with suppress(RuntimeError):  # the loop was closed
                waiter.get_loop().call_soon_threadsafe(_done, waiter)


def _done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
