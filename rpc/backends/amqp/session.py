"""A server's connection, from connecting to its next break: what is declared and consumed on it, and what
must be safe before anything else is said.

RabbitMQ says of a message that it was delivered before, not how often, nor whether a worker died of it: it
says so of all that was in its queues when it was killed. So whoever gets one again first puts a copy with a
higher count into its place, and acknowledges the other when the copy is safe. Whoever begins a copy marks it
as begun, and one that comes again without that mark is not counted. Quorum queues count by themselves.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from pamqp import base

from ...errors import SerializationError, shown
from ...transport import DELAY, KEEP_SUBSCRIPTION, Address, Message
from .._serving import Plan
from .callers import perform
from .connection import Connection
from .dead_letters import bury
from .delays import leading, route_after
from .deliveries import EVENTS, JOBS, PROBES, SAFE, QueueDelivery, was_redelivered
from .expiring import EXPIRING
from .messages import (
    AGAIN,
    KEEP_INBOX,
    PRESENT,
    PUT_BACK,
    Probe,
    again,
    age_of,
    bindings,
    control_key,
    properties_of,
)
from .order import ORDERED
from .partitions import Partitions
from .prefetch import Beside, InOrder, OneQueue
from .servers import Servers
from .wire import Arrival, Basic, Broken, Queue, ack

logger = logging.getLogger(__name__)

CONTROL = "control"
"""The consumer of what is said about requests."""
FRESH = 1.0
"""Seconds of age from which on a caller may have died. One that leaves says so. And how long it is believed
that one is there."""
KEEP_GROUP = 60.0
"""Seconds that a group outlives a restart of RabbitMQ from which no member comes back."""
KEEP_MARK = 86400.0
"""Seconds."""
MOST_WAITING = 10_000
"""Messages that wait for a listener who is too slow; of more, the oldest are dropped."""
AHEAD = 32
"""Messages that a listener is given at once."""
AT_ONCE = 500
"""Copies that are confirmed together."""


class Session:
    """`begin` it; `connection.read` feeds `ready` with messages of queues, and `heard` with all others."""

    def __init__(
        self,
        connection: Connection,
        servers: Servers,
        plan: Plan,
        threads: int,
        heard: Callable[[Address | None, Arrival], object],
    ) -> None:
        """`heard` is told what was said about a request with None."""
        self.connection, self._servers, self._plan, self._heard = connection, servers, plan, heard
        self._threads = threads
        self.began = time.monotonic()
        self.ready: deque[Arrival] = deque()
        """Messages of queues that can be begun."""
        names = [servers.names.queue(each) for each in plan.queues]
        self._at = {name: (to, name) for name, to in zip(names, plan.queues, strict=True)}
        """Of each queue that is consumed, its address, and the queue for that: it may be another one, beside
        which this one is for what expires."""
        self._is_told = False
        """Whether there may be another queue for what expires, or partitions."""
        self.prefetch: OneQueue | Beside | InOrder | None = None
        if len(names) == 1:
            self.prefetch = OneQueue(connection, names, threads, self.ready)
        elif names:
            self.prefetch = InOrder(connection, names, threads, self.ready, self.put_back)
        self.partitions = Partitions(connection, servers, plan.queues if threads else ())
        self._was_ordered = False
        """Whether what was taken last has an order key."""
        self.unheard = plan.durable + plan.channels
        """Topics, inboxes and subscriptions that could not be consumed yet."""
        self._consumed: dict[str, tuple[Address, str]] = {}
        """Of each consumer, the address and the queue."""
        self._unfinished: dict[int, Arrival] = {}
        """Of those that others may get."""
        self._callers: dict[str, tuple[float, bool]] = {}
        """When we asked for each reply queue, and whether it was there."""

    def begin(self) -> None:
        """Declare everything, and consume all but the queues."""
        connection = self.connection
        connection.listeners[EVENTS] = self._hear
        connection.tell(JOBS, self._servers.names.own_exchange)
        for name in self._at:
            connection.ask(JOBS, self._servers.queue(name), Queue.DeclareOk)
        declared = connection.ask(EVENTS, Queue.Declare(exclusive=True, auto_delete=True), Queue.DeclareOk)
        own = declared.method.queue
        served = [each.name for each in self._plan.queues]
        served += [each.subscription_queue.name for each in self._plan.durable]
        exchange = self._servers.names.exchange
        binds: list[base.Frame] = [
            Queue.Bind(queue=own, exchange=exchange, routing_key=control_key(name), nowait=True)
            for name in served
        ]
        connection.tell(EVENTS, *binds)
        consume = Basic.Consume(queue=own, no_ack=True, consumer_tag=CONTROL)
        connection.ask(EVENTS, consume, Basic.ConsumeOk)
        self.attentive = time.monotonic()
        self.hear_more()
        self._look_beside()

    def hear_more(self) -> None:
        """Consume what could not be consumed yet: another connection may have had the queue for itself."""
        self.unheard = [each for each in self.unheard if not self._consume(each)]

    def demand(self, busy: int, room: int) -> None:
        """Ask for what can be begun: so many threads are busy, and there may be so many coroutines more."""
        if self._is_told:
            self._look_beside()
        if self.prefetch:
            self.prefetch.demand(busy, room)
        self.partitions.demand(busy < self._threads and room > 0)

    @property
    def has_ready(self) -> bool:
        """Whether something can be begun."""
        return bool(self.ready or self.partitions.ready)

    def take(self, busy: int, room: int) -> Arrival | None:
        """What is to be begun first, of queues of the same priority in turns: what has an order key, and what
        has none. None if its time has not come yet."""
        if self.partitions.ready and not self.ready and self._was_ordered and self.prefetch:
            self.prefetch.poll(busy, room)
        if self.partitions.ready and not self._is_first(self.partitions.rank()):
            self._was_ordered = True
            return self.partitions.take()
        self._was_ordered = False
        return self.ready.popleft()

    def _is_first(self, rank: int) -> bool:
        """Whether something without an order key comes before what has one and is of the queue of this
        rank."""
        if not self.ready:
            return False
        own = self._plan.queues.index(self.address_of(self.ready[0])[0])
        return own < rank or (own == rank and self._was_ordered)

    def _look_beside(self) -> None:
        """Serve what expires, too, where there is a queue for it."""
        self._is_told = False
        self.partitions.look()
        for to in self._plan.queues:
            beside = self._servers.names.expiring(to.name)
            if beside not in self._at and self.connection.succeeds(
                PROBES, Probe(beside), Queue.DeclareOk, 404
            ):
                name = self._servers.names.queue(to)
                self._at[beside] = to, name
                if isinstance(self.prefetch, OneQueue | InOrder):
                    self.prefetch = self.prefetch.beside(name, beside)

    def _consume(self, to: Address) -> bool:
        declare, connection = self._queue(to), self.connection
        try:
            name = connection.probe(PROBES, declare, Queue.DeclareOk).method.queue
        except Broken as error:
            if error.code != 405 or not connection.is_open:
                raise
            logger.warning("%s: %s", to, shown(error))
            return False
        if to.kind == "topic":
            for method, expected in bindings(self._servers.names, to, name):
                connection.ask(EVENTS, method, expected)
        tag, one = f"heard{len(self._consumed)}", to.kind == "inbox" or to.group is not None
        self._consumed[tag] = to, name
        connection.tell(EVENTS, Basic.Qos(prefetch_count=1 if one else AHEAD))
        connection.ask(EVENTS, Basic.Consume(queue=name, consumer_tag=tag), Basic.ConsumeOk)
        return True

    def _queue(self, to: Address) -> Any:
        names = self._servers.names
        if to.kind == "inbox":
            return self._servers.queue(names.queue(to), KEEP_INBOX)
        if to.durable:
            return self._servers.queue(names.queue(to.subscription_queue), KEEP_SUBSCRIPTION)
        if to.group is not None:
            lifetime: dict[str, Any] = {"x-queue-type": "classic", "x-expires": round(KEEP_GROUP * 1000)}
            return Queue.Declare(queue=names.group(to), durable=True, auto_delete=True, arguments=lifetime)
        return Queue.Declare(exclusive=True, auto_delete=True, arguments={"x-max-length": MOST_WAITING})

    def _hear(self, arrival: Arrival) -> None:
        if arrival.method.consumer_tag == CONTROL:
            self._is_told = self._is_told or arrival.properties.message_type in (EXPIRING, ORDERED)
            self._heard(None, arrival)
        elif consumed := self._consumed.get(arrival.method.consumer_tag):
            to = consumed[0]
            if to.group is not None:
                self._unfinished[arrival.method.delivery_tag] = arrival
            try:
                self._heard(to, arrival)
            except Exception:
                self.acknowledge(arrival)
                raise

    # What is in hand.

    def address_of(self, arrival: Arrival) -> tuple[Address, str]:
        """Where it came to, and RabbitMQ's name of the queue for that."""
        if arrival.channel == EVENTS:
            return self._consumed[arrival.method.consumer_tag]
        if partition := self.partitions.at(arrival):
            return partition.to, partition.name
        return self._at[self._queue_of(arrival)]

    def _queue_of(self, arrival: Arrival) -> str:
        """The queue in which it is."""
        if arrival.channel == EVENTS or not self.prefetch:
            return self.address_of(arrival)[1]
        return self.prefetch.name_of(arrival)

    def done(self, arrival: Arrival) -> None:
        """A message is about to be acknowledged. Any thread."""
        if arrival.channel == EVENTS:
            self._unfinished.pop(arrival.method.delivery_tag, None)
        elif self.prefetch and not self.partitions.at(arrival):
            self.prefetch.done(arrival)

    def acknowledge(self, arrival: Arrival) -> None:
        """Acknowledge a message. Any thread; does not block."""
        self.done(arrival)
        self.connection.put(ack(arrival.method.delivery_tag, arrival.channel))
        self.partitions.gone(arrival)

    # What must be safe.

    def put_back(self, arrivals: Sequence[Arrival], **headers: str) -> None:
        """Others may be free to do these. As copies at the end of their queues: what was given back would
        count as delivered."""
        for at in range(0, len(arrivals), AT_ONCE):
            part = arrivals[at : at + AT_ONCE]
            copies = [self._copied(each, self.as_it_is(each, headers)) for each in part]
            for arrival, copy in zip(part, copies, strict=True):
                if self._is_taken(arrival, copy):
                    self.acknowledge(arrival)
                else:
                    self.reject(arrival)

    def as_it_is(self, arrival: Arrival, headers: dict[str, str]) -> Any:
        """The properties of a copy that counts as delivered as often."""
        told = {AGAIN: "1"} if was_redelivered(arrival) else {}
        return again(arrival.properties, **{PUT_BACK: "1"}, **told, **headers)

    def replace(self, delivery: QueueDelivery) -> bool:
        """Put a copy that says how often it was delivered at the end of its queue. False if there is no room
        for that."""
        count = {"deliveries": str(delivery.message.deliveries), AGAIN: ""}
        properties = again(delivery.arrival.properties, **count)
        return self._is_taken(delivery.arrival, self._copied(delivery.arrival, properties))

    def _is_taken(self, arrival: Arrival, copy: Future[Arrival | None]) -> bool:
        """Whether a copy is safe. False if its queue is full."""
        back = self.connection.wait_for(copy)
        if back and isinstance(back.method, Basic.Return):
            raise Broken(f"{self.address_of(arrival)[1]} is gone")
        return back is None

    def reject(self, arrival: Arrival) -> None:
        """Let RabbitMQ deliver a message again. Any thread; does not block."""
        self.done(arrival)
        self.connection.tell(arrival.channel, Basic.Reject(arrival.method.delivery_tag, requeue=True))
        self.partitions.gone(arrival)

    def _copied(self, arrival: Arrival, properties: Any) -> Future[Arrival | None]:
        copy: Future[Arrival | None] = Future()
        name = self._queue_of(arrival)
        try:
            self.connection.publish_safely(SAFE, name, properties, arrival.body, copy)
        except SerializationError as error:  # RabbitMQ carries what cannot be written
            logger.warning("a message in %s loses its headers: %s", name, shown(error))
            bare = Basic.Properties(correlation_id=properties.correlation_id, reply_to=properties.reply_to)
            self.connection.publish_safely(SAFE, name, bare, arrival.body, copy)
        return copy

    def may_have_begun(self, delivery: QueueDelivery) -> bool:
        """Whether a worker may have died of it. Nobody marks the first one, nor what cannot be recognized."""
        if delivery.message.deliveries == 1 or not delivery.message.id:
            return True
        if is_marked := self.is_marked(delivery.begun):
            delivery.marks.append(delivery.begun)  # it has said what it had to say
        return is_marked

    def is_marked(self, mark: str) -> bool:
        return self.connection.succeeds(PROBES, Probe(mark), Queue.DeclareOk, 404)

    def mark(self, delivery: QueueDelivery) -> None:
        """Write down that this copy was begun, until it is done; for a day if that is never said."""
        self.makes(self.queue(delivery.begun, KEEP_MARK))
        delivery.marks.append(delivery.begun)

    def queue(self, name: str, seconds: float) -> Any:
        """The declaration of a queue that is there for so many seconds."""
        return self._servers.queue(name, seconds)

    def makes(self, queue: Queue.Declare) -> bool:
        """Declare a queue; False if there is another one of this name."""
        return self.connection.succeeds(PROBES, queue, Queue.DeclareOk, 406)

    def bury(self, delivery: QueueDelivery, why: str) -> None:
        """Make it a dead letter."""
        queue = delivery.to.subscription_queue.name if delivery.to.durable else delivery.to.name
        bury(self.connection, self._servers, queue, delivery.message, why, SAFE)

    def postpone(self, delivery: QueueDelivery, seconds: float, message: Message) -> None:
        """Have it delivered again, as this message, after so many seconds. It is as durable as it was."""
        before = delivery.arrival.properties
        message = message.replace(**{DELAY: seconds})
        properties = properties_of(message, delivery.way, before.delivery_mode == 2, delivery.copy)
        properties.priority = before.priority
        if delivery.is_ordered:
            delivery.is_kept = True
            self.partitions.postpone(delivery, seconds, properties, message.body)
            return
        perform(leading(self._servers, delivery.queue, seconds, SAFE, SAFE), self.connection)
        exchange, key = route_after(self._servers.names, seconds, delivery.queue)
        if self.connection.confirmed(SAFE, key, properties, message.body, exchange=exchange):
            raise Broken(f"{exchange} took no copy of a message")

    def is_forsaken(self, delivery: QueueDelivery) -> bool:
        """Whether its caller is gone. We need not ask if we have heard what he said since he sent it."""
        way, now = delivery.way, time.monotonic()
        if not way or not way.startswith(self._servers.names.replies):
            return False
        age = age_of(delivery.arrival.properties)
        is_fresh = age is not None and 0 <= age < min(FRESH, now - self.attentive)
        if is_fresh and not delivery.arrival.method.redelivered:
            return False
        asked, is_there = self._callers.get(way, (0.0, False))
        if not asked or (is_there and now - asked > FRESH):
            asking = Basic.Properties(message_type=PRESENT, delivery_mode=1)
            is_there = self.connection.confirmed(SAFE, way, asking, b"") is None
            if len(self._callers) > 1000:
                self._callers.clear()
            self._callers[way] = now, is_there
        return not is_there

    # The end.

    def stop(self) -> None:
        """Take nothing any more, but what comes to inboxes: it is about what is in hand."""
        if self.prefetch:
            self.prefetch.stop()
        self.partitions.close_unbegun()
        for tag in [tag for tag, (to, _) in self._consumed.items() if to.kind != "inbox"]:
            self.connection.ask(EVENTS, Basic.Cancel(consumer_tag=tag), Basic.CancelOk)

    def leave(self) -> None:
        """Give to others what was not begun, and say goodbye."""
        left = [*self.ready, *self._unfinished.values()]
        self.ready.clear()
        self.put_back(left)
        self.connection.close()
