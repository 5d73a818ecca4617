"""The same loop as `bare_loop`, written by hand on redis-py's asyncio, on both sides."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import redis.asyncio as redis

from .bare_loop import PACKAGES
from .work import PATIENCE, REDIS, WORK

__all__ = ["NOTE", "PACKAGES", "connect", "serve"]

NOTE = "the bare loop on `redis.asyncio`, caller and worker"


class Caller:
    def __init__(self) -> None:
        self._redis: Any = redis.Redis.from_url(REDIS)

    async def call(self, name: str, **arguments: Any) -> Any:
        reply = uuid4().hex
        await self._redis.rpush("jobs", json.dumps({"name": name, "arguments": arguments, "reply": reply}))
        popped = await self._redis.blpop([reply], timeout=PATIENCE)
        return json.loads(popped[1]) if popped else None

    async def send(self, name: str, **arguments: Any) -> None:
        await self._redis.rpush("jobs", json.dumps({"name": name, "arguments": arguments, "reply": None}))


async def connect() -> Caller:
    return Caller()


def serve() -> None:
    asyncio.run(_serve())


async def _serve() -> None:
    client: Any = redis.Redis.from_url(REDIS)
    while True:
        popped = await client.blpop(["jobs"], timeout=PATIENCE)
        if popped:
            job = json.loads(popped[1])
            answer = WORK[job["name"]](**job["arguments"])
            if job["reply"]:
                await client.rpush(job["reply"], json.dumps(answer))
