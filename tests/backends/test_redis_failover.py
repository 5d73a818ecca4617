"""Masters that die and slots that move while calls are under way: on a real cluster, with real sentinels.

Replication is asynchronous: what a master had not passed on when it died is lost, and its caller is told by
its timeout. No reply is ever wrong, nothing hangs, and everybody finds the new master.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from rpc import BackendUnavailable, RpcClient, RpcReceiver, RpcTimeout, Unsupported, WorkerLost
from rpc.backends import backend_from_url
from rpc.backends.redis.keys import QueueNames
from tests.topologies import start_cluster, start_sentinel

pytestmark = [
    *(pytest.mark.redis, pytest.mark.real_redis, pytest.mark.slow),
    pytest.mark.skipif(not shutil.which("redis-server"), reason="needs a real Redis: redis-server on PATH"),
    pytest.mark.xdist_group("topologies"),
    pytest.mark.timeout(120),
]
CALLERS = 4
KEY = QueueNames().queue("default").queue


def outcomes_while(url: str, disturb: Callable[[], object]) -> Counter[str]:
    """How calls ended that were made before, while and after that happened."""
    receiver = RpcReceiver(jobs={"double": lambda n: n * 2}, backend=url)
    serving = threading.Thread(target=receiver.start)
    serving.start()
    outcomes: Counter[str] = Counter()
    disturbed = threading.Event()

    def call(client: RpcClient, number: int) -> None:
        try:
            right = client.call_and_wait("double", [number]).data == number * 2
            outcomes["right" if right else "wrong"] += 1
        except (BackendUnavailable, RpcTimeout, Unsupported, WorkerLost) as error:
            outcomes[type(error).__name__] += 1

    def caller(client: RpcClient, first: int) -> None:
        number = first
        while not disturbed.is_set():
            call(client, number)
            number += CALLERS
        for after in range(20):
            assert client.call_and_wait("double", [after]).data == after * 2
            outcomes["right afterwards"] += 1

    try:
        with RpcClient(backend=url, timeout=15) as client:
            client.call_and_wait("double", [0])
            callers = [threading.Thread(target=caller, args=[client, n]) for n in range(CALLERS)]
            for thread in callers:
                thread.start()
            disturb()
            disturbed.set()
            for thread in callers:
                thread.join()
    finally:
        receiver.stop()
        serving.join()
    return outcomes


def test_a_slot_that_moves_takes_its_queue_with_it() -> None:
    with start_cluster() as cluster:
        here = cluster.owner(KEY)
        elsewhere = [master for master in cluster.masters if master is not here]

        def move_twice() -> None:
            for other in elsewhere:
                cluster.move(KEY, other)

        outcomes = outcomes_while(f"{cluster.url}?lease=2", move_twice)
    assert set(outcomes) == {"right", "right afterwards"}
    assert outcomes["right afterwards"] == 20 * CALLERS


def test_the_replica_of_a_dead_master_serves_its_queues() -> None:
    with start_cluster(replicas=1) as cluster:
        outcomes = outcomes_while(f"{cluster.url}?lease=2", lambda: cluster.failover(cluster.owner(KEY)))
    assert not outcomes["wrong"]
    assert outcomes["right afterwards"] == 20 * CALLERS


def test_sentinels_tell_of_the_new_master() -> None:
    with start_sentinel() as sentinels:
        outcomes = outcomes_while(f"{sentinels.url}?lease=2", sentinels.kill_master)
    assert not outcomes["wrong"]
    assert outcomes["right afterwards"] == 20 * CALLERS


def test_a_worker_on_a_cluster_serves_queues_of_one_slot() -> None:
    with start_cluster() as cluster:
        backend = backend_from_url(cluster.url)
        receiver = RpcReceiver(jobs={"work": lambda: 1}, backend=backend, queues=["mail", "shop"])
        with pytest.raises(
            Unsupported, match=r"one hash slot, not mail, shop: give them names like shop\.high"
        ):
            receiver.start()
        backend.close()
