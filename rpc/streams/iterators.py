"""Streams as callers take them: a generator, and an async generator."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from ..caller import Caller, own_headers
from ..core.streams import (
    CREDIT,
    CREDIT_BYTES,
    GRANT,
    RESUME,
    SEND,
    THROW,
    UPLOAD,
    WINDOW_BYTES,
    Receiving,
    thrown,
)
from ..durations import Duration
from ..errors import RemoteError, SerializationError, StreamBroken, WorkerLost
from ..loops import process
from ..pending import PendingStream
from ..threads import blocked
from ..transport import AsyncBackend, Message
from .consuming import NOTHING, Arrival, Consumer, Ended, Items

RESUMABLE = WorkerLost, StreamBroken
MOST_DEATHS = 3
"""How often a stream may be lost at the same item before that is told."""

Put = Callable[[Arrival], None]

Uploadable = Iterable[Any] | AsyncIterable[Any]
"""What may be uploaded; asynchronous iterables by AsyncRpcClient alone."""


class _Stream:
    """What both kinds have: the state of the user's side."""

    def __init__(
        self,
        caller: Caller,
        backend: AsyncBackend,
        name: str,
        data: Any,
        *,
        put: Put,
        timeout: Duration | None,
        queue: str | None,
        headers: Mapping[str, str] | None,
        window: int,
        resume: bool,
        returns: Any,
        uploads: bool,
    ) -> None:
        """`put` is given what arrives, in the event loop; others are as for `RpcClient.stream`. Raises
        ValueError, SerializationError."""
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"window is a number from 1 on, not {window!r:.80}")
        if resume and uploads:
            raise ValueError("a stream with items cannot be resumed: some of them are gone")
        self._window, self._resume = window, resume
        own = {CREDIT: str(window), CREDIT_BYTES: str(WINDOW_BYTES), **({UPLOAD: "1"} if uploads else {})}
        self._request, self._returns = (caller, name, data), returns
        self._timeout, self._headers = timeout, {**own_headers(headers), **own}
        self._backend, self._to = backend, caller.to(name, queue)
        self._pending = self._pend()
        self._consumer: Consumer | None = None
        self._items: deque[Any] = deque()
        self._size = 0
        """Bytes of those that have arrived and are not taken."""
        self._count = 0
        """How many were taken."""
        self._resumed_at, self._deaths = 0, 0
        """After how many items it was lost last, and how often there."""
        self._thrown: BaseException | None = None
        self._is_over = False
        self._put: Put = put
        self._pid = process.id
        self._taking = threading.Lock()
        """Held by whoever waits for an item."""

    value: Any = None
    """What the generator returned, at its end."""

    def _pend(self, **more: str) -> PendingStream:
        """The request of it, which is to be answered within the timeout from now on."""
        allowed = self._request[0].allowed(self._timeout)
        return PendingStream(*self._request, allowed, {**self._headers, **more}, self._returns)

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        """Have it run in the event loop."""
        raise NotImplementedError

    def _ask(self, kind: str, beside: Message) -> Consumer:
        """Have the next item sent; what brings it."""
        if self._pid != process.id:
            raise RuntimeError("a stream belongs to the process that opened it, not to its forks")
        if self._consumer is None:
            return self._begun(self._pending)
        if self._consumer.receiving.renew():
            self._consumer.call(self._consumer.say, kind, beside)
        elif kind != GRANT:
            raise RuntimeError("the item that was asked for before has not come yet: call next()")
        return self._consumer

    def _begun(self, pending: PendingStream) -> Consumer:
        receiving = Receiving(self._window)
        consumer = self._consumer = Consumer(self._backend, self._to, pending, receiving, self._put)
        self._start(consumer.run())
        return consumer

    @contextmanager
    def _taken_by_one(self) -> Generator[None, None, None]:
        """A block that waits for an item."""
        if not self._taking.acquire(blocking=False):
            raise RuntimeError("another thread or task waits for the next item of this stream already")
        try:
            yield
        finally:
            self._taking.release()

    def _sent(self, value: Any) -> tuple[str, Message]:
        if value is None:
            return GRANT, NOTHING
        if self._consumer is None:
            raise TypeError("can't send a value other than None to a stream that has just begun")
        self._check_lock_step("send")
        return SEND, self._pending.writing.message(value, {}, "value")

    def _to_throw(self, error: BaseException) -> tuple[str, Message]:
        """Raises TypeError; and the error itself, if nothing has begun."""
        if self._consumer is None:
            self._is_over = True
        if self._consumer is None or self._is_over:
            raise error
        self._check_lock_step("throw")
        told = Message(thrown(error, self._pending.writing.codec), {})
        self._thrown = error
        return THROW, told

    def _check_lock_step(self, what: str) -> None:
        if self._window != 1:
            raise TypeError(f"{what}() needs a stream with window=1: with {self._window} it is ahead")

    def _take(self, consumer: Consumer) -> Any:
        item = self._items.popleft()
        consumer.receiving.take(1, 0 if self._items else self._size)
        self._count += 1
        self._thrown = None
        try:
            return self._pending.item(item)
        except SerializationError:  # nobody can tell what comes after it
            self._leave()
            raise

    def _arrived(self, items: Items) -> None:
        self._items.extend(items.items)
        self._size = items.size

    def _ended(self, end: Ended) -> Consumer | None:
        """What goes on with it, if another worker is to; else it is over. Raises what hinders it."""
        if isinstance(end.error, RESUMABLE) and self._resume and self._may_resume():
            return self._begun(self._pend(**{RESUME: str(self._count)}))
        self._leave()
        self.value = end.value
        error, is_thrown = end.error, self._thrown
        if isinstance(error, RemoteError) and is_thrown and str(error) == str(_as_remote(is_thrown)):
            raise is_thrown
        if error:
            raise error
        return None

    def _may_resume(self) -> bool:
        """A generator that kills each worker at the same item is not to kill all of them."""
        self._deaths = self._deaths + 1 if self._count == self._resumed_at else 1
        self._resumed_at = self._count
        return self._deaths < MOST_DEATHS

    def _leave(self) -> None:
        self._is_over = True
        self._items.clear()
        if self._consumer and self._pid == process.id:
            self._consumer.close()

    def __del__(self) -> None:
        if self.__dict__.get("_consumer") and not self._is_over:
            self._leave()


