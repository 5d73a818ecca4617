"""What callers do, without I/O: for those that block and for event loops.

A request is not kept on disk: its caller is there, and sends it again, with the same id, if a connection
broke. Workers that know the id do not do it twice, and reply to where the last copy says.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from operator import methodcaller
from os import urandom
from typing import Any

from ...errors import NoReceivers, QueueFull, RpcError, RpcTimeout
from ...transport import DELAY, ORDER_KEY, STREAM, Address, Message
from .delays import leading
from .dialogue import Steps
from .expiring import expires, making, waiting_in
from .messages import (
    KEEP_INBOX,
    cancel_of,
    control_key,
    delay_of,
    message_of,
    properties_of,
    refused,
    resend,
    route,
)
from .names import Names
from .order import is_ordered, preparing_partitions, waiting_in_partitions
from .servers import Servers, unavailable
from .wire import Arrival, Basic, Broken, Queue

REQUESTS, SEND, PROBE = 1, 2, 3
"""The channels of a caller: of requests and their replies; of what must be confirmed; of questions whose
answer may close it."""


def next_step(steps: Generator[Callable[[Any], Any], Any, Any], outcome: Any) -> Callable[[Any], Any]:
    """The next one, after this came of the one before, which may have failed as Broken. Raises StopIteration
    at the end."""
    return steps.throw(outcome) if isinstance(outcome, Broken) else steps.send(outcome)


class Sending:
    """A message that is sent, by as many attempts as it takes."""

    def __init__(self, servers: Servers, most: int, to: Address, message: Message) -> None:
        self._servers, self._most, self._to, self._message = servers, most, to, message
        self._properties, self._began = properties_of(message, durable=True), time.monotonic()
        self._expires = expires(to, message)
        self._is_beside = self._expires or is_ordered(to, message)

    def steps(self) -> Steps:
        """The next attempt. Raises NoReceivers, QueueFull."""
        servers, to = self._servers, self._to
        yield from preparing(servers, self._most, to, self._message, self._expires)
        try:
            yield from self._publishing()
        except Broken:  # it may have arrived
            resend(self._properties, self._began, self._began + (self._message.ttl or 0.0))
            raise

    def _publishing(self) -> Steps:
        to, servers = self._to, self._servers
        exchange, key = route(servers.names, to, self._message)
        if self._expires:
            key = servers.names.expiring(to.name)
        said = SEND, key, self._properties, self._message.body
        publish = methodcaller("confirmed", *said, exchange=exchange)
        came_back = yield publish
        if came_back and to.kind == "inbox":  # it is made by whoever comes first
            yield methodcaller("ask", SEND, servers.queue(key, KEEP_INBOX), Queue.DeclareOk)
            came_back = yield publish
        elif came_back and self._is_beside and isinstance(came_back.method, Basic.Return):  # it was deleted
            servers.forget(to.name)
            yield from preparing(servers, 0, to, self._message, self._expires)
            came_back = yield publish
        if came_back and to.kind != "topic":
            raise refused(to, came_back)


def preparing(servers: Servers, most: int, to: Address, message: Message, expires: bool = False) -> Steps:
    """What comes before a message is sent, to the queue beside it if it `expires` there. Raises NoReceivers,
    QueueFull."""
    if expires:
        yield from making(servers, to, SEND, PROBE)
    yield from preparing_partitions(servers, to, message, SEND, PROBE)
    if most and to.kind == "queue":
        names = [servers.names.queue(to), *([servers.names.expiring(to.name)] if expires else [])]
        yield from _checking_room(servers.names, names, most, to, is_ordered(to, message))
    if (delay := delay_of(to, message)) is not None:
        target = servers.names.target(to, message.headers.get(ORDER_KEY))
        yield from leading(servers, target, delay, SEND, PROBE)


def is_to_be_prepared(most: int, to: Address, message: Message) -> bool:
    """Whether anything comes before it is sent."""
    return bool(most) or DELAY in message.headers or is_ordered(to, message)


def _checking_room(names: Names, queues: Sequence[str], most: int, to: Address, ordered: bool) -> Steps:
    """How it is found out whether these queues, and the partitions if it is `ordered`, have so many messages
    together. Raises QueueFull, or NoReceivers if one of them is not there."""
    waiting = 0
    for name in queues:
        if (found := (yield from waiting_in(name, PROBE))) is None:
            raise NoReceivers(f"nobody has ever served {to}")
        waiting += found
    if ordered:
        waiting += yield from waiting_in_partitions(names, to.name, PROBE)
    if waiting >= most:
        raise QueueFull(f"{to} has no room: raise max_length, or start more workers")


class PendingRequest:
    """A request, and what came for it."""

    def __init__(
        self,
        to: Address,
        message: Message,
        now: float,
        gone: Callable[[str], object],
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """`gone` is told the name of a queue that is not there."""
        self.to, self.message, self._gone, self._wake = to, message, gone, wake
        self.arrived: deque[Message] = deque()
        self.failure: RpcError | None = None
        """Why there will be no reply."""
        self.is_ended = False
        """Whether the last reply came."""
        self.properties, self._began, self.was_sent = properties_of(message, ""), now, False
        self.expires = math.inf if message.ttl is None else now + message.ttl
        """When RabbitMQ drops it if nobody began it, in seconds of the monotonic clock."""

    @property
    def is_over(self) -> bool:
        return self.is_ended or self.failure is not None

    def sent_to(self, way: str) -> Any:
        """Its properties, with this way back; it is about to be published, perhaps again."""
        if self.was_sent:
            resend(self.properties, self._began, self.expires)
        self.properties.reply_to, self.was_sent = way, True
        return self.properties

    def hear(self, arrival: Arrival) -> None:
        """A reply, to this request or to another one."""
        is_wanted = not self.is_ended or self.to.kind == "topic"  # of which any number may reply
        if arrival.properties.correlation_id == self.message.id and is_wanted:
            reply = message_of(arrival.properties, arrival.body)
            self.is_ended = STREAM not in reply.headers
            self.arrived.append(reply)
            self._wake()

    def fail(self, error: RpcError) -> None:
        if not self.is_over:
            self.failure = error
            self._wake()

    def next(self) -> Message | None:
        """The next reply; None if none came yet. Raises why there will be none."""
        if self.arrived:
            return self.arrived.popleft()
        if self.failure:
            raise self.failure
        return None

    # As the future of its confirm.

    def done(self) -> bool:
        return self.is_over

    def set_result(self, back: Arrival | None) -> None:
        if back:
            if isinstance(back.method, Basic.Return):
                self._gone(self.to.name)
            self.fail(refused(self.to, back))

    def set_exception(self, error: Any) -> None:
        """Nothing is lost: it is sent again."""


class ReplyQueue:
    """A queue for replies, which belongs to a connection and goes with it."""

    def __init__(self, connection: Any, names: Names) -> None:
        """The connection is one for threads, or one of an event loop."""
        self._connection, self._names = connection, names
        self.name = f"{names.replies}{urandom(12).hex()}"
        connection.tell(
            REQUESTS,
            Queue.Declare(queue=self.name, exclusive=True, auto_delete=True, nowait=True),
            Basic.Consume(queue=self.name, consumer_tag=self.name, no_ack=True, nowait=True),
        )

    def send(self, request: PendingRequest) -> None:
        """Publish a request whose replies come here."""
        exchange, key = route(self._names, request.to, request.message)
        if request.to.kind == "topic":
            self._connection.tell(REQUESTS, self._names.own_exchange)
        said = REQUESTS, key, request.sent_to(self.name), request.message.body
        self._connection.publish_safely(*said, request, exchange=exchange)

    def withdraw(self, request: PendingRequest) -> None:
        """Tell those who may have it that nobody waits for it any more."""
        self._connection.tell(REQUESTS, self._names.own_exchange)
        said = control_key(request.to.name), cancel_of(request.message.id), b""
        self._connection.publish(REQUESTS, *said, exchange=self._names.exchange)

    def delete(self) -> None:
        """Who looks for it finds nobody waiting: what was withdrawn is not begun. It is consumed no more
        before that, else RabbitMQ tells us that what we consume is gone, as if others had deleted it."""
        self._connection.tell(
            REQUESTS,
            Basic.Cancel(consumer_tag=self.name, nowait=True),
            Queue.Delete(queue=self.name, nowait=True),
        )


def too_late(failure: Broken | None, blocked: str) -> RpcError:
    """What it means that no reply came in time."""
    if failure:
        return unavailable(failure)
    return RpcTimeout(f"RabbitMQ: {blocked}" if blocked else "")
