"""Dead letters: what was given up lies in a durable queue beside its own. Looking at it takes everything out
and puts it back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from ...errors import SerializationError
from ...transport import ATTEMPT, DELAY, HANDED_BACK, DeadLetter, Message, packed, queue, unpacked
from .callers import Senders
from .connection import Connection
from .messages import Probe, dead_name, properties_of, queue_name, refused
from .requests import PROBE, SEND
from .servers import Servers
from .wire import Arrival, Basic, Broken, Queue, ack

TOKEN, AT, WHY = "rpc-token", "rpc-at", "rpc-why"
LOOKING = 4
"""A channel: when it is closed, what was taken and not acknowledged on it is put back."""


def bury(
    connection: Connection, servers: Servers, name: str, message: Message, why: str, channel: int
) -> None:
    """Make it a dead letter of the queue of this name, safely."""
    connection.ask(channel, servers.queue(dead_name(name)), Queue.DeclareOk)
    properties = Basic.Properties(
        headers={TOKEN: uuid4().hex, AT: f"{time.time():.3f}", WHY: why[:500]},
        correlation_id=message.id[:255] or None,
        delivery_mode=2,
    )
    try:
        frame = packed(message.replace(deliveries=None))
    except SerializationError:  # a client of another make may send more headers than we carry
        frame = packed(Message(message.body, {"id": message.id[:128]}))
    if connection.confirmed(channel, dead_name(name), properties, frame):
        raise Broken(f"{dead_name(name)} took no dead letter")


class DeadLetterStore:
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
        gone = dict.fromkeys(("ttl", "reply-to", "deliveries", ATTEMPT, DELAY, HANDED_BACK))
        message = unpacked(letter.frame).replace(**gone)
        properties = properties_of(message, durable=True, copy=uuid4().hex)

        def send(connection: Connection) -> None:
            if came_back := connection.confirmed(SEND, queue_name(to), properties, message.body):
                raise refused(to, came_back)

        return self._take(letter, send)

    def drop(self, letter: DeadLetter) -> bool:
        return self._take(letter, lambda connection: None)

    def _take(self, letter: DeadLetter, action: Callable[[Connection], object]) -> bool:
        return self._each(letter.queue, lambda arrival: _letter("", arrival).raw == letter.raw, action)

    def _each(
        self,
        name: str,
        is_wanted: Callable[[Arrival], bool],
        action: Callable[[Connection], object] = lambda connection: None,
    ) -> bool:
        """Look at one after the other until one is wanted. With that, do something, and take it away."""

        def look(connection: Connection) -> bool:
            if not connection.succeeds(PROBE, Probe(dead_name(name)), Queue.DeclareOk, 404):
                return False
            try:
                while isinstance((arrival := _got(connection, dead_name(name))).method, Basic.GetOk):
                    if is_wanted(arrival):
                        action(connection)
                        taken: Any = arrival.method
                        connection.put(ack(taken.delivery_tag, LOOKING))
                        return True
                return False
            finally:
                if connection.is_open:
                    connection.close_channel(LOOKING)

        return self._senders.do(look)


def _got(connection: Connection, name: str) -> Arrival:
    return connection.ask(LOOKING, Basic.Get(queue=name), Basic.GetOk, Basic.GetEmpty)


def _letter(name: str, arrival: Arrival) -> DeadLetter:
    table = arrival.properties.headers or {}
    if TOKEN not in table:
        raise Broken("a dead letter that is none of ours is in the way")
    id = arrival.properties.correlation_id or ""
    return DeadLetter(id, name, float(table[AT]), table[WHY], arrival.body, table[TOKEN])
