"""huey on Redis: its consumer blocks on the queue, and a caller on a key that tells of its result."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import logging
from typing import Any

from huey import RedisHuey

from benchmarks.work import PATIENCE, REDIS, WORK

PACKAGES = ("huey", "redis", "hiredis")
NOTE = "one thread, `blocking=True`, `notify_result=True`: nothing polls; pickle"

app = RedisHuey("bench", url=REDIS, notify_result=True)
tasks = {name: app.task()(work) for name, work in WORK.items()}


class Caller:
    def call(self, name: str, **arguments: Any) -> Any:
        return tasks[name](**arguments).get(blocking=True, timeout=PATIENCE)

    def send(self, name: str, **arguments: Any) -> None:
        tasks[name](**arguments)


connect = Caller


def serve() -> None:
    logging.getLogger("huey").setLevel(logging.ERROR)
    app.create_consumer(workers=1, periodic=False, initial_delay=0.001, max_delay=0.001).run()
