"""The sockets of one side, and the sessions with the processes that are reached by them.

Not for several threads at a time: whoever has the turn owns the sockets. Nothing that comes in can raise
here: what is no frame of a process that has said HELLO is dropped.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Protocol

import zmq

from ...loops import Alarm
from .session import CONFIRM, HEAD, HELLO, WELCOME, WHO, Route, Session
from .sockets import Sockets

logger = logging.getLogger(__name__)

INTRODUCTION = struct.Struct(">16s16sQ?")
"""In HELLO and WELCOME: who I am; who you are, if we have a session; how much of it I have; whether this is
another connection than before."""
NOBODY = bytes(16)
TICK = 0.25
"""Seconds after which connections are looked at."""
HELLO_EVERY = 0.5
"""Seconds. So soon it is noticed that there is another connection, or process, than before."""
AT_ONCE = 200
"""Frames that are taken from a socket before others have their turn."""


class Side(Protocol):
    """What uses the sessions."""

    def info(self) -> bytes:
        """What it says of itself."""

    def met(self, session: Session) -> None:
        """There is a new session, or the other side says again what it is."""

    def lost(self, session: Session) -> None:
        """A session is over: the process is dead, or another one is there."""


class Link:
    """A socket that connects to one endpoint."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self.socket, self.endpoint, self.route = socket, endpoint, Route(socket)
        self.greeted = 0.0
        """When HELLO was said last on this connection; 0: not yet."""


