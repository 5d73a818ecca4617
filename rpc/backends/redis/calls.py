"""The caller's side of the native Redis backend: connections and inboxes that are used again and again."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

from ...errors import QueueFull, RpcTimeout, SerializationError, shown
from ...loops import process
from ...transport import FAILED, IDEMPOTENCY_KEY, ORDER_KEY, STREAM, Message, unpacked
from .._idle import Idle
from .._retry import patience
from .connection import (
    BLOCK,
    FAILURES,
    Command,
    Connection,
    persistent,
    poll_until,
    translated_or_logged,
    unavailable,
)
from .keys import Keys, plain
from .scripts import SEND, SEND_LATER, SEND_ONCE
from .sending import UNATTENDED, Sender
from .servers import Servers
from .topics import mend

logger = logging.getLogger(__name__)

SCRIPTS = (SEND, SEND_ONCE, SEND_LATER)
NUMBER = re.compile(rb"-?[0-9]{1,9}")
UNCONFIRMED = 0.1
"""Seconds that a caller waits before it makes sure that its message was sent. Most replies come earlier."""


def full(keys: Keys) -> QueueFull:
    """What is raised when a queue has no room."""
    return QueueFull(f"queue {keys.name} has no room: raise max_length, or start more workers")


class CallerConnection:
    """A connection and an inbox, for one request at a time."""

    def __init__(self, servers: Servers, keys: Keys) -> None:
        self.inbox = keys.inbox(uuid4().hex)
        self.link = Connection(servers, keys.queue, SCRIPTS)
        self.pid = process.id
        self._peek = 0, b""
        """How the wait is written, on which connection."""

    def peek(self, seconds: float) -> Command:
        """Wait for the head of the inbox, which stays there."""
        return ("BLMOVE", self.inbox, self.inbox, "LEFT", "LEFT", seconds)

    def send(self, commands: list[Command]) -> None:
        """These commands, whose answers are not wanted, and the wait for what they bring."""
        link = self.link
        sending = link.packed(*commands, quiet=True)
        if self._peek[0] != link.epoch:
            self._peek = link.epoch, link.packed(self.peek(UNCONFIRMED))
        link.write_packed(sending + self._peek[1], 1)


class CallerConnections:
    """Those to the queues of one hash tag: as many as calls ever waited at a time."""

    def __init__(self) -> None:
        self._idle = Idle(self._drop)
        self._made = 0

    def take(self, servers: Servers, keys: Keys) -> CallerConnection:
        """One that is idle, or a new one."""
        while connection := self._idle.take():
            if connection.pid == process.id and not connection.link.due:  # a parent's inbox is not a child's
                return connection
            self._drop(connection)
        self._made += 1
        return CallerConnection(servers, keys)

    def give_back(self, connection: CallerConnection) -> None:
        """It is idle again."""
        self._idle.give_back(connection)

    def close(self) -> None:
        """Give up those that are idle, and from now on what is given back."""
        self._idle.close()

    def _drop(self, connection: CallerConnection) -> None:
        self._made -= 1
        connection.link.drop()

    def one_call_waits(self) -> bool:
        """Whether there is no other."""
        return self._made - len(self._idle) == 1


class CallReplies:
    """What comes back for one request."""

    def __init__(self, sender: Sender, callers: CallerConnections, keys: Keys, message: Message) -> None:
        self._sender, self._callers, self._keys, self._message = sender, callers, keys, message
        self._mine, self._id = callers.take(sender.servers, keys), plain(message.id)
        self._since, self._sent_at = time.monotonic(), 0
        self._number = 0
        self._before: list[Command] = []
        """What is to be said before the next wait."""
        self._tried = self._sent = self._failed = self._ended = self._closed = self._body_again = (
            self._interrupted
        ) = False
        self._receiving = threading.Lock()
        """Held to use the connection, and for good to give it back: another may close what this thread waits
        for."""

    def send(self) -> None:
        """The message and the wait for its reply, in one write."""
        mine = self._mine
        if ORDER_KEY in self._message.headers:
            persistent(self._confirm, patience(self._message.ttl))
            return
        try:
            self._sent_at = mine.link.server_ms()
            first = self._sender.at_once(self._keys, self._message, self._id, mine.inbox, self._sent_at)
            if first:
                self._tried = True
                mine.send(first)
            else:
                self._write()
        except FAILURES:  # it may have been sent all the same
            self._failed = True
            persistent(self._write, patience(self._message.ttl))

    def receive(self, timeout: float | None) -> Message:
        """The next reply. If the queue was full, the first one is QueueFull."""
        while not self._receiving.acquire(timeout=BLOCK):
            if self._closed:
                raise RpcTimeout
        try:
            reply = poll_until(self._next, timeout)
            self._ended = STREAM not in reply.headers
            if FAILED in reply.headers:  # a dead letter needs its body
                self._body_again = False
            return reply
        finally:
            self._receiving.release()
            if self._closed:
                self._give_back()

    def close(self) -> None:
        """Give the connection back; withdraw the request if it was not answered."""
        if self._closed:
            return
        is_wanted = IDEMPOTENCY_KEY in self._message.headers
        is_withdrawn = not (self._ended or self._failed or is_wanted)
        wire, self._interrupted = self._mine.link.wire, self._receiving.locked()
        self._closed = True  # from now on the connection may be another one's, but not this socket
        if wire and self._interrupted:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
        if is_withdrawn:
            mine = self._mine.inbox
            self._sender.withdraw(self._keys, self._message, self._id, mine, self._sent_at)
        self._give_back()

    def _give_back(self) -> None:
        if not self._receiving.acquire(blocking=False):
            return  # who holds it gives it back, or has
        if self._mine.link.due or self._interrupted:  # its answer would be taken for the next one's
            self._mine.link.drop()
        elif self._ended and self._body_again:  # whoever had it, has forgotten the first one
            with translated_or_logged():
                self._mine.link.ask(("UNLINK", self._keys.body(self._id)))
        self._callers.give_back(self._mine)

    def _confirm(self) -> None:
        """Send it, and wait until Redis has it: what is sent next comes after it."""
        mine = self._mine
        self._sent_at = self._sent_at or mine.link.server_ms()
        what = self._keys, self._message, self._id, mine.inbox, self._sent_at
        *bodies, sending = self._sender.sending(*what, again=self._tried)
        self._tried, self._body_again = True, bool(bodies)
        mine.link.ask(*bodies, sending)
        self._sent = True

    def _write(self) -> None:
        """Wait for the next reply. Until it is known that the message was sent, send it (again)."""
        mine, before = self._mine, self._before
        if not self._sent:
            self._sent_at = self._sent_at or mine.link.server_ms()
            what = self._keys, self._message, self._id, mine.inbox, self._sent_at
            *bodies, sending = self._sender.sending(*what, again=self._tried)
            self._tried = True
            before, self._body_again = [*bodies, sending], bool(bodies)
        if self._message.ttl is None and time.monotonic() - self._since > UNATTENDED / 60:
            self._since = time.monotonic()
            before = [*before, *self._sender.attend(self._keys, self._id)]
        mine.link.write(*before, mine.peek(BLOCK))

    def _next(self, left: float) -> Message | None:
        end = time.monotonic() + left
        if self._closed:
            raise RpcTimeout
        try:
            if not self._mine.link.due:
                self._write()
            if not self._sent and self._callers.one_call_waits():
                self._mine.link.look(rested=True)
            if (answer := self._answer(left, end)) is None:
                return None
        except BaseException as error:
            self._mine.link.drop()
            mend(self._sender.servers, error, {self._mine.inbox: "list"})
            self._failed = isinstance(error, FAILURES)
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
        link = self._mine.link
        while left >= BLOCK or link.readable(end - time.monotonic()):
            answer = link.read()
            if not link.due:
                if answer is not None and type(answer) is not bytes:
                    raise TypeError(f"it is a {type(answer).__name__}")
                self._failed = False
                return answer
            self._sent = self._sent or link.due == 1
        return None

    def _taken(self, entry: bytes) -> Message | None:
        head, id, frame = [*entry.split(b"\n", 2), b"", b""][:3]
        self._before = [("LREM", self._mine.inbox, 1, entry)]
        number = int(head) if NUMBER.fullmatch(head) else 0
        if id.decode(errors="replace") != self._id:
            return None  # it was for an earlier request on this connection, or is none of ours
        if number < 0:
            self._sent = self._ended = True
            raise full(self._keys)
        try:
            reply = unpacked(frame)
        except SerializationError as error:  # anybody may have put it there: the reply is still to come
            logger.warning("not a reply to %s: %s", self._id, shown(error))
            return None
        self._sent = True
        if STREAM in reply.headers and 0 < number <= self._number:
            return None  # it came twice; of the last one, another worker may have another count
        self._number = number
        return reply
