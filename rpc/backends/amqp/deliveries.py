"""Messages in the hands of handlers. The last reply, the acknowledgement and what else is to be said leave in
one write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, Protocol

from ...errors import BackendUnavailable, SerializationError, shown
from ...transport import STREAM, Address, Message
from .._serving import BaseDelivery, lost
from .connection import Connection
from .messages import AGAIN, COPY, STAMP, can_be_answered, message_of, properties_of
from .names import Names
from .wire import Arrival, Basic, Queue, ack, frames, published

logger = logging.getLogger(__name__)

JOBS, SAFE, PROBES, EVENTS, BESIDE, FIRST_CHANNEL = 1, 2, 3, 4, 5, 6
"""The channels of a server: of replies; of what must be confirmed; of questions whose answer may close it; of
topics, inboxes, subscriptions and what is said about requests; of what expires beside a queue; and, from
there on, of queues."""
COUNTED = "x-delivery-count"
"""Header of quorum queues, which count by themselves."""


class Owner(Protocol):
    """What a delivery needs of its server."""

    names: Names

    def reply(self, delivery: QueueDelivery, way: str, message: Message) -> None: ...

    def claim(self, delivery: QueueDelivery, seconds: float) -> None: ...

    def safely(self, action: Callable[[Any], object]) -> None:
        """Call this with the session. Raises BackendUnavailable."""

    def settle(self, delivery: QueueDelivery, last: Message | None) -> None: ...


class QueueDelivery(BaseDelivery):
    """A message from a queue. If it comes again while it is in hand, that delivery joins this one."""

    def __init__(
        self, owner: Owner, connection: Connection, arrival: Arrival, to: Address, queue: str
    ) -> None:
        """`queue` is RabbitMQ's name of the queue."""
        properties = arrival.properties
        self._owner, self.to, self.queue = owner, to, queue
        self.arrivals = [(connection, arrival)]
        """All that is to be acknowledged for it."""
        self.message = message_of(properties, arrival.body)
        self.way: str | None = properties.reply_to
        if self.way and not can_be_answered(self.way):
            self.way = None
        self.copy: str = (properties.headers or {}).get(COPY, "")
        """What tells it apart from what was sent under the same id, and given up."""
        self.key = key_of(arrival) or f"-{id(self)}"
        if to.durable:  # each group has its own copy of an event, under one id
            self.key = f"{queue}:{self.key}"
        own = to.subscription_queue if to.durable else to
        self.is_ordered = queue != owner.names.queue(own)
        """Whether it came from a partition: see `partitions`."""
        self.is_kept = self.was_begun = False
        """Whether it is not acknowledged though it has ended, and will come again here; whether a handler got
        it."""
        self.last: Message | None = None
        """The last reply, if it was sent before the end."""
        self.thread = 0
        """Which one is in its handler."""
        self.is_unsettled = False
        """Whether it could be neither buried nor postponed."""
        self.next_attempt = 0
        """Which one, if it was postponed."""
        self.marks: list[str] = []
        """Names of queues whose presence says something of this message, until it is acknowledged."""
        self.is_claimed = self.is_unbegun = False
        """Whether it may not be done twice, and this is the once; whether it could not be said that it is."""
        self.leaves: list[Queue.Declare] = []
        """Declares a queue whose presence says for a while that this was done."""

    @property
    def connection(self) -> Connection:
        return self.arrivals[0][0]

    @property
    def arrival(self) -> Arrival:
        return self.arrivals[0][1]

    def arrival_on(self, connection: Connection) -> Arrival | None:
        """What came last on this connection."""
        return next((each for on, each in self.arrivals[::-1] if on is connection), None)

    def join(self, other: QueueDelivery) -> None:
        """Another delivery of this message: its caller may have another way back by now."""
        self.arrivals += other.arrivals
        if other.message.attempt <= self.message.attempt:  # else it was postponed before it was sent again
            self.way = other.way or self.way

    def reply(self, message: Message) -> bool:
        if STREAM not in message.headers:
            self.last = message
        if self.way is None or self.cancelled:
            return False
        self._owner.reply(self, self.way, message)
        return True

    def forbid_redelivery(self) -> None:
        if not self.is_claimed:
            self._owner.claim(self, 86400.0 if self.message.ttl is None else max(0.0, self.message.ttl))
            self.is_claimed = True

    def postpone(self, seconds: float, message: Message) -> None:
        self._safely(lambda session: session.postpone(self, seconds, message))
        self.next_attempt = message.attempt
        self.finish(None)

    def bury(self, why: str, last: Message | None) -> None:
        self._safely(lambda session: session.bury(self, why))
        self.finish(last)

    def _safely(self, action: Callable[[Any], object]) -> None:
        try:
            self._owner.safely(action)
        except BackendUnavailable:
            self.is_unsettled = True
            raise

    def _finish(self, last: Message | None) -> None:
        self._owner.settle(self, last)

    @property
    def is_foreign(self) -> bool:
        """Whether another thread than that of its handler is at it."""
        return get_ident() != self.thread

    @property
    def once(self) -> str:
        """The mark that nobody may get it again."""
        return self._mark("once", self.queue)

    @property
    def note(self) -> str:
        """The mark that it was done, and may not be done again."""
        return self._mark("done", self.queue)

    @property
    def begun(self) -> str:
        """The mark that this copy of it was begun."""
        return self.begun_as(self.message.deliveries)

    def begun_as(self, deliveries: int) -> str:
        """The mark that it was begun when it had been delivered so often."""
        return self._mark(f"begun:{deliveries}", self.queue if self.is_ordered else "")

    def _mark(self, kind: str, of: str = "") -> str:
        key = self.key if self.message.attempt == 1 else f"{self.key} {self.message.attempt}"
        return self._owner.names.mark(kind, f"{of}{key}")

    def _note_of(self, connection: Connection, channel: int) -> bytes:
        """What writes down that it was done, for whoever gets a copy that was sent again."""
        properties = Basic.Properties(headers={STAMP: round(time.time() * 1000)}, delivery_mode=2)
        name, frame_max = self._owner.names.done(self.to.name), connection.terms.frame_max
        return published(channel, name, properties, self.key.encode(), frame_max)

    @property
    def counts_itself(self) -> bool:
        """Anybody may have written anything there."""
        table = self.arrival.properties.headers or {}
        return isinstance(table.get(COUNTED), int) and not self.is_ordered

    def ending(self, connection: Connection, last: Message | None) -> bytes:
        """What is said on this connection at its end. What says that it may not be done again is deleted
        after the acknowledgement, on the channel of that: a worker that dies between them has done it."""
        said = b""
        if last is not None and self.way is not None and not self.cancelled:
            said = reply_bytes(connection, self.way, last)
        for on, arrival in self.arrivals:
            if on is connection:
                said += frames(arrival.channel, *self.leaves) if self.leaves else b""
                if self.is_ordered and self.was_begun:
                    said += self._note_of(connection, arrival.channel)
                said += ack(arrival.method.delivery_tag, arrival.channel)
                gone = [Queue.Delete(queue=mark, nowait=True) for mark in self.marks]
                said += frames(arrival.channel, *gone) if gone else b""
        return said


