"""rq: SimpleWorker does not fork, `latest_result()` blocks on a stream. JSON instead of pickle, as ours."""

from __future__ import annotations

import logging
from typing import Any

import redis
import rq
from rq.serializers import JSONSerializer

from benchmarks.work import PATIENCE, REDIS

PACKAGES = ("rq", "redis", "hiredis")
NOTE = "`SimpleWorker`, `latest_result(timeout=…)`, `JSONSerializer`; nothing forks or polls"


class Caller:
    def __init__(self) -> None:
        connection = redis.Redis.from_url(REDIS)
        self._queue = rq.Queue("theirs", connection=connection, serializer=JSONSerializer)

    def call(self, name: str, **arguments: Any) -> Any:
        job = self._queue.enqueue(f"benchmarks.work.{name}", kwargs=arguments)
        result = job.latest_result(timeout=PATIENCE)
        return result.return_value if result else None

    def send(self, name: str, **arguments: Any) -> None:
        self._queue.enqueue(f"benchmarks.work.{name}", kwargs=arguments, result_ttl=0)


connect = Caller


def serve() -> None:
    worker = rq.SimpleWorker(["theirs"], connection=redis.Redis.from_url(REDIS), serializer=JSONSerializer)
    worker.work(logging_level=logging.getLevelName(logging.ERROR))
