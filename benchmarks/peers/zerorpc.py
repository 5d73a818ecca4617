"""zerorpc: a server with its defaults; a client for each thread."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import threading
from typing import Any

from benchmarks.work import WORK, ZMQ

PACKAGES = ("zerorpc", "pyzmq", "gevent", "msgpack")
NOTE = "`zerorpc.Server`, `zerorpc.Client`"
ENDPOINT = ZMQ.format(port=5573)


class Caller:
    def __init__(self) -> None:
        self._own = threading.local()

    def call(self, name: str, **arguments: Any) -> Any:
        return self._client()(name, arguments)

    def send(self, name: str, **arguments: Any) -> None:
        self._client()(name, arguments, async_=True)

    def _client(self) -> Any:
        if not hasattr(self._own, "client"):
            import zerorpc

            self._own.client = zerorpc.Client(ENDPOINT, timeout=60)
        return self._own.client


connect = Caller


def clean() -> None:
    """Nothing outlives its processes."""


def serve() -> None:
    import zerorpc

    def method(name: str) -> Any:
        return lambda arguments: WORK[name](**arguments)

    server = zerorpc.Server({name: method(name) for name in WORK})
    server.bind(ENDPOINT)
    server.run()
