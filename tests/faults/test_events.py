"""Events while Redis, workers and connections break: durable groups miss none."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from rpc import RpcClient

from .broker import Fsync
from .conftest import Pick, rarely
from .fleet import Fleet
from .load import meanwhile, named
from .nursery import Child
from .oracle import ACCEPTED, Call
from .proxy import Proxy
from .stage import Stage

SLOWLY = 240.0
"""Seconds in which some thousand events are heard that RabbitMQ says were delivered before: each is counted
in a copy of it, and marked as begun, before the next one comes."""


def listener(stage: Stage, via: Proxy | None = None, *, fails: bool = False) -> Child:
    """A process that listens, once it does."""
    child = stage.spawn("listener", url=stage.url(via), ledger=str(stage.oracle.path), fails=fails)
    stage.until(lambda: heard_file(stage, child).exists())
    return child


def heard_file(stage: Stage, child: Child) -> Path:
    return stage.oracle.path.with_suffix(f".{child.pid}")


def heard(stage: Stage, child: Child) -> list[str]:
    """The events that a process heard for itself, in order."""
    return heard_file(stage, child).read_text().split()


def publish(
    stage: Stage, client: RpcClient, number: int, threads: int = 4, event: str = "fault", **data: float
) -> None:
    """Publish so many events, and keep what became of each."""

    def some() -> None:
        for _ in range(number // threads):
            call = Call(stage.job(), time.monotonic())
            stage.oracle.calls.append(call)
            try:
                client.publish(event, {"job": call.job, **data})
                outcome = ACCEPTED
            except Exception as error:
                outcome = named(error)
            call.done, call.outcome = time.monotonic(), outcome

    running = [threading.Thread(target=some) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def accepted(stage: Stage) -> list[str]:
    return [call.job for call in stage.oracle.calls if call.outcome == ACCEPTED]


@pytest.mark.parametrize("fsync", [rarely("everysec", only=["redis", "rq"]), "always"])
def test_events_broker_restarted(stage: Stage, pick: Pick, fsync: Fsync) -> None:
    """The broker is killed and started again between publishing to a durable group and its return"""
    broker = stage.open(fsync)
    first, client = listener(stage), stage.client()
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    publish(stage, client, pick(100, 1000))
    if fsync == "everysec":
        time.sleep(2.5)  # it is time itself that is tested: what Redis promises about its file
    broker.crash()
    stage.oracle.faults[f"SIGKILL to {broker.name}"] += 1
    publish(stage, client, pick(100, 1000))
    listener(stage)
    figures = stage.verdict(within=SLOWLY)
    assert figures.duplicated == 0
    assert figures.sent == figures.executed


def test_events_broker_crashes(stage: Stage, pick: Pick) -> None:
    """The broker is killed (SIGKILL) and started again, again and again, while events are published and
    heard"""
    broker = stage.open("always")
    children, client = [listener(stage) for _ in range(2)], stage.client()

    def crash() -> None:
        broker.crash(pause=stage.dice.uniform(0, 0.3))
        stage.oracle.faults[f"SIGKILL to {broker.name}"] += 1

    with meanwhile(crash, every=0.4):
        while stage.oracle.faults[f"SIGKILL to {broker.name}"] < pick(3, 15):
            publish(stage, client, 100)
    stage.verdict(errors=["BackendUnavailable"])
    if broker.keeps_topics:
        for child in children:
            until_heard(stage, child)


def until_heard(stage: Stage, child: Child) -> None:
    """Wait until a process has heard all that was accepted; none of it twice."""
    wanted = {*accepted(stage)}
    stage.until(lambda: wanted <= {*heard(stage, child)}, "an event is missing")
    assert Counter(heard(stage, child)).most_common(1)[0][1] == 1


@pytest.mark.only("redis", "rq")
def test_events_retry_while_redis_is_down(stage: Stage) -> None:
    """A durable listener fails while Redis is away for longer than the lease: it is tried again"""
    stage.open("always")
    listener(stage, fails=True)
    publish(stage, stage.client(), 1, 1, event="fails")
    (call,) = stage.oracle.calls
    stage.until(lambda: stage.begun(call.job))
    stage.redis.server.kill()
    stage.oracle.faults["SIGKILL to Redis"] += 1
    stage.release()
    time.sleep(3 * stage.broker.lease)  # it is time itself that is tested
    stage.redis.server.restart()
    stage.until(lambda: stage.ended(call.job))


def test_events_workers_killed(stage: Stage, pick: Pick) -> None:
    """Listeners of a durable group are killed (SIGKILL) in the middle of events, and replaced"""
    fleet, client = Fleet(lambda: listener(stage), 3, stage.dice), stage.client()

    def kill() -> None:
        fleet.kill()
        stage.oracle.faults["SIGKILL"] += 1

    with meanwhile(kill, every=0.2):
        while stage.oracle.faults["SIGKILL"] < pick(4, 40):
            publish(stage, client, 40, seconds=0.002)
    stage.verdict()
    assert stage.unexplained(fleet) == {}


@pytest.mark.parametrize("what", ["reset", "connections ended"])
def test_events_connections_cut(stage: Stage, pick: Pick, what: str) -> None:
    """Connections of publishers and of listeners are cut while events flow: each is heard, and once by each
    process that listens for itself"""
    children, client = [listener(stage, stage.back) for _ in range(2)], stage.client(stage.front)

    def cut() -> None:
        if what == "reset":
            stage.back.cut()
            stage.front.cut()
        else:
            stage.broker.cut()
        stage.oracle.faults[what] += 1

    with meanwhile(cut, every=0.1, sparing=stage):
        while stage.oracle.faults[what] < (pick(20, 200) if what == "reset" else pick(4, 40)):
            publish(stage, client, 100)
    stage.verdict(errors=["BackendUnavailable"], within=SLOWLY)
    if stage.broker.keeps_topics:
        for child in children:
            until_heard(stage, child)


@pytest.mark.only("redis", "rq")
def test_events_forgotten(stage: Stage) -> None:
    """FLUSHALL: durable groups are registered again, and listeners go on"""
    child, client = listener(stage), stage.client()
    publish(stage, client, 4)
    stage.verdict()
    stage.redis.admin.flushall()
    stage.oracle.faults["FLUSHALL"] += 1
    stage.until(lambda: stage.redis.admin.exists("rpc:subscriptions:{fault}"))
    publish(stage, client, 40)
    stage.verdict()
    until_heard(stage, child)