def _exception(kind: Any, value: Any) -> BaseException:
    """What is meant by the arguments of `throw`: an exception, or its class, with an argument for that."""
    error = value if isinstance(value, BaseException) else kind
    if isinstance(error, type):
        error = error() if value is None else error(value)
    raised: BaseException = error
    return raised


def _as_remote(error: BaseException) -> RemoteError:
    return RemoteError(type(error).__name__, str(error))


class Stream(_Stream, Generator[Any, Any, Any]):
    """What `RpcClient.stream` returns: a generator whose body runs in a worker, from the first `next()` on.
    `value` is what it returned. Also a context manager, which closes it. For one thread at a time."""

    def __init__(
        self,
        run: Callable[[Coroutine[Any, Any, None]], Future[None]],
        *arguments: Any,
        items: Uploadable | None,
        **options: Any,
    ) -> None:
        """`run` runs a coroutine in the client's event loop."""
        self._run = run
        if isinstance(items, AsyncIterable):
            raise TypeError("items is an asynchronous iterable: use AsyncRpcClient")
        self._uploads = None if items is None else iter(items)
        self._arrivals: SimpleQueue[Arrival] = SimpleQueue()
        super().__init__(*arguments, uploads=items is not None, put=self._arrivals.put, **options)

    def send(self, value: Any) -> Any:
        """Resume it; `value` is what its `yield` returns. The next item. Raises StopIteration at the end,
        RemoteError for what the generator raised, StreamBroken, and the other errors of `call_and_wait`."""
        if self._is_over:
            raise StopIteration
        return self._next(*self._sent(value))

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        """Have its `yield` raise an exception, which must be a built-in one. The next item."""
        error = _exception(kind, value)
        if isinstance(error, GeneratorExit):
            self.close()
            raise error
        return self._next(*self._to_throw(error))

    def close(self) -> None:
        """Close it: its `finally` runs in the worker. Does not wait for that."""
        self._leave()

    def _next(self, kind: str, beside: Message) -> Any:
        consumer = self._ask(kind, beside)
        if not self._items:
            with self._taken_by_one():
                consumer = self._wait(consumer)
        return self._take(consumer)

    def _wait(self, consumer: Consumer) -> Consumer:
        """Until there is an item; what brings it."""
        while not self._items:
            if self._uploads is not None and consumer.uploading.has_room and self._arrivals.empty():
                self._upload(consumer)
                continue
            with blocked():
                arrival = self._arrivals.get()
            if isinstance(arrival, Items):
                self._arrived(arrival)
            elif isinstance(arrival, Ended):
                another = self._ended(arrival)
                if another is None:
                    raise StopIteration(self.value)
                consumer = another
        return consumer

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        self._run(run)

    def _upload(self, consumer: Consumer) -> None:
        """The next one, or that there is none. Others only when nothing has come meanwhile."""
        try:
            for item in self._uploads or ():
                if consumer.upload(self._pending.writing.item(item)):
                    self._run(consumer.flush()).result()
                break
            else:
                self._uploads = None
                self._run(consumer.flush(end=True)).result()
        except BaseException:
            self._leave()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_Stream, AsyncGenerator[Any, Any]):
    """What `AsyncRpcClient.stream` returns: as `Stream`, but an async generator. For one task at a time."""

    def __init__(self, *arguments: Any, items: Uploadable | None, **options: Any) -> None:
        self._uploads = None if items is None else _async_iterator(items)
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._uploading: asyncio.Task[None] | None = None
        super().__init__(*arguments, uploads=items is not None, put=self._arrivals.put_nowait, **options)

    async def asend(self, value: Any) -> Any:
        """As `Stream.send`; raises StopAsyncIteration at the end."""
        if self._is_over:
            raise StopAsyncIteration
        return await self._next(*self._sent(value))

    async def athrow(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        """As `Stream.throw`."""
        error = _exception(kind, value)
        if isinstance(error, GeneratorExit):
            await self.aclose()
            raise error
        return await self._next(*self._to_throw(error))

    async def aclose(self) -> None:
        """As `Stream.close`."""
        self._leave()

    async def _next(self, kind: str, beside: Message) -> Any:
        consumer = self._ask(kind, beside)
        if not self._items:
            with self._taken_by_one():
                try:
                    consumer = await self._wait(consumer)
                except BaseException:  # an async generator that is cancelled has ended, too
                    self._leave()
                    raise
        return self._take(consumer)

    async def _wait(self, consumer: Consumer) -> Consumer:
        """As that of `Stream`."""
        while not self._items:
            arrival = await self._arrivals.get()
            if isinstance(arrival, Items):
                self._arrived(arrival)
            elif isinstance(arrival, Ended):
                another = self._ended(arrival)
                if another is None:
                    raise StopAsyncIteration
                consumer = another
            elif self._uploads and (self._uploading is None or self._uploading.done()):
                uploading = _uploaded(self._uploads, consumer, self._pending, self._put)
                self._uploading = asyncio.get_running_loop().create_task(uploading)
        return consumer

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(run)

    def _leave(self) -> None:
        super()._leave()
        if self._uploading and self._consumer:
            self._consumer.call(self._uploading.cancel)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _uploaded(
    items: AsyncGenerator[Any, None], consumer: Consumer, pending: PendingStream, put: Put
) -> None:
    """As much as there is credit for; what hinders it is raised at the next item. Does not keep the stream
    from being forgotten."""
    try:
        while consumer.uploading.has_room:
            async for item in items:
                if consumer.upload(pending.writing.item(item)):
                    await consumer.flush()
                break
            else:
                await consumer.flush(end=True)
                return
    except Exception as error:  # the iterable is the user's: it may raise anything
        put(Ended(None, error))


async def _async_iterator(items: Uploadable) -> AsyncGenerator[Any, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
