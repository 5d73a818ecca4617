"""This library called from coroutines; its worker is that of `ours`."""

from __future__ import annotations

from typing import Any

from rpc import AsyncRpcClient, NoReceivers

from .ours import PACKAGES, clean, serve
from .work import BACKEND, QUEUE

__all__ = ["NOTE", "PACKAGES", "UNROUTABLE", "clean", "connect", "serve"]

NOTE = "`rpc worker` with its defaults; `call_and_wait()`, `call()` of AsyncRpcClient"
UNROUTABLE = (NoReceivers,)


class Caller:
    def __init__(self) -> None:
        self._client = AsyncRpcClient(backend=BACKEND, queue=QUEUE)

    async def call(self, name: str, **arguments: Any) -> Any:
        return (await self._client.call_and_wait(name, arguments)).data

    async def send(self, name: str, **arguments: Any) -> None:
        await self._client.call(name, arguments)


async def connect() -> Caller:
    return Caller()
