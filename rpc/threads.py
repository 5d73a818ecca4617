"""An executor whose threads keep no process from ending, and may be replaced while they wait for others."""

from __future__ import annotations

import concurrent.futures
import logging
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


def is_ready(file: Any, event: int, seconds: float | None) -> bool:
    """Whether a file or socket has this event of `select.poll`, after waiting for it so many seconds at most
    (None: without end). `select.select` knows the first 1,024 descriptors alone."""
    poll = select.poll()
    poll.register(file, event)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class DaemonThreads(concurrent.futures.ThreadPoolExecutor):
    """An executor of at most so many threads. They do not keep the process from ending, and what comes when
    its main thread has ended, or in `atexit`, is done: that of `concurrent.futures` refuses it."""

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, name)
        self._most, self._name, self._submitting = most, name, threading.Lock()
        self._free, self._todo = list[None](), SimpleQueue[_Todo]()
        """One for each thread that waits for something to do; for whoever has the lock. It is no semaphore:
        those are written in Python, and stay locked for good if a signal handler raises at the wrong time."""
        self._started: list[threading.Thread] = []
        self._end = weakref.finalize(self, self._todo.put, None)
        self._end.atexit = False

    def submit(
        self, action: Callable[..., T], /, *arguments: Any, **named: Any
    ) -> concurrent.futures.Future[T]:
        """Raises RuntimeError after `shutdown`, and if no thread can be started."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._put((future, partial(action, *arguments, **named)))
        return future

    def run(self, action: Callable[[], object]) -> None:
        """As `submit`, without a future, which costs more than handing the action over does. What it raises
        is logged."""
        self._put((None, action))

    def _put(self, work: _Work) -> None:
        with self._submitting:
            if not self._end.alive:
                raise RuntimeError(f"the threads {self._name} were shut down")
            if self._free:
                self._free.pop()
            elif len(self._started) < self._most:
                self._start()
            self._todo.put(work)

    def _start(self) -> None:
        work = self._todo, self._free, self._submitting, weakref.ref(self)
        name = f"{self._name}_{len(self._started)}"
        thread = threading.Thread(target=_work_off, args=work, name=name, daemon=True)
        self._started.append(thread)  # first: whoever is interrupted once it runs could not say so any more
        try:
            thread.start()
        except RuntimeError:
            self._started.remove(thread)
            raise

    def one_more(self) -> None:
        """One of its threads waits for others: another one may take its place."""
        with self._submitting:
            self._most += 1
            if self._end.alive and not self._todo.empty() and len(self._started) < self._most:
                self._start()

    def one_less(self) -> None:
        """It goes on."""
        with self._submitting:
            self._most -= 1

    def join(self, seconds: float | None = None) -> None:
        """Wait until the threads have ended, after `shutdown`; for so many seconds at most."""
        until = None if seconds is None else time.monotonic() + seconds
        for thread in self._started:
            if thread.ident is not None:  # else whoever started it was interrupted before that
                thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end as soon as there is nothing to do."""
        with self._submitting:
            while cancel_futures and not self._todo.empty():
                with suppress(Empty):
                    if (work := self._todo.get_nowait()) and work[0]:
                        work[0].cancel()
            self._end.detach()
            self._todo.put(None)
        if wait:
            self.join()


_Work = tuple["concurrent.futures.Future[Any] | None", Callable[[], Any]]
_Todo = _Work | None
"""None: it is the end, for whoever gets it and all others."""


_here = threading.local()
_AS_IT_IS = nullcontext()


@contextmanager
def _replaced(pool: DaemonThreads) -> Iterator[None]:
    pool.one_more()
    try:
        yield
    finally:
        pool.one_less()


def blocked() -> AbstractContextManager[None]:
    """Around what waits for others. If this is one of the few threads of DaemonThreads, what it waits for may
    need one, too: there may be one more meanwhile."""
    find = getattr(_here, "pool", None)
    pool = find() if find else None
    return _replaced(pool) if pool else _AS_IT_IS


def _work_off(
    todo: SimpleQueue[_Todo],
    free: list[None],
    submitting: threading.Lock,
    pool: weakref.ref[DaemonThreads],
) -> None:
    _here.pool = pool
    while (work := _next(todo, free, submitting)) is not None:
        future, action = work
        if future is None:
            try:
                action()
            except BaseException:  # the thread goes on, as it does after what has a future
                logger.exception("%r failed", action)
        elif future.set_running_or_notify_cancel():
            try:
                future.set_result(action())
            except BaseException as error:  # it is raised where somebody waits
                future.set_exception(error)
        del work, future, action  # which are not to live until there is more to do
    todo.put(None)


def _next(todo: SimpleQueue[_Todo], free: list[None], submitting: threading.Lock) -> _Todo:
    """What is to be done; the thread counts as free while it waits for that, and not a moment longer."""
    with submitting:
        try:
            return todo.get_nowait()
        except Empty:
            free.append(None)
    return todo.get()
