"""Connections that callers leave to those that come after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..loops import pop_or_none

T = TypeVar("T")


class Idle(Generic[T]):
    """What nobody uses now. Any thread. Once this is closed, whoever gives something back closes it: a thread
    may be at it still."""

    def __init__(self, close: Callable[[T], object]) -> None:
        """`close` ends one of them."""
        self._idle: list[T] = []
        self._close, self._is_closed = close, False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> T | None:
        """The one that was given back last; None if there is none."""
        return pop_or_none(self._idle)

    def give_back(self, it: T) -> None:
        self._idle.append(it)
        if self._is_closed:  # looked at after that: whoever closes it meanwhile finds it
            self.close()

    def close(self) -> None:
        """Idempotent. What is taken after this is used, and not kept."""
        self._is_closed = True
        while it := self.take():
            self._close(it)
