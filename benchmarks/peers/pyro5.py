"""Pyro5: a daemon with its defaults (a thread for each connection); a proxy for each thread."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import threading
from typing import Any

from Pyro5.errors import CommunicationError

from benchmarks.work import WORK

PACKAGES = ("Pyro5", "serpent")
NOTE = "`@expose`d methods, a proxy"
UNROUTABLE = (CommunicationError,)
PORT = 5574


class Caller:
    def __init__(self) -> None:
        self._own = threading.local()

    def call(self, name: str, **arguments: Any) -> Any:
        return getattr(self._proxy(), name)(arguments)

    def send(self, name: str, **arguments: Any) -> None:
        self._proxy().tell(name, arguments)

    def _proxy(self) -> Any:
        if not hasattr(self._own, "proxy"):
            from Pyro5.api import Proxy

            self._own.proxy = Proxy(f"PYRO:bench@127.0.0.1:{PORT}")
        return self._own.proxy


connect = Caller


def clean() -> None:
    """Nothing outlives its processes."""


def serve() -> None:
    from Pyro5.api import Daemon, expose, oneway

    def method(name: str) -> Any:
        def run(self: Any, arguments: Any) -> Any:
            return WORK[name](**arguments)

        run.__name__ = name
        return run

    def tell(self: Any, name: str, arguments: Any) -> None:
        WORK[name](**arguments)

    service = expose(type("Service", (), {**{name: method(name) for name in WORK}, "tell": oneway(tell)}))
    with Daemon(host="127.0.0.1", port=PORT) as daemon:
        daemon.register(service(), "bench")
        daemon.requestLoop()
