"""A blocking backend for callers in event loops: each that waits has a thread meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from ..deadlines import with_slack, within
from ..errors import BackendUnavailable, RpcTimeout, client_closed
from ..loops import PerLoop
from ..threads import DaemonThreads
from ..transport import ORDER_KEY, Address, AsyncReplies, Backend, Message, Replies

T = TypeVar("T")
MOST = 1024
"""Threads, at most."""
SLICE = 0.5
"""Seconds after which a thread looks whether anybody waits for what it waits for."""

LATE = 0.1
"""Seconds that a thread may take longer than it was told: it may wait for a broker that says nothing."""


class InThreads:
    """An AsyncBackend, of a Backend that blocks."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.features, self.max_message = backend.features, backend.max_message
        self._threads = PerLoop(Threads, lambda threads: threads.end())

    async def send(self, to: Address, message: Message) -> None:
        send = partial(copy_context().run, self._backend.send, to, message)
        await asyncio.wrap_future(self._threads.here().start(send, in_order=ORDER_KEY in message.headers))

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        threads = self._threads.here()
        request = partial(self._request, to, message, with_slack())
        asked = threads.start(request, in_order=ORDER_KEY in message.headers)
        try:
            return RepliesInThreads(threads, await asyncio.wrap_future(asked))
        except asyncio.CancelledError:
            asked.add_done_callback(_withdrawn)
            raise

    def _request(self, to: Address, message: Message, limit: within) -> Replies:
        with limit:
            return self._backend.request(to, message)

    async def close(self) -> None:
        if threads := self._threads.pop():
            threads.end()
            await asyncio.wrap_future(DaemonThreads(1, "rpc-close").submit(threads.join))


class Threads:
    """Of one event loop."""

    def __init__(self) -> None:
        self._pool = DaemonThreads(MOST, "rpc-client")
        self._in_order = DaemonThreads(1, "rpc-client-in-order")
        """For what must not overtake each other."""
        self.open: set[RepliesInThreads] = set()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done at the end."""

    def start(self, action: Callable[[], T], *, in_order: bool = False) -> Future[T]:
        """Raises Cancelled after the end, and BackendUnavailable if no thread can be had."""
        if self.over.done():
            raise client_closed()
        try:
            return (self._in_order if in_order else self._pool).submit(action)
        except RuntimeError as error:
            raise BackendUnavailable(f"no thread for what waits: {error}") from error

    def end(self) -> None:
        """Nobody waits any more for what runs."""
        for replies in list(self.open):
            replies.close()
        if not self.over.get_loop().is_closed() and not self.over.done():
            self.over.set_result(None)
        self._pool.shutdown(wait=False)
        self._in_order.shutdown(wait=False)

    def join(self) -> None:
        """Wait until the last thread has noticed: what it uses is given back after that."""
        self._pool.shutdown()
        self._in_order.shutdown()


class RepliesInThreads:
    """The way back of one request."""

    def __init__(self, threads: Threads, replies: Replies) -> None:
        self._threads, self._replies = threads, replies
        self._receiving: asyncio.Future[Message] | None = None
        """Goes on when the task that waits for it is cancelled: the next one gets what it got."""
        self._is_closed = False
        threads.open.add(self)

    async def receive(self, timeout: float | None) -> Message:
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            left = SLICE if end is None else min(SLICE, max(0.0, end - loop.time()))
            try:
                return await self._receive(left)
            except (RpcTimeout, BackendUnavailable) as error:
                if self._threads.over.done():
                    raise client_closed() from None
                if self._is_closed or (end is not None and loop.time() >= end):
                    raise
                if isinstance(error, BackendUnavailable):
                    await asyncio.sleep(min(left, 0.1))  # some fail at once

    async def _receive(self, seconds: float) -> Message:
        if self._receiving is None:
            received = self._threads.start(partial(self._replies.receive, seconds))
            self._receiving = asyncio.wrap_future(received)
            self._receiving.add_done_callback(_looked_at)  # else the loop complains if nobody comes for it
        either: list[asyncio.Future[Any]] = [self._receiving, self._threads.over]
        await asyncio.wait(either, timeout=seconds + LATE, return_when=asyncio.FIRST_COMPLETED)
        if not self._receiving.done():
            raise client_closed() if self._threads.over.done() else RpcTimeout
        receiving, self._receiving = self._receiving, None
        return receiving.result()

    def close(self) -> None:
        self._is_closed = True
        if self in self._threads.open:
            self._threads.open.discard(self)
            if self._threads.over.done():  # it was on its way at the end
                Thread(target=self._replies.close, name="rpc-close", daemon=True).start()
            else:
                self._threads.start(self._replies.close)


def _withdrawn(asked: Future[Replies]) -> None:
    if not asked.cancelled() and not asked.exception():
        asked.result().close()


def _looked_at(receiving: asyncio.Future[Message]) -> None:
    if not receiving.cancelled():
        receiving.exception()
