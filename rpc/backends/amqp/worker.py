"""A loop that handles what comes to some queues: one message at a time, on a connection of its own. The last
reply and the acknowledgement leave in one write.

RabbitMQ says of a message that it was delivered before, not how often, nor whether a worker died of it: it
says so of all that was in its queues when it was killed. So whoever gets one again first puts a copy with a
higher count into its place, and acknowledges the other when the copy is safe. Whoever begins a copy marks it
as begun, and one that comes again without that mark is not counted. Quorum queues count by themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any

from ...errors import BackendUnavailable
from ...transport import KEEP_SUBSCRIPTION, LOST, STREAM, Address, Handler, Message
from .._serving import Cancellable
from .calls import EXCHANGE, OWN_EXCHANGE, queue_name, route
from .connection import BLOCK, Link
from .dead_letters import bury
from .prefetch import Intake
from .recent import Known
from .servers import translated
from .wire import (
    COPY,
    STAMP,
    Arrival,
    Broken,
    Channel,
    Queue,
    ack,
    age_of,
    message_of,
    properties_of,
)

logger = logging.getLogger(__name__)

FRESH = 1.0
"""Seconds of age from which on a caller may have died. One that leaves says so."""
ASIDE, DOUBTFUL = 2, 3
"""The channel for what must be confirmed, and the one of questions whose answer may close it."""
RELIEF = 0.02
"""Seconds that a handler may keep others waiting, if they might run elsewhere."""
COUNTED = "x-delivery-count"
KEEP_MARK = 86400.0
"""Seconds."""


class QueueDelivery(Cancellable):
    """A message from a queue, in the hands of a handler."""

    def __init__(self, loop: QueueLoop, arrival: Arrival, to: Address) -> None:
        properties = arrival.properties
        self.loop, self.arrival, self.to = loop, arrival, to
        self.message = message_of(properties, arrival.body)
        self.way: str | None = properties.reply_to
        self.over, self.done = threading.Event(), False
        """Whether its loop is through with it; and whether nobody is to begin it any more."""
        self.key = f"{self.message.id}{(properties.headers or {}).get(COPY, '')}" or f"-{id(self)}"
        self.last: Message | None = None
        """The last reply, if it was sent before the handler was done."""
        self.began = 0.0
        """When its handler was called."""
        self.unsettled = False
        """Whether it could not be buried."""
        self.marks: list[str] = []
        """Names of queues whose presence says something of this message."""

    def reply(self, message: Message) -> bool:
        if STREAM not in message.headers:
            self.last = message
        if self.way is None or self.cancelled:
            return False
        self.loop.say(self.way, message)
        return True

    def forbid_redelivery(self) -> None:
        if self.once not in self.marks:
            with translated():
                self.loop.mark(self, self.once, self.message.ttl or KEEP_MARK)

    def bury(self, why: str, last: Message | None) -> None:
        try:
            self.loop.bury(self, why)
        except BackendUnavailable:
            self.unsettled = True
            raise
        if last is not None:
            self.reply(last)

    @property
    def once(self) -> str:
        """The mark that nobody may get it again."""
        return self._mark("once")

    @property
    def begun(self) -> str:
        """The mark that this copy of it was begun."""
        return self._mark(f"begun:{self.message.deliveries}")

    def _mark(self, kind: str) -> str:
        return f"rpc:{kind}:{sha256(self.key.encode('utf-8', 'surrogatepass')).hexdigest()}"

    @property
    def counts_itself(self) -> bool:
        """Anybody may have written anything there."""
        return isinstance((self.arrival.properties.headers or {}).get(COUNTED), int)


class QueueLoop:
    """Runs in a thread of its own; `say` and `hand_back` may be called from others."""

    def __init__(
        self,
        link: Link,
        queues: Sequence[Address],
        handler: Handler,
        known: Known,
        max_deliveries: int,
        stopped: Callable[[], bool],
        widened: Callable[[], object],
        subscription: Address | None = None,
    ) -> None:
        """`subscription`: what the only queue keeps. `widened` hears that `relieve` may be of use."""
        self._link, self._queues, self._handler, self._known = link, queues, handler, known
        self._names = [queue_name(each) for each in queues]
        self._at = dict(zip(self._names, queues, strict=True))
        self._max_deliveries, self._is_stopped, self._subscription = max_deliveries, stopped, subscription
        self._unsent: deque[tuple[str, Message]] = deque()
        self._intake = Intake(link, self._names, self._put_back, widened)
        self._turn = threading.RLock()
        """Whose turn it is to read: the loop's, except while a handler runs."""
        self._running: QueueDelivery | None = None
        """What the handler has, if one runs."""
        self._is_aside = False

    # A session: from connecting to the next break.

    @property
    def is_wide(self) -> bool:
        return self._intake.is_wide

    def session(self, wake: int, arrived: Callable[[], object]) -> None:
        """Until stopped. Raises Broken."""
        with self._turn:
            self._session(wake, arrived)

    def _session(self, wake: int, arrived: Callable[[], object]) -> None:
        link = self._link
        link.open()
        link.watch(wake)
        self._is_aside = False
        self._declare()
        arrived()
        self._known.hears.wait(BLOCK)  # a caller that leaves says so once
        while self._unsent:
            way, reply = self._unsent[0]
            link.write(link.publish(way, properties_of(reply), reply.body))
            self._unsent.popleft()
        self._intake.begin()
        more, ended = b"", time.monotonic()
        while not self._is_stopped():
            arrival = self._intake.next(more)
            began, more = time.monotonic(), b""
            if arrival:
                more = self._handled(arrival)
                more += self._intake.paced((now := time.monotonic()) - began, began - ended)
                ended = now
        if more:
            link.write(more)
        self._intake.leave()
        link.hang_up()

    def _declare(self) -> None:
        lifetime = KEEP_SUBSCRIPTION if self._subscription else 0
        for name in self._names:
            self._link.ask(self._link.place.queue(name, lifetime), Queue.DeclareOk)
        if self._subscription:
            key = route(self._subscription)[1]
            bind = Queue.Bind(queue=self._names[0], exchange=EXCHANGE, routing_key=key)
            self._link.send(OWN_EXCHANGE)
            self._link.ask(bind, Queue.BindOk)

    # One message.

    def _handled(self, arrival: Arrival) -> bytes:
        """Handle it; what is to be said then, at the latest with the next wait."""
        delivery = QueueDelivery(self, arrival, self._at[self._intake.name_of(arrival)])
        done = ack(arrival.method.delivery_tag)
        if self._is_stale(delivery):
            return done
        while before := self._known.begin(delivery.key, delivery):
            before.over.wait()  # its connection broke while it ran: it is the same message
            if before.done:
                return self._repeated(delivery) + done
        try:
            if self._may_not_start(delivery):
                self._known.forget(delivery.key)
                return done
            return self._ran(delivery) + done
        except BaseException:
            self._known.forget(delivery.key)
            raise
        finally:
            delivery.over.set()

    def _ran(self, delivery: QueueDelivery) -> bytes:
        if delivery.message.deliveries > 1:  # it may kill this worker, and must not drag others along
            self._intake.share()
            if not delivery.counts_itself:
                self.mark(delivery, delivery.begun, KEEP_MARK)
        delivery.began, self._running = time.monotonic(), delivery
        self._turn.release()
        try:
            last = self._handler(delivery)
        except Exception:
            logger.exception("a handler raised: %r", delivery.message)
            last = Message(headers={"id": delivery.message.id, LOST: "its handler failed"})
        finally:
            self._turn.acquire()
            self._running = None
        if delivery.unsettled and (last is None or delivery.way is None):
            self._link.drop()
            raise Broken(f"{delivery.message.id} could not be buried: it will be delivered again")
        self._known.end(delivery.key, last or delivery.last)
        delivery.done = True
        self._unmark(delivery)
        if last is None or delivery.way is None or delivery.cancelled:
            return b""
        if not self._link.connected:
            self._unsent.append((delivery.way, last))
            raise Broken("the connection broke while a handler ran")
        reply = self._link.publish(delivery.way, properties_of(last), last.body)
        return self._intake.stop() + reply if self._is_stopped() else reply

    def say(self, way: str, reply: Message) -> None:
        """Send a reply now; as soon as there is a connection again, if there is none."""
        try:
            self._link.write(self._link.publish(way, properties_of(reply), reply.body))
        except Broken:
            self._unsent.append((way, reply))

    def _is_stale(self, delivery: QueueDelivery) -> bool:
        """Whether it was done already, or nobody wants it any more."""
        if self._known.is_done(delivery.key):
            self._link.write(self._repeated(delivery))
            return True
        if self._known.is_unwanted(delivery.message.id):
            return True
        if delivery.way is None or self._is_fresh(delivery.arrival):
            return False
        way = delivery.way
        return not self._aside(lambda: self._link.exists(way, DOUBTFUL))

    def _is_fresh(self, arrival: Arrival) -> bool:
        """Whether we have heard what its caller had to say."""
        age, attentive = age_of(arrival.properties), self._known.attentive
        if age is None or attentive is None or arrival.method.redelivered:
            return False
        return 0 <= age < min(FRESH, time.monotonic() - attentive)

    def _repeated(self, delivery: QueueDelivery) -> bytes:
        last = self._known.reply(delivery.key)
        if last is None or delivery.way is None:
            return b""
        return self._link.publish(delivery.way, properties_of(last), last.body)

    def _may_not_start(self, delivery: QueueDelivery) -> bool:
        """What was delivered before is counted first, and comes again then, or is given up."""
        arrival, counts_itself = delivery.arrival, delivery.counts_itself
        if not arrival.method.redelivered and not counts_itself:
            return False
        if self._is_marked(delivery.once):
            self._give_up(delivery, "its worker died, and it may not be done twice")
            return True
        if not counts_itself and not self._may_have_begun(delivery):
            return False
        table = arrival.properties.headers or {}
        deliveries = (table[COUNTED] if counts_itself else delivery.message.deliveries) + 1
        delivery.message = delivery.message.replace(deliveries=deliveries)
        if deliveries > self._max_deliveries:
            self._give_up(delivery, f"{deliveries - 1} workers died of it")
        elif counts_itself:
            return False
        else:
            properties = arrival.properties
            properties.headers = {**table, "deliveries": str(deliveries)}
            self._replace(arrival, properties, acknowledge=False)
        self._unmark(delivery)
        return True

    def _may_have_begun(self, delivery: QueueDelivery) -> bool:
        """Whether a worker may have died of it. Nobody marks the first one, nor what cannot be recognized."""
        if delivery.message.deliveries == 1 or not delivery.message.id:
            return True
        if is_marked := self._is_marked(delivery.begun):
            delivery.marks.append(delivery.begun)  # it has said what it had to say
        return is_marked

    def _is_marked(self, mark: str) -> bool:
        return bool(self._aside(lambda: self._link.exists(mark, DOUBTFUL)))

    def _give_up(self, delivery: QueueDelivery, why: str) -> None:
        self._aside(lambda: bury(self._link, delivery.to, delivery.message, why, ASIDE))
        if delivery.way:
            lost = Message(headers={"id": delivery.message.id, LOST: why})
            self._link.write(self._link.publish(delivery.way, properties_of(lost), b""))
        delivery.done = True

    # What must be safe before anything else is said.

    def _replace(self, arrival: Arrival, properties: Any, acknowledge: bool = True) -> None:
        """Put a copy of the message at the end of its queue."""
        link = self._link
        name = self._intake.name_of(arrival)
        copy = link.publish(name, _again(properties), arrival.body, channel=ASIDE, mandatory=True)
        if self._aside(lambda: link.confirmed(copy, channel=ASIDE)):
            raise Broken(f"{name} took no copy of a message")
        if acknowledge:
            link.write(ack(arrival.method.delivery_tag))

    def _put_back(self, arrival: Arrival) -> None:
        """Others may be free to do it. As a copy: what was given back would count as delivered."""
        self._replace(arrival, arrival.properties)

    def relieve(self) -> None:
        """If a handler takes its time, give to others what waits behind it. Another thread."""
        running = self._running
        late = running and self.is_wide and time.monotonic() - running.began > RELIEF
        if not late or not self._turn.acquire(blocking=False):
            return
        try:
            if self._running is running:
                self._intake.share()
        except Broken as error:
            logger.warning("RabbitMQ: %s", error)  # the loop will find out, too
        finally:
            self._turn.release()

    def mark(self, delivery: QueueDelivery, mark: str, seconds: float) -> None:
        """Write it down until the handler is done; for so many seconds if that is never said."""
        queue = self._link.place.queue(mark, max(1.0, seconds) + 60)
        self._aside(lambda: self._link.ask(queue, Queue.DeclareOk, channel=ASIDE))
        delivery.marks.append(mark)

    def _unmark(self, delivery: QueueDelivery) -> None:
        with suppress(Broken):  # the loop will find out, and marks end by themselves
            for mark in delivery.marks:
                self._aside(partial(self._link.ask, Queue.Delete(queue=mark), Queue.DeleteOk, channel=ASIDE))

    def bury(self, delivery: QueueDelivery, why: str) -> None:
        with translated():
            self._aside(lambda: bury(self._link, delivery.to, delivery.message, why, ASIDE))

    def _aside(self, action: Callable[[], Any]) -> Any:
        with self._turn:
            if not self._is_aside:
                self._link.ask(Channel.Open(), Channel.OpenOk, channel=ASIDE)
                self._link.with_confirms(ASIDE)
                self._link.ask(Channel.Open(), Channel.OpenOk, channel=DOUBTFUL)
                self._is_aside = True
            return action()

    def hand_back(self) -> None:
        """Whatever is not acknowledged goes to somebody else; what runs, as a copy, unless it may not be done
        twice. Another thread."""
        if self._running and self._turn.acquire(timeout=BLOCK):
            try:
                if (running := self._running) and running.once not in running.marks:
                    self._intake.share()
                    self._link.write(self._intake.stop())
                    self._put_back(running.arrival)
            except Broken as error:
                logger.warning("RabbitMQ: %s", error)  # it counts as delivered, then
            finally:
                self._turn.release()
        self._link.shut()


def _again(properties: Any) -> Any:
    """The same, with the time that is left. The way back stays: RabbitMQ keeps names that it gave."""
    age = age_of(properties)
    if properties.expiration and age is not None and 0 < age < int(properties.expiration) / 1000:
        properties.expiration = str(int(properties.expiration) - round(age * 1000))
        properties.headers = {**properties.headers, STAMP: round(time.time() * 1000)}
    return properties
