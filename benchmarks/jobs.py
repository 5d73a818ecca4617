"""The jobs of `concurrency`, as a settings module, and the `rpc worker` that serves them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Generator, Iterator
from itertools import count as count_from
from typing import Any

from rpc import Request

from .work import REDIS, VARIANT, add

PERIOD = 0.01
"""Seconds from one tick to the next."""


def block(seconds: float) -> int:
    """Sleep, and say which process did."""
    time.sleep(seconds)
    return os.getpid()


def spin(seconds: float) -> None:
    """Compute in pure Python for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def count(to: int) -> None:
    """Compute in pure Python so much."""
    for _ in range(to):
        pass


async def tick(seconds: float) -> float:
    """Seconds that the latest of many ticks was late."""
    end, worst, before = time.monotonic() + seconds, 0.0, time.monotonic()
    while before < end:
        await asyncio.sleep(PERIOD)
        now = time.monotonic()
        worst, before = max(worst, now - before - PERIOD), now
    return worst


async def nap(seconds: float) -> None:
    """What a call to a slow service looks like."""
    await asyncio.sleep(seconds)


def items(number: int) -> Iterator[int]:
    """Small ones."""
    yield from range(number)


def made() -> Iterator[int]:
    """Items without end."""
    for number in count_from(1):
        _seen["made"] = number
        yield number


def how_many() -> float:
    """How many of them were made."""
    return _seen["made"]


def until_left() -> Iterator[int]:
    """Items without end, until the caller leaves."""
    try:
        yield from count_from(1)
    finally:
        _seen["left"] = time.time()


def left_at() -> float:
    """When he did, in seconds of the Unix epoch."""
    return _seen["left"]


def swallow(request: Request) -> int:
    """How many bytes were uploaded."""
    return sum(map(len, request.items))


def echoes() -> Generator[Any, Any, None]:
    """What was sent."""
    said = None
    while True:
        said = yield said


_seen = {"made": 0.0, "left": 0.0}
RPC_STREAMS_PER_CLIENT = None
RPC_JOB_MAPPING = {
    job.__name__: job
    for job in (
        *(add, block, spin, count, tick, nap),
        *(items, made, how_many, until_left, left_at, swallow, echoes),
    )
}


def serve() -> None:
    from rpc.cli import main

    main(["worker", "--settings", __name__, "--backend", REDIS, *VARIANT.split()], prog_name="rpc")
