"""rq on Redis with workers in processes of their own: deaths, stops, time limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rq

from rpc import RpcTimeout, WorkerLost

from .rq_jobs import PATIENCE, Bench, eventually, without_end

pytestmark = pytest.mark.redis


def held_by(bench: Bench) -> int:
    """The process in which the last `hold` runs."""
    lines = eventually(lambda: [line for line in bench.lines() if line.endswith("holds")])
    return int(lines[-1].split()[0])


def times(bench: Bench, line: str) -> int:
    return sum(each.endswith(line) for each in bench.lines())


def stat(pid: int) -> list[str]:
    """What /proc tells of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def gone(pid: int) -> bool:
    try:
        return stat(pid)[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def processor_seconds(pid: int) -> float:
    return sum(map(int, stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


# Deaths.


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_each_time_is_given_up_after_three(bench: Bench) -> None:
    for _ in range(4):
        bench.worker("lease=1")
    with pytest.raises(WorkerLost):
        bench.client.call_and_wait("die")
    assert bench.lines() == ["dies"] * 3
    assert bench.client.call_and_wait("add", {"a": 1, "b": 1}).data == 2


@pytest.mark.slow
def test_an_at_most_once_job_whose_worker_is_killed_is_not_tried_again(bench: Bench) -> None:
    for _ in range(2):
        bench.worker("lease=1")
    with pytest.raises(WorkerLost):
        bench.client.call_and_wait("die_once")
    assert bench.lines() == ["dies"]


@pytest.mark.slow
def test_a_worker_killed_in_a_job_is_replaced_and_no_record_of_it_stays(bench: Bench) -> None:
    first = bench.worker()
    future = bench.client.submit("hold")
    child = held_by(bench)
    first.kill()
    if child != first.pid:
        os.kill(child, signal.SIGKILL)
    bench.worker(ready=False)
    eventually(lambda: times(bench, "holds") == 2)
    bench.release()
    assert future.result(PATIENCE).data == "again"
    eventually(lambda: len(rq.Worker.all(connection=bench.redis)) == 1)


@pytest.mark.slow
def test_a_worker_that_was_stopped_longer_than_the_lease_does_no_harm(bench: Bench) -> None:
    first = bench.worker()
    future = bench.client.submit("hold")
    family = {first.pid, held_by(bench)}
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    bench.worker(ready=False)
    eventually(lambda: times(bench, "holds") == 2)
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    bench.release()
    assert future.result(PATIENCE).data in ("first", "again")
    eventually(lambda: times(bench, "held") >= 2)
    assert [bench.client.call_and_wait("add", {"a": 1, "b": 1}).data for _ in range(9)] == [2] * 9
    assert times(bench, "holds") <= 3
    assert without_end(bench.redis) == []


@pytest.mark.slow
@pytest.mark.real_redis
def test_a_paused_redis_makes_no_job_run_twice(bench: Bench) -> None:
    for _ in range(2):
        bench.worker()
    future = bench.client.submit("hold")
    held_by(bench)
    bench.redis.execute_command("DEBUG", "SLEEP", "4")  # twice the lease
    time.sleep(2.5)  # time for a wrong recovery: more than two looks
    bench.release()
    assert future.result(PATIENCE).data == "first"
    assert times(bench, "holds") == 1


def test_a_claim_whose_answer_was_lost_is_not_forgotten_when_the_lease_runs_out_meanwhile(
    bench: Bench,
) -> None:
    """The worker is cut off when it has just claimed a job, for longer than its lease, and is alone."""
    script = (
        "import redis, sys\n"
        "from redis.commands.core import Script\n"
        "call, lost = Script.__call__, []\n"
        "def losing(self, keys=None, args=None, client=None):\n"
        "    answer = call(self, keys, args, client)\n"
        "    if isinstance(answer, list) and not lost:\n"
        "        lost.append(self.registered_client.delete(keys[0]))\n"
        "        raise redis.ConnectionError('cut')\n"
        "    return answer\n"
        "Script.__call__ = losing\n"
        "from backends import rq_jobs\n"
        "rq_jobs.main(*sys.argv[1:])\n"
    )
    options = f'{{"queues": ["{bench.queue}"]}}'
    command = [sys.executable, "-c", script, f"rq+{bench.url}?lease=2", str(bench.log), options]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as worker:
        try:
            answer = bench.client.call_and_wait("ran", {"name": "it"}, timeout=3 * PATIENCE).data
        finally:
            worker.kill()
    assert answer == "it"


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_with_the_default_lease_a_killed_workers_job_runs_again_within_80_s(bench: Bench) -> None:
    worker = bench.worker("")
    future = bench.client.submit("hold", timeout=80)
    held_by(bench)
    bench.worker("")
    worker.kill()
    bench.release()
    assert future.result(80).data == "again"


@pytest.mark.slow
def test_clocks_of_workers_are_not_compared(bench: Bench) -> None:
    ahead = (
        "import sys, time, datetime, rq.utils\n"
        "from backends import rq_jobs\n"
        "real = time.time\n"
        "time.time = lambda: real() + 86_400\n"
        "import rpc.backends.rq\n"
        "rq_jobs.main(*sys.argv[1:])\n"
    )
    bench.worker()
    future = bench.client.submit("hold")
    held_by(bench)
    options = f'{{"queues": ["{bench.queue}"]}}'
    command = [sys.executable, "-c", ahead, f"rq+{bench.url}?lease=2", str(bench.log), options]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as worker:
        try:
            eventually(lambda: len(bench.workers()) == 2)
            time.sleep(2.5)  # time for a wrong recovery
            assert times(bench, "holds") == 1
            bench.release()
            assert future.result(PATIENCE).data == "first"
        finally:
            worker.kill()


# Time limits.


def test_a_job_that_runs_too_long_in_the_main_thread_ends_with_a_timeout_at_the_caller(bench: Bench) -> None:
    bench.worker("lease=2&job_timeout=1")
    with pytest.raises(RpcTimeout, match="longer than 1 s"):
        bench.client.call_and_wait("sleep", {"seconds": 60})
    assert bench.client.call_and_wait("add", {"a": 1, "b": 1}).data == 2


def test_a_job_that_waits_for_another_too_long_is_interrupted_too(bench: Bench) -> None:
    bench.worker("lease=2&job_timeout=1")
    with pytest.raises(RpcTimeout, match="longer than 1 s"):
        bench.client.call_and_wait("nested")


def test_a_job_that_waits_for_another_attempt_holds_no_slot(bench: Bench) -> None:
    bench.worker("lease=2")
    bench.client.call("flaky")
    eventually(bench.lines)
    assert bench.client.call_and_wait("add", {"a": 1, "b": 1}).data == 2
    assert bench.lines() == ["flaky"]


# Stops.


def test_a_stopped_worker_finishes_its_job_takes_no_other_and_exits_with_0(bench: Bench) -> None:
    worker = bench.worker()
    future = bench.client.submit("hold")
    held_by(bench)
    bench.client.call("ran", {"name": "later"})
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: was_handled(worker, signal.SIGTERM))
    bench.release()
    assert future.result(PATIENCE).data == "first"
    assert worker.wait(PATIENCE) == 0
    assert "later" not in bench.lines()
    assert bench.workers() == set()


def test_after_the_grace_period_the_job_goes_to_another_worker_at_once(bench: Bench) -> None:
    worker = bench.worker("lease=90", grace=0.3)
    future = bench.client.submit("hold")
    child = held_by(bench)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0
    bench.worker("lease=90")
    eventually(lambda: times(bench, "holds") == 2)
    eventually(lambda: gone(child), "the child goes on")
    bench.release()
    assert future.result(PATIENCE).data == "again"
    assert times(bench, "held") == 1


@pytest.mark.slow
def test_a_second_signal_ends_the_worker_now_and_loses_nothing(bench: Bench) -> None:
    worker = bench.worker()
    future = bench.client.submit("hold")
    child = held_by(bench)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: was_handled(worker, signal.SIGTERM))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == -signal.SIGTERM
    eventually(lambda: gone(child), "the child goes on")
    bench.worker()
    bench.release()
    assert future.result(PATIENCE).data == "again"


def was_handled(worker: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Whether the first one was: from then on the process no longer catches it."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return not caught & 1 << (number - 1)


def test_ctrl_c_for_the_whole_process_group_lets_the_job_finish(bench: Bench) -> None:
    worker = bench.worker()
    future = bench.client.submit("hold")
    child = held_by(bench)
    for pid in {worker.pid, child}:  # what a terminal does to the group
        os.kill(pid, signal.SIGINT)
    eventually(lambda: was_handled(worker, signal.SIGINT))
    bench.release()
    assert future.result(PATIENCE).data == "first"
    assert worker.wait(PATIENCE) == 0


def test_what_a_job_prints_is_printed_once(bench: Bench, tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said:
        worker = bench.worker(stdout=said)
        for word in "one", "two":
            bench.client.call_and_wait("say", {"text": word})
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    assert (tmp_path / "said").read_text() == "one\ntwo\n"


# Callers.


def test_a_killed_caller_leaves_nothing_without_an_end(bench: Bench) -> None:
    script = (
        f"from rpc import RpcClient; "
        f"RpcClient(backend='rq+{bench.url}', queue='{bench.queue}').call_and_wait('add', timeout=20)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as caller:
        eventually(lambda: bench.redis.llen(f"rq:queue:{bench.rq_queue}"))
        caller.kill()
    assert without_end(bench.redis) == []


def test_futures_work_in_a_process_that_was_forked_off_after_others_were_made(bench: Bench) -> None:
    bench.worker()
    assert bench.client.submit("add", {"a": 1, "b": 1}).result(PATIENCE).data == 2
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = bench.client.submit("add", {"a": 1, "b": 1}).result(5).data
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


# Rest.


@pytest.mark.slow
def test_an_idle_worker_takes_less_than_one_percent_of_a_processor(bench: Bench) -> None:
    pid = bench.worker("lease=10").pid
    bench.client.call_and_wait("add", {"a": 1, "b": 1})
    before = processor_seconds(pid)
    time.sleep(4)
    assert (processor_seconds(pid) - before) / 4 < 0.01
