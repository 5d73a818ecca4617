"""Between a thread that hears events and those who take them: what has come and is not taken yet."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import wait
from threading import Condition, RLock
from typing import Any

from ..core.events import Event
from ..core.handling import HandedBack
from ..errors import Cancelled, SubscriberLagged
from ..loops import RunningLoop

LOOKED_AT = 1.0
"""Seconds after which it is looked whether the event loop of a callback is still there."""


class _Held:
    """An event that somebody waits to be done."""

    def __init__(self, event: Event) -> None:
        self.event = event
        self.is_done: bool | None = None
        """False: it goes back."""


class Arrivals:
    """For any threads. At most `most` events wait; if there are more, the oldest are missed, and whoever
    takes is told. `changed` is called, from any thread, when there is something new."""

    def __init__(
        self, most: int, changed: Callable[[], object] = lambda: None, *, has_past: bool = False
    ) -> None:
        """`has_past`: `begin_with` will be called."""
        self._most, self._changed, self._lock = most, changed, RLock()
        self._come = Condition(self._lock)
        self._waiting: deque[Event | _Held] = deque()
        self._past: deque[Event] = deque()
        self._seen: set[str] = set()
        """Ids of what is in the past: it may come once more."""
        self._dropped: set[str] | None = set() if has_past else None
        """Ids of what was missed before the past was read, which may have it."""
        self._in_hand: _Held | None = None
        self._missed: int | None = 0
        """Since it was told last; None: nobody knows."""
        self._end: BaseException | None = None
        self.missed = 0
        """In all, as far as it is known."""

    def put(self, event: Event) -> None:
        """It has come. Does not wait."""
        with self._lock:
            if event.id in self._seen:
                self._seen.discard(event.id)
                return
            self._waiting.append(event)
            if len(self._waiting) > self._most:
                dropped = self._waiting.popleft()
                self._count(1)
                if self._dropped is not None and isinstance(dropped, Event):
                    self._dropped.add(dropped.id)
        self._tell()

    def _count(self, missed: int) -> None:
        self.missed += missed
        self._missed = None if self._missed is None else self._missed + missed

    def hold(self, event: Event) -> None:
        """It has come: wait until it was taken, and done. Raises HandedBack if it is not to be."""
        held = _Held(event)
        with self._lock:
            if self._end is None:
                self._waiting.append(held)
        self._tell()
        with self._lock:
            self._come.wait_for(lambda: held.is_done is not None or self._end is not None)
            if not held.is_done:
                raise HandedBack

    def begin_with(self, past: Iterable[Event]) -> None:
        """Events that come first, some of which may have come already."""
        with self._lock:
            self._past.extend(past)
            self._seen = {each.id for each in self._past}
            already = {each.id for each in self._waiting if isinstance(each, Event)} & self._seen
            self._waiting = deque(
                each for each in self._waiting if isinstance(each, _Held) or each.id not in already
            )
            dropped, self._dropped = self._dropped or set(), None
            self._count(-len(dropped & self._seen))
            self._seen -= already | dropped

    def lose(self) -> None:
        """Nobody knows how many were missed."""
        with self._lock:
            self._missed = None
        self._tell()

    def end(self, reason: BaseException | None = None, *, done: bool = False) -> None:
        """Nothing is taken any more: whoever tries gets this error. What is in hand is done, or goes back."""
        with self._lock:
            self._done(done)
            self._end = self._end or reason or Cancelled("the subscription is closed")
            self._waiting.clear()
            self._past.clear()
        self._tell()

    def wait(self, timeout: float | None) -> Event | None:
        """As `take`, but waits for so many seconds (None: without end)."""
        with self._lock:
            self._done(True)
            self._come.wait_for(self._has_some, timeout)
            return self.take()

    def take(self) -> Event | None:
        """The next one, if there is one: what was taken before is done then. Raises SubscriberLagged if some
        were missed before it; and after the end, what that was."""
        with self._lock:
            self._done(True)
            if self._end is not None:
                raise self._end
            if self._past and self._missed is not None:
                return self._past.popleft()
            if self._missed != 0:
                missed, self._missed = self._missed, 0
                raise SubscriberLagged(missed=missed)
            if not self._waiting:
                return None
            next_one = self._waiting.popleft()
            if isinstance(next_one, Event):
                return next_one
            self._in_hand = next_one
            return next_one.event

    def _has_some(self) -> bool:
        return bool(self._waiting or self._past or self._missed != 0 or self._end is not None)

    def _done(self, is_done: bool) -> None:
        held, self._in_hand = self._in_hand, None
        if held:
            held.is_done = is_done
            self._come.notify_all()

    def _tell(self) -> None:
        with self._lock:
            self._come.notify_all()
        self._changed()


def running_here() -> Callable[[Any], Any]:
    """Runs a coroutine in the event loop that runs here; called in other threads. Raises HandedBack if the
    loop ends before the coroutine does."""
    loop, running = asyncio.get_running_loop(), RunningLoop()

    def run(coroutine: Coroutine[Any, Any, Any]) -> None:
        ending = _to_its_end(coroutine)
        try:
            future = running.run(ending)
        except RuntimeError:  # the loop was closed
            ending.close()
            coroutine.close()
            raise HandedBack from None
        while not wait([future], LOOKED_AT).done:
            if loop.is_closed():
                raise HandedBack
        if not future.result():
            raise HandedBack

    return run


async def _to_its_end(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Whether it came to its end, and was not cancelled with its event loop, from outside."""
    try:
        await coroutine
    except asyncio.CancelledError:
        task: Any = asyncio.current_task()
        if sys.version_info >= (3, 11) and task.cancelling():
            return False
        raise
    return True
