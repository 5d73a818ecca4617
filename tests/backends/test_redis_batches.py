"""Workers of the native Redis backend take several messages at a time: what each is promised all the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from pathlib import Path

import pytest

from rpc import RpcTimeout, WorkerLost
from rpc.testing import RedisServer

from .redis_jobs import QUEUE, Bench
from .rq_jobs import PATIENCE, eventually

pytestmark = pytest.mark.redis


@pytest.fixture
def bench(rpc_redis: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(rpc_redis, tmp_path / "log")
    yield bench
    bench.close()


def test_what_waited_for_the_worker_is_done_once_and_in_order(bench: Bench) -> None:
    bench.url = f"{bench.server.url}?lease=60"  # what a worker without a processor loses is done again, later
    for n in range(2000):
        bench.client.call("fast", [n])
    bench.serve()
    eventually(lambda: len(bench.lines()) >= 2000)
    assert bench.client.call_and_wait("fast", [2000]).data == 2000
    assert bench.lines() == [str(n) for n in range(2001)]


def warmed_up(bench: Bench) -> None:
    """The worker has found that it can take many at a time."""
    for n in range(300):
        bench.client.call("fast", [n])
    eventually(lambda: len(bench.lines()) >= 300)
    bench.log.write_text("")


def test_a_slow_job_does_not_keep_the_others_of_its_batch(bench: Bench) -> None:
    bench.serve()
    warmed_up(bench)
    with ThreadPoolExecutor(30) as pool:
        slow = bench.client.submit("slow", [0])
        others = [bench.client.submit("fast", [n]) for n in range(30)]
        eventually(lambda: "slow 0" in bench.lines())
        bench.serve()  # another worker, idle
        assert [other.result(PATIENCE).data for other in others] == list(range(30))
        assert not slow.done()
        assert pool
    bench.release()
    assert slow.result(PATIENCE).data == 0
    assert Counter(bench.lines()) == Counter(["slow 0", "slept 0", *map(str, range(30))])


def test_what_is_done_is_answered_although_a_later_one_of_the_batch_is_slow(bench: Bench) -> None:
    before = [bench.client.submit("fast", [n]) for n in range(10)]
    eventually(lambda: bench.admin.llen(QUEUE) == 10)
    slow = bench.client.submit("slow", [0])
    bench.serve()
    assert [each.result(PATIENCE).data for each in before] == list(range(10))
    assert not slow.done()
    bench.release()
    assert slow.result(PATIENCE).data == 0


def test_a_batch_keeps_the_order_of_priority(bench: Bench) -> None:
    for n in range(100):
        bench.client.call("fast", [n], queue="low")
    for n in range(100, 200):
        bench.client.call("fast", [n], queue="high")
    bench.serve(queues=["high", "default", "low"])
    eventually(lambda: len(bench.lines()) == 200)
    assert bench.lines() == [str(n) for n in [*range(100, 200), *range(100)]]


def test_wakeups_do_not_pile_up(bench: Bench) -> None:
    for n in range(1000):
        bench.client.call("fast", [n], queue="high")
        bench.client.call("fast", [n], queue="low")
    bench.serve(queues=["high", "default", "low"])
    while len(bench.lines()) < 2000:
        assert bench.admin.zcard("rpc:{default}:low:wakeup") <= 1
    assert bench.admin.zcard("rpc:{default}:high:wakeup") <= 1


# Workers that die.


def test_what_a_dead_worker_held_is_delivered_again_and_nothing_else(bench: Bench) -> None:
    worker = bench.spawn()
    warmed_up(bench)
    slow = bench.client.submit("slow", [0])
    eventually(lambda: "slow 0" in bench.lines())
    others = [bench.client.submit("neighbour", [n]) for n in range(20)]
    worker.kill()
    bench.release()
    bench.serve()
    assert slow.result(PATIENCE).data == 0
    assert [other.result(PATIENCE).data for other in others] == list(range(20))
    ran = Counter(line.rpartition(" ")[0] for line in bench.lines() if line.startswith("neighbour"))
    assert ran == Counter(f"neighbour {n}" for n in range(20))
    assert bench.lines().count("slow 0") == 2


@pytest.mark.slow
def test_poison_ends_as_a_dead_letter_and_its_neighbours_are_done(bench: Bench) -> None:
    before = [bench.client.submit("neighbour", [n]) for n in range(5)]
    eventually(lambda: bench.admin.llen(QUEUE) == 5)
    bad = bench.client.submit("poison", timeout=60)
    eventually(lambda: bench.admin.llen(QUEUE) == 6)
    after = [bench.client.submit("neighbour", [n], timeout=60) for n in range(5, 10)]
    eventually(lambda: bench.admin.llen(QUEUE) == 11)
    for _ in range(3):
        bench.spawn().wait(PATIENCE)
    bench.spawn()
    with pytest.raises(WorkerLost):
        bad.result(PATIENCE)
    assert [each.result(PATIENCE).data for each in (*before, *after)] == list(range(10))
    assert bench.lines().count("poison False") == 1
    assert bench.lines().count("poison True") == 2
    ran = Counter(line.split()[1] for line in bench.lines() if line.startswith("neighbour"))
    assert max(ran.values()) <= 2, "one that was handled with the poison runs alone from then on"
    (letter,) = bench.letters()
    assert "WorkerLost" in letter.why


@pytest.mark.slow
def test_with_one_delivery_a_job_of_a_dead_worker_is_given_up_and_no_other(
    rpc_redis: RedisServer, tmp_path: Path
) -> None:
    bench = Bench(rpc_redis, tmp_path / "log", "lease=1&max_deliveries=1")
    try:
        bad = bench.client.submit("poison", timeout=60)
        eventually(lambda: bench.admin.llen(QUEUE) == 1)
        others = [bench.client.submit("neighbour", [n], timeout=60) for n in range(50)]
        bench.spawn().wait(PATIENCE)
        bench.spawn()
        with pytest.raises(WorkerLost):
            bad.result(PATIENCE)
        assert [other.result(PATIENCE).data for other in others] == list(range(50))
        assert Counter(bench.lines()) == Counter(
            ["poison False", *(f"neighbour {n} False" for n in range(50))]
        )
    finally:
        bench.close()


# What befalls Redis.


def loaded_while(bench: Bench, disrupt: Callable[[], object], times: int = 6) -> None:
    """Four callers, whom something befalls again and again; each time after some more was done."""
    numbers, ended = count(), threading.Event()

    def call() -> list[int]:
        return [n for n in takewhile(lambda _: not ended.is_set(), numbers) if answer(n) == n]

    def answer(n: int) -> int:
        return bench.client.call_and_wait("fast", [n]).data

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call) for _ in range(4)]
        try:
            for _ in range(times):
                done = len(bench.lines())
                eventually(lambda done=done: len(bench.lines()) > done + 20)
                disrupt()
        finally:
            ended.set()
        answered = [n for caller in callers for n in caller.result(PATIENCE)]
    assert len(answered) > 20 * times
    assert Counter(bench.lines()) == Counter(map(str, answered)), "something was done twice"


@pytest.mark.real_redis
def test_scripts_that_are_forgotten_in_the_middle_are_loaded_again(bench: Bench) -> None:
    bench.serve()
    loaded_while(bench, bench.admin.script_flush)


@pytest.mark.real_redis
def test_connections_that_are_cut_in_the_middle_cost_nothing_but_time(bench: Bench) -> None:
    bench.serve()
    loaded_while(bench, lambda: bench.admin.client_kill_filter(_type="normal", skipme=True))


def test_after_redis_was_emptied_the_workers_go_on(bench: Bench) -> None:
    bench.serve(concurrency=2)
    assert [bench.client.call_and_wait("fast", [n]).data for n in range(20)] == list(range(20))
    lost = bench.client.submit("slow", [0], timeout=2)
    eventually(lambda: "slow 0" in bench.lines())
    bench.admin.flushall()
    bench.release()
    error = lost.exception(PATIENCE)  # none if it was sent again, because that was not confirmed yet
    assert error is None or isinstance(error, RpcTimeout)
    assert [bench.client.call_and_wait("fast", [n]).data for n in range(20)] == list(range(20))
    bench.client.call("fast", [99], delay=0.1)
    eventually(lambda: "99" in bench.lines())
