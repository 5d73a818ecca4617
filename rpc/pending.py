"""What a caller waits for: a response, or a stream to begin; and how far a job is meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .caller import Caller, Key, ordered
from .core.conversation import Conversation, decode_progress
from .core.jobs import Progress
from .core.parameters import result_conversion
from .core.streams import PROGRESS, PROGRESSED
from .errors import QueueFull
from .transport import STREAM, Message

F = TypeVar("F")

OnProgress = Callable[[Progress], object]
"""Is called with how far a job is, in the thread, or task, that waits."""


class PendingCall(Conversation):
    """A call that may take so many seconds from now, however often a queue has no room for it."""

    __slots__ = ("_on_progress", "_what", "caller")

    def __init__(
        self,
        caller: Caller,
        name: str,
        data: Any,
        timeout: float | None,
        idempotency_key: Key | None,
        headers: Mapping[str, str] | None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
        order_key: Key | None = None,
    ) -> None:
        """`returns` is an annotation for the result. Raises ValueError, SerializationError."""
        wanted, own = None if returns is None else result_conversion(returns), ordered(headers, order_key)
        self.caller, self._on_progress = caller, on_progress
        self._what = data, idempotency_key, {**own, PROGRESS: "1"} if on_progress else own
        request = self._message(name, timeout)
        super().__init__(request, name, timeout, time.monotonic(), caller.accepted, wanted)

    def told(self, reply: Message) -> None:
        """What came before the response: how far the job is."""
        if self._on_progress and reply.headers[STREAM] == PROGRESSED:
            self._on_progress(decode_progress(reply, self.accepted))

    def pause(self, attempt: int, refused: QueueFull) -> float:
        """A Pause. After it this is asked as another message: with an id of its own, and the time left."""
        end = math.inf if self._deadline is None else self._deadline
        pause = self.caller._pause(end, attempt, refused)
        left = None if self._deadline is None else self._deadline - time.monotonic() - pause
        self.request = self._message(self.name, left)
        return pause

    def _message(self, name: str, left: float | None) -> Message:
        data, key, headers = self._what
        ttl = None if left is None else max(0.0, left)
        return self.caller._message(name, data, ttl, key, headers, replies=True)


class PendingStream(Conversation):
    """A stream, which is to begin within so many seconds from now."""

    __slots__ = ("_each", "caller", "writing")

    def __init__(
        self,
        caller: Caller,
        name: str,
        data: Any,
        timeout: float | None,
        headers: Mapping[str, str],
        returns: Any,
    ) -> None:
        """`headers` are those of the stream and of the call, `returns` is an annotation for its items. Raises
        ValueError, SerializationError."""
        self.caller, self.writing = caller, caller.writing
        self._each = None if returns is None else result_conversion(returns)
        message = caller._message(name, data, None, None, headers, replies=True)
        super().__init__(message, name, timeout, time.monotonic(), caller.accepted)

    def pause(self, attempt: int, refused: QueueFull) -> float:
        """A Pause."""
        return self.caller._pause(math.inf if self._deadline is None else self._deadline, attempt, refused)

    def item(self, item: Any) -> Any:
        """One that has come, as it is wanted. Raises SerializationError."""
        return self._converted(item, self._each, "an item") if self._each else item


class Told:
    """What is called with how far a submitted job is: it leaves that at the future."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._future: Any = None
        self._last: Progress | None = None

    def by(self, future: F) -> F:
        """The future."""
        self._future = future
        self._future.progress = self._last
        return future

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        if self._future:
            self._future.progress = progress
        if self._on_progress:
            self._on_progress(progress)
