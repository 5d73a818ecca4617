"""An event loop in a thread of its own, for whoever is none itself; a thread for what is done later; and what
threads share is made once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Coroutine
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Started by the first coroutine, and again after a fork. For any number of threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def is_running(self) -> bool:
        return self._loop is not None and self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run it there. To cancel the future is to cancel the coroutine."""
        if self._pid != os.getpid():  # somebody may have held a parent's lock
            self._pid, self._lock, self._loop = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=[self._loop], name=self._name, daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

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


class Later:
    """Does things after a while, one after the other, in a thread of its own, which the first one starts. For
    any number of threads. What is to be done raises nothing."""

    def __init__(self, name: str, *, most: int = 10_000) -> None:
        """At most so many things wait."""
        self._name, self._most = name, most
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        """A heap: when, in seconds of the monotonic clock."""
        self._count = count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = False

    def __call__(self, seconds: float, action: Callable[[], None]) -> bool:
        """Do it after so many seconds. False if too much is to be done already, or this is the end."""
        with self._changed:
            if self._ending or len(self._due) >= self._most:
                return False
            heappush(self._due, (time.monotonic() + seconds, next(self._count), action))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()
            return True

    def end(self) -> None:
        """Forget what is not begun, and wait for what is; then it may begin anew."""
        with self._changed:
            thread, self._ending = self._thread, True
            self._due.clear()
            self._changed.notify()
        if thread:
            thread.join()
        self._thread, self._ending = None, False

    def _run(self) -> None:
        while action := self._next():
            action()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._ending:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heappop(self._due)[2]
                self._changed.wait(left)
        return None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0))  # what was to be run, but has not begun
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=1))  # one may refuse to be cancelled
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


class made_once(cached_property):  # type: ignore[type-arg]
    """A `cached_property` for threads: since Python 3.12 that makes a value for each that comes at once."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self._making = threading.RLock()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        with self._making:
            return super().__get__(instance, owner)
