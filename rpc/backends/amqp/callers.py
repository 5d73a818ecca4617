"""Callers that block: each that waits for a reply has a connection for as long as it waits, and each that
sends for as long as it sends. They are kept for those that come after them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ...errors import BackendUnavailable, NoReceivers, QueueFull, RpcTimeout
from ...transport import Address, Message
from .._retry import backoff, patience
from .connection import BLOCK, Connection, persistently
from .messages import (
    EXCHANGE,
    KEEP_INBOX,
    OWN_EXCHANGE,
    Probe,
    cancel_of,
    control_key,
    properties_of,
    queue_name,
    refused,
    route,
)
from .requests import PendingRequest, ReplyQueue, too_late
from .wire import Arrival, Broken, Queue

logger = logging.getLogger(__name__)

T = TypeVar("T")
SEND, PROBE = 1, 2
"""Channels: what is confirmed, and questions whose answer may close it."""
CONFIRM = 21
"""Bytes of a frame that says that a message is safe."""


class Senders:
    """Connections that send, and wait until RabbitMQ has it; one for each thread that does so at a time."""

    def __init__(self, connect: Callable[[], Connection], queue: Callable[..., Queue.Declare], most: int):
        """`queue` is how a queue of some name and lifetime is declared; `most` the messages that may wait in
        one (0: any number)."""
        self.connect, self.queue, self._most = connect, queue, most
        self._idle: list[Connection] = []

    def send(self, to: Address, message: Message) -> None:
        """Raises NoReceivers, QueueFull, BackendUnavailable."""
        publish = partial(self._published, to, message, properties_of(message, durable=True))
        came_back = self.do(publish, patience(message.ttl))
        if came_back and to.kind != "topic":
            raise refused(to, came_back)

    def _published(
        self, to: Address, message: Message, properties: object, connection: Connection
    ) -> Arrival | None:
        self.check_room(connection, to)
        exchange, key = route(to)
        publish = partial(connection.confirmed, SEND, key, properties, message.body, exchange=exchange)
        came_back = publish()
        if came_back and to.kind == "inbox":  # it is made by whoever comes first
            connection.ask(SEND, self.queue(key, KEEP_INBOX), Queue.DeclareOk)
            came_back = publish()
        return came_back

    def check_room(self, connection: Connection, to: Address) -> None:
        """Raises QueueFull, NoReceivers if it finds the queue full, or none. Only for what has a bound."""
        if not self._most or to.kind != "queue":
            return
        try:
            found = connection.ask(PROBE, Probe(queue_name(to)), Queue.DeclareOk).method
        except Broken as error:
            if error.code == 404:
                raise NoReceivers(f"nobody has ever served {to}") from None
            raise
        if found.message_count >= self._most:
            raise QueueFull(f"{to} has no room: raise max_length, or start more workers")

    def do(self, action: Callable[[Connection], T], seconds: float = BLOCK) -> T:
        """What the action returns, on a connection with the exchange."""

        def attempt() -> T:
            connection = pop_or_none(self._idle)
            if not connection or not connection.is_open:
                connection = self.connect()
                connection.tell(SEND, OWN_EXCHANGE)
            try:
                return action(connection)
            finally:
                self._idle.append(connection)

        return persistently(attempt, seconds)

    def withdraw(self, to: Address, id: str) -> None:
        """What was not started is not, what runs is told; if RabbitMQ can be had."""
        try:
            self._tell(to, id)
        except BackendUnavailable as error:
            logger.warning("%s", error)

    def is_served(self, to: Address) -> bool:
        """Whether there is anybody who can be told something about the requests of a queue."""
        return not self._tell(to, "")

    def _tell(self, to: Address, id: str) -> Arrival | None:
        return self.do(
            lambda connection: connection.confirmed(
                SEND, control_key(to.name), cancel_of(id), b"", exchange=EXCHANGE
            )
        )

    def close(self) -> None:
        while connection := pop_or_none(self._idle):
            connection.close()


class CallerConnection:
    """A connection that is one request's for as long as it waits."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.replies = ReplyQueue(connection)
        connection.sleep_through(CONFIRM + 1)

    def leave(self, request: PendingRequest, renew: bool) -> None:
        """The request was given up: say so, and take another reply queue."""
        self.replies.withdraw(request)
        if renew:
            self.replies.delete()
            self.replies = ReplyQueue(self.connection)
        self.connection.flush()


class BlockingReplies:
    """The way back of one request."""

    def __init__(self, senders: Senders, idle: list[CallerConnection], to: Address, message: Message) -> None:
        self._senders, self._idle = senders, idle
        self._request = PendingRequest(to, message)
        self._expires = math.inf if message.ttl is None else time.monotonic() + message.ttl
        self._caller = pop_or_none(idle)
        self._is_closed = self._is_receiving = False

    def send(self) -> None:
        """Raises QueueFull, NoReceivers, BackendUnavailable."""
        persistently(self._send, patience(self._request.message.ttl))

    def _send(self) -> None:
        caller = self._caller
        if caller and caller.connection.is_open:
            caller.connection.read(0)  # it may have broken meanwhile
        else:
            caller = self._caller = CallerConnection(self._senders.connect())
        self._senders.check_room(caller.connection, self._request.to)
        caller.connection.dialogue.listeners[1] = self._request.hear
        caller.replies.send(self._request)
        caller.connection.sleep_through(CONFIRM + 1)
        caller.connection.flush()

    def receive(self, timeout: float | None) -> Message:
        end = None if timeout is None else time.monotonic() + timeout
        attempt, failure = 0, None
        self._is_receiving = True
        try:
            while not (reply := self._request.next()):
                if self._is_closed:
                    raise RpcTimeout("the request was withdrawn")
                left = BLOCK if end is None else max(0.0, min(BLOCK, end - time.monotonic()))
                try:
                    self._read(left)
                    attempt, failure = 0, None
                except Broken as error:
                    failure = error
                    time.sleep(min(backoff(attempt), left))
                    attempt += 1
                if end is not None and time.monotonic() >= end and not self._request.arrived:
                    raise too_late(failure, self._blocked)
            return reply
        finally:
            self._is_receiving = False

    def _read(self, seconds: float) -> None:
        if self._caller and self._caller.connection.is_open:
            self._caller.connection.read(seconds)
        else:
            self._send()

    @property
    def _blocked(self) -> str:
        return self._caller.connection.dialogue.blocked if self._caller else ""

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        caller, request = self._caller, self._request
        if caller and caller.connection.is_open and not self._is_receiving:
            with suppress(Broken):  # the reply queue is gone with it
                if not request.is_over:
                    caller.leave(request, renew=time.monotonic() < self._expires)
                self._idle.append(caller)
            return
        if caller:
            caller.connection.drop(Broken("the request was withdrawn"))
        if not request.is_over:
            self._senders.withdraw(request.to, request.message.id)


def pop_or_none(idle: list[T]) -> T | None:
    """The last one; None if there is none. Any number of threads."""
    try:
        return idle.pop()
    except IndexError:
        return None
