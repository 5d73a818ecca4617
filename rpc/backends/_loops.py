"""Several loops at once, one of them in the calling thread, and how to wake one of them."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread


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
