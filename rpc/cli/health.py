"""`rpc health`: whether the loops of the workers go on, for probes; and the file in which they say so.

It has a line of fixed length for each process: its pid, the number of the namespace in which it has that, and
when its loop came round last, in seconds of the monotonic clock, which all processes of a machine share and
nobody sets. Who has ended has a line of zeros.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click

from ..errors import RpcError, SettingsError, shown
from ..loops import started
from ..settings import load_settings
from .options import seconds_option, settings_option

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two signs of life."""
MAX_AGE = 60.0
LINE = "{:>10d} {:>10d} {:>20.3f}\n"
LENGTH = len(LINE.format(0, 0, 0.0))

health_file_option = click.option(
    "--health-file",
    metavar="PATH",
    help="The file in which workers leave signs of life; by default RPC_HEALTH_FILE, else there is none.",
)


class SignsOfLife:
    """Those of one process, whose loop has not come round for the seconds that `stalled` returns."""

    def __init__(self, path: str, number: int, stalled: Callable[[], float]) -> None:
        """`number` is the place of the process among the workers of its command, from 0 on."""
        self._path, self._number, self._stalled = path, number, stalled
        self._fails = self._has_ended = False
        self._writing, self._pid = threading.RLock(), os.getpid()

    def begin(self, *, anew: bool) -> None:
        """Leave them from now on, in a thread, until the process ends; `anew`: forget those of others, which
        have ended. Raises SettingsError if the file cannot be written, Unsupported, and RpcError if there can
        be no thread."""
        try:
            if anew:
                Path(self._path).write_bytes(b"")
            self._leave()
        except OSError as error:
            raise SettingsError(f"the health file cannot be written: {error}") from None
        started(threading.Thread(target=self._run, name="rpc-health", daemon=True))
        atexit.register(self._end)

    def _end(self) -> None:
        """The process ends as it should: it is not to be waited for."""
        if os.getpid() == self._pid:  # not a fork of it
            with self._writing, suppress(OSError):
                self._has_ended = True
                self._write(b"\0" * LENGTH)

    def _run(self) -> None:
        while not self._has_ended:
            time.sleep(EVERY)
            try:
                self._leave()
                self._fails = False
            except OSError as error:
                if not self._fails:
                    logger.warning("the health file cannot be written: %s", error)
                self._fails = True

    def _leave(self) -> None:
        line = LINE.format(self._pid, namespace(), time.monotonic() - self._stalled()).encode()
        with self._writing:
            if not self._has_ended:
                self._write(line)

    def _write(self, line: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, line, self._number * LENGTH)
        finally:
            os.close(file)


@click.command("health")
@health_file_option
@seconds_option(
    "--max-age", default=MAX_AGE, show_default=True, help="How old the last sign of life of a process may be."
)
@settings_option
def command(health_file: str | None, max_age: float, settings: str | None) -> None:
    """Tell by the exit code whether the workers here are alive, for liveness probes: 0 if the loop that takes
    jobs has come round within --max-age seconds, in each process of `rpc worker --health-file PATH`, else 1.
    One that was killed does not count, and while others live, it may be replaced until --max-age is over.

    A worker whose slots are all busy is healthy, and so is one whose broker is away: to restart it would mend
    nothing. With --health-file no settings module is needed.

    \b
    Examples:
      rpc health --health-file /run/shop/rpc --max-age 30
      rpc health --settings shop.rpc_settings
    """
    path = health_file or load_settings(settings).health_file
    if path is None:
        raise SettingsError("there is no health file: give --health-file, or set RPC_HEALTH_FILE")
    now = time.monotonic()
    found = list(_signs(path))
    for pid, _, last in found:
        if last > now + EVERY:
            raise RpcError(f"worker {pid} has left no sign of life in {path} since this machine started")
        if now - last > max_age:
            raise RpcError(f"worker {pid} has given no sign of life for {now - last:.0f} s")
    if not found:
        raise RpcError(f"no worker has left a sign of life in {path}, or all have ended")
    alive = [pid for pid, where, _ in found if not _is_gone(pid, where)]
    if not alive:
        raise RpcError(f"{', '.join(f'worker {pid}' for pid, _, _ in found)}: killed, and not replaced")
    click.echo(f"healthy: {len(alive)} {'worker' if len(alive) == 1 else 'workers'}")


def namespace() -> int:
    """The number of that in which this process and others have their pids; 0 if there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _is_gone(pid: int, where: int) -> bool:
    """Whether there is certainly no such process any more. Of another namespace nobody here can tell."""
    if where != namespace():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def _signs(path: str) -> Iterator[tuple[int, int, float]]:
    """Pid, its namespace and time of each process that has left some; raises RpcError if the file cannot be
    read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RpcError(f"no sign of life can be read: {error}") from None
    for line in (content[at : at + LENGTH] for at in range(0, len(content), LENGTH)):
        if line.strip(b"\0"):  # else its process has not begun yet
            try:
                pid, where, last = line.split()
                yield int(pid), int(where), float(last)
            except ValueError:
                raise RpcError(f"{path} is no health file: {shown(line)}") from None
