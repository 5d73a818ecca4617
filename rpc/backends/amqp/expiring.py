"""Jobs with a time to live that nobody waits for: RabbitMQ makes dead letters of those that expire.

A queue cannot be given a dead-letter exchange after it was made, and what expires of calls that somebody
waits for is to vanish. So each queue has another one beside it for such jobs. Who sends the first one makes
it, and tells the workers, who look for it when they begin; where nobody sends any there is none.

It is a quorum queue, as those of delays are: it dead-letters at least once
(https://www.rabbitmq.com/docs/quorum-queues#dead-lettering), where a classic queue loses what expires just as
RabbitMQ is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import datetime
from operator import methodcaller
from typing import Any

from ...errors import NoReceivers, shown
from ...transport import DELAY, ORDER_KEY, Address, Message
from .delays import AT_LEAST_ONCE
from .dialogue import Steps
from .messages import Probe, control_key
from .servers import Servers
from .wire import Basic, Broken, Queue

EXPIRING = "rpc-expiring"
"""Type of a message to those who serve a queue: there is one for what expires beside it."""
EXPIRED = "RpcTimeout: it expired before a worker came to it"
"""Why it is a dead letter."""


def expires(to: Address, message: Message) -> bool:
    """Whether a message that is sent without a way back goes to the queue of what expires. One that is
    delayed does not: a worker refuses it when its time is over."""
    headers = message.headers
    is_alone = DELAY not in headers and ORDER_KEY not in headers and message.reply_to is None
    return to.kind == "queue" and message.ttl is not None and is_alone


def making(servers: Servers, to: Address, channel: int, probe: int) -> Steps:
    """How the queue for what expires beside this one is made, and workers are told, unless it is known to be
    there; what may be refused is asked on the channel `probe`. Raises NoReceivers if there is no queue."""
    if to.name in servers.expiring:
        return
    names = servers.names
    name, dead = names.expiring(to.name), names.dead(to.name)
    if (yield from waiting_in(name, probe)) is None:
        if (yield from waiting_in(names.queue(to), probe)) is None:
            raise NoReceivers(f"nobody has ever served {to}")
        arguments = {**AT_LEAST_ONCE, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        yield methodcaller("ask", channel, servers.queue(dead), Queue.DeclareOk)
        declare = Queue.Declare(queue=name, durable=True, arguments=arguments)
        yield methodcaller("ask", channel, declare, Queue.DeclareOk)
    # Whoever made it may have died before this: each sender says so once.
    told = control_key(to.name), Basic.Properties(message_type=EXPIRING, delivery_mode=1), b""
    yield methodcaller("confirmed", channel, *told, exchange=names.exchange)
    servers.expiring.add(to.name)


def waiting_in(queue: str, channel: int) -> Generator[Callable[[Any], Any], Any, int | None]:
    """How many messages wait in a queue, by RabbitMQ's name; None if there is none."""
    try:
        found = yield methodcaller("ask", channel, Probe(queue), Queue.DeclareOk)
    except Broken as error:
        if error.code != 404:
            raise
        return None
    return int(found.method.message_count)


def death_of(properties: Any) -> tuple[float, str] | None:
    """When and why RabbitMQ made this a dead letter, in seconds of the Unix epoch; None if it did not."""
    deaths = (properties.headers or {}).get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(last, dict) or not isinstance(at := last.get("time"), datetime):
        return None
    reason = last.get("reason")
    return at.timestamp(), EXPIRED if reason == "expired" else f"RabbitMQ gave it up: {shown(reason)}"
