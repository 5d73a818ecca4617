"""The asynchronous side of a backend, as a blocking one: so that the one suite tests both."""

from __future__ import annotations

from typing import Any

from ..backends import asynchronous
from ..backends._in_loop import InLoop
from ..transport import Backend


class Portal(InLoop):
    """A Backend whose callers go through the asynchronous side of another one, in a loop of its own; all else
    is that backend's."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(asynchronous(backend), "portal")
        self._whole = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def close(self) -> None:
        super().close()
        self._whole.close()
