"""Where RabbitMQ is, and how to get in: what a URL says, sockets, TLS, the first words on a connection."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import DISTRIBUTION, BackendRefused, BackendUnavailable
from .names import Names
from .wire import GREETING, LARGEST_FRAME, Broken, Connection, Queue, frames

SOCKET_TIMEOUT = 5.0
"""Seconds that connecting, and each write, may take."""
LONGEST_TTL = 2**32 - 1
"""Milliseconds."""
_PORTS = {"amqp": 5672, "amqps": 5671}
_ABILITIES: Any = {
    name: True
    for name in (
        *("publisher_confirms", "basic.nack", "consumer_cancel_notify"),
        *("connection.blocked", "authentication_failure_close"),
    )
}


_REFUSALS = 403, 406, 530
"""RabbitMQ's codes: access refused, something is there that is not as we want it, no such vhost."""


def unavailable(error: object) -> BackendUnavailable:
    is_refusal = isinstance(error, Broken) and error.code in _REFUSALS
    return (BackendRefused if is_refusal else BackendUnavailable)(f"RabbitMQ: {error}")


@dataclass(frozen=True)
class Terms:
    """What both sides have agreed on."""

    frame_max: int
    """Bytes of the largest frame."""
    channels: int
    heartbeat: float
    """Seconds; 0: none."""


class Servers:
    """What `amqp[s]://[user:password@]host[:port][,host[:port]…][/vhost]` names, with options of TLS in the
    query: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths), `ssl_check_hostname` (true or false). And
    what our queues and exchanges are called there."""

    def __init__(self, url: str, heartbeat: float, queue_type: str, names: Names) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise ValueError("the URL of RabbitMQ begins with amqp: or amqps:")
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        self._user, self._password = unquote(user) or "guest", unquote(password) or "guest"
        self.addresses = [_server(each, _PORTS[parts.scheme]) for each in hosts.split(",")]
        self.vhost = unquote(parts.path[1:]) or "/"
        self._heartbeat, self.queue_type = heartbeat, queue_type
        self.names, self.levels = names, 0
        """How many levels of delays are known to be there: see `delays`."""
        self.expiring: set[str] = set()
        """Beside which queues one for what expires is known to be there."""
        self.ordered: set[str] = set()
        """Which queues are known to have partitions for order keys."""
        self._is_safe = parts.scheme == "amqps"
        self._tls = dict(parse_qsl(parts.query))
        known = (
            {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"} if self._is_safe else set()
        )
        if unknown := self._tls.keys() - known:
            raise ValueError(f"no options of this backend: {', '.join(sorted(unknown))}")

    def forget(self, queue: str) -> None:
        """A queue was deleted, or those that were made beside it."""
        self.expiring.discard(queue)
        self.ordered.discard(queue)

    @property
    def places(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.addresses)

    def in_any_order(self) -> list[tuple[str, int]]:
        return random.sample(self.addresses, len(self.addresses))

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """None without TLS."""
        if not self._is_safe:
            return None
        context = ssl.create_default_context(cafile=self._tls.get("ssl_ca_certs"))
        if self._tls.get("ssl_check_hostname") in ("false", "0"):
            context.check_hostname = False
        if certificate := self._tls.get("ssl_certfile"):
            context.load_cert_chain(certificate, self._tls.get("ssl_keyfile"))
        return context

    def connected(self) -> Any:
        """A socket. Raises OSError, the last one of all servers."""
        failure: OSError = OSError("no server is given")
        for server in self.in_any_order():
            try:
                return self._connected_to(server)
            except OSError as error:
                failure = OSError(f"{server[0]}:{server[1]}: {error}")
        raise failure

    def _connected_to(self, server: tuple[str, int]) -> Any:
        wire = socket.create_connection(server, SOCKET_TIMEOUT)
        try:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self.context.wrap_socket(wire, server_hostname=server[0]) if self.context else wire
        except BaseException:
            wire.close()
            raise

    def opening(self) -> Generator[tuple[bytes, type[Any]], Any, Terms]:
        """What to say on channel 0, and the method that RabbitMQ must answer with; it is sent in here. At
        last, it returns the terms."""
        yield GREETING, Connection.Start
        start = Connection.StartOk(
            {"product": DISTRIBUTION, "capabilities": _ABILITIES},
            "PLAIN",
            f"\0{self._user}\0{self._password}",
            "en_US",
        )
        tune = yield frames(0, start), Connection.Tune
        frame_max = min(tune.frame_max or LARGEST_FRAME, LARGEST_FRAME)
        heartbeat = min(filter(None, (tune.heartbeat, int(self._heartbeat))), default=0)
        channels = tune.channel_max or 65535
        agreed = frames(0, Connection.TuneOk(channels, frame_max, heartbeat), Connection.Open(self.vhost))
        yield agreed, Connection.OpenOk
        return Terms(frame_max, channels, heartbeat)

    def queue(self, name: str, expires: float = 0) -> Any:
        """A durable queue, which is forgotten when it was not used for so many seconds (0: never)."""
        arguments: dict[str, Any] = {"x-queue-type": self.queue_type} if self.queue_type != "classic" else {}
        if expires:
            arguments["x-expires"] = min(LONGEST_TTL, round(expires * 1000))
        return Queue.Declare(queue=name, durable=True, arguments=arguments)


def _server(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "127.0.0.1", parts.port or port
