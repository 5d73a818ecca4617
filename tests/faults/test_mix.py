"""Everything at once, and nothing for long."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rpc import AsyncRpcClient

from .chaos import Chaos
from .conftest import Last
from .load import ask, load, meanwhile
from .loops import in_a_loop, load_in_tasks
from .stage import Stage

LARGEST = 1_000_000
"""Characters of an answer."""


def test_mix(stage: Stage, last: Last) -> None:
    """One fault after the other, each chosen at random: workers are killed, stopped and replaced; the broker
    is killed, paused, and ends connections; the network resets, swallows and delays. Callers in threads
    and in an event loop, and some who do not wait; answers of 1 byte to 1 MB"""
    seconds = last(8.0, 600.0)
    stage.open("always")
    fleet = stage.fleet(4, stage.back)
    chaos = Chaos(stage, fleet, random.Random(stage.dice.random()))
    client = stage.client(stage.front)
    end = time.monotonic() + seconds

    async def main() -> None:
        async with AsyncRpcClient(backend=stage.url(stage.front)) as client:
            over = lambda: time.monotonic() > end  # noqa: E731
            await load_in_tasks(stage, client, tasks=8, over=over, largest=LARGEST, timeout=60)

    with meanwhile(chaos.strike, every=0.3), ThreadPoolExecutor(1) as pool:
        loop = pool.submit(in_a_loop, main, seconds + 120)
        load(stage, client, seconds=seconds, threads=8, timeout=60.0, unattended=0.2, largest=LARGEST)
        loop.result()
    chaos.end()
    ask(stage, client)
    stage.verdict(errors=["BackendUnavailable"], within=60)
    assert fleet.ended_by_themselves() == {}, stage.log()[-4000:]


@pytest.mark.faults
def test_soak(stage: Stage, last: Last) -> None:
    """Calls, for a long time: nothing grows"""
    workers, client = [stage.worker(concurrency=2) for _ in range(2)], stage.client()
    sizes: list[list[int]] = []
    for _ in range(6):
        load(stage, client, seconds=last(2.0, 30.0) / 6, work=0, unattended=0.2)
        processes = [size for worker in workers for size in worker.sizes()]
        sizes.append([*processes, len(stage.broker.keys()), stage.broker.size() >> 20])
    stage.oracle.note = f"sizes {sizes[1]} after a third, {sizes[-1]} at the end"
    assert stage.verdict().duplicated == 0
    assert all(late <= early * 1.25 + 2 for early, late in zip(sizes[1], sizes[-1], strict=True)), sizes
