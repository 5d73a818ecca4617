"""Delays without a plugin: a message passes through queues in which it expires, and arrives when it is due.

A queue lets expire what is at its head: among messages with TTLs of their own, a short delay would wait
behind a long one. So each queue here has one TTL for all. There are 28 of them, of 1, 2, 4, … ticks, and a
message waits in those that the binary digits of its delay name, the longest first: that is all it takes for
any delay up to 49 days, and nobody needs to run meanwhile. It is the way of NServiceBus
(https://docs.particular.net/transports/rabbitmq/delayed-delivery). One expiring queue for each distinct
delay would be a single hop; but retries have random pauses, so that would be a queue for each message, or a
delay of a day rounded to minutes.

Each level is a topic exchange and a queue. The routing key is the digits, and then the queue that it is
for: where its digit is 1 the exchange puts a message into the queue, from which it is dead-lettered to the
exchange of the next level; where it is 0 it is passed on to that directly. Behind the last level, queues
are bound by their names. The levels are made by whoever needs them first, and stay.

They are quorum queues, on a single node, too: these dead-letter at least once
(https://www.rabbitmq.com/docs/quorum-queues#dead-lettering), that is, a message leaves one when the next
one has confirmed it. Classic queues lose what is on its way between them when RabbitMQ is killed. What is
for a queue that was deleted meanwhile goes to one without room, and so is dropped: else it would stay for
ever, and be in the way of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import methodcaller
from typing import Any

from pamqp import base

from ...errors import NoReceivers, Unsupported
from .dialogue import Steps
from .names import Names
from .servers import Servers
from .wire import Broken, Exchange, Queue

LEVELS, TICK = 28, 16
"""A tick in milliseconds."""
LONGEST = ((1 << LEVELS) - 1) * TICK / 1000
AT_LEAST_ONCE: Any = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def ticks_in(seconds: float) -> int:
    """What a delay is rounded up to. Raises Unsupported if it is none, or too long."""
    if not 0 <= seconds < LONGEST:
        raise Unsupported(f"on RabbitMQ a delay is from 0 to {LONGEST // 86400:.0f} days, not {seconds:g} s")
    return int(seconds * 1000 // TICK) + 1  # the tick that it ends in is not over


def route_after(names: Names, seconds: float, queue: str) -> tuple[str, str]:
    """The exchange and the routing key of what is to be in the queue, by RabbitMQ's name, after that time."""
    ticks = ticks_in(seconds)
    return names.level(ticks.bit_length() - 1), f"{'.'.join(f'{ticks:0{LEVELS}b}')}.{queue}"


def leading(servers: Servers, queue: str, seconds: float, channel: int, probe: int) -> Steps:
    """How a way to the queue is made on which it takes so long; what may be refused is asked on the channel
    `probe`. Raises NoReceivers if there is no such queue."""
    levels = ticks_in(seconds).bit_length()
    is_new = servers.levels < levels
    if is_new:
        for method, expected in _made(servers.names, levels):
            yield methodcaller("ask", channel, method, expected)
        servers.levels = levels
    bind = Queue.Bind(queue=queue, exchange=servers.names.due, routing_key="*." * LEVELS + queue)
    try:
        yield methodcaller("ask", probe, bind, Queue.BindOk)
    except Broken as error:
        if error.code != 404:
            raise
        if not is_new:  # it may be all gone: whoever tries again makes it again
            servers.levels = 0
            raise
        raise NoReceivers(f"there is no queue {queue}: nobody has ever served it") from None


def _made(names: Names, levels: int) -> Iterator[tuple[base.Frame, type[Any]]]:
    """What makes the lower levels, and how each method is answered."""
    below, gone = names.due, names.gone
    yield _exchange(gone, "fanout")
    yield Queue.Declare(queue=gone, durable=True, arguments={"x-max-length": 0}), Queue.DeclareOk
    yield Queue.Bind(queue=gone, exchange=gone), Queue.BindOk
    yield _exchange(below, "topic", **{"alternate-exchange": gone})
    for number in range(levels):
        name, digits = names.level(number), "*." * (LEVELS - 1 - number)
        arguments = {**AT_LEAST_ONCE, "x-message-ttl": TICK << number, "x-dead-letter-exchange": below}
        yield _exchange(name, "topic")
        yield Queue.Declare(queue=name, durable=True, arguments=arguments), Queue.DeclareOk
        yield Queue.Bind(queue=name, exchange=name, routing_key=f"{digits}1.#"), Queue.BindOk
        passing = Exchange.Bind(destination=below, source=name, routing_key=f"{digits}0.#")
        yield passing, Exchange.BindOk
        below = name


def _exchange(name: str, kind: str, **arguments: Any) -> tuple[base.Frame, type[Any]]:
    declare = Exchange.Declare(exchange=name, exchange_type=kind, durable=True, arguments=arguments)
    return declare, Exchange.DeclareOk
