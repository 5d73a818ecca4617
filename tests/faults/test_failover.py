"""A replica takes the place of Redis"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.topologies import start_cluster, start_sentinel

from .broker import Redis
from .load import ask, load
from .proxy import Proxy
from .stage import Stage

pytestmark = [pytest.mark.only("redis", "rq"), pytest.mark.faults]
needs_redis_server = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs a real Redis: redis-server on PATH"
)


class Pair:
    """A Redis, and another one that has all that this one has, as far as the link between them lets it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.replica = Redis(stage.directory / "replica")
        self.link: Proxy = stage.proxy()
        self.replica.admin.replicaof("127.0.0.1", self.link.port)
        stage.until(lambda: self.replica.admin.info("replication")["master_link_status"] == "up")

    def swap(self, pause: float = 1.0) -> None:
        """The first dies, the second is promoted after a while: meanwhile it can be read and not written."""
        stage = self._stage
        stage.redis.server.kill()
        stage.oracle.faults["SIGKILL to Redis"] += 1
        stage.front.target = stage.back.target = self.replica.port
        time.sleep(pause)
        self.replica.admin.replicaof("NO", "ONE")

    def swap_after(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self.swap)
        timer.start()
        return timer


@pytest.fixture
def pair(stage: Stage) -> Iterator[Pair]:
    pair = Pair(stage)
    for _ in range(2):
        stage.worker(stage.back)
    yield pair
    pair.replica.close()


def test_failover(stage: Stage, pair: Pair) -> None:
    """Redis is killed under load, and its replica is promoted a second later"""
    client = stage.client(stage.front)
    timer = pair.swap_after(2)
    load(stage, client, seconds=5, timeout=8.0, unattended=0.2)
    timer.join()
    ask(stage, client)
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0
    assert stage.oracle.calls[-1].outcome == "answered"
    assert set(figures.errors) <= {"RpcTimeout", "BackendUnavailable"}
    assert figures.lost <= 16  # what was on its way to the replica, and what it was the answer to
    assert figures.duplicated <= 16


def test_old_replica(stage: Stage, pair: Pair) -> None:
    """Redis is killed, and a replica is promoted that knows nothing of its last two seconds"""
    client = stage.client(stage.front)
    load(stage, client, calls=200)
    pair.link.holes.add("down")
    load(stage, client, seconds=2, unattended=0.2)
    pair.swap()
    known = len(stage.oracle.calls)
    load(stage, client, calls=200, timeout=8.0)
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0
    assert {call.outcome for call in stage.oracle.calls[known:]} == {"answered"}
    assert figures.duplicated <= 16


def under_load(stage: Stage, url: str, fault: Callable[[], object]) -> None:
    """Calls go on while it happens, and are answered after it."""
    if stage.scheme.startswith("rq"):
        pytest.skip("rq knows one server alone")
    for _ in range(2):
        stage.worker(url=url)
    client = stage.client(url=url)
    load(stage, client, calls=100)
    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(fault)
        while not over.done():
            load(stage, client, calls=50, timeout=20.0, unattended=0.2)
        over.result()
    known = len(stage.oracle.calls)
    load(stage, client, calls=100, timeout=20.0)
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0
    assert {call.outcome for call in stage.oracle.calls[known:]} == {"answered"}
    assert set(figures.errors) <= {"RpcTimeout", "BackendUnavailable"}
    assert figures.lost <= 16  # what was on its way to the replica
    assert figures.duplicated <= 16


@needs_redis_server
def test_sentinel(stage: Stage) -> None:
    """The master that sentinels watch is killed under load, and a replica is promoted"""
    with start_sentinel() as group:
        stage.oracle.faults["SIGKILL to Redis"] += 1
        under_load(stage, f"{group.url}?lease=1&max_deliveries=50", group.kill_master)


@needs_redis_server
def test_cluster(stage: Stage) -> None:
    """A node of a cluster is killed under load, and its replica is promoted; then the queue's slot moves"""
    with start_cluster(3, replicas=1) as cluster:

        def fault() -> None:
            heir = cluster.failover(cluster.owner("{default}"))
            cluster.move("{default}", next(node for node in cluster.masters if node is not heir))

        stage.oracle.faults["SIGKILL to Redis"] += 1
        stage.oracle.faults["slot moved"] += 1
        under_load(stage, f"{cluster.url}?lease=1&max_deliveries=50", fault)
