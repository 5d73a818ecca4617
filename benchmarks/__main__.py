"""`make bench`: the rq backend beside rq itself, interleaved round by round, on an embedded Redis.

Both sides do the same work, `add`, in one worker process that runs jobs in-process; ours with
acknowledgement, lease, deadline and answer, rq's with its own defaults and `job.latest_result(timeout)`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click
import redis
import rq
from rq.serializers import JSONSerializer

from rpc import RpcClient
from rpc.testing import start_redis

OURS = "import sys; from benchmarks.jobs import serve; serve(sys.argv[1])"
THEIRS = "import sys; from benchmarks.jobs import serve_rq; serve_rq(sys.argv[1])"


@click.command()
@click.option("--calls", default=300, show_default=True, help="Calls of each side in a round.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the median of their medians counts.")
@click.option("--idle", default=5.0, show_default=True, help="Seconds to watch an idle worker.")
def main(calls: int, rounds: int, idle: float) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(start_redis())
        client = stack.enter_context(RpcClient(backend=f"rq+{server.url}"))
        queue = rq.Queue("theirs", connection=redis.Redis.from_url(server.url), serializer=JSONSerializer)
        worker = stack.enter_context(_process(OURS, server.url))
        stack.enter_context(_process(THEIRS, server.url))

        def ours() -> Any:
            return client.call_and_wait("add", {"a": 1, "b": 1}).data

        def theirs() -> Any:
            result = queue.enqueue("benchmarks.jobs.add", 1, 1).latest_result(timeout=10)
            return result.return_value if result else None

        for side in (ours, theirs):  # warm up, and see that both do the work
            if side() != {"answer": 2}:
                raise click.ClickException(f"{side.__name__}: wrong answer")
        medians = [(_median(ours, calls), _median(theirs, calls)) for _ in range(rounds)]
        ratio = statistics.median(mine / other for mine, other in medians)
        print(f"redis          {server.kind}, rq {rq.VERSION}, Python {sys.version.split()[0]}")
        for name, column in ("rpc on rq", 0), ("rq SimpleWorker", 1):
            print(f"{name:<15}{statistics.median(row[column] for row in medians) * 1e6:8.0f} µs median call")
        print(f"ratio          {ratio:8.2f}    (must be <= 0.70)")
        print(f"idle worker    {_idle_cpu(worker.pid, idle):8.2f} % CPU over {idle:g} s    (must be < 1)")


def _median(call: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _idle_cpu(pid: int, seconds: float) -> float:
    """CPU of a process in percent, from /proc (Linux)."""
    before = _cpu_ticks(pid)
    time.sleep(seconds)
    return (_cpu_ticks(pid) - before) / seconds


def _process(code: str, url: str) -> subprocess.Popen[bytes]:
    return _Process([sys.executable, "-c", code, url])


class _Process(subprocess.Popen[bytes]):
    """Ends with its `with` block."""

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()


def _cpu_ticks(pid: int) -> float:
    import os

    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 100


if __name__ == "__main__":
    main()
