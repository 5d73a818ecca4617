"""Looking for an answer before going to sleep: to be woken up takes longer than a short handler does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SPIN = 400e-6
"""Seconds that are spent looking for an answer before going to sleep, if the last ones came that fast."""
OVERSLEPT = 120e-6
"""Seconds, about, that it takes to wake up from a short sleep, and to be as fast as before it."""


class Lookout:
    """Looks, if that is likely to be worth it: the oftener it was not, the more answers are waited for
    without. Not for two threads at a time."""

    def __init__(self) -> None:
        self._misses = self._skip = 0
        self._usual = 0.0
        """Seconds after which an answer has come, on the average."""

    def look(self, find: Callable[[], T], *, rested: bool = False) -> T | None:
        """What `find` returns, as soon as that is true, within SPIN seconds; None if it never was, or it was
        not worth it to look. `rested`: sleep through half of the usual time first, as Linux does for fast
        disks (hybrid polling)."""
        if self._skip:
            self._skip -= 1
            return None
        began = time.perf_counter()
        if rested and (nap := self._usual / 2 - OVERSLEPT) > 0:
            time.sleep(nap)
        while not (found := find()):
            if time.perf_counter() - began > SPIN:
                self._misses = min(self._misses + 1, 8)
                self._skip = 2**self._misses
                return None
            os.sched_yield()  # others may have work for this processor
        self._misses = 0
        self._usual += (time.perf_counter() - began - self._usual) / 8
        return found
