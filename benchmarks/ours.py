"""This library, on Redis natively or on rq (the variant is what precedes the URL's `redis:`), as installed:
acknowledgement, lease, deadline and checked arguments are on."""

from __future__ import annotations

from typing import Any

from rpc import RpcClient, RpcReceiver

from .work import REDIS, VARIANT, WORK

PACKAGES = ("python-rpc", "rq", "redis", "hiredis")
NOTE = "`rpc worker` with its defaults; `call_and_wait()`, `call()`"


class Caller:
    def __init__(self) -> None:
        self._client = RpcClient(backend=VARIANT + REDIS)

    def call(self, name: str, **arguments: Any) -> Any:
        return self._client.call_and_wait(name, arguments).data

    def send(self, name: str, **arguments: Any) -> None:
        self._client.call(name, arguments)


connect = Caller


def serve() -> None:
    RpcReceiver(jobs=WORK, backend=VARIANT + REDIS, queues=["default"]).start()
