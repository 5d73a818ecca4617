"""Time limits of handlers. A coroutine is interrupted. A function in a thread cannot be: it goes on, but
others are told at its limit."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .core.lifecycle import Overran, shown_as
from .errors import TimeLimitExceeded

LONGEST = 3600.0
"""Seconds, at most, from one look to the next."""


def _text(seconds: float) -> str:
    return f"the job ran longer than {seconds:g} s"


class Limits:
    """Of functions in threads and of coroutines. For any number of threads; those of functions are minded by
    a thread that the first one starts."""

    def __init__(self) -> None:
        self._running: set[_Running] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._next = math.inf
        """When that thread looks, in seconds of the monotonic clock."""
        self._ending = False

    async def awaited(self, call: Callable[[], Coroutine[Any, Any, Any]], seconds: float) -> Any:
        """The result of the coroutine that `call` makes. After so many seconds TimeLimitExceeded is raised in
        it; whatever it does then, Overran is raised here as soon as it has ended."""
        return await _Limited(call(), seconds)

    def called(self, call: Callable[[], Any], seconds: float, late: Callable[[Overran], object]) -> Any:
        """What `call` returns. After so many seconds `late` is called, in another thread; whatever `call`
        does then, Overran is raised here as soon as both have returned."""
        running = _Running(seconds, late)
        with self._lock:
            self._running.add(running)
            if running.due < self._next:
                self._look(running.due)
        try:
            return call()
        finally:
            with self._lock:
                self._running.discard(running)
            if running.teller:
                running.teller.join()
                raise running.error from None

    def end(self) -> None:
        """End the thread, when nothing runs any more. Then it may begin anew."""
        with self._lock:
            thread, self._ending = self._thread, True
            self._changed.notify()
        if thread:
            thread.join()
        self._thread, self._next, self._ending = None, math.inf, False

    def _look(self, when: float) -> None:
        self._next = when
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="rpc-limits", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _watch(self) -> None:
        with self._lock:
            while not self._ending:
                now = time.monotonic()
                for each in [each for each in self._running if each.due <= now]:
                    self._running.discard(each)
                    each.tell()
                self._next = min([each.due for each in self._running], default=math.inf)
                self._changed.wait(min(self._next - now, LONGEST))


class _Running:
    """A function that runs."""

    def __init__(self, seconds: float, late: Callable[[Overran], object]) -> None:
        self.due = time.monotonic() + seconds
        self.error = Overran(_text(seconds))
        self.teller: threading.Thread | None = None
        """Tells that it is late. If it has to wait for the broker, others need not wait for that."""
        self._late = late

    def tell(self) -> None:
        self.teller = threading.Thread(target=self._late, args=[self.error], name="rpc-late", daemon=True)
        self.teller.start()


@shown_as(TimeLimitExceeded)
class _Reached(Overran, asyncio.CancelledError):
    """Raised in a coroutine. Libraries that wait there (task groups, locks) are written for cancellation."""


class _Limited:
    """Awaits a coroutine, and steps in at its limit."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> None:
        self._coroutine, self._seconds = coroutine, seconds
        self._has_passed = self._is_due = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - receivers run coroutines in tasks
        timer = task.get_loop().call_later(self._seconds, self._pass, task)
        try:
            result = yield from self._driven(task)
        except BaseException as error:
            if self._has_passed and not isinstance(error, GeneratorExit):
                raise Overran(_text(self._seconds)) from error
            raise
        finally:
            timer.cancel()
        if self._has_passed:
            raise Overran(_text(self._seconds))
        return result

    def _pass(self, task: asyncio.Task[Any]) -> None:
        self._has_passed = self._is_due = True
        task.cancel()

    def _driven(self, task: asyncio.Task[Any]) -> Generator[Any, Any, Any]:
        """As `yield from`, but what interrupts it at its limit is told apart from other cancellations."""
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            try:
                value, step = (yield awaited), self._coroutine.send
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                value, step = error, self._coroutine.throw
                if self._is_due and isinstance(error, asyncio.CancelledError):
                    self._is_due = False
                    value = self._reached(task) or error

    def _reached(self, task: asyncio.Task[Any]) -> _Reached | None:
        """None if somebody else has cancelled it, too."""
        if sys.version_info >= (3, 11) and task.uncancel() > 0:
            return None
        return _Reached(_text(self._seconds))
