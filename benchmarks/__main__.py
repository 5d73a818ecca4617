"""`make bench`: the median time of a call, beside a peer that is measured in the same run, round by round.

All do the same work, `add`, in one worker process, on one embedded Redis. Ours have acknowledgement, lease
and deadline on. The bare loop is what one writes by hand on redis-py (RPUSH, BLPOP, JSON): it has none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import click
import redis
import rq
from rq.serializers import JSONSerializer

from rpc import RpcClient
from rpc.testing import start_redis

Call = Callable[[], Any]


@click.command()
@click.option("--calls", default=300, show_default=True, help="Calls of each side in a round.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the median of their medians counts.")
@click.option("--idle", default=5.0, show_default=True, help="Seconds to watch an idle worker.")
def main(calls: int, rounds: int, idle: float) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(start_redis())
        workers = {
            name: stack.enter_context(_Process(kind, url))
            for name, kind, url in (
                ("rpc on rq", "rpc", f"rq+{server.url}"),
                ("rpc on redis", "rpc", server.url),
                ("rq SimpleWorker", "rq", server.url),
                ("bare loop", "loop", server.url),
            )
        }
        sides = {
            "rpc on rq": _ours(stack, f"rq+{server.url}"),
            "rpc on redis": _ours(stack, server.url),
            "rq SimpleWorker": _rqs(server.url),
            "bare loop": _loops(server.url),
        }
        for name, call in sides.items():  # warm up, and see that each does the work
            if call() != {"answer": 2}:
                raise click.ClickException(f"{name}: wrong answer")
        rows = [{name: _median(call, calls) for name, call in sides.items()} for _ in range(rounds)]
        print(
            f"{server.kind}, redis-py {redis.__version__}, rq {rq.VERSION}, Python {sys.version.split()[0]}"
        )
        for name in sides:
            print(f"{name:<16}{statistics.median(row[name] for row in rows) * 1e6:8.0f} µs median call")
        for ours, peer, at_most in (
            ("rpc on rq", "rq SimpleWorker", 0.70),
            ("rpc on redis", "bare loop", 0.65),
        ):
            ratio = statistics.median(row[ours] / row[peer] for row in rows)
            print(f"{ours} / {peer}: {ratio:.2f} (wanted: at most {at_most:.2f})")
        for name in "rpc on rq", "rpc on redis":
            print(f"{name}, idle worker: {_idle_cpu(workers[name].pid, idle):.2f} % CPU over {idle:g} s")


def _ours(stack: ExitStack, url: str) -> Call:
    client = stack.enter_context(RpcClient(backend=url))
    return lambda: client.call_and_wait("add", {"a": 1, "b": 1}).data


def _rqs(url: str) -> Call:
    queue = rq.Queue("theirs", connection=redis.Redis.from_url(url), serializer=JSONSerializer)

    def call() -> Any:
        result = queue.enqueue("benchmarks.jobs.add", 1, 1).latest_result(timeout=10)
        return result.return_value if result else None

    return call


def _loops(url: str) -> Call:
    client = redis.Redis.from_url(url)

    def call() -> Any:
        reply = uuid4().hex
        client.rpush("loop", json.dumps({"reply": reply, "a": 1, "b": 1}))
        popped = client.blpop([reply], timeout=4)
        return json.loads(popped[1]) if popped else None

    return call


def _median(call: Call, calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class _Process(subprocess.Popen[bytes]):
    """A worker; ends with its `with` block."""

    def __init__(self, kind: str, url: str) -> None:
        super().__init__([sys.executable, "-m", "benchmarks.jobs", kind, url])

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()


def _idle_cpu(pid: int, seconds: float) -> float:
    """CPU of a process in percent, from /proc (Linux)."""
    before = _cpu_percent_seconds(pid)
    time.sleep(seconds)
    return (_cpu_percent_seconds(pid) - before) / seconds


def _cpu_percent_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 100


if __name__ == "__main__":
    main()
