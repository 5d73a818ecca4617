"""taskiq on Redis: the list broker, which does not acknowledge and is its fastest, and results in Redis, for
which a caller polls: every 0.2 s by default."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.run import run_worker
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from benchmarks.work import REDIS, WORK, coroutine

PACKAGES = ("taskiq", "taskiq-redis", "redis", "hiredis")
NOTE = "`ListQueueBroker`, `RedisAsyncResultBackend`, one worker process; callers poll each ms"

results: Any = RedisAsyncResultBackend(REDIS, result_ex_time=600)
broker: Any = ListQueueBroker(REDIS).with_result_backend(results)
tasks = {name: broker.register_task(coroutine(work), task_name=name) for name, work in WORK.items()}


class Caller:
    async def call(self, name: str, **arguments: Any) -> Any:
        task = await tasks[name].kiq(**arguments)
        result = await task.wait_result(check_interval=0.001, timeout=30)
        result.raise_for_error()
        return result.return_value

    async def send(self, name: str, **arguments: Any) -> None:
        await tasks[name].kiq(**arguments)


async def connect() -> Caller:
    await broker.startup()
    return Caller()


def serve() -> None:
    run_worker(WorkerArgs.from_cli([f"{__name__}:broker", "--workers", "1", "--log-level", "ERROR"]))
