"""Celery on Redis: its broker and its result backend, whose results come by publish and subscribe."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

import celery

from benchmarks.work import REDIS, VARIANT, WORK

PACKAGES = ("celery", "kombu", "redis", "hiredis")
POOL = [VARIANT] if VARIANT == "solo" else [VARIANT, "--concurrency", "8"]
NOTE = f"`--pool {' '.join(POOL)}`, JSON; no gossip, mingle, heartbeat or events"

app = celery.Celery("bench", broker=REDIS, backend=REDIS)
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_backend_thread_safe=True,  # callers share connections instead of making one for each thread
    result_expires=600,
)
tasks = {name: app.task(work, name=name) for name, work in WORK.items()}


class Caller:
    def call(self, name: str, **arguments: Any) -> Any:
        return tasks[name].apply_async(kwargs=arguments).get(timeout=30)

    def send(self, name: str, **arguments: Any) -> None:
        tasks[name].apply_async(kwargs=arguments, ignore_result=True)


connect = Caller


def serve() -> None:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    app.worker_main(["worker", "--pool", *POOL, *quiet])
