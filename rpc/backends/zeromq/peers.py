"""The sockets of one side, and the sessions with the processes that are reached by them.

Not for several threads at a time: whoever has the turn owns the sockets. Nothing that comes in can raise
here: what is no frame of a process that has said HELLO is dropped.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import zmq

from ...greenlets import are_patched_in, wait_readable
from ...loops import Alarm
from .._lookout import Lookout
from .links import Link, Look
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
NOBLOCK, POLLIN, POLLOUT = int(zmq.NOBLOCK), int(zmq.POLLIN), int(zmq.POLLOUT)
EVENTS, RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
Ready = list["zmq.Socket[bytes] | int"]
Items = list["tuple[zmq.Socket[bytes] | int, int]"]
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
        self._ticked, self._is_leaving = 0.0, False
        self._blocked: set[Session] = set()
        """Those for which ZeroMQ has no room."""
        self._items: Items | None = None
        """What is waited for."""
        self._ready: Ready | None = None
        """What the last wait was for; None: look at all."""
        self._looks: list[Look] = []
        self._lookout = Lookout()
        self.gathers = False
        """Whether sessions leave what there is much of to `write`."""
        self.has_more = False
        """Whether a socket had more than is taken at once."""

    def bind(self, endpoint: str) -> str:
        """The endpoint, with the port that it got. Raises zmq.ZMQError."""
        socket, real = self._sockets.bound(endpoint)
        self._bound.append(socket)
        self._items = None
        return real

    def connect(self, endpoints: Iterable[str]) -> None:
        """Connect to these, and to no others but those that answer."""
        wanted, self._items = {*endpoints}, None
        for endpoint in wanted - {*self.links}:
            self.links[endpoint] = Link(self._sockets.connected(endpoint), endpoint)
        for endpoint in {*self.links} - wanted:
            link = self.links[endpoint]
            if not link.route.is_open():
                if session := self._by_route.pop((link.socket, None), None):
                    self._forget(session)
                del self.links[endpoint]
                link.close()

    def look(self, patience: float, changed: Callable[[], object]) -> Look:
        """Find out at once whether somebody has come where nobody was; who says nothing for `patience`
        seconds counts as nobody. `changed` is called when that may be known."""
        empty = [
            link
            for link in self.links.values()
            if not link.is_slow and not (link.route.is_open() and (link.socket, None) in self._by_route)
        ]
        look = Look(empty, patience, changed)
        if not look.is_over():
            self._looks.append(look)
            self._items = None
        return look

    def end_look(self, look: Look) -> None:
        """Nobody waits for it any more."""
        if look in self._looks:
            self._looks.remove(look)
            look.end()

    def fds(self) -> list[int]:
        """For event loops: readable when there may be something to do."""
        links = self.links.values()
        sockets = [*self._bound, *(link.socket for link in links), *self._sockets.zap()]
        sockets += [link.monitor for link in links if link.monitor]
        return [int(socket.getsockopt(zmq.FD)) for socket in sockets]

    def wait(self, seconds: float, alarm: Alarm, *, look: bool = False) -> None:
        """Until there is something to do, but no longer. `look`: it is likely to come at once."""
        if self._items is None:
            self._items = [(alarm.fileno(), POLLIN), *((socket, POLLIN) for socket in self._sockets.zap())]
            self._items += [(socket, POLLIN) for socket in self._bound]
            for link in self.links.values():
                self._items.append((link.socket, POLLIN if link.greeted else POLLIN | POLLOUT))
                self._items += [(link.monitor, POLLIN)] if link.monitor else []
        if self._blocked:
            seconds = min(seconds, 0.01)
        self._ready = (look and self._looked(self._items)) or _polled(self._items, min(seconds, TICK))
        if alarm.fileno() in self._ready:
            alarm.wait(0)

    def _looked(self, items: Items) -> Ready | None:
        """Those that are ready, if it is worth it to look for them without sleeping."""
        if are_patched_in():
            return None
        return self._lookout.look(partial(_ready_of, items, 0), rested=not self._bound)

    def receive(self, take: Callable[[Session, bytes, bytes], bool]) -> None:
        """Give what has come to `take`: from whom it is, its kind, and the rest. It returns whether that is
        enough for now."""
        self._sockets.authenticate()
        now = time.monotonic()
        if self._blocked or now - self._ticked >= TICK:
            self._look_after(now)
        ready, self._ready, self.has_more = self._ready, None, False
        for socket in self._bound:
            if (ready is None or socket in ready) and self._read(socket, True, take, ready is not None):
                return
        for link in [*self.links.values()]:
            is_told = link.monitor is not None and (ready is None or link.monitor in ready)
            if is_told and link.hear():
                self._items = None
                self._tell_lookers()
            if ready is None or link.socket in ready:
                if not link.greeted and link.route.is_open():
                    self._greet(link)
                if self._read(link.socket, False, take, ready is not None and link.greeted > 0):
                    return

    def _read(
        self,
        socket: zmq.Socket[bytes],
        is_bound: bool,
        take: Callable[[Session, bytes, bytes], bool],
        is_ready: bool,
    ) -> bool:
        """Whether that was enough."""
        if not is_ready and not int(socket.get(EVENTS)) & POLLIN:
            return False
        for _ in range(AT_ONCE):
            try:
                identity = socket.recv(NOBLOCK) if is_bound else None
                frame, is_whole = socket.recv(NOBLOCK), True
                while is_bound and socket.get(RCVMORE):  # else it would be taken for an identity
                    socket.recv(NOBLOCK)
                    is_whole = False
            except zmq.Again:
                return False
            if is_whole and self._take(socket, identity, frame, take):
                return True
        self.has_more = True
        return False

    def _take(
        self,
        socket: zmq.Socket[bytes],
        identity: bytes | None,
        frame: bytes,
        take: Callable[[Session, bytes, bytes], bool],
    ) -> bool:
        try:
            kind, number, confirmed = HEAD.unpack_from(frame)
        except struct.error:
            return False
        is_enough, session = False, self._by_route.get((socket, identity))
        if kind in (HELLO, WELCOME):
            self._introduced(socket, identity, kind, frame[HEAD.size :])
        elif kind == WHO:
            self._greet_all(socket)
        elif session is None:
            with suppress(zmq.ZMQError):
                Route(socket, identity).write(HEAD.pack(WHO, 0, 0))
        else:
            if kind != CONFIRM and session.take(number, len(frame)):
                is_enough = take(session, kind, frame[HEAD.size :])
            session.confirmed(confirmed)
        return is_enough

    def _greet_all(self, socket: zmq.Socket[bytes]) -> None:
        for link in self.links.values():
            if link.socket is socket:
                self._greet(link)

    def _greet(self, link: Link) -> None:
        session = self._by_route.get((link.socket, None))
        if link.route.write(self._introduction(HELLO, session, False)):
            link.greeted, self._items = time.monotonic(), None

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
        if self._is_leaving and not (session and yours == self.token):
            if session:  # it has heard the end
                self.drop(session)
            return
        if (before := self._by_route.get(key)) and before.token != token:
            self._forget(before)  # another process is there now
        if session and yours != self.token and session.is_used:
            self._forget(session)  # it knows nothing of us any more
            session = None
        if session is None and kind == WELCOME and yours == self.token:  # it was forgotten meanwhile
            return self._greet_all(socket)
        was_known = session is not None
        if session is None:
            session = self.sessions[token] = Session(
                token, Route(socket, identity), self._blocked, self.gathers
            )
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
        if kind == WELCOME:
            self._welcomed(socket)

    def _welcomed(self, socket: zmq.Socket[bytes]) -> None:
        for link in self.links.values():
            if link.socket is socket:
                link.answered()
        self._tell_lookers()

    def _tell_lookers(self) -> None:
        for look in self._looks:
            look.changed()

    def write(self) -> None:
        """What was gathered, and what ZeroMQ had no room for."""
        for session in [*self._blocked]:
            session.write_more()

    def _look_after(self, now: float) -> None:
        self.write()
        if now - self._ticked < TICK:
            return
        self._ticked = now
        for link in self.links.values():
            if not link.route.is_open():
                link.greeted, self._items = 0.0, None
            elif now - link.greeted >= HELLO_EVERY:
                self._greet(link)
        for session in [*self.sessions.values()]:
            session.confirm()
            if session.route.is_open():
                session.seen = now
            elif now - session.seen > self._lease:
                self._forget(session)

    def start_over(self) -> None:
        """Who had the sockets was interrupted: nobody knows what was read, nor what was written. All sessions
        are given up, and the processes at the other ends met anew."""
        self._items = self._ready = None
        for link in self.links.values():
            link.greeted = 0.0
        for session in [*self.sessions.values()]:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self.drop(session)
        self._side.lost(session)

    def drop(self, session: Session) -> None:
        """It is over; nobody is told."""
        self.sessions.pop(session.token, None)
        self._blocked.discard(session)
        self._by_route = {at: of for at, of in self._by_route.items() if of is not session}

    def flush(self, seconds: float, alarm: Alarm) -> None:
        """Until all that was said, the end at last, is known to have come, but no longer. What comes
        meanwhile is ignored, and nobody is met any more."""
        end, self._is_leaving = time.monotonic() + seconds, True
        while self.is_unconfirmed() and time.monotonic() < end:
            self.wait(end - time.monotonic(), alarm)
            self.receive(lambda session, kind, data: False)

    def is_blocked(self) -> bool:
        """Whether something waits until ZeroMQ has room."""
        return bool(self._blocked)

    def is_unconfirmed(self) -> bool:
        """Whether it is not known of everything that it has come."""
        return any(session.unconfirmed for session in self.sessions.values())

    def close(self) -> None:
        self._sockets.close()


def _polled(items: Items, seconds: float) -> Ready:
    """Those that are ready, as soon as one is, or the time is up."""
    ready = _ready_of(items, 0 if are_patched_in() else int(seconds * 1000 + 0.999))
    if not ready and seconds > 0 and are_patched_in():  # ZeroMQ would have all greenlets wait
        wait_readable([it if isinstance(it, int) else int(it.get(zmq.FD)) for it, _ in items], seconds)
        ready = _ready_of(items, 0)
    return ready


def _ready_of(items: Items, milliseconds: int) -> Ready:
    """Those that are ready, after waiting so long at most, with the GIL given away."""
    ready: Any = zmq.zmq_poll(items, milliseconds)
    return [it for it, _ in ready]
