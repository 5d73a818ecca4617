"""Where workers listen, and what a process has found out about each."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from ...errors import BackendRefused
from ...transport import Address
from .._idle import Idle
from .wire import Answers

CONNECT = 5.0
"""Seconds that a connection may take, at most."""
KEEP = 30.0
"""Seconds after which one that was not used is not used again: less than workers keep it."""
FAREWELL = 1.0
"""Seconds in which a worker is told that nobody waits any more."""
DOWN, SILENT = 0.2, 5.0
"""Seconds for which a place where nobody was comes last, and one that did not answer at all is left out."""
PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Endpoints:
    """Of a URL `http://host:port[,host:port…][/prefix]`, or `https:`, `ws:`, `wss:`; of `http:` there are
    none: whoever serves is mounted in an application. Raises ValueError for what is none."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("a URL is http://host:port[,host:port…][/prefix], without anything else")
        self.is_secure, self.prefix = parts.scheme in ("https", "wss"), parts.path.rstrip("/")
        self.places = [_place(each, PORTS[parts.scheme]) for each in parts.netloc.split(",") if each]

    def listen(self) -> socket.socket:
        """Bound to the first that is free. Raises BackendRefused."""
        reasons = []
        for host, port in self.places:
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                return socket.create_server((host, port), family=family, backlog=2048)
            except OSError as error:
                reasons.append(f"{_named(host, port)}: {error.strerror or error}")
        raise BackendRefused(f"cannot listen: {'; '.join(reasons) or 'the URL has no host'}")


def _place(text: str, default: int) -> tuple[str, int]:
    found = urlsplit(f"//{text}")
    port = default if found.port is None else found.port
    if not found.hostname and found.port is None:
        raise ValueError(f"{text!r} is no host:port")
    return found.hostname or "127.0.0.1", port


def _named(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Connection:
    """What carries one request at a time, and its answer."""

    def __init__(self, peer: Peer[Any]) -> None:
        self.peer, self.answers = peer, Answers()
        self.since = 0.0
        """When it was used last."""

    def is_usable(self, now: float) -> bool:
        """Whether it may carry another one."""
        raise NotImplementedError

    def close(self) -> None:
        """Nobody waits for the rest of the answer."""
        raise NotImplementedError


C = TypeVar("C", bound=Connection)


class Peer(Generic[C]):
    """One place where a worker may listen, and the connections to it that are not used now."""

    def __init__(self, number: int, host: str, port: int, prefix: str, is_secure: bool) -> None:
        self.number = number
        self.host, self.port, self.prefix = host, port, prefix
        standard = PORTS["https" if is_secure else "http"]
        self.name = _named(host, port)
        self.host_header = self.name if port != standard else self.name.rpartition(":")[0]
        self.idle: Idle[C] = Idle(lambda connection: connection.close())
        self.outstanding = 0
        """Requests that wait for their answer."""
        self.down_until = 0.0
        """Nobody was there: others come first. Seconds of the monotonic clock."""
        self.has_answered = False
        """Whether it speaks HTTP, as far as is known."""
        self.silent_until = 0.0
        """It did not even say so: it is left out."""

    def take(self, now: float) -> C | None:
        """A connection that was used before, if there is one that is usable. Any thread."""
        while connection := self.idle.take():
            if connection.is_usable(now):
                self.outstanding += 1
                return connection
            connection.close()
        return None

    def put_back(self, connection: C, now: float, most: int) -> None:
        """It is not used any more. It may be used again if its answer is complete, and not so many are kept
        already. Any thread."""
        self.outstanding = max(0, self.outstanding - 1)
        answers = connection.answers
        if answers.is_complete and answers.may_stay and len(self.idle) < most:
            connection.since = now
            self.idle.give_back(connection)
        else:
            connection.close()


class Peers(Generic[C]):
    """Those at the endpoints, for the callers of one process or event loop."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.all: list[Peer[C]] = [
            Peer(number, host, port, endpoints.prefix, endpoints.is_secure)
            for number, (host, port) in enumerate(endpoints.places)
        ]
        self.homes: dict[Address, Peer[C]] = {}
        """Which of them has an inbox."""
        self._turn = 0

    def best(self, to: Address | None, but: set[Peer[C]], now: float) -> Peer[C] | None:
        """Who is to be asked next: the one with the least to do; None if all were asked."""
        if to and (home := self.homes.get(to)) and home not in but:
            return home
        left = [each for each in self.all if each not in but and each.silent_until <= now]
        self._turn += 1
        turn, many = self._turn, len(self.all)

        def cost(peer: Peer[C]) -> tuple[bool, int, int]:
            return peer.down_until > now, peer.outstanding, (peer.number + turn) % many

        return min(left, key=cost, default=None)

    def lost(self, peer: Peer[C], error: Exception, now: float) -> None:
        """Nobody was there."""
        peer.down_until = now + DOWN
        if isinstance(error, TimeoutError) and len(self.all) > 1:
            peer.silent_until = now + SILENT

    def found(self, to: Address, peer: Peer[C]) -> None:
        """It has this inbox."""
        while len(self.homes) >= 4096:
            with suppress(StopIteration, KeyError):
                del self.homes[next(iter(self.homes))]
        self.homes[to] = peer

    def close(self) -> None:
        for peer in self.all:
            peer.idle.close()
