"""Worker processes that are killed, stopped and replaced."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

from .nursery import Child


class Fleet:
    """So many workers as `size` says, each replaced as soon as it is ended."""

    def __init__(self, spawn: Callable[[], Child], size: int, dice: random.Random) -> None:
        self._spawn, self._dice = spawn, dice
        self.members = [spawn() for _ in range(size)]
        self.deaths: dict[int, float] = {}
        """When the process of this number was killed, or first stopped."""
        self._stopped: dict[Child, float] = {}
        self._ended: dict[int, int] = {}

    def kill(self) -> None:
        """SIGKILL for one of them."""
        number = self._dice.randrange(len(self.members))
        self._bury(number)
        self.members[number] = self._spawn()

    def kill_all(self) -> None:
        """SIGKILL for all, and nobody takes their place; none has the time to get what another had."""
        for child in self.members:
            child.signal(signal.SIGKILL)
            self.deaths.setdefault(child.pid, time.monotonic())
        for child in self.members:
            child.wait()
        self.members.clear()
        self._stopped.clear()

    def ended_by_themselves(self) -> dict[int, int]:
        """The exit codes of those that nobody had killed; of those that were told to leave, what is neither 0
        nor a death by the signal, as of a process that had not begun to serve."""
        ended = {child.pid: code for child in self.members if (code := child.poll()) is not None}
        return {**self._ended, **ended}

    def _bury(self, number: int) -> None:
        child = self.members[number]
        if (code := child.poll()) is not None:
            self._ended[child.pid] = code
        child.kill()
        self.deaths.setdefault(child.pid, time.monotonic())
        self._stopped.pop(child, None)

    def stop(self, seconds: float) -> None:
        """SIGSTOP for one of them, and SIGCONT at the first `wake` after so many seconds. One goes on."""
        going = [child for child in self.members if child not in self._stopped]
        if len(going) > 1:
            child = self._dice.choice(going)
            child.signal(signal.SIGSTOP)
            self.deaths.setdefault(child.pid, time.monotonic())
            self._stopped[child] = time.monotonic() + seconds

    def wake(self, *, everyone: bool = False) -> None:
        """SIGCONT for those whose time has come."""
        for child, due in list(self._stopped.items()):
            if everyone or time.monotonic() >= due:
                child.signal(signal.SIGCONT)
                del self._stopped[child]

    def relieve(self) -> int:
        """SIGTERM for the eldest, which goes on if it was stopped; its exit code, once it has ended. Its
        successor is there before that."""
        self.members.append(self._spawn())
        child = self.members.pop(0)
        child.signal(signal.SIGTERM)
        if self._stopped.pop(child, None):
            child.signal(signal.SIGCONT)
        if (code := child.wait()) not in (0, -signal.SIGTERM):
            self._ended[child.pid] = code
        return code
