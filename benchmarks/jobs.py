"""The work, and the workers of both sides."""

from __future__ import annotations

import logging

import redis
import rq
from rq.serializers import JSONSerializer

from rpc import RpcReceiver


def add(a: int, b: int) -> dict[str, int]:
    return {"answer": a + b}


def serve(url: str) -> None:
    RpcReceiver(jobs={"add": add}, backend=f"rq+{url}").start()


def serve_rq(url: str) -> None:
    worker = rq.SimpleWorker(["theirs"], connection=redis.Redis.from_url(url), serializer=JSONSerializer)
    worker.work(logging_level=logging.getLevelName(logging.ERROR))
