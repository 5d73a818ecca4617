"""arq: its worker polls a sorted set, its caller polls for the result; both every half second by default."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import logging
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker

from benchmarks.work import REDIS, WORK

PACKAGES = ("arq", "redis", "hiredis")
NOTE = "worker and caller poll each ms (`poll_delay=0.001`); `max_jobs=64`, pickle"
POLL = 0.001


class Caller:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def call(self, name: str, **arguments: Any) -> Any:
        job = await self._pool.enqueue_job(name, **arguments)
        return await job.result(timeout=30, poll_delay=POLL)

    async def send(self, name: str, **arguments: Any) -> None:
        await self._pool.enqueue_job(name, **arguments)


async def connect() -> Caller:
    return Caller(await create_pool(RedisSettings.from_dsn(REDIS)))


def serve() -> None:
    logging.getLogger("arq").setLevel(logging.ERROR)
    functions = [func(_job(name), name=name, keep_result=600) for name in WORK]
    Worker(functions, redis_settings=RedisSettings.from_dsn(REDIS), poll_delay=POLL, max_jobs=64).run()


def _job(name: str) -> Any:
    async def job(context: Any, **arguments: Any) -> Any:
        return WORK[name](**arguments)

    return job
