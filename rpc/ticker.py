"""What calls the functions that tick: a thread for each, and one that keeps the locks of singletons."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any, cast
from uuid import uuid4

from .backends.features import unsupported
from .core.lifecycle import blamed
from .core.middleware import ContextFactory
from .errors import RpcError
from .loops import in_contexts, started
from .timers import Ticking
from .transport import Backend, Locks

logger = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds that a singleton's lock outlives its owner, if nobody says."""
RENEWALS = 3
"""In the time of a lease."""
LONGEST = 60.0
"""Seconds until the clock is looked at again, in case it was set."""
SET_BACK = 3600.0
"""Seconds by which a clock is set back for the schedule to begin anew; if it is less, what has ticked does
not tick again."""


class Ticker:
    """For the timers of one receiver. `run` runs coroutines; `stopped` says that nothing more may begin;
    each tick runs in a `context`. Raises Unsupported if one is a singleton, and the backend has no locks."""

    def __init__(
        self,
        ticking: Sequence[Ticking],
        backend: Backend,
        *,
        lease: float | None,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        stopped: Callable[[], bool],
        context: ContextFactory = nullcontext,
    ) -> None:
        self._context = context
        self.ticking, self._lease, self._run, self._stopped = ticking, lease or LEASE, run, stopped
        singletons = [each.name for each in ticking if each.timer.singleton]
        if singletons and "locks" not in backend.features:
            raise unsupported("locks", f"the singleton {', '.join(singletons)} needs locks, but this backend")
        self._locks, self._owner = cast("Locks", backend), uuid4().hex
        self._held: set[str] = set()
        self._changing = threading.Lock()
        """Held to get a lock, and to give it back: what was given back is not kept."""
        self._ended, self._done = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._keepers: list[threading.Thread] = []

    def start(self) -> None:
        self._ended.clear()
        self._done.clear()
        tick = in_contexts(self._tick)
        self._threads = [
            _thread(f"rpc-timer {each.name}", self._tick_on, each, tick) for each in self.ticking
        ]
        self._keepers = []
        if any(each.timer.singleton for each in self.ticking):
            self._keepers.append(_thread("rpc-timer-locks", self._keep))
        for thread in self._threads + self._keepers:
            started(thread)

    def end(self) -> None:
        """Wait for the ticks that run."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._done.set()  # a lock is kept until its tick has ended
        for thread in self._keepers:
            thread.join()

    def _tick_on(self, ticking: Ticking, tick: Callable[[Ticking], None]) -> None:
        schedule, singleton = ticking.timer.schedule, ticking.timer.singleton
        longest = min(LONGEST, self._lease / RENEWALS) if singleton else LONGEST
        now = schedule.clock()
        due = schedule.after(now, now)
        while not self._ended.is_set() and not self._stopped():
            before, now = now, schedule.clock()
            if now < before - SET_BACK:
                due = schedule.after(now, now)
            if due > now:
                self._ended.wait(min(due - now, longest))
                continue
            if not singleton or self._has_lock(ticking.name):
                tick(ticking)
            due = schedule.after(due, schedule.clock())
        self._give_back(ticking.name)

    def _tick(self, ticking: Ticking) -> None:
        try:
            with self._context():
                result = ticking.handler()
                if inspect.iscoroutine(result):
                    self._run(result)
        except BaseException as error:  # as handlers, what ticks may raise anything
            trace = blamed(error.__traceback__)
            logger.error("timer %s failed", ticking.name, exc_info=error.with_traceback(trace))

    def _has_lock(self, name: str) -> bool:
        with self._changing:
            return self._acquired(name)

    def _acquired(self, name: str) -> bool:
        try:
            has = self._locks.acquire(f"timer.{name}", self._owner, self._lease)
        except RpcError as error:
            logger.warning("timer %s does not tick: %s", name, error)
            return False
        if has:
            self._held.add(name)
        else:
            self._held.discard(name)
        return has

    def _give_back(self, name: str) -> None:
        """At once, so that another worker ticks while jobs still run here."""
        with self._changing:
            if name not in self._held:
                return
            self._held.discard(name)
            try:
                self._locks.release(f"timer.{name}", self._owner)
            except RpcError as error:
                logger.warning("the lock of timer %s is not given back, it expires: %s", name, error)

    def _keep(self) -> None:
        """Whoever had it last has it next, for as long as it lives."""
        while not self._done.wait(self._lease / RENEWALS):
            for name in [*self._held]:
                with self._changing:
                    if name in self._held:
                        self._acquired(name)


def _thread(name: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
    return threading.Thread(target=target, args=arguments, name=name, daemon=True)
