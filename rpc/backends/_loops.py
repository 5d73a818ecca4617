"""Several loops at once, one of them in the calling thread, how to wake one of them, and what event loops
and processes have of their own."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


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
        select.select([self._ear], [], [], seconds)
        self._rung = False
        with suppress(BlockingIOError):
            self._ear.recv(4096)

    def close(self) -> None:
        self._ear.close()
        self._bell.close()


def run_together(loops: Sequence[Callable[[], None]], stop: Callable[[], None]) -> None:
    """Run the first loop here and the others in threads, until all have returned. If one raises, `stop` is
    called so that the others end, and its exception is raised."""
    failures: list[BaseException] = []

    def guarded(loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # raised again below, in the thread that called
            failures.append(error)
            stop()

    threads = [Thread(target=guarded, args=[loop], name="rpc-loop", daemon=True) for loop in loops[1:]]
    for thread in threads:
        thread.start()
    guarded(loops[0])
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Process:
    """The number of this process, without asking the kernel for it."""

    id = os.getpid()


def _forked() -> None:
    process.id = os.getpid()


process = Process()
os.register_at_fork(after_in_child=_forked)


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
