"""Threads, event loops and processes: an event loop in a thread of its own, a delay queue, how to start and
to wake a thread, and what threads, event loops and forked processes have of their own."""

from __future__ import annotations

import asyncio
import codecs
import concurrent.futures
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import cached_property, partial
from heapq import heappop, heappush
from itertools import count
from threading import Thread
from typing import Any, Generic, TypeVar

from .errors import RpcError
from .greenlets import new_event_loop, own_running_loop
from .threads import DaemonThreads, is_ready

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 32
"""Threads for what blocks, of an event loop, as asyncio has it."""
ENDING = 1.0
"""Seconds that what still runs has to end, at the end of an event loop."""
MOST_LATER = 10_000
"""Things that wait in a DelayQueue."""


class LoopThread:
    """Started by the first coroutine, and again after a fork. For any number of threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pid = 0

    @property
    def is_running(self) -> bool:
        return self._loop is not None and self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run it there. To cancel the future is to cancel the coroutine. Raises RpcError if there is no loop,
        and no thread for one can be started."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._running())
        except RpcError:
            coroutine.close()
            raise

    def spawn(
        self, coroutine: Coroutine[Any, Any, None], started: Callable[[Callable[[], object]], object]
    ) -> None:
        """Run it there. `started` is called there with what cancels it, from any thread, and does not come
        before its first step. Raises RpcError if there can be no thread for it."""
        loop = self._running()

        def start() -> None:
            task = loop.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            started(partial(_cancel, loop, task))

        loop.call_soon_threadsafe(start)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():  # somebody may have held a parent's lock
            self._pid, self._lock, self._loop = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._loop is None:
                try:
                    loop = new_event_loop()
                except OSError as error:
                    raise RpcError(f"no event loop can be made: {error}") from error
                pool = DaemonThreads(MOST, self._name)
                loop.set_default_executor(pool)
                thread = threading.Thread(target=_serve, args=[loop, pool], name=self._name, daemon=True)
                try:
                    self._thread = started(thread)
                except RpcError:
                    loop.close()
                    raise
                self._loop = loop
            return self._loop

    def close(self) -> None:
        """Cancel what runs, and end the thread. Idempotent; a coroutine starts it again."""
        if not self.is_running:
            return
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            if loop:
                loop.call_soon_threadsafe(loop.stop)
        if thread:
            thread.join()


class RunningLoop(LoopThread):
    """The event loop that runs here, which is somebody else's: it is not ended."""

    def __init__(self) -> None:
        super().__init__("")
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._futures: set[concurrent.futures.Future[Any]] = set()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        future = super().run(coroutine)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def close(self) -> None:
        """Cancel what runs here of ours."""
        for future in [*self._futures]:
            future.cancel()
        for task in [*self._tasks]:
            _cancel(task.get_loop(), task)


def in_contexts(function: Callable[..., T]) -> Callable[..., T]:
    """The function, each call of which runs in a context (`contextvars`) of its own: a copy of the one that
    is current here and now, in whatever thread it is called."""
    origin = copy_context()

    def call(*arguments: Any) -> T:
        return origin.copy().run(function, *arguments)

    return call


