"""The part of a delivery that is the same everywhere: how its handler learns that nobody listens any more."""

from __future__ import annotations

from collections.abc import Callable


class Cancellable:
    cancelled = False
    on_cancel: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Tell the handler that nobody listens any more. Any thread."""
        self.cancelled = True
        if self.on_cancel:
            self.on_cancel()
