"""Messages in AMQP's terms: routes, properties.

What AMQP has a property for travels in it, so that management tools show it; the other headers are in the
table of headers. How much time is left is told by `expiration` and the table's `timestamp_in_ms`, which
RabbitMQ's message interceptors overwrite with the broker's own clock, where they are turned on.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from pamqp import base

from ...errors import NoReceivers, QueueFull, RpcError, SerializationError, shown
from ...transport import DELAY, NAME, ORDER_KEY, Address, Message, check_headers
from .delays import route_after
from .names import Names
from .servers import LONGEST_TTL
from .wire import Arrival, Basic, Exchange, Queue

CANCEL = "rpc-cancel"
"""Type of a message to those who serve a queue: nobody waits for this request any more."""
PRESENT = "rpc-present"
"""Type of a message to a reply queue that asks nothing: it comes back if the queue is gone."""
STAMP = "timestamp_in_ms"
COPY = "rpc-copy"
"""Header: tells a message that was sent anew on purpose from a repetition."""
WAY = "rpc-reply-to"
"""Header: the caller's own name for its way back, if that is not the id."""
RESENT = "rpc-resent"
"""Header: it was published before, and may have arrived; when that was first done, in milliseconds."""
PUT_BACK = "rpc-put-back"
"""Header: a copy of what a worker gave back."""
AGAIN = "rpc-again"
"""Header of a copy of what was delivered before: RabbitMQ says that of the first one alone."""
MATCH = "x-match"
"""Argument of a binding to a headers exchange: how its others match."""
KEEP_INBOX = 3600.0
"""Seconds that an inbox outlives its last use."""
_DIRECT = "amq.rabbitmq.reply-to."
_OF_RABBITMQ = {
    f"x-{which}-death-{what}" for which in ("first", "last") for what in ("exchange", "queue", "reason")
}
_OWN = {STAMP, COPY, WAY, RESENT, PUT_BACK, AGAIN} | _OF_RABBITMQ
"""Headers that are not the sender's."""
LONGEST_NAME = 128
"""Bytes of a header's name. The rest of a longer one would be lost on the way."""
_PROPERTIES = {"id": "correlation_id", "content-type": "content_type", NAME: "message_type"}
_FROM_PROPERTIES = [(attribute, name) for name, attribute in _PROPERTIES.items()]


def delay_of(to: Address, message: Message) -> float | None:
    """Seconds that a message to this address is delayed; None if it is not."""
    return float(message.headers[DELAY]) if to.kind == "queue" and DELAY in message.headers else None


def route(names: Names, to: Address, message: Message) -> tuple[str, str]:
    """The exchange and the routing key of a message to this address."""
    if to.kind == "topic":
        return names.exchange, f"topic:{to.name}"
    delay, queue = delay_of(to, message), names.target(to, message.headers.get(ORDER_KEY))
    return ("", queue) if delay is None else route_after(names, delay, queue)


def bindings(names: Names, to: Address, queue: str) -> Iterator[tuple[base.Frame, type[Any]]]:
    """What has a queue get the messages of a topic, or those alone that it needs; how each is answered. The
    headers exchange goes with the last queue that is bound to it."""
    exchange, key = route(names, to, Message())
    if to.needs is None or not all(_can_be_bound(*header) for each in to.needs for header in each):
        yield Queue.Bind(queue=queue, exchange=exchange, routing_key=key), Queue.BindOk
    elif to.needs:
        sorting = names.by_headers(to)
        kind: dict[str, Any] = {"exchange_type": "headers", "durable": to.group is not None}
        yield Exchange.Declare(exchange=sorting, auto_delete=True, **kind), Exchange.DeclareOk
        yield Exchange.Bind(destination=sorting, source=exchange, routing_key=key), Exchange.BindOk
        for each in to.needs:
            wanted: dict[str, Any] = {MATCH: "all-with-x", **dict(each)}
            yield Queue.Bind(queue=queue, exchange=sorting, arguments=wanted), Queue.BindOk


def _can_be_bound(name: str, value: str) -> bool:
    try:
        return name != MATCH and len(name.encode()) <= LONGEST_NAME and len(value.encode()) < 1024
    except UnicodeEncodeError:
        return False


def control_key(queue: str) -> str:
    """The routing key by which those who serve a queue are told about its requests."""
    return f"control:{queue}"


def cancel_of(id: str) -> Any:
    """The properties of a message that says that nobody waits for a request."""
    return Basic.Properties(message_type=CANCEL, correlation_id=id, delivery_mode=1)


def refused(to: Address, arrival: Arrival) -> RpcError:
    """What it means that a message came back."""
    if isinstance(arrival.method, Basic.Return) and arrival.method.reply_code == 312:
        return NoReceivers(f"nobody has ever served {to}")
    return QueueFull(f"{to} has no room: raise its limit, or start more workers")


