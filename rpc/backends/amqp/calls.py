"""Callers that block. A *lane* is a connection that is one request's for as long as it waits: the name that
RabbitMQ gave to its way back is good for that request alone, so that a worker can ask whether anybody still
waits for it.

A request is not kept on disk: its caller is there, and sends it again if RabbitMQ forgot it. After a broken
connection the way back has another name. Whoever works on the request is told (`MOVED`) and says so (`HAVE`);
if nobody does, the request is sent again with the same id, and workers that know it do not do it twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import BackendUnavailable, NoReceivers, QueueFull, RpcError, RpcTimeout
from ...transport import STREAM, Address, Message
from .._retry import backoff, patience
from .connection import BLOCK, Link, persistently
from .servers import unavailable
from .wire import (
    REPLY_TO,
    Arrival,
    Basic,
    Broken,
    Confirm,
    Exchange,
    Queue,
    frames,
    message_of,
    properties_of,
)

if TYPE_CHECKING:
    from .backend import AmqpBackend

logger = logging.getLogger(__name__)

T = TypeVar("T")
EXCHANGE = "rpc"
"""A direct exchange: the messages of topics, and what workers are told about requests."""
CANCEL, MOVED, HAVE = "rpc-cancel", "rpc-moved", "rpc-have"
"""Types of messages among ourselves: nobody waits any more; the way back has another name; I have it."""
CLAIM = 1.0
"""Seconds in which whoever works on a request must have said so."""
CONFIRM = 21
"""Bytes of a frame that says that a message is safe."""
KEEP_INBOX = 3600.0
"""Seconds that an inbox outlives its last use."""
LISTEN = Basic.Consume(queue=REPLY_TO, no_ack=True, consumer_tag="replies", nowait=True)
DEAFEN = Basic.Cancel(consumer_tag="replies", nowait=True)
OWN_EXCHANGE = Exchange.Declare(exchange=EXCHANGE, durable=True, nowait=True)


def queue_name(to: Address) -> str:
    """What RabbitMQ calls a queue or an inbox."""
    return f"rpc:{to.kind}:{to.name}"


def route(to: Address) -> tuple[str, str]:
    """The exchange and the routing key of an address."""
    return (EXCHANGE, f"topic:{to.name}") if to.kind == "topic" else ("", queue_name(to))


def control_key(queue: str) -> str:
    """Where those who serve a queue hear about its requests."""
    return f"control:{queue}"


def notice(link: Link, kind: str, to: Address, id: str, channel: int = 1, **how: Any) -> bytes:
    """What tells them; with the way back of this channel, if it has one."""
    back = REPLY_TO if kind == MOVED else None
    properties = Basic.Properties(message_type=kind, correlation_id=id, reply_to=back, delivery_mode=1)
    return link.publish(control_key(to.name), properties, b"", exchange=EXCHANGE, channel=channel, **how)


def refused(to: Address, arrival: Arrival) -> RpcError:
    """What it means that a message came back."""
    if isinstance(arrival.method, Basic.Return) and arrival.method.reply_code == 312:
        return NoReceivers(f"nobody has ever served {to}")
    return QueueFull(f"{to} has no room: raise its limit, or start more workers")


def popped(idle: list[T]) -> T | None:
    """The last one; None if there is none. Any number of threads."""
    try:
        return idle.pop()
    except IndexError:
        return None


class Senders:
    """Connections that send and wait until RabbitMQ has it; one for each thread that does so at a time."""

    def __init__(self, backend: AmqpBackend) -> None:
        self._backend = backend
        self._idle: list[Link] = []

    def send(self, to: Address, message: Message) -> None:
        """Raises NoReceivers, QueueFull, BackendUnavailable."""
        properties = properties_of(message, durable=True)
        came_back = self.do(
            lambda link: self._published(link, to, properties, message), patience(message.ttl)
        )
        if came_back and to.kind != "topic":
            raise refused(to, came_back)

    def _published(self, link: Link, to: Address, properties: Any, message: Message) -> Arrival | None:
        self._backend.make_room(link, to)
        exchange, key = route(to)
        publishing = link.publish(
            key, properties, message.body, exchange=exchange, mandatory=to.kind != "topic"
        )
        came_back = link.confirmed(publishing)
        if came_back and to.kind == "inbox":  # it is made by whoever comes first
            link.ask(self._backend.place.queue(key, KEEP_INBOX), Queue.DeclareOk)
            came_back = link.confirmed(publishing)
        return came_back

    def do(self, action: Callable[[Link], T], seconds: float = BLOCK) -> T:
        """What the action returns, on a connection with confirms and the exchange."""

        def attempt() -> T:
            link = popped(self._idle) or self._backend.link()
            if not link.connected:
                link.open()
                link.with_confirms()
                link.send(OWN_EXCHANGE)
            try:
                return action(link)
            finally:
                self._idle.append(link)

        return persistently(attempt, seconds)

    def withdraw(self, to: Address, id: str) -> None:
        """What was not started is not, what runs is told; if RabbitMQ can be had."""
        try:
            self.do(lambda link: link.confirmed(notice(link, CANCEL, to, id)))
        except BackendUnavailable as error:
            logger.warning("%s", error)

    def is_heard(self, to: Address) -> bool:
        """Whether anybody who serves it can be told something."""
        return not self.do(lambda link: link.confirmed(notice(link, CANCEL, to, "", mandatory=True)))

    def close(self) -> None:
        while link := popped(self._idle):
            link.hang_up()


class LaneReplies:
    """The way back of one request."""

    def __init__(self, backend: AmqpBackend, lanes: list[Link], to: Address, message: Message) -> None:
        self._backend, self._lanes, self._to, self._message = backend, lanes, to, message
        self._link = popped(lanes) or backend.link()
        self._properties = properties_of(message, REPLY_TO)
        self._ended = self._closed = self._reading = False
        self._failure: RpcError | None = None
        self._again, self._claimed = float("inf"), False
        """When it is sent again, unless somebody says that he has it."""

    def send(self) -> None:
        persistently(self._send, patience(self._message.ttl))

    def _send(self) -> None:
        if self._link.connected:
            self._link.read(0)  # it may have broken meanwhile
        else:
            self._open()
        self._publish()

    def _open(self) -> None:
        self._link.open()
        self._link.send(Confirm.Select(nowait=True), LISTEN)
        self._link.sleep_through(CONFIRM + 1)

    def _publish(self) -> None:
        link, (exchange, key) = self._link, route(self._to)
        try:
            self._backend.make_room(link, self._to)
        except RpcError as refusal:
            self._failure = refusal
            raise
        link.write(link.publish(key, self._properties, self._message.body, exchange=exchange, mandatory=True))

    def receive(self, timeout: float | None) -> Message:
        end = None if timeout is None else time.monotonic() + timeout
        attempt, failure = 0, None
        self._reading = True
        try:
            while True:
                if self._closed:
                    raise RpcTimeout("the request was withdrawn")
                left = BLOCK if end is None else min(BLOCK, end - time.monotonic())
                try:
                    if reply := self._next(max(0.0, left)):
                        return reply
                    attempt, failure = 0, None
                except Broken as error:
                    failure = error
                    time.sleep(max(0.0, min(backoff(attempt), left)))
                    attempt += 1
                if end is not None and time.monotonic() >= end:
                    raise self._late(failure)
        finally:
            self._reading = False
            if self._closed:
                self._link.drop()

    def _late(self, failure: Broken | None) -> RpcError:
        if failure:
            return unavailable(failure)
        return RpcTimeout(f"RabbitMQ: {self._link.blocked}" if self._link.blocked else "")

    def _next(self, seconds: float) -> Message | None:
        if self._failure:
            raise self._failure
        if not self._link.connected:
            self._move()
        if time.monotonic() > self._again:
            self._ask_again()
        arrival = self._link.read(min(seconds, max(0.0, self._again - time.monotonic())))
        return self._understood(arrival) if arrival else None

    def _move(self) -> None:
        """The connection broke: the way back has another name from now on. However often that happens, it is
        sent again in time."""
        self._open()
        self._link.send(OWN_EXCHANGE)
        self._ask_for_it(min(self._again, time.monotonic() + CLAIM))

    def _ask_for_it(self, until: float) -> None:
        """Of those who serve the queue whether they have it."""
        self._claimed, self._again = False, until
        self._link.write(notice(self._link, MOVED, self._to, self._message.id))

    def _ask_again(self) -> None:
        if self._claimed:
            self._ask_for_it(time.monotonic() + CLAIM)
        else:
            self._publish()
            self._again = float("inf")

    def _understood(self, arrival: Arrival) -> Message | None:
        method, properties = arrival.method, arrival.properties
        if isinstance(method, Basic.Return | Basic.Nack):
            self._failure = refused(self._to, arrival)
            raise self._failure
        if not isinstance(method, Basic.Deliver) or properties.correlation_id != self._message.id:
            return None  # a confirm, or a reply to whoever had this lane before
        if properties.message_type == HAVE:
            self._again, self._claimed = time.monotonic() + 2 * CLAIM, True
            return None
        reply = message_of(properties, arrival.body)
        self._ended = STREAM not in reply.headers
        return reply

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._reading:  # by another thread
            self._link.shut()
            self._backend.withdraw(self._to, self._message.id)
            return
        if not self._link.connected:
            if not self._ended and not self._failure:
                self._backend.withdraw(self._to, self._message.id)
            return
        with suppress(Broken):  # the way back is gone with it
            if not self._ended and not self._failure:
                self._withdraw()
            self._lanes.append(self._link)

    def _withdraw(self) -> None:
        """Give up the name of the way back: who looks for it finds nobody waiting. And say so."""
        link = self._link
        link.write(
            frames(1, DEAFEN, OWN_EXCHANGE)
            + notice(link, CANCEL, self._to, self._message.id)
            + frames(1, LISTEN)
        )
