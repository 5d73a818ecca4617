"""A handler under control: in a process of its own, or with an alarm set."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...errors import Interrupted

logger = logging.getLogger(__name__)


class Child:
    """A forked process that runs an action and ends. It does not outlive this one. If it is killed, dies, or
    the action returns True, what it has started (its process group) ends with it.

    Each of the two holds the writing end of a pipe and says nothing: its end is the news.
    """

    def __init__(self, action: Callable[[], bool]) -> None:
        self._alive, held = os.pipe()
        parent, self._holds = os.pipe()
        _flush()  # what is buffered now would be written by both
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the other threads here only wait
            self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.close(self._alive)
            os.close(self._holds)
            threading.Thread(target=_exit_with, args=[parent], daemon=True).start()
            os._exit(_run(action))
        with suppress(OSError):  # it was faster, or has ended
            os.setpgid(self.pid, self.pid)
        os.close(held)
        os.close(parent)

    def wait(self, seconds: float) -> int | None:
        """Its wait status once it has ended; None if it goes on for so many seconds."""
        select.select([self._alive], [], [], seconds)
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if not ended:
            return None
        os.close(self._alive)
        os.close(self._holds)
        if status:
            self.kill()
        return status

    def kill(self) -> None:
        """Send SIGKILL to it, and to what it has started; `wait` then tells when it has ended."""
        with suppress(ProcessLookupError):  # nothing is left
            os.killpg(self.pid, signal.SIGKILL)


def _run(action: Callable[[], bool]) -> int:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent decides; its group may get it too
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = int(action())
    except BaseException:  # nothing may leave: above are the frames of the parent
        logger.exception("a child process failed")
    _flush()
    return code


def _flush() -> None:
    for stream in sys.stdout, sys.stderr:
        with suppress(Exception):  # it may be None, closed, or anything
            stream.flush()


def _exit_with(parent: int) -> None:
    """End this process, and its group, when the one that holds the other end of the pipe has ended."""
    os.read(parent, 1)
    os.killpg(0, signal.SIGKILL)


@contextmanager
def interrupted_after(seconds: float | None) -> Iterator[list[float]]:
    """Raise Interrupted in the body after so many seconds, where a signal can do that: in the main thread.
    What it gets is not empty once that has been done."""
    done: list[float] = []
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield done
        return

    def interrupt(*_: Any) -> None:
        done.append(seconds)
        raise Interrupted(f"the job ran longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield done
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
