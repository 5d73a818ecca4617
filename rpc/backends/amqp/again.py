"""What comes again: it is counted before it is begun, and given up if that was too often, or if nobody can
know whether it was done. And what a worker that stops gives back."""

from __future__ import annotations

from collections.abc import Sequence

from ...transport import HANDED_BACK
from .._serving import BEGUN, DIED, lost
from .deliveries import COUNTED, QueueDelivery, was_redelivered
from .session import Session
from .wire import Arrival


def may_not_start(session: Session, delivery: QueueDelivery, most: int) -> bool:
    """Whether a message is not to be begun: it comes again then, or was given up, and `delivery.last` tells
    its caller. It may be delivered `most` times. Raises Broken."""
    if delivery.is_ordered and (why := session.partitions.doubt_of(delivery)):
        if delivery.way is None and why != BEGUN:
            session.bury(delivery, why)
        delivery.last = lost(delivery.message, why)
        return True
    counts_itself = delivery.counts_itself
    if not was_redelivered(delivery.arrival) and not counts_itself:
        return False
    if session.is_marked(delivery.once):  # and stays it: there may be other copies
        return _given_up(session, delivery, BEGUN)
    if delivery.is_ordered:
        count = _count_of(session, delivery, most)
    elif counts_itself:
        count = (delivery.arrival.properties.headers or {})[COUNTED] + 1
    elif session.may_have_begun(delivery):
        count = delivery.message.deliveries + 1
    else:
        return False
    delivery.message = delivery.message.replace(deliveries=count)
    if count > most:
        return _given_up(session, delivery, DIED)
    if counts_itself or delivery.is_ordered:
        return False
    return session.replace(delivery)  # else it is begun uncounted: nobody gets past it otherwise


def _count_of(session: Session, delivery: QueueDelivery, most: int) -> int:
    """Which delivery of a message with an order key this is. RabbitMQ counts those of workers, too, that gave
    it back; so who begins one that is not the first marks it."""
    count = 2
    while count <= most and session.is_marked(mark := delivery.begun_as(count)):
        delivery.marks.append(mark)
        count += 1
    return count


def _given_up(session: Session, delivery: QueueDelivery, why: str) -> bool:
    session.bury(delivery, why)
    delivery.last = lost(delivery.message, why)
    return True


def hand_back(session: Session, deliveries: Sequence[QueueDelivery]) -> None:
    """Give to others what is in the hands of handlers, unless it may not be done twice. Raises Broken."""
    back: list[Arrival] = []
    for delivery in deliveries:
        ours = [each for connection, each in delivery.arrivals if connection is session.connection]
        if delivery.finished or not ours:
            continue
        if delivery.is_claimed:
            session.done(ours[0])  # it must not be done twice
            continue
        delivery.finished = True
        if delivery.is_ordered:  # it goes back with the connection
            properties = session.as_it_is(delivery.arrival, {HANDED_BACK: "1"})
            session.partitions.write_down(delivery, properties, delivery.arrival.body)
            continue
        back.append(ours.pop())
        for each in ours:
            session.acknowledge(each)
    back.sort(key=lambda each: (each.channel, each.method.delivery_tag))
    session.put_back(back, **{HANDED_BACK: "1"})
