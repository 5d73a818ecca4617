"""What only a machine's owner can take away: memory, disk, the network. Where that is not allowed, a test
is skipped."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


def _run(*command: str | Path) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"needs the command {command[0]}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to {command[0]}: {error.stderr.strip()}")


@contextmanager
def small_disk(where: Path) -> Iterator[Callable[[str], None]]:
    """A disk of 4 MB; gives what changes its size."""
    where.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "size=4m", "none", where)
    try:
        yield lambda size: _run("mount", "-o", f"remount,size={size}", where)
    finally:
        _run("umount", "--lazy", where)


@contextmanager
def memory_of(megabytes: int) -> Iterator[Path]:
    """The file into which a process writes its number, so that it may take no more than that."""
    group = Path("/sys/fs/cgroup/memory/rpc-faults")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(megabytes << 20))
    except OSError as error:
        pytest.skip(f"needs a control group for memory: {error.strerror}")
    try:
        yield group / "cgroup.procs"
    finally:
        while _is_busy(group):
            time.sleep(0.01)


def _is_busy(group: Path) -> bool:
    """Whether the group cannot be removed yet: who was killed in it may not be quite gone."""
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


@contextmanager
def network() -> Iterator[tuple[Sequence[str], str, Callable[[str], None]]]:
    """A network with one machine: what goes before a command that is to run there, the address at which it
    finds this machine, and what sets the link between them up or down."""
    space, here, there = (f"rpc{os.getpid()}{end}" for end in "nab")
    _run("ip", "netns", "add", space)
    inside = ("ip", "netns", "exec", space)
    net = f"10.213.{os.getpid() % 256}"  # others may run tests, too
    try:
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
        _run("ip", "address", "add", f"{net}.1/24", "dev", here)
        _run("ip", "link", "set", here, "up")
        _run(*inside, "ip", "address", "add", f"{net}.2/24", "dev", there)
        _run(*inside, "ip", "link", "set", there, "up")
        yield inside, f"{net}.1", lambda state: _run("ip", "link", "set", here, state)
    finally:
        subprocess.run(("ip", "link", "delete", here), capture_output=True)  # at once, for the next one
        _run("ip", "netns", "delete", space)
