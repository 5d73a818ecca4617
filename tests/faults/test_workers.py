"""Workers that die, at any time and at each point of a job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Pick
from .load import ask, asked, load, meanwhile
from .nursery import Child
from .oracle import ANSWERED
from .stage import Stage


def test_kill(stage: Stage, pick: Pick) -> None:
    """A random one of four workers is killed (SIGKILL) every 200 ms"""
    fleet = stage.fleet(4)

    def kill() -> None:
        fleet.kill()
        stage.oracle.faults["SIGKILL"] += 1

    with meanwhile(kill, every=0.2):
        load(stage, stage.client(), calls=pick(1000, 10_000), threads=32, work=0.01)
    figures = stage.verdict()
    assert figures.answered == figures.sent
    assert stage.unexplained(fleet) == {}


@pytest.mark.faults
def test_kill_unattended(stage: Stage, pick: Pick) -> None:
    """The same where nobody waits for an answer"""
    fleet = stage.fleet(4)

    def kill() -> None:
        fleet.kill()
        stage.oracle.faults["SIGKILL"] += 1

    with meanwhile(kill, every=0.2):
        load(stage, stage.client(), calls=pick(500, 5000), threads=4, work=0.01, unattended=1)
        stage.until(lambda: not stage.oracle.lost(), within=600)
    figures = stage.verdict()
    assert figures.executed == figures.sent
    assert stage.unexplained(fleet) == {}


def idle(stage: Stage, worker: Child) -> int:
    worker.kill()
    stage.worker()
    ask(stage, stage.client())
    return 1


def received(stage: Stage, worker: Child) -> int:
    stage.idle()
    stage.back.holes.add("down")
    with asked(stage, "work") as call:
        stage.until(lambda: call.job.encode() in stage.back.swallowed["down"])
        worker.kill()
        stage.worker()
    return 1


def running(stage: Stage, worker: Child) -> int:
    with asked(stage, "hold") as call:
        stage.until(lambda: stage.begun(call.job))
        worker.kill()
        stage.release()
        stage.worker()
    return 2


def finished(stage: Stage, worker: Child) -> int:
    with asked(stage, "hold") as call:
        stage.until(lambda: stage.begun(call.job))
        stage.back.holes.add("up")
        stage.release()
        stage.until(lambda: stage.ended(call.job))
        worker.kill()
        stage.worker()
    return 2


def acknowledged(stage: Stage, worker: Child) -> int:
    with asked(stage, "hold") as call:
        stage.until(lambda: stage.begun(call.job))
        stage.back.holes.add("down")
        stage.release()
        stage.until(lambda: call.done)
        worker.kill()
        stage.worker()
    return 1


@pytest.mark.parametrize(
    "point",
    [
        idle,
        pytest.param(received, marks=pytest.mark.only("redis", "amqp")),  # rq rings a bell at first
        running,
        finished,
        acknowledged,
    ],
)
def test_kill_when(stage: Stage, point: Callable[[Stage, Child], int]) -> None:
    """A worker is killed when it is idle, has received a job, runs it, has finished it, or has acknowledged
    it; then another one starts"""
    worker = stage.worker(stage.back)
    ask(stage, stage.client())
    stage.oracle.faults["SIGKILL"] += 1
    executions = point(stage, worker)
    ask(stage, stage.client())
    figures = stage.verdict()
    assert figures.answered == 3
    job = stage.oracle.calls[1].job
    assert stage.begun(job) == executions
    assert [run.delivery for run in stage.oracle.executions()[job]][-1] == (
        1 if point in (idle, acknowledged) else 2
    )


def test_poison_pill(stage: Stage) -> None:
    """A job kills each worker that gets it: it is given up after three, its caller is told, all others are
    done; a job that kills only the first one is answered by the next"""
    url = stage.url(max_deliveries=3)
    for _ in range(5):
        stage.worker(url=url)
    client = stage.client(url=url)
    with asked(stage, "die", client, times=99) as poison, asked(stage, "die", client, times=1) as bitter:
        load(stage, client, calls=100)
    stage.oracle.faults["SIGKILL"] += 4
    stage.verdict(errors=["WorkerLost"])
    assert (poison.outcome, bitter.outcome) == ("WorkerLost", ANSWERED)
    assert (stage.begun(poison.job), stage.begun(bitter.job)) == (3, 2)
