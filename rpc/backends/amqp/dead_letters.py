"""Dead letters: what was given up lies in a durable queue beside its own. Looking at it takes everything out
and puts it back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, cast
from uuid import uuid4

from ...errors import SerializationError
from ...inspection import DeadLetter
from ...transport import ATTEMPT, DELAY, HANDED_BACK, ORDER_KEY, UNKNOWN, Message, packed, queue, unpacked
from .callers import Senders
from .connection import Connection
from .expiring import death_of
from .messages import Probe, message_of, properties_of, refused, resend
from .requests import PROBE, SEND
from .servers import Servers
from .wire import Arrival, Basic, Broken, Queue, ack

logger = logging.getLogger(__name__)

TOKEN, AT, WHY = "rpc-token", "rpc-at", "rpc-why"
LONGEST = 10_000
"""Characters of a reason that are kept."""
LOOKING = 4
"""A channel: when it is closed, what was taken and not acknowledged on it is put back."""


def bury(
    connection: Connection, servers: Servers, name: str, message: Message, why: str, channel: int
) -> None:
    """Make it a dead letter of the queue of this name, safely."""
    queue = servers.names.dead(name)
    connection.ask(channel, servers.queue(queue), Queue.DeclareOk)
    properties = Basic.Properties(
        headers={TOKEN: uuid4().hex, AT: f"{time.time():.3f}", WHY: why[:LONGEST]},
        correlation_id=message.id.encode("utf-8", "replace")[:255].decode("utf-8", "ignore") or None,
        delivery_mode=2,
    )
    frame = _framed(message.replace(deliveries=None))
    if connection.confirmed(channel, queue, properties, frame):
        raise Broken(f"{queue} took no dead letter")


def _framed(message: Message) -> bytes:
    try:
        return packed(message)
    except SerializationError:  # a client of another make may send more headers than we carry
        return packed(Message(message.body, {"id": message.id[:128]}))


class DeadLetterStore:
    """The dead letters of all queues."""

    def __init__(self, senders: Senders) -> None:
        self._senders, self._names = senders, senders.servers.names

    def letters(self, name: str) -> list[DeadLetter]:
        found: dict[str, DeadLetter] = {}  # by what tells them apart

        def keep(arrival: Arrival) -> bool:
            if letter := _letter(name, arrival):
                found.setdefault(letter.raw, letter)
            return False

        self._each(name, keep, begin=found.clear)
        return [*found.values()][::-1]

    def revive(self, letter: DeadLetter) -> bool:
        to = queue(letter.queue)
        gone = dict.fromkeys(("ttl", "reply-to", "deliveries", ATTEMPT, DELAY, HANDED_BACK, UNKNOWN))
        message = unpacked(letter.frame).replace(**gone)
        properties, began = properties_of(message, durable=True, copy=uuid4().hex), time.monotonic()

        target = self._names.target(to, message.headers.get(ORDER_KEY))

        def send(connection: Connection) -> None:
            came_back = connection.confirmed(SEND, target, properties, message.body)
            resend(properties, began, began)  # if the letter cannot be taken away, and it is tried again
            if came_back:
                raise refused(to, came_back)

        return self._take(letter, send)

    def drop(self, letter: DeadLetter) -> bool:
        return self._take(letter, lambda connection: None)

    def _take(self, letter: DeadLetter, action: Callable[[Connection], object]) -> bool:
        def is_it(arrival: Arrival) -> bool:
            found = _letter(letter.queue, arrival)
            return found is not None and found.raw == letter.raw

        return self._each(letter.queue, is_it, action)

    def _each(
        self,
        name: str,
        is_wanted: Callable[[Arrival], bool],
        action: Callable[[Connection], object] = lambda connection: None,
        begin: Callable[[], object] = lambda: None,
    ) -> bool:
        """Look at one after the other until one is wanted. With that, do something, and take it away. If the
        connection breaks, `begin` again. RabbitMQ moves what expires at least once, so that if it is killed
        meanwhile one may lie there twice: such copies are taken away with the first."""

        queue = self._names.dead(name)

        def look(connection: Connection) -> bool:
            begin()
            if not connection.succeeds(PROBE, Probe(queue), Queue.DeclareOk, 404):
                return False
            is_taken = False
            try:
                while isinstance((arrival := _got(connection, queue)).method, Basic.GetOk):
                    if is_wanted(arrival):
                        if not is_taken:
                            action(connection)
                        is_taken, got = True, cast("Any", arrival.method)
                        connection.put(ack(got.delivery_tag, LOOKING))
                        if TOKEN in (arrival.properties.headers or {}):
                            return True
                return is_taken
            finally:
                if connection.is_open:
                    connection.close_channel(LOOKING)

        return self._senders.do(look)


def _got(connection: Connection, name: str) -> Arrival:
    return connection.ask(LOOKING, Basic.Get(queue=name), Basic.GetOk, Basic.GetEmpty)


def _letter(name: str, arrival: Arrival) -> DeadLetter | None:
    """None if it is none of ours: anybody may have put it there."""
    table = arrival.properties.headers or {}
    if TOKEN not in table and (death := death_of(arrival.properties)):
        message = message_of(arrival.properties, arrival.body)
        frame = _framed(message)
        return DeadLetter(message.id, name, *death, frame, sha256(frame).hexdigest())
    token, at, told = (table.get(header, "") for header in (TOKEN, AT, WHY))
    try:
        unpacked(arrival.body)
        when = float(at)
    except (SerializationError, TypeError, ValueError):
        when = math.nan
    if not (math.isfinite(when) and isinstance(token, str) and isinstance(told, str)):
        logger.warning("what is no dead letter lies among those of queue %r", name)
        return None
    why, trace = DeadLetter.told(told)
    return DeadLetter(arrival.properties.correlation_id or "", name, when, why, arrival.body, token, trace)
