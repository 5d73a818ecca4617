"""The worker beside a case, what it takes, and how to wait."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rpc import RpcError

from .processes import PATIENCE, Side, SideFailed, Worker


@contextmanager
def serving(url: str, options: str = "") -> Iterator[Worker]:
    side = Side("worker", "benchmarks.jobs", sys.executable, variant=options)
    with Worker(side, url, Path(os.devnull)) as worker:
        try:
            yield worker
        except (RpcError, SideFailed) as error:
            raise SideFailed(f"{error}; the worker: {worker.last_words()}") from error


def _status(worker: Worker, name: str) -> int:
    lines = Path(f"/proc/{worker.session}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def threads_of(worker: Worker) -> int:
    return _status(worker, "Threads")


def resident_of(worker: Worker) -> float:
    """In MB."""
    return _status(worker, "VmRSS") / 1000


def until(condition: Callable[[], bool], pause: Callable[[float], object]) -> None:
    if not settled(condition, pause, PATIENCE):
        raise SideFailed(f"waited {PATIENCE:g} s in vain")


def settled(condition: Callable[[], bool], pause: Callable[[float], object], patience: float = 10) -> bool:
    """Whether it came true within so many seconds."""
    end = time.monotonic() + patience
    while not (met := condition()) and time.monotonic() < end:
        pause(0.02)
    return met
