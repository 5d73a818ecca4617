"""The asynchronous side of a backend, as a blocking one: so that the one suite tests both."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from ..backends import asynchronous
from ..loops import LoopThread
from ..transport import Address, AsyncReplies, Backend, Message

T = TypeVar("T")


class Portal:
    """A Backend whose callers go through the asynchronous side of another one, in a loop of its own; all else
    is that backend's."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._asynchronous = backend, asynchronous(backend)
        self._loop = LoopThread("portal")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def send(self, to: Address, message: Message) -> None:
        self.run(self._asynchronous.send(to, message))

    def request(self, to: Address, message: Message) -> PortalReplies:
        return PortalReplies(self, self.run(self._asynchronous.request(to, message)))

    def close(self) -> None:
        if self._loop.is_running:
            self.run(self._asynchronous.close())
        self._loop.close()
        self._backend.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(coroutine).result()


class PortalReplies:
    """The way back of one request."""

    def __init__(self, portal: Portal, replies: AsyncReplies) -> None:
        self._portal, self._replies = portal, replies

    def receive(self, timeout: float | None) -> Message:
        return self._portal.run(self._replies.receive(timeout))

    def close(self) -> None:
        async def close() -> None:
            self._replies.close()

        self._portal.run(close())
