"""dramatiq on Redis, with results. Its consumer polls, the less often the longer nothing comes, up to once in
`worker_timeout`: a second by default."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import signal
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.work import PATIENCE, REDIS, WORK

PACKAGES = ("dramatiq", "redis", "hiredis")
NOTE = "8 threads, a consumer that polls each ms (`worker_timeout=2`), results in Redis, JSON"

broker = RedisBroker(url=REDIS)
broker.add_middleware(Results(backend=RedisBackend(url=REDIS)))
dramatiq.set_broker(broker)
actors = {
    name: dramatiq.actor(work, actor_name=name, store_results=name != "tick") for name, work in WORK.items()
}


class Caller:
    def call(self, name: str, **arguments: Any) -> Any:
        return actors[name].send(**arguments).get_result(block=True, timeout=PATIENCE * 1000)

    def send(self, name: str, **arguments: Any) -> None:
        actors[name].send(**arguments)


connect = Caller


def serve() -> None:
    # What its command line starts in each of its processes. 2 becomes 1 to 2 ms, by its jitter.
    dramatiq.Worker(broker, worker_timeout=2, worker_threads=8).start()
    signal.pause()