def key_of(arrival: Arrival) -> str:
    """What tells a message from others, if it has an id."""
    copy = (arrival.properties.headers or {}).get(COPY, "")
    return f"{message_of(arrival.properties, b'').id}{copy}"


def was_redelivered(arrival: Arrival) -> bool:
    """Whether it, or what it is a copy of, was delivered before."""
    return bool(arrival.method.redelivered or (arrival.properties.headers or {}).get(AGAIN))


class ChannelDelivery(BaseDelivery):
    """A message from a topic or an inbox: any number of receivers may reply to it."""

    def __init__(
        self, connection: Connection, arrival: Arrival, to: Address, done: Callable[[Arrival], object]
    ) -> None:
        self._connection, self._arrival, self.to, self._done = connection, arrival, to, done
        self._way = arrival.properties.reply_to
        self.message = message_of(arrival.properties, arrival.body)

    def reply(self, message: Message) -> bool:
        if self._way is None or not can_be_answered(self._way):
            return False
        self._connection.put(reply_bytes(self._connection, self._way, message))
        self._connection.flush_soon()
        return True

    def _finish(self, last: Message | None) -> None:
        if last is not None:
            self.reply(last)
        self._done(self._arrival)


def reply_bytes(connection: Connection, way: str, message: Message) -> bytes:
    """What publishes a reply."""
    frame_max = connection.terms.frame_max
    try:
        return published(JOBS, way, properties_of(message), message.body, frame_max)
    except SerializationError as error:
        logger.error("a reply cannot be sent: %s", shown(error))
        message = lost(message, "its reply has headers that cannot be sent")
        return published(JOBS, way, properties_of(message), b"", frame_max)