class Probe(Queue.Declare):
    """Is there such a queue? For names that RabbitMQ gave, too, which pamqp finds no names."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue=queue, passive=True)

    def validate(self) -> None:
        """All names are."""


def can_be_answered(reply_to: str) -> bool:
    """Whether a reply may be published there. RabbitMQ closes the connection of whoever publishes to a name
    of its direct reply-to that it never gave: such a name has a process id in base64
    (https://www.erlang.org/doc/apps/erts/erl_ext_dist.html)."""
    if not reply_to.startswith(_DIRECT):
        return True
    parts = reply_to[len(_DIRECT) :].split(".")
    if len(parts) != 2:
        return False
    try:
        pid = b64decode(parts[0], validate=True)
        b64decode(parts[1], validate=True)
    except ValueError:
        return False
    if pid[:1] != b"\x83" or pid[1:2] not in (b"g", b"X") or pid[2:3] not in (b"w", b"v", b"d"):
        return False
    width = 1 if pid[2:3] == b"w" else 2
    atom = 3 + width + int.from_bytes(pid[3 : 3 + width], "big")
    return len(pid) == atom + (12 if pid[1:2] == b"X" else 9)


def properties_of(
    message: Message, reply_to: str | None = None, durable: bool = False, copy: str | None = None
) -> Any:
    """The message's headers, as they travel."""
    table: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    for name, value in message.headers.items():
        if (own := _PROPERTIES.get(name)) and value and len(value) < 64:
            properties[own] = value
        elif name not in ("ttl", "reply-to"):
            table[name] = value
    check_headers(table)
    for name in table:
        if name in _OF_RABBITMQ or len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise SerializationError(f"RabbitMQ does not carry a header {shown(name)!r:.80}")
    if message.reply_to not in (None, message.id):
        table[WAY] = message.reply_to
    ttl = message.ttl
    if ttl is not None and (DELAY in table or ORDER_KEY in table):
        # RabbitMQ takes the expiration away from what it moves, and what has an order key does not expire
        table["ttl"] = message.headers["ttl"]
    elif ttl is not None:
        properties["expiration"] = str(min(LONGEST_TTL, max(0, round(ttl * 1000))))
    if ttl is not None or reply_to:
        table[STAMP] = int(time.time() * 1000)
    if copy:
        table[COPY] = copy
    mode = 2 if durable else 1
    return Basic.Properties(headers=table or None, reply_to=reply_to, delivery_mode=mode, **properties)


def age_of(properties: Any) -> float | None:
    """Seconds since the message was sent, by the clocks of both sides; None if it does not say."""
    stamp = (properties.headers or {}).get(STAMP)
    return time.time() - stamp / 1000 if isinstance(stamp, int) else None


def resend(properties: Any, began: float, expires: float) -> None:
    """Say that a message is published again: when that was first done, and how much time is left. `began` and
    `expires` are seconds of the monotonic clock."""
    now = time.monotonic()
    stamp = round(time.time() * 1000)
    first = (properties.headers or {}).get(RESENT) or str(stamp - round((now - began) * 1000))
    properties.headers = {**(properties.headers or {}), RESENT: first, STAMP: stamp}
    if properties.expiration:
        properties.expiration = str(min(LONGEST_TTL, max(0, round((expires - now) * 1000))))
    elif "ttl" in properties.headers:  # of what is delayed, or has an order key
        properties.headers["ttl"] = f"{max(0.0, expires - now):.3f}"


def first_sent(headers: Mapping[str, Any]) -> float | None:
    """When a message that was published again was first published, or was due if it was delayed, in seconds
    of the Unix epoch, -1 if it does not say so; None if it was not."""
    if RESENT not in headers:
        return None
    first = headers[RESENT]
    is_time = isinstance(first, str) and first.isascii() and first.isdecimal() and len(first) < 16
    try:
        return int(first) / 1000 + float(headers.get(DELAY, 0)) if is_time else -1.0
    except (TypeError, ValueError):  # anybody may have written it
        return -1.0


_NOT_COPIED = ("headers", "user_id", "cluster_id", "delivery_mode")
_COPIED = [name for name in Basic.Properties.flags if name not in _NOT_COPIED]


def again(properties: Any, **more: str) -> Any:
    """The properties of a copy: with the time that is left, and more headers; without what RabbitMQ would act
    on once more or refuse, and what cannot be written."""
    table = {
        name: value
        for name, value in (properties.headers or {}).items()
        if isinstance(value, str | int) and name not in ("CC", "BCC")
    }
    copy = Basic.Properties(headers={**table, **more})
    for name in _COPIED:
        setattr(copy, name, getattr(properties, name))
    copy.delivery_mode = 1 if properties.delivery_mode == 1 else 2
    age, ttl = age_of(properties), str(copy.expiration or "")
    if ttl.isdecimal() and age is not None and 0 < age < int(ttl) / 1000:
        copy.expiration = str(int(ttl) - round(age * 1000))
        copy.headers = {**(copy.headers or {}), STAMP: round(time.time() * 1000)}
    return copy


def message_of(properties: Any, payload: bytes) -> Message:
    """The message, with the time that is left to it."""
    headers: dict[str, str] = {}
    for attribute, name in _FROM_PROPERTIES:
        value = getattr(properties, attribute)
        if isinstance(value, str) and value:
            headers[name] = value
    table = properties.headers
    if table:
        for name, value in table.items():
            if isinstance(value, str) and name not in _OWN:
                headers[name] = value
    if properties.reply_to:
        way = (table or {}).get(WAY)
        headers["reply-to"] = way if way and isinstance(way, str) else headers.get("id", "")
    if properties.expiration and str(properties.expiration).isdecimal():
        headers["ttl"] = f"{_left(properties):.3f}"
    elif (DELAY in headers or ORDER_KEY in headers) and "ttl" in headers:
        age, delay = age_of(properties) or 0.0, headers.get(DELAY, "0")
        headers["ttl"] = _left_after_delay(headers["ttl"], delay, age)
    return Message(payload, headers)


def _left(properties: Any) -> float:
    """RabbitMQ drops what has expired, by its own clock. If the sender's and ours do not agree, it is they
    who are wrong."""
    ttl = int(properties.expiration) / 1000
    age = age_of(properties)
    return ttl if age is None or not 0 <= age < ttl else ttl - age


def _left_after_delay(ttl: str, delay: str, age: float) -> str:
    """By the clocks of sender and worker alone; but the delay has passed for sure."""
    try:
        return f"{max(0.0, float(ttl) - max(age, float(delay))):.3f}"
    except ValueError:  # anybody may have written it
        return ttl
