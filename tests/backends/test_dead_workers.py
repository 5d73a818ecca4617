"""Workers in processes of their own that die, with a lease that would be over long after the test."""

from __future__ import annotations

import signal

import pytest

from rpc import WorkerLost

from .rq_jobs import Bench, eventually

pytestmark = [pytest.mark.redis, pytest.mark.parametrize("scheme", ["redis", "rq+redis"])]
LEASE = "lease=3600"


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_given_up_at_once_after_three(bench: Bench, scheme: str) -> None:
    """Also if it is the first thing that they do."""
    client = bench.make_client(scheme)
    future = client.submit("die")
    for _ in range(3):
        assert bench.worker(LEASE, scheme=scheme, ready=False).wait(60) == -signal.SIGKILL
    with pytest.raises(WorkerLost):
        future.result()
    assert bench.lines() == ["dies"] * 3


@pytest.mark.slow
def test_what_a_killed_worker_has_is_done_at_once_by_one_that_is_there(bench: Bench, scheme: str) -> None:
    client = bench.make_client(scheme)
    workers = {each.pid: each for each in (bench.worker(LEASE, scheme=scheme, ready=False) for _ in range(2))}
    future = client.submit("hold")
    (line,) = eventually(bench.lines)
    workers[int(line.split()[0])].kill()
    eventually(lambda: len(bench.lines()) == 2)
    bench.release()
    assert future.result().data == "again"
