"""`rpc worker --processes`, and `rpc worker` as process 1: one process forks the workers, and minds them.

It has no thread, no connection and none of the user's code: there is nothing in it that a fork could break.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..signals import cause, stop_gently
from .exits import NO_BROKER, WRONG_USE

logger = logging.getLogger(__name__)

PASSED_ON = (signal.SIGTERM, signal.SIGINT)
HEARD = (*PASSED_ON, signal.SIGCHLD)
READY = 0
"""What a worker says, among the numbers of signals: none has this one."""
A_WHILE = 10.0
"""What has lived for so many seconds did not die of its start."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


@dataclass
class Place:
    """Of a worker, and of its successors."""

    pid: int = 0
    since: float = 0.0
    pause: float = 0.0
    """Seconds from the last death to the next birth."""

    def vacate(self, now: float) -> None:
        lived = now - self.since
        longer = min(max(SHORTEST_PAUSE, 2 * self.pause), LONGEST_PAUSE)
        self.pid, self.since, self.pause = 0, now, 0.0 if lived >= A_WHILE else longer


@dataclass(frozen=True)
class Worker:
    """What one of several workers must know of itself; the defaults are those of a single one."""

    number: int = 0
    """Its place, which its successors have, too."""
    is_first: bool = True
    """Whether no worker of this command has been there before."""
    arrived: Callable[[], object] = lambda: None
    """To be called when it has a connection."""


class Supervisor:
    """Runs so many workers, until a signal ends them all; or, before one has served, wrong settings or a
    broker that refuses them. If it `replaces` none, it ends with the first that does, and like it."""

    def __init__(self, count: int, *, replaces: bool = True) -> None:
        self._replaces = replaces
        self._places = [Place() for _ in range(count)]
        self._ear, self._mouth = os.pipe()
        self._end, self._held = os.pipe()  # what this process holds ends with it, if not before
        self._settled = self._stopping = False
        self._code = 0

    def run(self) -> Worker:
        """Returns in the workers alone: the first one starts alone, and the others when it has a connection,
        so that one complains of settings, or of the broker, and not all. Here it ends with SystemExit."""
        os.set_blocking(self._mouth, False)
        signal.set_wakeup_fd(self._mouth)
        for number in HEARD:
            signal.signal(number, lambda *_: None)
        logger.info("supervisor %d of %d workers", os.getpid(), len(self._places))
        while self._pids() or not self._stopping:
            for place in self._vacant():
                if place.since + place.pause <= time.monotonic() and self._fork(place):
                    return Worker(self._places.index(place), not self._settled, self._say_ready)
            self._listen()
            for pid, code in _ended():
                for place in self._places:
                    if place.pid == pid:
                        self._bury(place, code)
        raise SystemExit(self._code)

    def _pids(self) -> list[int]:
        return [place.pid for place in self._places if place.pid]

    def _vacant(self) -> list[Place]:
        """Where a worker starts as soon as its pause is over."""
        wanted = self._places if self._settled else self._places[:1]
        return [] if self._stopping else [place for place in wanted if not place.pid]

    def _fork(self, place: Place) -> bool:
        """Whether this is the new process."""
        place.since = time.monotonic()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)  # it hears them when it can handle them
        try:
            place.pid = os.fork()
        except OSError as error:
            place.vacate(time.monotonic())
            logger.warning("no process to be had, %g s until the next attempt: %s", place.pause, error)
            return False
        else:
            if not place.pid:
                self._become_worker()
            return not place.pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _become_worker(self) -> None:
        os.setsid()  # Ctrl-C in the terminal would reach it twice, and the second signal is final
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in PASSED_ON:
            signal.signal(number, lambda *_: os._exit(0))
        os.close(self._ear)
        os.close(self._held)
        threading.Thread(target=_stop_after, args=[self._end], name="rpc-supervisor", daemon=True).start()

    def _say_ready(self) -> None:
        with suppress(BrokenPipeError):
            os.write(self._mouth, bytes([READY]))
        os.close(self._mouth)

    def _listen(self) -> None:
        """Until there is news, or a pause is over."""
        pauses = [place.since + place.pause - time.monotonic() for place in self._vacant()]
        news = select.select([self._ear], [], [], max(0.0, min(pauses)) if pauses else None)[0]
        for number in os.read(self._ear, 4096) if news else b"":
            if number == READY:
                self._settled = True
            elif number in PASSED_ON:
                self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if not self._stopping:
            self._stopping = True
            os.close(self._held)  # no signal: whoever sent one may have sent it to the workers, too
            return
        self._code = self._code or 128 + number  # as shells have it
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)

    def _bury(self, place: Place, code: int) -> None:
        what = f"worker {place.pid} {cause(code)}"
        place.vacate(time.monotonic())
        if self._stopping:
            if code != -signal.SIGTERM:  # who dies of that had not begun to serve
                self._code = self._code or (code if code >= 0 else 128 - code)
            if code:
                logger.warning(what)
        elif (code in (WRONG_USE, NO_BROKER) and not self._settled) or not self._replaces:
            # it has said why, and another one would say the same
            self._code = code if code >= 0 else 128 - code
            if self._pids():
                logger.error("%s: stopping the others", what)
            self._pass_on(signal.SIGTERM)
        else:
            logger.warning("%s: another one starts in %g s", what, place.pause)


def _ended() -> Iterator[tuple[int, int]]:
    """Pid and exit code, or minus the signal. Of strangers, too, if this is process 1 of a container."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


def _stop_after(supervisor: int) -> None:
    """Nobody ever writes into this pipe: it ends when the supervisor stops, or dies."""
    os.read(supervisor, 1)
    if not stop_gently():  # until it serves there is nothing to finish
        os._exit(0)
