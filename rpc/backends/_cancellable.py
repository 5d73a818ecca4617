"""The part of a delivery that is the same everywhere: how its handler learns that nobody listens any more,
and the answer of backends that cannot do everything."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Unsupported
from ..message import Message


class Cancellable:
    cancelled = False
    on_cancel: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Tell the handler that nobody listens any more. Any thread."""
        self.cancelled = True
        if self.on_cancel:
            self.on_cancel()

    def postpone(self, seconds: float, message: Message) -> None:
        raise Unsupported("this backend has no feature 'delay'; redis: and memory: have it")

    def bury(self, why: str, last: Message | None) -> None:
        raise Unsupported("this backend has no feature 'dead-letters'; redis: and memory: have it")
