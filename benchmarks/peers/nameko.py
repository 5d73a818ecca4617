"""nameko on RabbitMQ: a service with its defaults; a standalone proxy for each thread."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import threading
from typing import Any

from nameko.exceptions import UnknownService

from benchmarks.work import QUEUE, RABBIT, WORK

PACKAGES = ("nameko", "kombu", "amqp", "eventlet")
NOTE = "`@rpc` methods, `ServiceRpcProxy`"
UNROUTABLE = (UnknownService,)
NAME = QUEUE.replace("-", "_")
CONFIG = {"AMQP_URI": RABBIT, "rpc_exchange": f"{QUEUE}-nameko"}


class Caller:
    def __init__(self) -> None:
        self._own = threading.local()

    def call(self, name: str, **arguments: Any) -> Any:
        return getattr(self._proxy(), name)(**arguments)

    def send(self, name: str, **arguments: Any) -> None:
        getattr(self._proxy(), name).call_async(**arguments)

    def _proxy(self) -> Any:
        if not hasattr(self._own, "proxy"):
            from nameko.standalone.rpc import ServiceRpcProxy

            self._own.proxy = ServiceRpcProxy(NAME, CONFIG, timeout=30).start()
        return self._own.proxy


connect = Caller


def clean() -> None:
    """Queues for replies end by themselves, five minutes after their last use."""
    from kombu import Connection

    with Connection(RABBIT) as connection, connection.channel() as channel:
        channel.queue_delete(f"rpc-{NAME}")
        channel.exchange_delete(CONFIG["rpc_exchange"])


def serve() -> None:
    import eventlet

    eventlet.monkey_patch()
    from nameko.containers import ServiceContainer
    from nameko.rpc import rpc

    def method(name: str) -> Any:
        def run(self: Any, **arguments: Any) -> Any:
            return WORK[name](**arguments)

        run.__name__ = name
        return rpc(run)

    service = type("Service", (), {"name": NAME, **{name: method(name) for name in WORK}})
    container = ServiceContainer(service, config=CONFIG)
    container.start()
    container.wait()
