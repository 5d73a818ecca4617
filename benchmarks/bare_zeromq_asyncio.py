"""The caller of `bare_zeromq` in an event loop, by hand: the socket's descriptor, a future for each call."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import zmq

from .bare_zeromq import ENDPOINT, PACKAGES, decode, encode, serve

__all__ = ["NOTE", "PACKAGES", "connect", "serve"]

NOTE = "one DEALER for the loop, with `add_reader`; the worker of the bare ZeroMQ loop"


class Caller:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.connect(ENDPOINT)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loop.add_reader(self._socket.getsockopt(zmq.FD), self._read)

    async def call(self, name: str, **arguments: Any) -> Any:
        id = next(self._numbers)
        answered = self._waiting[id] = self._loop.create_future()
        self._socket.send(encode([id, name, arguments]), zmq.NOBLOCK)
        self._loop.call_soon(self._read)  # to send may have made the descriptor silent
        return await answered

    async def send(self, name: str, **arguments: Any) -> None:
        self._socket.send(encode([0, name, arguments]), zmq.NOBLOCK)

    def _read(self) -> None:
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            id, answer = decode(self._socket.recv(zmq.NOBLOCK))
            self._waiting.pop(id).set_result(answer)


async def connect() -> Caller:
    return Caller()
