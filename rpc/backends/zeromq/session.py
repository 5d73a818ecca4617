"""A conversation with one process, which outlives the connections that carry it.

ZeroMQ loses what was on its way when a connection breaks, and says nothing. So frames are numbered; each
tells the number of the last one that came, and what the other side has not confirmed is sent again on the
next connection.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import zmq

HEAD = struct.Struct(">cQQ")
"""The kind of a frame, its number, and the number of the last one that came from the other side."""
HELLO, WELCOME, CONFIRM, WHO = b"H", b"W", b"A", b"?"
"""Frames without a number: about the connection itself."""
MESSAGE, CANCEL, RECALL = b"M", b"C", b"G"
"""What callers say: here is a message; nobody waits for it any more; give so many back that are not begun."""
REPLY, LAST, BACK, ONCE, STOPPING = b"R", b"L", b"B", b"N", b"S"
"""What workers say: a reply; the last one, or none; it is given back; it may not be delivered again; I take
nothing new."""
END = b"E"
"""Either side leaves for good."""

NOBLOCK, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK) | int(zmq.SNDMORE)
PROBE = HEAD.pack(CONFIRM, 0, 0)
FEW = 4
"""Frames that are written at once, one by one: ZeroMQ's own thread is woken for each. More are written
together, if somebody sees to that."""
CONFIRM_EVERY = 32
CONFIRM_BYTES = 1 << 18
"""What is confirmed at the latest when so many frames, or bytes, have come, if no frame goes back
meanwhile."""


class Route:
    """The way to a process: a socket that is connected to it alone, or its identity on one that is bound."""

    def __init__(self, socket: zmq.Socket[bytes], identity: bytes | None = None) -> None:
        self._socket, self._identity = socket, identity

    def write(self, frame: bytes) -> bool:
        """False if there is no connection, or no room."""
        try:
            if self._identity is None:
                self._socket.send(frame, NOBLOCK)
            else:
                self._socket.send(self._identity, MORE)
                self._socket.send(frame, NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def is_open(self) -> bool:
        """Whether there is a connection now."""
        if self._identity is None:
            return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)
        try:
            self._socket.send_multipart((self._identity, PROBE), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return error.errno == zmq.EAGAIN  # it is there, and slow
        return True


class Session:
    """What was said to one process and is not confirmed, and how much of what it said has come."""

    def __init__(self, token: bytes, route: Route, blocked: set[Session], gathers: bool = False) -> None:
        """It is in `blocked` while it has not written all it has; also if it `gathers` what there is much of:
        whoever owns it writes it soon."""
        self._gathers = gathers
        self.token, self.route, self.info = token, route, b""
        """Its random name, which another process at the same address does not have; what it says of
        itself."""
        self.received = 0
        self.seen = time.monotonic()
        """When there was a connection to it."""
        self.owner: Any = None
        self._sent = self._confirmed_to_it = self._bytes = 0
        self.unconfirmed: deque[tuple[int, bytes, Callable[[], object] | None]] = deque()
        self._unwritten = 0
        """How many of them, at the end, have not been written on this route."""
        self._blocked = blocked

    @property
    def is_used(self) -> bool:
        """Whether anything was said. Else the other side may not have heard of it yet, and greets again."""
        return self.received > 0 or self._sent > 0

    def send(self, kind: bytes, data: bytes = b"", confirmed: Callable[[], object] | None = None) -> None:
        """`confirmed` is called once the other side has it."""
        self._sent = number = self._sent + 1
        frame = HEAD.pack(kind, number, self.received) + data
        self.unconfirmed.append((number, frame, confirmed))
        self._confirmed_to_it, self._bytes = self.received, 0
        is_held = self._unwritten or (self._gathers and len(self.unconfirmed) > FEW)
        if is_held or not self.route.write(frame):
            self._unwritten += 1
            self._blocked.add(self)

    def write_more(self) -> None:
        """What could not be written before."""
        start = len(self.unconfirmed) - self._unwritten
        for _, frame, _ in list(islice(self.unconfirmed, start, None)):
            if not self.route.write(frame):
                self._blocked.add(self)
                return
            self._unwritten -= 1
        self._blocked.discard(self)

    def resume(self) -> None:
        """This is another connection: whatever is not confirmed was lost, or will be ignored."""
        self._unwritten = len(self.unconfirmed)
        self.write_more()

    def take(self, number: int, size: int) -> bool:
        """Whether this is the next frame of the other side; False if it came before, or one is missing."""
        if number != self.received + 1:
            return False
        self.received = number
        self._bytes += size
        if number - self._confirmed_to_it >= CONFIRM_EVERY or self._bytes > CONFIRM_BYTES:
            self.confirm()
        return True

    def confirm(self) -> None:
        """Tell what has come, if that is not known there."""
        if self._confirmed_to_it != self.received and self.route.write(HEAD.pack(CONFIRM, 0, self.received)):
            self._confirmed_to_it, self._bytes = self.received, 0

    def confirmed(self, number: int) -> None:
        """The other side has what was sent, up to this."""
        unconfirmed = self.unconfirmed
        while unconfirmed and unconfirmed[0][0] <= number:
            confirmed = unconfirmed.popleft()[2]
            if confirmed:
                confirmed()
        self._unwritten = min(self._unwritten, len(unconfirmed))
