"""What SIGTERM and SIGINT do to a worker."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .threads import is_ready

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AT_LEAST = 1.0
"""Seconds for what else is to end, however long the rest took."""
TOLD = 0
"""What is said to the thread, among the numbers of signals: none has this one."""


@contextmanager
def stopped_by_signals(
    stop: Callable[[], object], hand_back: Callable[[], object], grace: float
) -> Iterator[None]:
    """Until the end of the block a signal calls `stop`, from any thread. If the block has not ended `grace`
    seconds later, `hand_back` is called, and the process ends with 0. The second signal ends it at once.
    If the main thread ends after the block, threads that are left do not keep the process for longer than
    that. Does nothing outside of the main thread, where Python has no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ear = _Ear(stop, hand_back, grace)
    ear.open()
    try:
        yield
    finally:
        ear.close()


def stop_gently() -> bool:
    """Do the same without a signal, from any thread: one that comes after that is the first one. False if no
    such block is entered."""
    with _Ear.lock:
        if ear := _Ear.active:
            ear.tell()
        return ear is not None


def cause(code: int) -> str:
    """What ended a process: its exit code, or minus the number of a signal, in words."""
    names = {-each.value: each.name for each in signal.Signals}
    return f"ended with exit code {code}" if code >= 0 else f"died of {names.get(code, f'signal {-code}')}"


class _Ear:
    """A thread that hears of signals through a pipe, into which the interpreter writes their numbers as they
    come: a handler in Python has to wait until the main thread runs again, which may be blocked for good."""

    active: _Ear | None = None
    lock = threading.Lock()

    def __init__(self, stop: Callable[[], object], hand_back: Callable[[], object], grace: float) -> None:
        self._stop, self._hand_back, self._grace = stop, hand_back, grace

    def open(self) -> None:
        self._told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        threading.Thread(target=self._listen, name="rpc-grace", daemon=True).start()
        self._wakeup_before = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        _Ear.active = self

    def close(self) -> None:
        with _Ear.lock:
            _Ear.active = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._tell)

    def forked(self) -> None:
        """In a child of a handler: it has nothing of this."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._tell)
        os.close(self._told)

    def _handle(self, number: int, frame: object) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # the second one ends the process
        self.tell()  # something else may have set another pipe to wake up by

    def tell(self) -> None:
        os.write(self._tell, bytes([TOLD]))

    def _listen(self) -> None:
        """The pipe is closed when the block has ended; that of a process which was told to stop ends, too."""
        came, end = 0, 0.0
        with open(self._told, "rb", buffering=0) as pipe:
            while is_ready(pipe, select.POLLIN, max(0.0, end - time.monotonic()) if end else None):
                if not (heard := pipe.read(64)):
                    return _end_with_main_thread(end) if end else None
                numbers = [number for number in heard if number in SIGNALS]
                came += len(numbers)
                if came > 1:  # the first one's handler did not get to run
                    os._exit(128 + numbers[-1])
                if not end and (numbers or TOLD in heard):
                    end = time.monotonic() + self._grace
                    logger.info("stopping within %g s; a second signal stops at once", self._grace)
                    self._stop()
        logger.warning("handing back what did not finish within %g s", self._grace)
        try:
            self._hand_back()
        finally:
            logging.shutdown()
            os._exit(0)


def _end_with_main_thread(end: float) -> None:
    """Python waits for threads that are no daemons, and for child processes: what handlers have left behind.
    It does until `end`, but a little at least. Returns if it is the main thread that goes on."""
    end = max(end, time.monotonic() + AT_LEAST)
    main = threading.main_thread()
    while main.is_alive() and not getattr(threading, "_SHUTTING_DOWN", False):  # then it waits for executors
        main.join(0.1)
        if time.monotonic() > end:
            return
    time.sleep(max(0.0, end - time.monotonic()))  # if all is well, the process has ended before that
    left = [f"thread {each.name!r}" for each in threading.enumerate() if not each.daemon and each is not main]
    logger.warning("ending although this still runs: %s", ", ".join(left) or "what is called at the exit")
    logging.shutdown()
    os._exit(0)


class _Fork(threading.local):
    """No signal may come between a fork and the end of what the child has of this."""

    def before(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def after(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def after_in_child(self) -> None:
        if _Ear.active:
            _Ear.active.forked()
            _Ear.active, _Ear.lock = None, threading.Lock()
        self.after()


_fork = _Fork()
os.register_at_fork(before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.after_in_child)
