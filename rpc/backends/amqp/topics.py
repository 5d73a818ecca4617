"""Topics and inboxes. A listener of a topic has a queue that is his alone and goes with him; a group has one
that goes with the last of its members, each of whom has one message at a time. An inbox has one for its
owner: what he has not acknowledged comes again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from ...transport import Address, Handler, Message
from .._serving import Cancellable
from .calls import EXCHANGE, KEEP_INBOX, OWN_EXCHANGE, queue_name, route
from .connection import BLOCK, Link
from .wire import Arrival, Basic, Queue, ack, frames, message_of, properties_of

logger = logging.getLogger(__name__)

KEEP_GROUP = 60.0
"""Seconds that a group outlives a restart of RabbitMQ from which no member comes back."""
TAG = "heard"
DEAFEN_TO_ALL = frames(1, Basic.Cancel(consumer_tag=TAG, nowait=True))
"""Said before what was heard last is acknowledged: nothing comes after it then."""
MOST = 10_000
"""Messages that wait for a listener who is too slow; of more, the oldest are dropped."""


class ChannelDelivery(Cancellable):
    """A message from a topic or an inbox: any number of receivers may reply to it."""

    def __init__(self, link: Link, arrival: Arrival, to: Address) -> None:
        self._link, self._way, self.to = link, arrival.properties.reply_to, to
        self.message = message_of(arrival.properties, arrival.body)

    def reply(self, message: Message) -> bool:
        if self._way is None:
            return False
        self._link.write(self._link.publish(self._way, properties_of(message), message.body))
        return True

    def forbid_redelivery(self) -> None:
        """Nothing to do: a message of this kind is not worth it."""


class ChannelLoop:
    """Hears one topic or inbox, in a thread and on a connection of its own."""

    def __init__(self, link: Link, to: Address, handler: Handler, stopped: Callable[[], bool]) -> None:
        self._link, self._to, self._handler, self._is_stopped = link, to, handler, stopped
        self._is_shared = to.kind == "inbox" or to.group is not None

    def session(self, wake: int, arrived: Callable[[], object]) -> None:
        """Until stopped. Raises Broken."""
        link = self._link
        link.open()
        link.watch(wake)
        link.send(OWN_EXCHANGE)
        name = link.ask(self._queue(), Queue.DeclareOk).queue
        if self._to.kind == "topic":
            bind = Queue.Bind(queue=name, exchange=EXCHANGE, routing_key=route(self._to)[1])
            link.ask(bind, Queue.BindOk)
        if self._is_shared:
            link.ask(Basic.Qos(prefetch_count=1), Basic.QosOk)
        consume = Basic.Consume(queue=name, no_ack=not self._is_shared, consumer_tag=TAG)
        link.ask(consume, Basic.ConsumeOk)
        arrived()
        while not self._is_stopped():
            if (arrival := link.read(BLOCK)) and isinstance(arrival.method, Basic.Deliver):
                self._handle(arrival)
        if self._to.group is not None:
            self._leave(name)
        link.hang_up()

    def _queue(self) -> Any:
        if self._to.kind == "inbox":
            return self._link.place.queue(queue_name(self._to), KEEP_INBOX)
        if self._to.group is not None:
            lifetime: dict[str, Any] = {"x-queue-type": "classic", "x-expires": round(KEEP_GROUP * 1000)}
            name = group_name(self._to)
            return Queue.Declare(queue=name, durable=True, auto_delete=True, arguments=lifetime)
        return Queue.Declare(exclusive=True, auto_delete=True, arguments={"x-max-length": MOST})

    def _handle(self, arrival: Arrival) -> None:
        if self._to.kind == "topic" and arrival.method.redelivered:
            logger.warning("%s: a message whose receiver was lost is not handled again", self._to)
        else:
            self._hear(arrival)
        if self._is_shared:
            done = ack(arrival.method.delivery_tag)
            self._link.write(DEAFEN_TO_ALL + done if self._is_stopped() else done)

    def _leave(self, name: str) -> None:
        """Take nothing any more. What came too late goes to another member: as a copy, since what is given
        back counts as delivered."""
        self._link.ask(Basic.Cancel(consumer_tag=TAG), Basic.CancelOk)
        while arrival := self._link.read(0):
            method: Any = arrival.method
            if isinstance(method, Basic.Deliver):
                copy = self._link.publish(name, arrival.properties, arrival.body)
                self._link.write(copy + ack(method.delivery_tag or 0))

    def _hear(self, arrival: Arrival) -> None:
        delivery = ChannelDelivery(self._link, arrival, self._to)
        try:
            last = self._handler(delivery)
        except Exception:
            logger.exception("a handler raised: %r", delivery.message)
        else:
            if last is not None:
                delivery.reply(last)


def group_name(to: Address) -> str:
    """What RabbitMQ calls the queue of a group; names of more than 255 bytes it does not take."""
    name = f"rpc:topic:{to.name}:{to.group}"
    return name if len(name) < 255 else f"rpc:topic:{blake2b(name.encode(), digest_size=16).hexdigest()}"
