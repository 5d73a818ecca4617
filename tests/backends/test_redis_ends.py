"""Everything ends: what stays in Redis without a TTL when workers were killed and queues abandoned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc import RpcClient, RpcTimeout
from rpc.backends.redis.keys import QueueNames
from rpc.testing import RedisServer

from .redis_jobs import Bench
from .rq_jobs import PATIENCE, end, eventually

pytestmark = [pytest.mark.redis, pytest.mark.real_redis]

MAY_STAY = {
    r"rpc:\{default\}:default": "a job that nobody waits for, and that has no ttl, waits as long as it must",
    r"rpc:\{default\}:default:b:\w+": "and so does its body",
    r"rpc:\{default\}:default:delayed": "or until it is due",
    r"rpc:\{default\}:default:taken:\w+:\d+": "or until somebody brings back what a dead worker had",
    r"rpc:\{\w+\}:\w+:dead": "dead letters wait for people, at most 10,000",
    r"rq:queues": "rq's own: the names of all queues",
    r"rq:workers": "rq's own: its workers tidy it up",
    r"rq:(queue|wip|finished|failed):rpc\.\w+": "rq's own lists: of jobs that wait, and registries",
    r"rq:job:\w+": "a job that nobody waits for, and that has no ttl",
}
"""Patterns of keys, and why what they name has no TTL."""


@pytest.fixture
def bench(rpc_redis: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(rpc_redis, tmp_path / "log")
    yield bench
    bench.close()


def unexplained(bench: Bench) -> set[str]:
    return {key for key in bench.without_end() if not any(re.fullmatch(each, key) for each in MAY_STAY)}


@pytest.mark.parametrize("idle", [True, False])
def test_a_killed_worker_leaves_nothing_for_ever(bench: Bench, idle: bool) -> None:
    worker = bench.spawn("Listeners")
    bench.client.call_and_wait("fast", [1])
    bench.client.publish("boom")
    eventually(lambda: {"alone", "team", "durable", "tick"} <= {*bench.lines()})
    if not idle:
        bench.client.call("slow", [1])
        eventually(lambda: "slow 1" in bench.lines())
    end(worker)
    assert unexplained(bench) == set()
    assert bool(bench.without_end()) is not idle


def test_what_callers_left_in_a_queue_that_nobody_serves_ends_with_them(bench: Bench) -> None:
    for kind in "x", "x" * 100_000:
        with pytest.raises(RpcTimeout):
            bench.client.call_and_wait("echo", [kind], timeout=0.3)
        with pytest.raises(RpcTimeout):
            bench.client.submit("echo", [kind], timeout=0.3).result(PATIENCE)
        future = bench.client.submit("echo", [kind])
        eventually(lambda: bench.admin.llen(QueueNames().queue("default").queue))
        future.cancel()
        eventually(lambda: not bench.admin.llen(QueueNames().queue("default").queue), "it stays")
    assert bench.without_end() == set()


def test_what_has_no_end_is_found_by_those_who_come_much_later(bench: Bench) -> None:
    worker = bench.spawn()
    bench.client.call("slow", [1])
    eventually(lambda: "slow 1" in bench.lines())
    end(worker)
    bench.release()
    bench.admin.delete(QueueNames().queue("default").workers)  # as if a day had passed
    bench.serve()
    eventually(lambda: "slept 1" in bench.lines())
    eventually(lambda: not bench.without_end(), "it stays")


def test_on_rq_nothing_stays_for_ever(bench: Bench) -> None:
    url: Any = f"rq+{bench.server.url}?lease=1"
    with RpcClient(backend=url, timeout=PATIENCE) as client:
        with pytest.raises(RpcTimeout):
            client.call_and_wait("echo", ["x"], timeout=0.3)
        client.submit("echo", ["x"]).cancel()
        client.call("echo", ["x"])
    assert unexplained(bench) == set()
