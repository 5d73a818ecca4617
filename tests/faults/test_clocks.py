"""Clocks that are wrong, or jump."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from .conftest import Pick
from .load import load, meanwhile
from .stage import Stage

HOUR = 3600


@pytest.mark.parametrize("hours", [1, -1])
def test_wrong_clock(stage: Stage, pick: Pick, hours: int) -> None:
    """The wall clock of one worker, and that of a caller, is an hour wrong"""
    for hour in (0, hours):
        stage.worker(hour=hour)
    caller = stage.spawn("caller", url=stage.url(), job="wrong", hour=hours)
    load(stage, stage.client(), calls=pick(300, 3000), unattended=0.2)
    assert caller.wait() == 0
    assert stage.verdict().duplicated == 0
    assert len({run.pid for run in stage.oracle.runs()}) == 2


@pytest.fixture
def set_clock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    """Starts a Redis whose clock can be set: to so many seconds from now."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler")
    library, ahead = stage.directory / "clock.so", stage.directory / "ahead"
    ahead.write_bytes(bytes(8))
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)

    def set_to(seconds: int) -> None:
        with ahead.open("r+b") as file:  # Redis has it mapped: it must not become shorter
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    monkeypatch.setenv("RPC_AHEAD", str(ahead))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    stage.open()
    monkeypatch.delenv("LD_PRELOAD")
    return set_to


@pytest.mark.only("redis", "rq")
@pytest.mark.faults
@pytest.mark.parametrize("hours", [1, -1])
def test_jump_of_redis(stage: Stage, set_clock: Callable[[int], object], hours: int) -> None:
    """Redis' clock jumps by an hour, to and fro: calls with a time limit may end, nothing else is lost"""
    for _ in range(2):
        stage.worker()
    jumps = cycle([hours * HOUR, 0])

    def jump() -> None:
        seconds = next(jumps)
        set_clock(seconds)
        stage.oracle.faults["jump"] += 1
        assert abs(stage.redis.admin.time()[0] - time.time() - seconds) < HOUR / 2

    client = stage.client()
    with meanwhile(jump, every=0.4):
        load(stage, client, calls=600, timeout=3.0, unattended=0.5, work=0.02, hurried=True)
    load(stage, client, calls=50)
    told = ["RpcTimeout", "WorkerLost"] if stage.scheme.startswith("rq") else ["RpcTimeout"]
    figures = stage.verdict(errors=told)  # on rq, who waits sees that his job has expired
    assert figures.errors.total() <= 8 * figures.faults["jump"]
    assert figures.duplicated <= 2 * figures.faults["jump"]


@pytest.mark.faults
def test_other_machine(stage: Stage) -> None:
    """The monotonic clock of a worker began at another time, as on another machine"""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs a time namespace: Linux, and root")
    elsewhere = stage.another_nursery("unshare", "--time", "--monotonic", "86400", "--fork")
    stage.worker(nursery=elsewhere)
    load(stage, stage.client(), calls=300)
    assert stage.verdict().duplicated == 0
