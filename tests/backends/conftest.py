from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rpc import PythonRqBackend, RpcReceiver
from rpc.testing import RedisServer

from .rq_jobs import PATIENCE, Bench, add, fail


@pytest.fixture
def bench(rpc_redis: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.flushall()
    bench = Bench(rpc_redis.url, tmp_path / "log")
    yield bench
    bench.close()


@pytest.fixture
def serve(bench: Bench) -> Any:
    """Starts a receiver in a thread of this process, until the end of the test."""
    started: list[tuple[RpcReceiver, threading.Thread]] = []

    def start(jobs: dict[str, Any] | None = None, lease: float = 2, **options: Any) -> threading.Thread:
        backend = PythonRqBackend(bench.url, lease=lease)
        jobs = {"add": add, "fail": fail, **(jobs or {})}
        receiver = RpcReceiver(jobs=jobs, backend=backend, **{"queues": [bench.queue], **options})
        thread = threading.Thread(target=receiver.start)
        thread.start()
        started.append((receiver, thread))
        return thread

    yield start
    for receiver, _ in started:
        receiver.stop()
    bench.redis.client_kill_filter(_type="normal", skipme=True)  # so that nobody waits for long
    for _, thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def broker() -> Iterator[Any]:
    """RabbitMQ, behind a proxy."""
    from tests.rabbit import rabbit  # skips without its driver

    with rabbit() as broker:
        yield broker