async def to_its_end(action: Callable[[], T]) -> T:
    """What it returns, in a thread, or here if there can be none; it is waited for also if that is
    cancelled."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, copy_context().run, action)
    except RuntimeError:
        return action()
    while True:
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled():
                raise


class DelayQueue:
    """Does things after a while, one after the other, in a thread of its own, which the first one starts. For
    any number of threads. What that raises is logged."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        """A heap: when, in seconds of the monotonic clock."""
        self._count = count()
        self._lock = threading.RLock()  # entered by itself: Condition.__enter__ may be interrupted in it
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._ending = False

    def __call__(self, seconds: float, action: Callable[[], None]) -> bool:
        """Do it after so many seconds. False if too much is to be done already, this is the end, or there can
        be no thread for it."""
        with self._lock:
            if self._ending or len(self._due) >= MOST_LATER:
                return False
            if self._thread is None:
                try:
                    self._thread = started(Thread(target=self._run, name=self._name, daemon=True))
                except RpcError:
                    return False
            heappush(self._due, (time.monotonic() + seconds, next(self._count), action))
            self._changed.notify()
            return True

    def end(self) -> None:
        """Forget what is not begun, and wait for what is; then it may begin anew."""
        with self._lock:
            thread, self._ending = self._thread, True
            self._due.clear()
            self._changed.notify()
        if thread:
            thread.join()
        self._thread, self._ending = None, False

    def _run(self) -> None:
        while action := self._next():
            try:
                action()
            except Exception:  # what is due after it is done all the same
                logger.exception("what was to be done later failed")

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            while not self._ending:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heappop(self._due)[2]
                self._changed.wait(left)
        return None


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    with suppress(RuntimeError):  # the loop was closed: it does not run any more
        loop.call_soon_threadsafe(task.cancel)


def _serve(loop: asyncio.AbstractEventLoop, pool: DaemonThreads) -> None:
    with own_running_loop():
        loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))  # what was to be run, but has not begun
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=ENDING))  # one may refuse to be cancelled
        loop.run_until_complete(loop.shutdown_asyncgens())
        pool.shutdown(wait=False)
        pool.join(ENDING)  # one may look up a host, whose name server is away
        loop.close()


class locked_cached_property(cached_property):  # type: ignore[type-arg]
    """A `cached_property` for threads: since Python 3.12 that makes a value for each that comes at once."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self._making = threading.RLock()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        with self._making:
            return super().__get__(instance, owner)


class Alarm:
    """Wakes the thread that waits for it. To ring it takes no lock: a signal handler may, too."""

    def __init__(self) -> None:
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        if not self._rung:
            self._rung = True
            with suppress(OSError):  # it is full, or closed: nobody needs to be woken
                self._bell.send(b"!")

    def wait(self, seconds: float) -> None:
        """Until it is rung, or that time has passed. What led to it must be looked at after that."""
        is_ready(self._ear, select.POLLIN, seconds)
        with suppress(BlockingIOError):
            self._ear.recv(4096)
        self._rung = False  # last: rung before that, nothing is sent, and after it nothing of it is lost

    def fileno(self) -> int:
        """For `select` and `poll`: readable once it is rung."""
        return self._ear.fileno()

    def close(self) -> None:
        self._ear.close()
        self._bell.close()


def pop_or_none(idle: list[T] | deque[T]) -> T | None:
    """The last of a list, or the first of a deque; None if there is none: another thread may be faster."""
    try:
        return idle.popleft() if isinstance(idle, deque) else idle.pop()
    except IndexError:
        return None


def started(thread: Thread) -> Thread:
    """The thread, which runs. Raises RpcError if there can be none."""
    try:
        thread.start()
    except RuntimeError as error:
        raise RpcError(f"no thread can be started: {error}") from error
    return thread


class Process:
    """The number of this process, without asking the kernel for it."""

    id = os.getpid()


def _forked() -> None:
    process.id = os.getpid()


process = Process()
os.register_at_fork(after_in_child=_forked)

codecs.lookup("idna")
"""Each connection is made with it. If a thread imported it for the first one while the process forks, the
child would wait for that thread, which it does not have, for ever."""


class PerLoop(Generic[T]):
    """What each event loop has of its own: made when it is asked for, dropped if its loop was closed, and
    not used after a fork."""

    def __init__(self, make: Callable[[], T], drop: Callable[[T], object] = lambda it: None) -> None:
        self._make, self._drop = make, drop
        self._of: dict[asyncio.AbstractEventLoop, T] = {}
        self._pid = process.id

    def here(self) -> T:
        """What the running loop has."""
        loop = asyncio.get_running_loop()
        found = self._of.get(loop)
        if found is None or self._pid != process.id:
            self._forget_the_gone()
            found = self._of[loop] = self._make()
        return found

    def pop(self) -> T | None:
        """The same, if it has it; not any more, then."""
        self._forget_the_gone()
        return self._of.pop(asyncio.get_running_loop(), None)

    def _forget_the_gone(self) -> None:
        if self._pid != process.id:  # a parent's sockets and threads are not for its children
            self._pid = process.id
            self._of.clear()
        for loop in [loop for loop in list(self._of) if loop.is_closed()]:
            if gone := self._of.pop(loop, None):
                self._drop(gone)
