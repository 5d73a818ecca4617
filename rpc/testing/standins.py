"""What clients have instead of a backend inside a `patch`: calls, streams and events are answered where they
are made, and all else is refused, so that a test asks no broker without knowing it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn, Protocol

from ..aio import AsyncRpcClient
from ..backends import asynchronous
from ..caller import Caller
from ..core.streams import is_stream
from ..errors import RpcTimeout, Unsupported
from ..http_peers import AsyncHttpPeer, HttpPeer
from ..job_info import Inspector
from ..logs import LogSender
from ..registry.lookup import Lookup
from ..submits import Submits
from ..transport import Address, AsyncBackend, AsyncReplies, Message, Replies


class Answers(Protocol):
    """What a patch does with messages."""

    def answer(self, to: Address, message: Message) -> Iterable[Message]:
        """The replies."""

    def stream(self, to: Address, message: Message, put: Callable[[Message], object]) -> InHand:
        """Begin a stream. `put` is given its replies, from any thread."""


class InHand:
    """A `Delivery` of a message that is handled where it is sent."""

    caller: str | None = None
    cancelled = False
    on_cancel: Callable[[], object] | None = None
    error: BaseException | None = None

    def __init__(self, to: Address, message: Message, put: Callable[[Message], object]) -> None:
        self.to, self.message, self._put = to, message, put

    def reply(self, message: Message) -> bool:
        self._put(message)
        return not self.cancelled

    def finish(self, last: Message | None) -> None:
        if last is not None:
            self._put(last)

    def leave(self) -> None:
        """Nobody listens any more."""
        self.cancelled = True
        if self.on_cancel:
            self.on_cancel()

    def forbid_redelivery(self) -> None:
        """Nothing is delivered again."""

    def postpone(self, seconds: float, message: Message) -> None:
        raise Unsupported("nothing is tried again here")

    def bury(self, why: str, last: Message | None) -> None:
        raise Unsupported("there are no dead letters here")


class _Replies:
    """Those that are there already: there will be no other ones."""

    def __init__(self, replies: Iterable[Message]) -> None:
        self._replies = deque(replies)

    def receive(self, timeout: float | None) -> Message:
        if not self._replies:
            raise RpcTimeout
        return self._replies.popleft()

    def close(self) -> None:
        """Nothing to do."""


class _AsyncReplies(_Replies):
    async def receive(self, timeout: float | None) -> Message:  # type: ignore[override]
        return super().receive(timeout)


class _StreamReplies:
    def __init__(self, answers: Answers, to: Address, message: Message) -> None:
        self._loop, self._came = asyncio.get_running_loop(), asyncio.Queue[Message]()
        self._delivery = answers.stream(to, message, self._put)

    def _put(self, reply: Message) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._came.put_nowait, reply)

    async def receive(self, timeout: float | None) -> Message:
        try:
            return await asyncio.wait_for(self._came.get(), timeout)
        except asyncio.TimeoutError:
            raise RpcTimeout from None

    def close(self) -> None:
        self._delivery.leave()


class _Refusing:
    """What both kinds have."""

    def __init__(self, answers: Answers, real: Any) -> None:
        self.answers, self.real = answers, real

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not callable(found) or name == "close":
            return found

        def refuse(*_: object, **__: object) -> NoReturn:
            raise Unsupported(
                f"not patched: {name}() of {type(self.real).__name__}; calls and streams are answered, "
                "events noted, and no broker is asked: for all else, test on a backend of memory://"
            )

        return refuse


class StandIn(_Refusing):
    """A backend that carries no messages."""

    def send(self, to: Address, message: Message) -> None:
        self.answers.answer(to, message)

    def request(self, to: Address, message: Message) -> Replies:
        return _Replies(self.answers.answer(to, message))

    def asynchronous(self) -> AsyncBackend:
        return asynchronous(self.real)


class AsyncStandIn(_Refusing):
    """The same for callers in event loops."""

    async def send(self, to: Address, message: Message) -> None:
        self.answers.answer(to, message)

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        if is_stream(message.headers):
            return _StreamReplies(self.answers, to, message)
        return _AsyncReplies(self.answers.answer(to, message))


PLACES: tuple[tuple[type, str, type[_Refusing]], ...] = (
    (Caller, "backend", StandIn),
    (AsyncRpcClient, "_async", AsyncStandIn),
    (Submits, "backend", AsyncStandIn),
    (Inspector, "_backend", StandIn),
    (Inspector, "_store", StandIn),
    (Lookup, "_backend", StandIn),
    (LogSender, "_backend", StandIn),
    (HttpPeer, "_backend", StandIn),
    (AsyncHttpPeer, "_backend", StandIn),
    (AsyncHttpPeer, "_async", AsyncStandIn),
)
"""Where clients have their backends."""


class Instead:
    """An attribute of a class: what its objects have under this name is kept, but a stand-in is read."""

    def __init__(self, answers: Any, name: str, stand_in: Callable[[Any, Any], Any]) -> None:
        self.answers, self._name, self._stand_in = answers, name, stand_in

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        real = vars(instance)[self._name]
        return None if real is None else self._stand_in(self.answers, real)

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value.real if isinstance(value, _Refusing) else value
