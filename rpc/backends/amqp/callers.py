"""Callers that block: each that waits for a reply has a connection for as long as it waits, and each that
sends for as long as it sends. They are kept for those that come after them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

from ...errors import BackendUnavailable, RpcError, RpcTimeout, shown
from ...transport import Address, Message
from .._idle import Idle
from .._retry import backoff, patience
from .connection import BLOCK, Connection, persistently
from .messages import cancel_of, control_key
from .names import Names
from .requests import (
    REQUESTS,
    SEND,
    PendingRequest,
    ReplyQueue,
    Sending,
    is_to_be_prepared,
    next_step,
    preparing,
    too_late,
)
from .servers import Servers
from .wire import Arrival, Broken

logger = logging.getLogger(__name__)

T = TypeVar("T")
CONFIRM = 21
"""Bytes of a frame that says that a message is safe."""


def perform(steps: Generator[Callable[[Any], Any], Any, T], connection: Connection) -> T:
    """What the steps return. Raises Broken, and what they raise."""
    outcome: Any = None
    while True:
        try:
            step = next_step(steps, outcome)
        except StopIteration as end:
            return cast("T", end.value)
        try:
            outcome = step(connection)
        except Broken as error:
            outcome = error


class Senders:
    """Connections that send, and wait until RabbitMQ has it; one for each thread that does so at a time."""

    def __init__(self, servers: Servers, connect: Callable[[], Connection], most: int) -> None:
        """`most` messages may wait in a queue (0: any number)."""
        self.servers, self.connect, self.most = servers, connect, most
        self._idle = Idle(Connection.close)

    def send(self, to: Address, message: Message) -> None:
        """Raises NoReceivers, QueueFull, BackendUnavailable."""

        sending = Sending(self.servers, self.most, to, message)
        self.do(lambda connection: perform(sending.steps(), connection), patience(message.ttl))

    def do(self, action: Callable[[Connection], T], seconds: float = BLOCK) -> T:
        """What the action returns, on a connection with the exchange."""

        def attempt() -> T:
            connection = self._idle.take()
            if not connection or not connection.is_open:
                connection = self.connect()
                connection.tell(SEND, self.servers.names.own_exchange)
            try:
                done = action(connection)
            except (Broken, RpcError):
                self._idle.give_back(connection)
                raise
            except BaseException as error:  # interrupted anywhere: nobody knows what comes next on it
                connection.drop(error)
                raise
            self._idle.give_back(connection)
            return done

        return persistently(attempt, seconds)

    def withdraw(self, to: Address, id: str) -> None:
        """What was not started is not, what runs is told; if RabbitMQ can be had."""
        try:
            self._tell(to, id)
        except BackendUnavailable as error:
            logger.warning("%s", shown(error))

    def is_served(self, to: Address) -> bool:
        """Whether there is anybody who can be told something about the requests of a queue."""
        return not self._tell(to, "")

    def _tell(self, to: Address, id: str) -> Arrival | None:
        said = SEND, control_key(to.name), cancel_of(id), b""
        return self.do(lambda connection: connection.confirmed(*said, exchange=self.servers.names.exchange))

    def close(self) -> None:
        self._idle.close()


class CallerConnection:
    """A connection that is one request's for as long as it waits."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self.connection, self._names = connection, names
        self.replies = ReplyQueue(connection, names)

    def leave(self, request: PendingRequest, renew: bool) -> None:
        """The request was given up: say so, and take another reply queue."""
        self.replies.withdraw(request)
        if renew:
            self.replies.delete()
            self.replies = ReplyQueue(self.connection, self._names)
        self.connection.flush()


class BlockingReplies:
    """The way back of one request."""

    def __init__(self, senders: Senders, idle: Idle[CallerConnection], to: Address, message: Message) -> None:
        self._senders, self._idle = senders, idle
        self._request = PendingRequest(to, message, time.monotonic(), senders.servers.forget)
        self._caller = idle.take()
        self._is_closed = self._is_busy = False
        """Whether nobody waits any more; whether somebody is at it, or was interrupted while he was."""

    def send(self) -> None:
        """Raises QueueFull, NoReceivers, BackendUnavailable."""
        self._is_busy = True
        try:
            persistently(self._send, patience(self._request.message.ttl))
        except RpcError:
            self._is_busy = False
            raise
        self._is_busy = False

    def _send(self) -> None:
        caller = self._caller
        if caller and caller.connection.is_open:
            caller.connection.look()
        else:
            caller = self._caller = CallerConnection(self._senders.connect(), self._senders.servers.names)
        request, senders = self._request, self._senders
        if is_to_be_prepared(senders.most, request.to, request.message):
            perform(preparing(senders.servers, senders.most, request.to, request.message), caller.connection)
        caller.connection.listeners[REQUESTS] = self._request.hear
        caller.replies.send(self._request)
        caller.connection.sleep_through(CONFIRM + 1)
        caller.connection.flush()

    def receive(self, timeout: float | None) -> Message:
        self._is_busy = True
        try:
            reply = self._received(None if timeout is None else time.monotonic() + timeout)
        except RpcError:
            self._is_busy = False
            raise
        self._is_busy = False
        return reply

    def _received(self, end: float | None) -> Message:
        attempt, failure = 0, None
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

    def _read(self, seconds: float) -> None:
        if self._caller and self._caller.connection.is_open:
            self._caller.connection.read(seconds)
        else:
            self._send()

    @property
    def _blocked(self) -> str:
        return self._caller.connection.blocked if self._caller else ""

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        caller, request = self._caller, self._request
        if caller and caller.connection.is_open and not self._is_busy:
            try:
                if not request.is_over:
                    caller.leave(request, renew=time.monotonic() < request.expires)
            except Broken:  # the reply queue is gone with it
                return
            except BaseException as error:
                caller.connection.drop(error)
                raise
            self._idle.give_back(caller)
            return
        if caller:
            caller.connection.drop(Broken("the request was withdrawn"))
        if request.was_sent and not request.is_over:
            self._senders.withdraw(request.to, request.message.id)
