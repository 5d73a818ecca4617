"""This library, on Redis natively, on rq (the variant is what precedes the URL's `redis:`), on RabbitMQ, on
ZeroMQ, over HTTP or on a WebSocket: acknowledgement, lease, deadline and checked arguments are on."""

from __future__ import annotations

from typing import Any

from rpc import NoReceivers, RpcClient, RpcReceiver
from rpc.backends import backend_from_url
from rpc.transport import queue

from .work import BACKEND, QUEUE, VARIANT, WORK

PACKAGES = ("jobrpc", "rq", "redis", "hiredis")
NOTE = "`rpc worker` with its defaults; `call_and_wait()`, `call()`"
UNROUTABLE = (NoReceivers,)


class Caller:
    def __init__(self) -> None:
        self._client = RpcClient(backend=BACKEND, queue=QUEUE)

    def call(self, name: str, **arguments: Any) -> Any:
        return self._client.call_and_wait(name, arguments).data

    def send(self, name: str, **arguments: Any) -> None:
        self._client.call(name, arguments)


connect = Caller


def clean() -> None:
    """RabbitMQ keeps a queue until it is deleted."""
    if VARIANT != "amqp":
        return
    backend: Any = backend_from_url(BACKEND)
    backend.delete(queue(QUEUE))
    backend.close()


def serve() -> None:
    RpcReceiver(jobs=WORK, backend=BACKEND, queues=[QUEUE]).start()
