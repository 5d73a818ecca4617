"""What one writes by hand on redis-py. No acknowledgement, no lease, no deadline, no error handling."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import redis

from .work import PATIENCE, REDIS, WORK

PACKAGES = ("redis", "hiredis")
NOTE = "RPUSH, and BLPOP of a new key for each reply; the worker: BLPOP, RPUSH; JSON"


class Caller:
    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(REDIS)

    def call(self, name: str, **arguments: Any) -> Any:
        reply = uuid4().hex
        self._redis.rpush("jobs", json.dumps({"name": name, "arguments": arguments, "reply": reply}))
        popped: Any = self._redis.blpop([reply], timeout=PATIENCE)
        return json.loads(popped[1]) if popped else None

    def send(self, name: str, **arguments: Any) -> None:
        self._redis.rpush("jobs", json.dumps({"name": name, "arguments": arguments, "reply": None}))


connect = Caller


def serve() -> None:
    client = redis.Redis.from_url(REDIS)
    while True:
        popped: Any = client.blpop(["jobs"], timeout=PATIENCE)
        if popped:
            job = json.loads(popped[1])
            answer = WORK[job["name"]](**job["arguments"])
            if job["reply"]:
                client.rpush(job["reply"], json.dumps(answer))
