"""The work that all sides do, and where their processes meet.

This runs in each side's own environment: it imports nothing but the standard library.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

PATIENCE = 4
"""Seconds that a blocking read of a caller may take: redis-py 8 breaks a connection off after 5."""

REDIS = os.environ.get("BENCH_REDIS", "")
VARIANT = os.environ.get("BENCH_VARIANT", "")
RABBIT = os.environ.get("RPC_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672/")
ZMQ = "tcp://127.0.0.1:{port}"
"""Where workers listen that need no broker, each at its own port: callers never cease to look for it."""
HTTP = "http://127.0.0.1:{port}"
_OWN = {
    "amqp": RABBIT,
    "zmq": "zmq+" + ZMQ.format(port=5571),
    "http": HTTP.format(port=5574),
    "ws": "ws://127.0.0.1:5575",
}
BACKEND = _OWN.get(VARIANT, VARIANT + REDIS)
"""The URL of ours."""
QUEUE = "rpc-bench"
TALLY = "BENCH_TALLY"


def add(a: int, b: int) -> dict[str, int]:
    return {"answer": a + b}


def echo(text: str) -> dict[str, str]:
    return {"text": text}


def tick(of: int) -> None:
    """One of so many jobs that wait for this process. The last one writes down how many a second were done,
    from the start of the first one: the start of the process is not in it."""
    _tally.count(of)


class _Tally:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._begun = 0.0

    def count(self, of: int) -> None:
        with self._lock:
            self._done += 1
            if self._done == 1:
                self._begun = time.perf_counter()
            if self._done == of:
                rate = (of - 1) / (time.perf_counter() - self._begun)
                unfinished = Path(os.environ[TALLY] + ".part")
                unfinished.write_text(str(rate))
                unfinished.rename(os.environ[TALLY])


_tally = _Tally()
WORK: dict[str, Callable[..., Any]] = {"add": add, "echo": echo, "tick": tick}


def coroutine(work: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The same work for systems that would hand an ordinary function to a thread, which costs them time."""

    @functools.wraps(work)
    async def run(*arguments: Any, **named: Any) -> Any:
        return work(*arguments, **named)

    return run
