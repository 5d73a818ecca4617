"""aio-pika's RPC pattern on RabbitMQ, with JSON, on both sides."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
from aio_pika.exceptions import MessageProcessError
from aio_pika.patterns import JsonRPC

from benchmarks.work import QUEUE, RABBIT, WORK, coroutine

PACKAGES = ("aio-pika", "aiormq", "pamqp")
NOTE = "`patterns.JsonRPC`, publisher confirms, `prefetch_count=64`; it has no call that does not wait"
UNROUTABLE = (MessageProcessError,)


class Caller:
    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc

    async def call(self, name: str, **arguments: Any) -> Any:
        return await self._rpc.call(f"{QUEUE}.{name}", kwargs=arguments)

    send = call


async def connect() -> Caller:
    connection = await aio_pika.connect_robust(RABBIT)
    return Caller(await JsonRPC.create(await connection.channel()))


def clean() -> None:
    """Nothing stays: its queues and exchanges go with whoever uses them."""


def serve() -> None:
    asyncio.run(_serve())


async def _serve() -> None:
    connection = await aio_pika.connect_robust(RABBIT)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=64)
    rpc = await JsonRPC.create(channel)
    for name, work in WORK.items():
        await rpc.register(f"{QUEUE}.{name}", coroutine(work), auto_delete=True)
    await asyncio.Event().wait()
