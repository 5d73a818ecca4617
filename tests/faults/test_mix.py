"""Everything at once, and nothing for long."""

from __future__ import annotations

import random

import pytest

from .chaos import Chaos
from .conftest import Last
from .load import ask, load, meanwhile
from .stage import Stage

pytestmark = pytest.mark.real_redis


def test_mix(stage: Stage, last: Last) -> None:
    """One fault after the other, each chosen at random: workers are killed, stopped and replaced; Redis is
    killed, paused, and cuts connections; the network resets, swallows, delays and garbles"""
    seconds = last(8.0, 90.0)
    fleet = stage.fleet(4, stage.back)
    chaos = Chaos(stage, fleet, random.Random(stage.dice.random()))
    client = stage.client(stage.front)
    with meanwhile(chaos.strike, every=0.3):
        load(stage, client, seconds=seconds, threads=12, timeout=60.0, unattended=0.2, work=0.01)
    chaos.end()
    ask(stage, client)
    stage.verdict(errors=["BackendUnavailable"], within=60)


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
