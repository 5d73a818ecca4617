"""What rq on Redis keeps when workers, or Redis itself, die under load. Prints one line of figures each."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from rpc import BackendUnavailable, RpcError, RpcTimeout
from rpc.testing import RedisServer, start_redis

from .rq_jobs import PATIENCE, Bench, end, eventually, later, without_end

pytestmark = [pytest.mark.real_redis, pytest.mark.slow, pytest.mark.timeout(120)]

JOBS = 1000
CALLERS = 8
WAITING = 400
"""So many of the jobs have a caller that waits; nobody waits for the others."""
TIMEOUT = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with start_redis(durable=True) as server:
        yield server


@pytest.fixture
def bench(server: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(server.url, tmp_path / "log")
    yield bench
    bench.close()


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("RPC_SEED", random.randrange(2**32)))
    print(f"\nRPC_SEED={seed}")
    return random.Random(seed)


@contextmanager
def kept_alive(bench: Bench) -> Iterator[Callable[[], None]]:
    """A worker process that is started again whenever it has ended; gives what kills it."""
    worker: list[subprocess.Popen[bytes]] = [bench.worker("lease=2&max_deliveries=9")]

    def kill() -> None:
        worker[0].send_signal(signal.SIGKILL)
        worker[0].wait()
        worker[0] = bench.worker("lease=2&max_deliveries=9", ready=False)

    yield kill
    end(worker[0])


def under_load(bench: Bench, fault: Callable[[], None]) -> Counter[str]:
    """Send all jobs, from several threads, while the fault happens; returns what came of them."""
    figures: Counter[str] = Counter()
    lock = threading.Lock()

    def ask(number: int) -> None:
        data = {"name": f"job {number}"}
        start = time.monotonic()
        try:
            if number % JOBS < WAITING:
                assert bench.client.call_and_wait("ran", data, timeout=TIMEOUT).data == f"job {number}"
            else:
                bench.client.call("ran", data)
            outcome = "answered" if number % JOBS < WAITING else "sent"
        except RpcTimeout:
            outcome = "timed out"
        except BackendUnavailable:
            outcome = "not sent"
        except RpcError:
            outcome = "errors"
        with lock:
            figures[outcome] += 1
            figures["late"] += time.monotonic() - start > TIMEOUT + PATIENCE

    order = list(range(JOBS))
    random.Random(1).shuffle(order)
    trouble = threading.Thread(target=fault)
    trouble.start()
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(lambda number: (time.sleep(0.03), ask(number)), order))
    trouble.join()
    return figures


def more_are_done(bench: Bench, number: int) -> None:
    """Wait until so many more jobs were begun."""
    before = len(bench.lines())
    eventually(lambda: len(bench.lines()) >= before + number)


def verdict(bench: Bench, figures: Counter[str], what: str) -> Counter[str]:
    """Wait until the queue is worked off; then count what ran, and print it."""
    busy = [f"rq:queue:{bench.rq_queue}", f"rq:wip:{bench.rq_queue}"]
    eventually(lambda: not bench.redis.exists(*busy), "jobs are left", within=30)
    ran = Counter(bench.lines())
    figures["executed"], figures["lost"] = sum(ran.values()), JOBS - figures["not sent"] - len(ran)
    figures["duplicated"] = sum(ran.values()) - len(ran)
    names = "answered", "sent", "executed", "duplicated", "lost", "errors", "timed out", "not sent", "late"
    print(f"{what}: {JOBS} jobs, " + ", ".join(f"{figures[name]} {name}" for name in names))
    return figures


def test_a_worker_killed_five_times_loses_no_job_and_leaves_no_caller_waiting(
    bench: Bench, dice: random.Random
) -> None:
    kills = 5

    def fault() -> None:
        for _ in range(kills):
            more_are_done(bench, dice.randrange(20, 120))
            kill()

    with kept_alive(bench) as kill:
        figures = verdict(bench, under_load(bench, fault), f"{kills} times SIGKILL to the worker")
    assert figures["lost"] == figures["timed out"] == figures["not sent"] == figures["late"] == 0
    assert figures["answered"] + figures["errors"] == WAITING
    assert figures["duplicated"] <= kills  # a death repeats at most the job that it interrupted
    assert without_end(bench.redis) == []


def test_redis_away_for_three_seconds_loses_no_job_and_leaves_no_caller_waiting(
    bench: Bench, server: RedisServer, dice: random.Random
) -> None:
    def fault() -> None:
        more_are_done(bench, dice.randrange(20, 500))
        server.stop()
        time.sleep(3)  # it is time itself that is tested
        server.restart()

    with kept_alive(bench):
        figures = verdict(bench, under_load(bench, fault), "Redis stopped for 3 s")
    assert figures["lost"] <= 0  # what the caller was told was not sent may have run
    assert figures["timed out"] == figures["late"] == 0
    assert figures["answered"] + figures["errors"] + figures["not sent"] >= WAITING
    assert without_end(bench.redis) == []


def test_a_future_outlives_redis_being_away(bench: Bench, server: RedisServer) -> None:
    with kept_alive(bench):
        future = bench.client.submit("hold")
        eventually(bench.lines)
        server.stop()
        time.sleep(2.5)  # it is time itself that is tested
        server.restart()
        bench.release()
        assert future.result(TIMEOUT).data == "first"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "frozen"])
def test_sending_without_a_broker_fails_within_five_seconds_or_so(
    bench: Bench, server: RedisServer, how: signal.Signals
) -> None:
    os.kill(server.pid, how)
    start = time.monotonic()
    try:
        with pytest.raises(BackendUnavailable):
            bench.client.call("add", {"a": 1, "b": 1})
        assert time.monotonic() - start < PATIENCE
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "frozen"])
def test_waiting_without_a_broker_ends_at_the_deadline(
    bench: Bench, server: RedisServer, how: signal.Signals
) -> None:
    start = time.monotonic()
    try:
        with later(0.3, os.kill, server.pid, how), pytest.raises((RpcTimeout, BackendUnavailable)):
            bench.client.call_and_wait("add", {"a": 1, "b": 1}, timeout=1)
        assert time.monotonic() - start < PATIENCE
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_worker_survives_a_broker_that_crashes_again_and_again(bench: Bench, server: RedisServer) -> None:
    with kept_alive(bench):
        for _ in range(3):
            server.kill()
            server.restart()
            assert bench.client.call_and_wait("add", {"a": 1, "b": 1}).data == 2
