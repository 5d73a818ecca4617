"""The jobs of `concurrency`, as a settings module, and the `rpc worker` that serves them."""

from __future__ import annotations

import asyncio
import os
import time

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


RPC_JOB_MAPPING = {"add": add, "block": block, "spin": spin, "count": count, "tick": tick, "nap": nap}


def serve() -> None:
    from rpc.cli import main

    main(["worker", "--settings", __name__, "--backend", REDIS, *VARIANT.split()], prog_name="rpc")
