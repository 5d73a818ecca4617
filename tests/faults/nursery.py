"""Processes by the hundred: a process that has everything imported, and forks a child whenever it is told to.

A child stays a zombie until its end is asked for, so that its number cannot become another process's while
somebody still means to send it a signal. If the nursery ends, however it ends, its children do.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PR_SET_PDEATHSIG = 1
PATIENCE = 20.0


class Child:
    """A process that the nursery has forked."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self._status: int | None = None

    def signal(self, number: signal.Signals) -> None:
        if self._status is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        if self._status is None:
            self._status = self._nursery.ask({"reap": self.pid})
        return self._status

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        end = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < end, f"process {self.pid} did not end"
            time.sleep(0.002)
        return status

    def kill(self) -> None:
        """End it with SIGKILL, also if it is stopped; and see that it has ended."""
        self.signal(signal.SIGKILL)
        self.wait()

    def sizes(self) -> tuple[int, int, int]:
        """Its memory in MB, its open files and its threads, as Linux counts them."""
        status = Path(f"/proc/{self.pid}/status").read_text().split("\n")
        known = dict(line.split(":", 1) for line in status if line)
        files = len(os.listdir(f"/proc/{self.pid}/fd"))
        return int(known["VmRSS"].split()[0]) >> 10, files, int(known["Threads"])


class Nursery:
    """The parent's end. Safe to share between threads."""

    def __init__(self, before: Sequence[str] = ()) -> None:
        """`before` goes before the command, as in `ip netns exec x`."""
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def spawn(self, program: str, log: Path, **arguments: Any) -> Child:
        """A child that runs a function of `programs`. What it prints and logs goes to `log`."""
        return Child(self, self.ask({"spawn": program, "log": str(log), "arguments": arguments}))

    def ask(self, command: dict[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:
            pass  # its input ends, and so does it


def main() -> None:
    """The nursery's own end: read commands, and answer them."""
    from . import programs  # once, for all the children

    children: set[int] = set()
    try:
        while line := sys.stdin.readline():
            command = json.loads(line)
            if "spawn" in command:
                run = getattr(programs, command["spawn"])
                child = _fork(run, command["log"], command["arguments"])
                children.add(child)
                answer: int | None = child
            else:
                answer = _reaped(command["reap"])
                if answer is not None:
                    children.discard(command["reap"])
            print(json.dumps(answer), flush=True)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _reaped(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _fork(run: Any, log: str, arguments: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _settle_in(parent, log)
        run(**arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _settle_in(parent: int, log: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it was too late to be told
    os.setsid()  # Ctrl-C in the terminal is for the tests
    nothing, output = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
    )
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.WARNING, format=f"{os.getpid()} %(asctime)s %(message)s")


if __name__ == "__main__":
    main()
