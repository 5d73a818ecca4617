"""What this process knows of requests: which it runs, which it has done, which nobody wants any more. A
message that comes again, or a caller whose way back has another name, finds it here. And the connection on
which all that is heard."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pamqp import base

from ...transport import Address, Message
from .calls import CANCEL, EXCHANGE, HAVE, MOVED, OWN_EXCHANGE, control_key
from .connection import BLOCK, Link
from .wire import Arrival, Basic, Broken, Queue, frames, properties_of

if TYPE_CHECKING:
    from .worker import QueueDelivery

MOST = 4096
"""Requests, of each sort."""
MOST_BYTES = 16 * 1024 * 1024
"""Of all replies together."""


class Known:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, QueueDelivery] = {}
        self._done: OrderedDict[str, Message | None] = OrderedDict()
        self._unwanted: OrderedDict[str, None] = OrderedDict()
        self._size = 0
        self.attentive: float | None = None
        """Since when we hear what is said, on the monotonic clock; None: we do not."""
        self.hears = threading.Event()
        """Set as long as we do."""

    def apart(self) -> Known:
        """For a durable group: what others here have done, it has not, though all know an event by one id.
        It hears as long as this one does."""
        other = Known()
        other.hears = self.hears
        return other

    def begin(self, key: str, delivery: QueueDelivery) -> QueueDelivery | None:
        """None if it may run now; else the delivery that runs already."""
        with self._lock:
            before = self._running.setdefault(key, delivery)
        return None if before is delivery else before

    def end(self, key: str, last: Message | None) -> None:
        with self._lock:
            self._running.pop(key, None)
            self._size -= _size(self._done.pop(key, None))
            self._done[key] = last
            self._size += _size(last)
            while len(self._done) > MOST or (self._size > MOST_BYTES and self._done):
                self._size -= _size(self._done.popitem(last=False)[1])

    def forget(self, key: str) -> None:
        """It did not run after all."""
        with self._lock:
            self._running.pop(key, None)

    def is_done(self, key: str) -> bool:
        return key in self._done

    def reply(self, key: str) -> Message | None:
        """The last reply to what is done; None if there was none, or nothing is known of it."""
        return self._done.get(key)

    def running(self, key: str) -> QueueDelivery | None:
        return self._running.get(key)

    def unwanted(self, id: str) -> None:
        with self._lock:
            self._unwanted[id] = None
            while len(self._unwanted) > MOST:
                self._unwanted.popitem(last=False)

    def is_unwanted(self, id: str) -> bool:
        return id in self._unwanted


def _size(reply: Message | None) -> int:
    return len(reply.body) if reply else 0


class Control:
    """Hears what is said about the requests of some queues, for as long as they are served."""

    def __init__(
        self,
        link: Link,
        queues: Sequence[Address],
        known: Known,
        tell: Callable[[bool], object],
        stopped: Callable[[], bool],
    ) -> None:
        self._link, self._queues, self._known = link, queues, known
        self._tell, self._is_stopped = tell, stopped

    def session(self, wake: int, arrived: Callable[[], object]) -> None:
        """Until stopped. Raises Broken."""
        link = self._link
        link.open()
        link.watch(wake)
        own = link.ask(Queue.Declare(exclusive=True, auto_delete=True), Queue.DeclareOk).queue
        binds: list[base.Frame] = [
            Queue.Bind(queue=own, exchange=EXCHANGE, routing_key=control_key(each.name), nowait=True)
            for each in self._queues
        ]
        link.send(OWN_EXCHANGE, *binds)
        link.ask(Basic.Consume(queue=own, no_ack=True), Basic.ConsumeOk)
        self._known.attentive = time.monotonic()
        self._known.hears.set()
        arrived()
        try:
            while not self._is_stopped():
                if (arrival := link.read(BLOCK)) and isinstance(arrival.method, Basic.Deliver):
                    self._heard(arrival)
        except Broken:
            self._known.attentive = None
            self._tell(False)
            raise
        finally:
            self._known.attentive = None
            self._known.hears.clear()
        link.hang_up()

    def _heard(self, arrival: Arrival) -> None:
        kind, id = arrival.properties.message_type, arrival.properties.correlation_id or ""
        delivery = self._known.running(id)
        if kind == CANCEL:
            self._known.unwanted(id)
            if delivery:
                delivery.cancel()
        elif kind == MOVED and (way := arrival.properties.reply_to):
            self._moved(id, delivery, way)

    def _moved(self, id: str, delivery: QueueDelivery | None, way: str) -> None:
        if delivery:
            delivery.way = way
            have = Basic.Properties(message_type=HAVE, correlation_id=id, delivery_mode=1)
            self._link.write(self._link.publish(way, have, b""))
        elif last := self._known.reply(id):
            self._link.write(self._link.publish(way, properties_of(last), last.body))


def goodbye(link: Link, *methods: base.Frame) -> None:
    """Say something, if the connection is still there."""
    if link.connected:
        with suppress(Broken):
            link.write(frames(1, *methods))
