"""Dead letters: what was given up lies in a durable queue beside its own. Looking at it takes everything out
and puts it back."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from ...errors import SerializationError
from ...transport import ATTEMPT, Address, DeadLetter, Message, packed, queue, unpacked
from .calls import Senders, queue_name, refused
from .connection import Link
from .wire import Arrival, Basic, Broken, Channel, Queue, properties_of

TOKEN, AT, WHY = "rpc-token", "rpc-at", "rpc-why"
LOOKING = 3
"""A channel: when it is closed, what was taken and not acknowledged on it is put back."""


def dead_name(name: str) -> str:
    return f"rpc:dead:{name}"


def bury(link: Link, to: Address, message: Message, why: str, channel: int) -> None:
    """Make it a dead letter, safely. The channel has confirms."""
    name = dead_name(to.shelf.name if to.durable else to.name)
    link.ask(link.place.queue(name), Queue.DeclareOk, channel=channel)
    properties = Basic.Properties(
        headers={TOKEN: uuid4().hex, AT: f"{time.time():.3f}", WHY: why[:500]},
        correlation_id=message.id[:255] or None,
        delivery_mode=2,
    )
    try:
        frame = packed(message.replace(deliveries=None))
    except SerializationError:  # a client of another make may send more headers than we carry
        frame = packed(Message(message.body, {"id": message.id[:128]}))
    letter = link.publish(name, properties, frame, channel=channel, mandatory=True)
    if link.confirmed(letter, channel=channel):
        raise Broken(f"{name} took no dead letter")


class Shelf:
    """The dead letters of all queues."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders

    def letters(self, name: str) -> list[DeadLetter]:
        found: list[DeadLetter] = []

        def keep(arrival: Arrival) -> bool:
            found.insert(0, _letter(name, arrival))
            return False

        self._each(name, keep)
        return found

    def revive(self, letter: DeadLetter) -> bool:
        to = queue(letter.queue)
        gone = dict.fromkeys(("ttl", "reply-to", "deliveries", ATTEMPT))
        message = unpacked(letter.frame).replace(**gone)
        properties = properties_of(message, durable=True, copy=uuid4().hex)

        def again(link: Link) -> None:
            publishing = link.publish(queue_name(to), properties, message.body, mandatory=True)
            if came_back := link.confirmed(publishing):
                raise refused(to, came_back)

        return self._take(letter, again)

    def drop(self, letter: DeadLetter) -> bool:
        return self._take(letter, lambda link: None)

    def _take(self, letter: DeadLetter, action: Any) -> bool:
        return self._each(letter.queue, lambda arrival: _letter("", arrival).raw == letter.raw, action)

    def _each(self, name: str, wanted: Any, action: Any = None) -> bool:
        """Look at one after the other until one is wanted. With that, do something, and take it away."""

        def look(link: Link) -> bool:
            if not _open_to_look(link, dead_name(name)):
                return False
            try:
                while isinstance((arrival := _got(link, dead_name(name))).method, Basic.GetOk):
                    if wanted(arrival):
                        action(link)
                        taken: Any = arrival.method
                        link.send(Basic.Ack(delivery_tag=taken.delivery_tag), channel=LOOKING)
                        return True
                return False
            finally:
                if link.connected:
                    link.ask(Channel.Close(200, "", 0, 0), Channel.CloseOk, channel=LOOKING)

        return self._senders.do(look)


def _open_to_look(link: Link, name: str) -> bool:
    """Whether there is such a queue; the channel is open then."""
    link.ask(Channel.Open(), Channel.OpenOk, channel=LOOKING)
    if link.exists(name, LOOKING):
        return True
    link.ask(Channel.Close(200, "", 0, 0), Channel.CloseOk, channel=LOOKING)
    return False


def _got(link: Link, name: str) -> Arrival:
    link.send(Basic.Get(queue=name), channel=LOOKING)
    return link.arrival(Basic.GetOk, Basic.GetEmpty)


def _letter(name: str, arrival: Arrival) -> DeadLetter:
    table = arrival.properties.headers or {}
    if TOKEN not in table:
        raise Broken("a dead letter that is none of ours is in the way")
    id = arrival.properties.correlation_id or ""
    return DeadLetter(id, name, float(table[AT]), table[WHY], arrival.body, table[TOKEN])
