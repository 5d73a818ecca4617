"""The caller's side of the native Redis backend: connections and inboxes that are used again and again."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol
from uuid import uuid4

import redis

from ...errors import QueueFull, RpcTimeout
from ...loops import process
from ...transport import IDEMPOTENCY_KEY, STREAM, Message, unpacked
from .._retry import patience
from .connection import BLOCK, Command, Link, awaited, milliseconds, persistent, unavailable
from .keys import Keys, plain
from .scripts import SEND, SEND_LATER, SEND_ONCE
from .servers import Place

SCRIPTS = (SEND, SEND_ONCE, SEND_LATER)
NO_ANSWER = ("CLIENT", "REPLY", "SKIP")
UNATTENDED = 3600.0
"""Seconds that a message is wanted whose caller waits without end, after its last sign of life."""
UNCONFIRMED = 0.1
"""Seconds that a caller waits before it makes sure that its message was sent. Most replies come earlier."""
CONFIRMED = 4
"""Bytes of an answer that only confirms."""


class Sender(Protocol):
    """What a lane needs of its backend."""

    place: Place

    def sending(
        self, keys: Keys, message: Message, id: str, inbox: str, *, again: bool = False
    ) -> list[Command]:
        """The commands that send a message; the answer to the last one is that of the script."""

    def withdraw(self, keys: Keys, id: str) -> None:
        """What was not started is not, what runs is told."""


def popped(idle: list[Any]) -> Any:
    """One of the idle, None if there is none: another thread may be faster."""
    try:
        return idle.pop()
    except IndexError:
        return None


def full(keys: Keys) -> QueueFull:
    return QueueFull(f"queue {keys.name} has no room: raise max_length, or start more workers")


class Lane:
    """A connection and an inbox, for one request at a time."""

    def __init__(self, place: Place, keys: Keys) -> None:
        self.inbox = keys.inbox(uuid4().hex)
        self.link = Link(place, keys.queue, SCRIPTS)
        self.pid = process.id
        self._ends: tuple[int, bytes, bytes] = (0, b"", b"")

    def peek(self, seconds: float) -> Command:
        """Wait for the head of the inbox, which stays there."""
        return ("BLMOVE", self.inbox, self.inbox, "LEFT", "LEFT", seconds)

    def send(self, command: Command) -> None:
        """This command, whose answer is not wanted, and the wait for what it brings."""
        link = self.link
        middle = link.packed(command)
        if self._ends[0] != link.epoch:
            self._ends = (link.epoch, link.packed(NO_ANSWER), link.packed(self.peek(UNCONFIRMED)))
        link.write_packed(self._ends[1] + middle + self._ends[2])


class Lanes:
    """The lanes to the queues of one hash tag: as many as calls ever waited at a time."""

    def __init__(self) -> None:
        self.idle: list[Lane] = []
        self._made = 0

    def take(self, place: Place, keys: Keys) -> Lane:
        while lane := popped(self.idle):
            if lane.pid == process.id:  # a parent's inbox is not a child's
                return lane  # type: ignore[no-any-return]
            self._made -= 1
        self._made += 1
        return Lane(place, keys)

    def forget(self, lane: Lane) -> None:
        """One of those that were taken."""
        self._made -= 1
        lane.link.drop()

    def is_lone(self) -> bool:
        """Whether one call waits alone."""
        return self._made - len(self.idle) == 1


class LaneReplies:
    """What comes back on a lane for one request."""

    def __init__(self, backend: Sender, lanes: Lanes, keys: Keys, message: Message) -> None:
        self._backend, self._lanes, self._keys, self._message = backend, lanes, keys, message
        self._lane, self._id = lanes.take(backend.place, keys), plain(message.id)
        self._since = time.monotonic()
        self._number = self._pending = 0
        self._before: list[Command] = []
        """What is to be said before the next wait."""
        self._sent = self._asked = self._failed = self._ended = self._closed = False
        self._receiving = threading.Lock()
        """Held to use the lane, and for good to give it back: another thread may close what this one waits
        for."""

    def send(self) -> None:
        """The message and the wait for its reply, in one write."""
        first = self._backend.sending(self._keys, self._message, self._id, self._lane.inbox)
        try:
            if len(first) == 1:
                self._lane.send(first[0])
                self._asked = True
            else:
                self._write()
        except redis.RedisError:  # it may have been sent all the same
            self._failed = True
            persistent(self._write, patience(self._message.ttl))

    def receive(self, timeout: float | None) -> Message:
        """The next reply. If the queue was full, the first one is QueueFull."""
        while not self._receiving.acquire(timeout=BLOCK):
            if self._closed:
                raise RpcTimeout
        try:
            reply = awaited(self._next, timeout)
            self._ended = STREAM not in reply.headers
            return reply
        finally:
            self._receiving.release()
            if self._closed:
                self._give_back()

    def close(self) -> None:
        """Give the lane back; withdraw the request if it was not answered."""
        if self._closed:
            return
        self._closed = True
        if not self._ended and not self._failed and IDEMPOTENCY_KEY not in self._message.headers:
            self._backend.withdraw(self._keys, self._id)
        self._give_back()

    def _give_back(self) -> None:
        if not self._receiving.acquire(blocking=False):
            return  # who holds it gives it back, or has
        if self._asked:  # its answer would be taken for the next one's
            self._lane.link.drop()
        self._lanes.idle.append(self._lane)

    def _write(self) -> None:
        """Wait for the next reply. Until it is known that the message was sent, send it (again)."""
        lane, before = self._lane, self._before
        if not self._sent:
            before = self._backend.sending(self._keys, self._message, self._id, lane.inbox, again=True)
        if self._message.ttl is None and time.monotonic() - self._since > UNATTENDED / 60:
            self._since = time.monotonic()
            for key in self._keys.token(self._id), self._keys.body(self._id):
                before = [*before, ("PEXPIRE", key, milliseconds(UNATTENDED))]
        self._pending = len(before)
        lane.link.write(*before, lane.peek(BLOCK), least=CONFIRMED * len(before) + 1)
        self._asked = True

    def _next(self, left: float) -> Message | None:
        end = time.monotonic() + left
        if self._closed:
            raise RpcTimeout
        try:
            if not self._asked:
                self._write()
            if not self._sent and self._lanes.is_lone():
                self._lane.link.look()
            if (answer := self._answer(left, end)) is None:
                return None
        except BaseException as error:
            self._asked, self._failed = False, isinstance(error, redis.RedisError)
            if (
                self._failed
                and not self._sent
                and time.monotonic() - self._since > patience(self._message.ttl)
            ):
                raise unavailable(error) from error
            raise
        return self._taken(answer)

    def _answer(self, left: float, end: float) -> Any:
        """What is at the head of the inbox; None if nothing came in time."""
        link = self._lane.link
        while left >= BLOCK or link.readable(end - time.monotonic()):
            answer = link.read()
            if not self._pending:
                self._asked = self._failed = False
                return answer
            self._pending -= 1
            self._sent = self._sent or not self._pending
        return None

    def _taken(self, entry: bytes) -> Message | None:
        head, id, frame = [*entry.split(b"\n", 2), b"", b""][:3]
        self._before = [("LREM", self._lane.inbox, 1, entry)]
        number = int(head) if head.lstrip(b"-").isdigit() else 0
        if id.decode(errors="replace") != self._id:
            return None  # it was for an earlier request on this lane, or is none of ours
        self._sent = True
        if number < 0:
            self._ended = True
            raise full(self._keys)
        reply = unpacked(frame)
        if STREAM in reply.headers and 0 < number <= self._number:
            return None  # it came twice; of the last one, another worker may have another count
        self._number = number
        return reply
