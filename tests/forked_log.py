"""What the jobs of `forked_jobs` have noted, and the processes in which they ran."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from backends.rq_jobs import eventually

PATIENCE = 30.0
"""Seconds: far longer than anything here takes."""


@contextmanager
def logged(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Jobs note into this file; those that a test has failed to end are ended."""
    path.touch()
    monkeypatch.setenv("RPC_TEST_LOG", str(path))
    yield path
    for line in held_by(path):
        for pid in line.split()[1:]:
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"prefork_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.killpg(int(pid), signal.SIGKILL)


def lines(log: Path) -> list[str]:
    return log.read_text().split("\n")[:-1]


def release(log: Path) -> None:
    log.with_suffix(".release").touch()


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def holding(log: Path, times: int = 1) -> list[int]:
    """The processes of the last job that holds."""
    eventually(lambda: len(held_by(log)) >= times)
    return [int(pid) for pid in held_by(log)[-1].split()[1:]]


def held_by(log: Path) -> list[str]:
    return [line for line in lines(log) if line.startswith(("holds", "sticks"))]
