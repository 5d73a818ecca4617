"""A backend that is written for event loops, for callers in threads: it runs in one loop, in a thread of its
own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from ..errors import BackendUnavailable, RpcError, client_closed, shown
from ..loops import LoopThread
from ..transport import Address, AsyncBackend, AsyncReplies, Message

T = TypeVar("T")


class InLoop:
    """Sends and requests for any number of threads; the first one starts the loop."""

    def __init__(self, backend: AsyncBackend, name: str) -> None:
        """`name` is that of the thread."""
        self._backend, self._loop = backend, LoopThread(name)

    def send(self, to: Address, message: Message) -> None:
        self.run(self._backend.send(to, message))

    def request(self, to: Address, message: Message) -> LoopReplies:
        return LoopReplies(self, self.run(self._backend.request(to, message)))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What it returns, in the loop. Whoever is interrupted meanwhile cancels it."""
        future = self.start(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise client_closed() from None
        finally:
            future.cancel()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Its future. Raises BackendUnavailable if there can be no thread for it."""
        try:
            return self._loop.run(coroutine)
        except RpcError as error:
            raise BackendUnavailable(shown(error)) from error

    def close(self) -> None:
        """Give back the connections, and end the thread."""
        if self._loop.is_running:
            self.run(self._backend.close())
            self._loop.close()


class LoopReplies:
    """`transport.Replies` for a thread."""

    def __init__(self, loop: InLoop, replies: AsyncReplies) -> None:
        self._loop, self._replies = loop, replies

    def receive(self, timeout: float | None) -> Message:
        return self._loop.run(self._replies.receive(timeout))

    def close(self) -> None:
        self._loop.start(self._close())

    async def _close(self) -> None:
        self._replies.close()
        await asyncio.sleep(0)
