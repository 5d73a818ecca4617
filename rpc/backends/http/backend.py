"""The backend of `http://host:port` and `https://host:port`."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...durations import seconds
from ...errors import BackendUnavailable, SerializationError
from ...loops import process
from ...transport import Address, Handler, Message, Replies, queue
from .._serving import OnChange, Plan
from ..features import FEATURES, unsupported
from .app import MessageApp, answered
from .asgi import App
from .blocking import BlockingReplies, Gathered, Wires, send
from .endpoints import Endpoints, Peers
from .exchange import Patience, Turn
from .listener import Listener
from .protocol import Bounds, most_connections
from .server import HttpServer
from .tls import client_context, server_context
from .wire import Answers, path_of

logger = logging.getLogger(__name__)

ALL_WORKERS = "rpc"
"""The one topic: whoever asks there what workers offer asks each of them."""
LARGEST = 64 * 1024 * 1024
PLENTY = 1000
"""Connections that one address may have in any case, unless it is said otherwise."""


class HttpBackend:
    """HTTP/1.1, without a broker: callers post to workers.

    `url` has one or more places, `http://host:port[,host:port…]`: a worker listens at the first that is free
    (port 0: any; see `bound`), and each caller knows all. `http:` alone is for a worker that is mounted in an
    ASGI application (`rpc.http.asgi_app`). A worker waits `lease` seconds for a caller whose connection is
    lost; a message whose worker is lost goes to another one, at most `max_deliveries` times. While nobody is
    there, or nobody who serves it, it is tried for `retry_for` seconds. A worker with `high_water` messages
    that wait refuses more, and bodies of more than `max_body` bytes. It has `max_connections` at a time, of
    one address `max_per_address` (0: as many as make sense), waits `read_timeout` seconds for the headers of
    a request, and for more of a body that comes slowly, and keeps a connection that is not used for
    `keep_alive` seconds. `certificate` is a PEM file with a chain and its key: a worker of `https:` has one,
    and a caller may. `authorities` is the PEM file of those that callers trust, if not those of the system;
    with `clients`, the same for a worker, it lets in callers alone whose certificate is of one of these.
    Raises ValueError.
    """

    features = FEATURES["http"]

    def __init__(
        self,
        url: str,
        *,
        lease: float = 2.0,
        max_deliveries: int = 3,
        retry_for: float = 5.0,
        high_water: int = 10_000,
        max_body: int = LARGEST,
        max_connections: int = 0,
        max_per_address: int = 0,
        read_timeout: float = 20.0,
        keep_alive: float = 75.0,
        certificate: str = "",
        authorities: str = "",
        clients: str = "",
    ) -> None:
        self._endpoints, self._lease = Endpoints(url), seconds(lease, "lease")
        if max_deliveries < 1 or high_water < 1 or max_body < 1:
            raise ValueError("max_deliveries, high_water and max_body are at least 1")
        if max_connections < 0 or max_per_address < 0:
            raise ValueError("max_connections and max_per_address are not negative")
        if (certificate or authorities or clients) and not self._endpoints.is_secure:
            raise ValueError("certificate, authorities and clients are for https:")
        most = max_connections or most_connections()
        self.bounds = Bounds(
            most,
            max_per_address or max(PLENTY, most // 2),
            seconds(read_timeout, "read_timeout", above=True),
            seconds(keep_alive, "keep_alive"),
        )
        """Of the connections of the server that was begun last."""
        self._patience = Patience(seconds(retry_for, "retry_for"), max_deliveries)
        self._high_water, self._max_body = high_water, max_body
        self.max_message: int | None = max_body - 16 * 1024
        self._certificate, self._authorities, self._clients = certificate, authorities, clients
        self._context: ssl.SSLContext | None = None
        self._wires: Wires | None = None
        self._pid, self._making = process.id, threading.Lock()
        self._is_mounted = not self._endpoints.places
        self._front: Callable[[HttpServer], App] = lambda server: _nothing_else
        self.app: App | None = None
        """The ASGI application of the server that was begun last."""
        self.bound: list[str] = []
        """Where its servers listened last, with the real ports."""

    def mount(self) -> None:
        """Its servers do not listen from now on: an application does, which gives what comes to `app`."""
        self._is_mounted = True

    def front(self, make: Callable[[HttpServer], App]) -> None:
        """What is not posted by our callers goes to the ASGI application that this makes for a server."""
        self._front = make

    def send(self, to: Address, message: Message) -> None:
        send(self.calling(), possible(to), message, self._patience)

    def request(self, to: Address, message: Message) -> Replies:
        if possible(to).kind == "topic":
            return Gathered(self.calling(), to, message)
        return BlockingReplies(self.calling(), to, message, self._patience)

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> HttpServer:
        plan = Plan(addresses)
        if plan.durable:
            raise unsupported("subscriptions")
        for to in plan.channels:
            possible(to)
        most: dict[str, Any] = {"threads": threads, "coroutines": coroutines, "high_water": self._high_water}
        return HttpServer(self._listening, plan, handler, on_change=on_change, lease=self._lease, **most)

    def is_served(self, name: str) -> bool:
        """Whether there is a worker for this queue among those that answer."""
        wires = self.calling()
        for peer in wires.peers.all:
            with suppress(OSError, SerializationError):
                if wires.ask(peer, "GET", path_of(queue(name))).status == 204:
                    return True
        return False

    def exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> Answers:
        """The answer to any request of HTTP, of the first that is reached. Raises BackendUnavailable, and
        TimeoutError after so many seconds."""
        wires = self.calling()
        turn = Turn(wires.peers, time.monotonic(), min(seconds, self._patience.seconds))
        while True:
            peer = turn.next(time.monotonic())
            if isinstance(peer, float):
                time.sleep(peer)
                continue
            try:
                return wires.ask(peer, method, path, body, headers, seconds)
            except (OSError, SerializationError) as error:
                turn.failed(peer, error, time.monotonic())

    def close(self) -> None:
        wires, self._wires = self._wires, None
        if wires and self._pid == process.id:
            wires.close()

    def asynchronous(self) -> Any:
        """What callers in event loops use."""
        from .aio import AsyncHttp

        return AsyncHttp(self._lines, self._patience, self.features, self.max_message)

    def _lines(self) -> Any:
        """The connections of callers in an event loop, which runs."""
        from .links import Lines

        return Lines(Peers(self._endpoints), self.context())

    def calling(self) -> Wires:
        """The connections of this process. Raises BackendUnavailable if there is nobody to call."""
        if self._pid != process.id:  # a parent's connections are not for its children
            self._pid, self._wires, self._making = process.id, None, threading.Lock()
        if (wires := self._wires) is None:
            if not self._endpoints.places:
                raise BackendUnavailable("the URL has no host to call: http://host:port")
            with self._making:
                wires = self._wires = self._wires or Wires(Peers(self._endpoints), self.context())
        return wires

    def context(self) -> ssl.SSLContext | None:
        """TLS of callers, if they are to use it. Raises SettingsError."""
        if self._endpoints.is_secure and self._context is None:
            self._context = client_context(self._authorities, self._certificate)
        return self._context

    def _listening(self, server: HttpServer) -> Listener | None:
        self.app = app = MessageApp(server, self._max_body, self._front(server))
        if self._is_mounted:
            return None
        context = None
        if self._endpoints.is_secure:
            context = server_context(self._certificate, self._clients)
        self.bounds = replace(self.bounds, context=context, open=0, refused=0, addresses=Counter())
        listener = Listener(self._endpoints.listen(), app, self.bounds, self._max_body)
        self.bound = [listener.address]
        return listener


async def _nothing_else(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await answered(send, 404, text="nothing is here")


def possible(to: Address) -> Address:
    """The address; Unsupported if it is a topic that HTTP has not."""
    if to.kind == "topic" and to.name != ALL_WORKERS:
        raise unsupported("topics")
    return to
