"""Workers that are not there for a while, or are told to leave."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from .conftest import Pick, rarely
from .load import ask, asked, load, meanwhile, tell
from .machine import network
from .nursery import Child
from .stage import Stage


def test_all_killed(stage: Stage, pick: Pick) -> None:
    """All workers are killed, and come back after some calls have expired"""
    client, fleet = stage.client(), stage.fleet(3)
    with meanwhile(lambda: tell(stage, client, seconds=0.01), every=0.005):
        stage.until(lambda: len(stage.oracle.runs()) > 20)
        fleet.kill_all()
        stage.oracle.faults["SIGKILL"] += 3
        for _ in range(pick(5, 20)):
            ask(stage, client, hurried=True, timeout=0.2)
    stage.fleet(3)
    ask(stage, client)
    stage.verdict(errors=["RpcTimeout"])
    assert stage.unexplained(fleet) == {}
    assert stage.oracle.done_too_late() == []


def outlived(stage: Stage, away: Child, go: Callable[[], object], come_back: Callable[[], object]) -> None:
    """A worker goes away in a job. Another one does it, and the caller has one answer; then the first comes
    back, finishes the job, too late, and both work."""
    with asked(stage, "hold") as call:
        stage.until(lambda: stage.begun(call.job))
        go()
        other = stage.worker()
        stage.until(lambda: stage.begun(call.job) == 2)
        stage.release()
    come_back()
    stage.until(lambda: stage.ended(call.job) == 2)
    client = stage.client()

    def worked() -> set[int]:
        return {run.pid for run in stage.oracle.runs() if run.job != call.job}

    with meanwhile(lambda: ask(stage, client, seconds=0.01)):
        stage.until(lambda: {away.pid, other.pid} <= worked())
    figures = stage.verdict()
    assert figures.answered == figures.sent
    assert figures.duplicated == 1


def test_stopped_for_long(stage: Stage) -> None:
    """A worker is stopped (SIGSTOP) in a job for longer than its lease, and goes on"""
    zombie = stage.worker()
    stage.oracle.faults["SIGSTOP"] += 1
    outlived(stage, zombie, lambda: zombie.signal(signal.SIGSTOP), lambda: zombie.signal(signal.SIGCONT))


def test_unreachable(stage: Stage) -> None:
    """A worker in a job can neither be reached nor reach anybody for longer than its lease, untold"""
    worker = stage.worker(stage.back)
    stage.oracle.faults["black hole"] += 1
    outlived(stage, worker, lambda: stage.back.holes.update(["up", "down"]), stage.back.heal)


@pytest.mark.faults
def test_machine_gone(stage: Stage) -> None:
    """The same with a worker on a network of its own, whose link goes down and up again"""
    with network() as (before, host, link):
        worker = stage.worker(
            nursery=stage.another_nursery(*before), url=stage.url(stage.proxy(host=host), host)
        )
        stage.oracle.faults["link down"] += 1
        outlived(stage, worker, lambda: link("down"), lambda: link("up"))
        worker.kill()


def test_stopped_briefly(stage: Stage, pick: Pick) -> None:
    """Workers are stopped for less than their lease, one after the other"""
    fleet = stage.fleet(3, url=stage.url(lease=6))

    def stop() -> None:
        fleet.stop(0)
        stage.oracle.faults["SIGSTOP"] += 1
        time.sleep(1)  # it is time itself that is tested
        fleet.wake(everyone=True)

    with meanwhile(stop):
        load(stage, stage.client(), seconds=pick(3.0, 20.0))
    assert stage.verdict().duplicated == 0


@pytest.mark.faults
def test_stopped_again_and_again(stage: Stage, pick: Pick) -> None:
    """Workers are stopped for twice their lease, under load"""
    fleet = stage.fleet(4)

    def stop() -> None:
        fleet.wake()
        fleet.stop(2 * stage.broker.lease)
        stage.oracle.faults["SIGSTOP"] += 1

    with meanwhile(stop, every=0.5):
        load(stage, stage.client(), seconds=pick(4.0, 30.0), threads=16)
    fleet.wake(everyone=True)
    stage.verdict()
    assert stage.unexplained(fleet) == {}


@pytest.mark.faults
def test_interpreter_held(stage: Stage) -> None:
    """A job holds the interpreter's lock for three times the lease, so its worker gives no sign of life"""
    url = stage.url(max_deliveries=3)
    for _ in range(2):
        stage.worker(url=url)
    call = ask(stage, stage.client(), "burn", seconds=3 * stage.broker.lease)
    ask(stage, stage.client())
    stage.verdict(errors=["WorkerLost"])
    assert 1 <= stage.begun(call.job) <= 3


def test_rolling_restart(stage: Stage, pick: Pick) -> None:
    """Workers are told to leave (SIGTERM) and replaced, one after the other, under load"""
    fleet, codes, rounds = stage.fleet(3), list[int](), pick(5, 40)

    def relieve() -> None:
        if len(codes) == rounds:
            return  # the last calls are under way, and nobody may wait for more
        eldest = fleet.members[0].pid
        stage.until(lambda: any(run.pid == eldest for run in stage.oracle.runs()))
        codes.append(fleet.relieve())
        stage.oracle.faults["SIGTERM"] += 1

    with meanwhile(relieve, every=0.01):
        while len(codes) < rounds:
            load(stage, stage.client(), calls=100, unattended=0.3)
    figures = stage.verdict()
    assert set(codes) == {0}
    assert figures.duplicated == 0


def test_longer_than_grace(stage: Stage) -> None:
    """A job outlasts the grace period: it is handed back at once, and not after the lease of 60 s"""
    url = stage.url(lease=60)
    leaving = stage.worker(url=url, grace=0.3)
    with asked(stage, "hold") as call:
        stage.until(lambda: stage.begun(call.job))
        leaving.signal(signal.SIGTERM)
        stage.oracle.faults["SIGTERM"] += 1
        stage.worker(url=url)
        assert leaving.wait() == 0
        stage.until(lambda: stage.begun(call.job) == 2)
        stage.release()
    assert stage.verdict().answered == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, rarely(signal.SIGINT), rarely(signal.SIGHUP)])
def test_told_twice(stage: Stage, number: signal.Signals) -> None:
    """A worker in a job gets a signal twice, and ends at once; SIGHUP does that the first time"""
    leaving = stage.worker()
    with asked(stage, "hold") as call:
        stage.until(lambda: stage.begun(call.job))
        while leaving.poll() is None:
            leaving.signal(number)
            time.sleep(0.05)  # two signals that come together are one
        stage.oracle.faults[number.name] += 1
        stage.release()
        stage.worker()
    assert leaving.wait() == -number
    figures = stage.verdict()
    assert figures.answered == 1
    assert figures.duplicated == 1
    assert "Traceback" not in stage.log()