class Peers:
    """Sessions by token, and the routes by which their frames come."""

    def __init__(self, sockets: Sockets, side: Side, lease: float) -> None:
        """A process without a connection for `lease` seconds is dead."""
        self._sockets, self._side, self._lease = sockets, side, lease
        self.token = secrets.token_bytes(16)
        self.sessions: dict[bytes, Session] = {}
        self._by_route: dict[tuple[zmq.Socket[bytes], bytes | None], Session] = {}
        self.links: dict[str, Link] = {}
        self._bound: list[zmq.Socket[bytes]] = []
        self._ticked = 0.0
        self._ready: set[zmq.Socket[bytes] | int] | None = None
        """What the last wait was for; None: look at all."""
        self.has_more = False
        """Whether a socket had more than is taken at once."""

    def bind(self, endpoint: str) -> str:
        """The endpoint, with the port that it got. Raises zmq.ZMQError."""
        socket, real = self._sockets.bound(endpoint)
        self._bound.append(socket)
        return real

    def connect(self, endpoints: Iterable[str]) -> None:
        """Connect to these, and to no others but those that answer."""
        wanted = {*endpoints}
        for endpoint in wanted - {*self.links}:
            self.links[endpoint] = Link(self._sockets.connected(endpoint), endpoint)
        for endpoint in {*self.links} - wanted:
            link = self.links[endpoint]
            if not link.route.is_open():
                if session := self._by_route.pop((link.socket, None), None):
                    self._forget(session)
                del self.links[endpoint]
                link.socket.close()

    def fds(self) -> list[int]:
        """For event loops: readable when there may be something to do."""
        sockets = [*self._bound, *(link.socket for link in self.links.values()), *self._sockets.zap()]
        return [int(socket.getsockopt(zmq.FD)) for socket in sockets]

    def wait(self, seconds: float, alarm: Alarm) -> None:
        """Until there is something to do, but no longer."""
        items: list[tuple[zmq.Socket[bytes] | int, int]] = [(alarm.fileno(), zmq.POLLIN)]
        items += [(socket, zmq.POLLIN) for socket in (*self._bound, *self._sockets.zap())]
        for link in self.links.values():
            items.append((link.socket, zmq.POLLIN if link.greeted else zmq.POLLIN | zmq.POLLOUT))
        if self.is_blocked():
            seconds = min(seconds, 0.01)
        self._ready = {socket for socket, _ in zmq.zmq_poll(items, int(min(seconds, TICK) * 1000 + 0.999))}
        if alarm.fileno() in self._ready:
            alarm.wait(0)

    def receive(self) -> Iterator[tuple[Session, bytes, bytes]]:
        """What has come: from whom, its kind, and the rest."""
        self._sockets.authenticate()
        self._look_after()
        ready, self._ready = self._ready, None
        self.has_more = False
        for socket in self._bound:
            if ready is None or socket in ready:
                yield from self._read(socket, True)
        for link in [*self.links.values()]:
            if ready is None or link.socket in ready:
                if not link.greeted and link.route.is_open():
                    self._greet(link)
                yield from self._read(link.socket, False)

    def _read(self, socket: zmq.Socket[bytes], is_bound: bool) -> Iterator[tuple[Session, bytes, bytes]]:
        for _ in range(AT_ONCE):
            if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                return
            *identity, frame = socket.recv_multipart(zmq.NOBLOCK)
            if len(identity) == is_bound and (
                came := self._take(socket, identity[0] if is_bound else None, frame)
            ):
                session, kind, data, confirmed = came
                yield session, kind, data
                session.confirmed(confirmed)
        self.has_more = True

    def _take(
        self, socket: zmq.Socket[bytes], identity: bytes | None, frame: bytes
    ) -> tuple[Session, bytes, bytes, int] | None:
        try:
            kind, number, confirmed = HEAD.unpack_from(frame)
        except struct.error:
            return None
        session = self._by_route.get((socket, identity))
        if kind in (HELLO, WELCOME):
            self._introduced(socket, identity, kind, frame[HEAD.size :])
        elif kind == WHO:
            self._greet_all(socket)
        elif session is None:
            with suppress(zmq.ZMQError):
                Route(socket, identity).write(HEAD.pack(WHO, 0, 0))
        elif kind != CONFIRM and session.take(number, len(frame)):
            return session, kind, frame[HEAD.size :], confirmed
        else:
            session.confirmed(confirmed)
        return None

    def _greet_all(self, socket: zmq.Socket[bytes]) -> None:
        for link in self.links.values():
            if link.socket is socket:
                self._greet(link)

    def _greet(self, link: Link) -> None:
        session = self._by_route.get((link.socket, None))
        if link.route.write(self._introduction(HELLO, session, False)):
            link.greeted = time.monotonic()

    def _introduction(self, kind: bytes, session: Session | None, is_new: bool) -> bytes:
        about = (session.token, session.received) if session else (NOBODY, 0)
        return HEAD.pack(kind, 0, 0) + INTRODUCTION.pack(self.token, *about, is_new) + self._side.info()

    def _introduced(
        self, socket: zmq.Socket[bytes], identity: bytes | None, kind: bytes, data: bytes
    ) -> None:
        try:
            token, yours, received, is_new = INTRODUCTION.unpack_from(data)
        except struct.error:
            return
        info = data[INTRODUCTION.size :]
        key, session = (socket, identity), self.sessions.get(token)
        if (before := self._by_route.get(key)) and before.token != token:
            self._forget(before)  # another process is there now
        if session and yours != self.token:
            self._forget(session)  # it knows nothing of us any more
            session = None
        if session is None and kind == WELCOME and yours == self.token:  # it was forgotten meanwhile
            return self._greet_all(socket)
        was_known = session is not None
        if session is None:
            session = self.sessions[token] = Session(token, Route(socket, identity))
        elif self._by_route.get(key) is not session:
            self._by_route = {at: of for at, of in self._by_route.items() if of is not session}
            session.route, is_new = Route(socket, identity), True
        self._by_route[key] = session
        session.seen = time.monotonic()
        if kind == HELLO:
            session.route.write(self._introduction(WELCOME, session if was_known else None, is_new))
        if was_known:
            session.confirmed(received)
            if is_new:
                session.resume()
        session.info = info
        self._side.met(session)

    def _look_after(self) -> None:
        now = time.monotonic()
        for session in self.sessions.values():
            if session.is_blocked():
                session.write_more()
        if now - self._ticked < TICK:
            return
        self._ticked = now
        for link in self.links.values():
            if not link.route.is_open():
                link.greeted = 0.0
            elif now - link.greeted >= HELLO_EVERY:
                self._greet(link)
        for session in [*self.sessions.values()]:
            session.confirm()
            if session.route.is_open():
                session.seen = now
            elif now - session.seen > self._lease:
                self._forget(session)

    def _forget(self, session: Session) -> None:
        self.drop(session)
        self._side.lost(session)

    def drop(self, session: Session) -> None:
        """It is over; nobody is told."""
        self.sessions.pop(session.token, None)
        self._by_route = {at: of for at, of in self._by_route.items() if of is not session}

    def flush(self, seconds: float, alarm: Alarm) -> None:
        """Until all that was said is known to have come, but no longer. What comes meanwhile is ignored."""
        end = time.monotonic() + seconds
        while self.is_unconfirmed() and time.monotonic() < end:
            self.wait(end - time.monotonic(), alarm)
            for _ in self.receive():
                pass

    def is_blocked(self) -> bool:
        """Whether something waits until ZeroMQ has room."""
        return any(session.is_blocked() for session in self.sessions.values())

    def is_unconfirmed(self) -> bool:
        """Whether it is not known of everything that it has come."""
        return any(session.unconfirmed for session in self.sessions.values())

    def close(self) -> None:
        self._sockets.close()
