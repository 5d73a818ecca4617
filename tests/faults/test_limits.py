"""Redis, a queue, or the machine has no room left."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import Pick
from .load import ask, asked, load, tell
from .machine import memory_of, small_disk
from .stage import Stage


@pytest.mark.only("redis", "rq")
def test_too_many_clients(stage: Stage) -> None:
    """Redis takes no more connections (maxclients)"""
    stage.worker()
    client, admin = stage.client(), stage.redis.admin
    ask(stage, client)
    stage.idle()
    before = admin.config_get("maxclients")["maxclients"]
    admin.config_set("maxclients", admin.info("clients")["connected_clients"])
    stage.oracle.faults["refused caller"] += 1
    ask(stage, stage.client(), hurried=True, timeout=1.0)
    ask(stage, client)
    admin.config_set("maxclients", before)
    ask(stage, stage.client())
    figures = stage.verdict(errors=["BackendUnavailable"])
    assert figures.answered == 3


@pytest.mark.faults
def test_memory_full(stage: Stage, pick: Pick) -> None:
    """The broker has no memory left (maxmemory with noeviction; an alarm) for a while: what was accepted is
    done after that"""
    broker, client = stage.open(), stage.client()
    for _ in range(pick(50, 500)):
        tell(stage, client)
    broker.fill()
    stage.oracle.faults["memory full"] += 1
    ask(stage, client, hurried=True, timeout=1.0)
    stage.worker()
    ask(stage, client, hurried=True, timeout=1.0)
    broker.fill(full=False)
    ask(stage, client)
    assert stage.verdict(errors=["BackendUnavailable", "RpcTimeout"]).duplicated == 0
    assert stage.oracle.done_too_late() == []


@pytest.mark.only("redis", "rq")
@pytest.mark.parametrize("worker", ["that runs", "that starts"])
def test_memory_full_of_work(stage: Stage, worker: str) -> None:
    """Redis has no memory left: senders are told, and a worker works it off, so that there is room again"""
    client, admin = stage.client(), stage.redis.admin
    if worker == "that runs":
        stage.worker()
    busy = tell(stage, client, "hold")
    if worker == "that runs":
        stage.until(lambda: stage.begun(busy.job))
    for _ in range(500):
        tell(stage, client)
    admin.config_set("maxmemory", 1)
    stage.oracle.faults["memory full"] += 1
    refused = ask(stage, client, hurried=True, timeout=1.0)
    stage.release()
    if worker == "that starts":
        stage.worker()
    stage.until(lambda: not stage.oracle.lost(), "nothing is done while it is full")
    admin.config_set("maxmemory", 0)
    ask(stage, client)
    stage.verdict(errors=["BackendUnavailable", "QueueFull"])
    assert stage.begun(refused.job) == 0


@pytest.mark.only("redis", "rq")
@pytest.mark.faults
def test_disk_full(stage: Stage) -> None:
    """The disk of the append-only file is full: senders are told, and all goes on once there is room"""
    with small_disk(stage.directory / "redis") as resize:
        broker, client = stage.open(), stage.client()
        stage.worker()
        ask(stage, client)
        filler = stage.directory / "redis" / "filler"
        with filler.open("wb") as file:
            while _written(file.fileno()):
                pass
        stage.oracle.faults["disk full"] += 1
        stage.until(lambda: ask(stage, client, hurried=True, timeout=1.0).outcome == "BackendUnavailable")
        resize("64m")
        stage.until(lambda: broker.admin.info("persistence")["aof_last_write_status"] == "ok")
        load(stage, client, calls=100)
        stage.verdict(errors=["BackendUnavailable", "RpcTimeout"])
        broker.close()


def _written(file: int) -> int:
    try:
        return os.write(file, b"x" * 4096)
    except OSError:
        return 0


@pytest.mark.only("redis")
def test_queue_full(stage: Stage, pick: Pick) -> None:
    """More is sent at once than the queue may hold: exactly the excess is refused"""
    room = pick(200, 2000)
    client = stage.client(url=stage.url(max_length=room))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2 * room):
            pool.submit(tell, stage, client)
    assert stage.oracle.figures().errors == {"QueueFull": room}
    stage.worker()
    figures = stage.verdict(errors=["QueueFull"])
    assert figures.executed == room
    assert figures.duplicated == 0


def test_priority(stage: Stage, pick: Pick) -> None:
    """A queue of lower priority is full of work: calls to the higher one pass it, and all is done"""
    low, high = stage.client(queue="low"), stage.client(queue="high")
    for _ in range(pick(300, 3000)):
        tell(stage, low, seconds=0.003)
    stage.worker(queues=["high", "low"])
    stage.until(stage.oracle.lines)
    for _ in range(20):
        ask(stage, high)
    backlog = len(stage.oracle.lost())
    figures = stage.verdict(within=60)
    assert backlog > figures.sent / 2
    assert figures.duplicated == 0


@pytest.mark.faults
def test_out_of_memory(stage: Stage) -> None:
    """A job takes more memory than there is, and each worker that gets it is killed: it is given up"""
    url = stage.url(max_deliveries=3)
    with memory_of(150) as group:
        fleet = stage.fleet(4, url=url, cgroup=str(group))
        client = stage.client(url=url)
        with asked(stage, "eat", client, megabytes=400) as poison:
            load(stage, client, calls=200)
        ask(stage, client)
        fleet.kill_all()
    stage.verdict(errors=["WorkerLost"])
    assert poison.outcome == "WorkerLost"
    assert stage.begun(poison.job) == 3
