"""Order keys: where messages with one are put, by those who send them.

The queue of messages with order keys is in partitions: quorum queues, each with a single active consumer
(https://www.rabbitmq.com/docs/consumers#single-active-consumer), which has one message at a time. All
messages of a key are in one partition, so they are done one after the other; what is delivered again goes
back to its head. Nothing expires there: a worker refuses what comes too late.

The partitions are made, all at once, by whoever sends the first message with a key to a queue; it tells the
workers, who look for them when they begin. Where no keys are used there are none. One sender at a time makes
them: RabbitMQ says of a quorum queue that it is there before it takes messages.

Beside the partitions are two queues: one that each worker consumes, and in which there is never anything, so
that its consumers can be counted; and one with the ids of what was done last, for `partitions`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from operator import methodcaller
from typing import Any

from pamqp import base

from ...errors import NoReceivers
from ...transport import ORDER_KEY, Address, Message
from .dialogue import Steps
from .expiring import waiting_in
from .messages import control_key
from .names import PARTITIONS, Names
from .servers import Servers
from .wire import Basic, Broken, Queue

ORDERED = "rpc-ordered"
"""Type of a message to those who serve a queue: it has partitions."""
MOST_DONE = 4096
"""How many ids are kept of what was done last."""
_NO_LIMIT = 1_000_000_000
"""Deliveries of one message. RabbitMQ 4 gives up after 20, which a worker that passes it on counts for."""


def is_ordered(to: Address, message: Message) -> bool:
    """Whether a message goes to a partition."""
    return to.kind == "queue" and ORDER_KEY in message.headers


def all_of(names: Names, queue: str) -> list[str]:
    """The queues beside a queue that are for order, by RabbitMQ's names. The last one is made last."""
    partitions = [names.partition(queue, number) for number in range(PARTITIONS)]
    return [*partitions, names.done(queue), names.servants(queue)]


def preparing_partitions(servers: Servers, to: Address, message: Message, channel: int, probe: int) -> Steps:
    """How the partitions of a queue are made, and workers are told, if the message needs them and they are
    not known to be there; what may be refused is asked on the channel `probe`. Raises NoReceivers if there is
    no queue."""
    if not is_ordered(to, message) or to.name in servers.ordered:
        return
    names = servers.names
    if (yield from waiting_in(names.servants(to.name), probe)) is None:
        if (yield from waiting_in(names.queue(to), probe)) is None:
            raise NoReceivers(f"nobody has ever served {to}")
        yield from _making(names, to.name, channel, probe)
    # Whoever made them may have died before this: each sender says so once.
    told = control_key(to.name), Basic.Properties(message_type=ORDERED, delivery_mode=1), b""
    yield methodcaller("confirmed", channel, *told, exchange=names.exchange)
    servers.ordered.add(to.name)


def _making(names: Names, queue: str, channel: int, probe: int) -> Steps:
    """Raises Broken if somebody else is at it: its sender tries again."""
    lock = names.lock(names.servants(queue))
    yield methodcaller("ask", probe, Queue.Declare(queue=lock, exclusive=True), Queue.DeclareOk)
    try:
        for method in _made(names, queue):
            yield methodcaller("ask", channel, method, Queue.DeclareOk)
    except Broken as error:
        if error.code:  # it was refused; else the lock is gone, too
            yield methodcaller("ask", channel, Queue.Delete(queue=lock), Queue.DeleteOk)
        raise
    yield methodcaller("ask", channel, Queue.Delete(queue=lock), Queue.DeleteOk)


def _made(names: Names, queue: str) -> Iterator[base.Frame]:
    arguments: Any = {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-delivery-limit": _NO_LIMIT,
    }
    *partitions, done, servants = all_of(names, queue)
    for name in partitions:
        yield Queue.Declare(queue=name, durable=True, arguments=arguments)
    yield Queue.Declare(queue=done, durable=True, arguments={"x-max-length": MOST_DONE})
    yield Queue.Declare(queue=servants, durable=True)


def waiting_in_partitions(names: Names, queue: str, channel: int) -> Generator[Any, Any, int]:
    """How many messages with order keys wait in a queue."""
    if (yield from waiting_in(names.servants(queue), channel)) is None:
        return 0
    total = 0
    for number in range(PARTITIONS):
        total += (yield from waiting_in(names.partition(queue, number), channel)) or 0
    return total
