"""FastStream on Redis: requests on lists, which wait for a worker; a reply by publish and subscribe."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
from typing import Any

from faststream import FastStream
from faststream.redis import RedisBroker

from benchmarks.work import REDIS, WORK, coroutine

PACKAGES = ("faststream", "redis", "hiredis")
NOTE = "`request(list=…)` and list subscribers, no logger, `max_connections=256`"
CONNECTIONS = (
    256  # a request takes one of its own, and the default of redis-py's pool is fewer than the callers
)


class Caller:
    def __init__(self, broker: Any) -> None:
        self._broker = broker

    async def call(self, name: str, **arguments: Any) -> Any:
        reply = await self._broker.request(_body(arguments), list=name, timeout=30)
        return await reply.decode()

    async def send(self, name: str, **arguments: Any) -> None:
        await self._broker.publish(_body(arguments), list=name)


def _body(arguments: dict[str, Any]) -> Any:
    """What a subscriber takes for its arguments: the whole body, if it has but one."""
    return arguments if len(arguments) > 1 else next(iter(arguments.values()))


async def connect() -> Caller:
    broker = RedisBroker(REDIS, logger=None, max_connections=CONNECTIONS)
    await broker.connect()
    return Caller(broker)


def serve() -> None:
    broker = RedisBroker(REDIS, logger=None, max_connections=CONNECTIONS)
    for name, work in WORK.items():
        broker.subscriber(list=name)(coroutine(work))
    asyncio.run(FastStream(broker, logger=None).run())
