"""The work, and the workers that do it: ours, rq's own, and the loop that one writes by hand."""

from __future__ import annotations

import json
import logging
import sys

import redis
import rq
from rq.serializers import JSONSerializer

from rpc import RpcReceiver


def add(a: int, b: int) -> dict[str, int]:
    return {"answer": a + b}


def serve(url: str) -> None:
    RpcReceiver(jobs={"add": add}, backend=url, queues=["default"]).start()


def serve_rq(url: str) -> None:
    worker = rq.SimpleWorker(["theirs"], connection=redis.Redis.from_url(url), serializer=JSONSerializer)
    worker.work(logging_level=logging.getLevelName(logging.ERROR))


def serve_loop(url: str) -> None:
    """No acknowledgement, no lease, no deadline, no error handling."""
    client = redis.Redis.from_url(url)
    while True:
        if popped := client.blpop(["loop"], timeout=4):
            call = json.loads(popped[1])
            client.rpush(call["reply"], json.dumps(add(call["a"], call["b"])))


if __name__ == "__main__":
    {"rpc": serve, "rq": serve_rq, "loop": serve_loop}[sys.argv[1]](sys.argv[2])
