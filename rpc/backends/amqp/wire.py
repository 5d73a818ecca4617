"""AMQP 0-9-1 without I/O: bytes to arrivals, messages to bytes. The frames themselves are pamqp's business.

What AMQP has a property for travels in it, so that management tools show it; the other headers are in the
table of headers. How much time is left is told by `expiration` and the table's `timestamp_in_ms`, which
RabbitMQ's message interceptors overwrite with the broker's own clock, where they are turned on.
"""

from __future__ import annotations

import struct
import time
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import base, frame, header, heartbeat
from pamqp.commands import Basic, Channel, Confirm, Connection, Exchange, Queue
from pamqp.exceptions import PAMQPException

from ...errors import SerializationError
from ...transport import MAX_HEADER_BYTES, MAX_HEADERS, NAME, Message
from .frames import (
    BODY,
    END,
    HEADER,
    HEARTBEATS,
    METHOD,
    START,
    ack,
    body_frame,
    content_frame,
    content_of,
    method_of,
    size_of,
)

REPLY_TO = "amq.rabbitmq.reply-to"
"""Where a caller listens: RabbitMQ hands replies over without a queue."""
STAMP = "timestamp_in_ms"
COPY = "rpc-copy"
"""Header: tells a message that was sent anew on purpose from a repetition."""
WAY = "rpc-reply-to"
"""Header: the caller's own name for its way back, if that is not the id."""
OVERHEAD = 8
"""Bytes of a frame besides its content."""
LARGEST_FRAME = 131072
"""What we allow RabbitMQ to send."""
LONGEST_TTL = 2**32 - 1
"""Milliseconds."""
_OWN = {STAMP, COPY, WAY}
_PROPERTIES = {"id": "correlation_id", "content-type": "content_type", NAME: "message_type"}
_FROM_PROPERTIES = [(attribute, name) for name, attribute in _PROPERTIES.items()]


class Broken(Exception):
    """The connection, or the channel, is of no use any more. `code` is RabbitMQ's reason, 0 if it gave
    none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Arrival(NamedTuple):
    """What came on a channel: a method, and what it carries if it is of those that carry something."""

    channel: int
    method: Any
    properties: Any
    body: bytes


class Probe(Queue.Declare):
    """Is there such a queue? For names that RabbitMQ gave, too, which pamqp finds no names."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue=queue, passive=True)

    def validate(self) -> None:
        """All names are."""


class Unreadable(Basic.Properties):
    """Of a message whose properties make no sense. Its body is not looked at: nobody knows what it is."""


_KINDS = (METHOD, HEADER, BODY, HEARTBEATS)
_CARRYING = (Basic.Deliver, Basic.GetOk, Basic.Return)
HEARTBEAT = heartbeat.Heartbeat.marshal()
__all__ = ["Basic", "Channel", "Confirm", "Connection", "Exchange", "Queue", "ack"]
GREETING = header.ProtocolHeader().marshal()
_FAILURES = (
    *(PAMQPException, ValueError, TypeError, LookupError, ArithmeticError, struct.error),
    *(RecursionError, OSError),  # tables in tables in tables; years that the system does not know
)


class Wire:
    """What came in, frame by frame."""

    def __init__(self) -> None:
        self._rest = b""
        self._open: dict[int, tuple[Any, Any, list[bytes], int]] = {}
        """Of each channel, what has not all come yet, and how many bytes are missing."""

    def feed(self, data: bytes) -> list[Arrival]:
        """What is complete with these bytes. Raises Broken if they make no sense."""
        if self._rest:
            data = self._rest + data
        start, length = 0, len(data)
        arrivals = []
        try:
            while start + OVERHEAD <= length:
                kind, channel, size = START.unpack_from(data, start)
                at = start + START.size
                if (end := at + size) >= length:
                    if kind not in _KINDS or size > LARGEST_FRAME:
                        raise ValueError(f"there are no frames of type {kind} and {size} bytes")
                    break
                if arrival := self._assembled(kind, channel, data, at, end):
                    arrivals.append(arrival)
                start = end + 1
        except _FAILURES as error:
            raise Broken(f"this is not AMQP: {error}") from error
        self._rest = data[start:]
        return arrivals

    def _assembled(self, kind: int, channel: int, data: bytes, at: int, end: int) -> Arrival | None:
        """The message that this frame completes."""
        if kind == HEARTBEATS and at == end:
            return None
        if data[end] != END or at == end:
            raise ValueError("a frame does not end where it should")
        if kind == METHOD:
            method = method_of(data, at, end)
            if not isinstance(method, _CARRYING):
                return Arrival(channel, method, None, b"")
            self._open[channel] = method, None, [], 0
            return None
        if kind == HEADER:
            method = self._open[channel][0]
            try:
                size, properties = content_of(data, at, end)
            except _FAILURES:  # its sender's fault: what comes after it is still AMQP
                size, properties = size_of(data, at), Unreadable()
            if not size:
                del self._open[channel]
                return Arrival(channel, method, properties, b"")
            self._open[channel] = method, properties, [], size
            return None
        if kind != BODY:
            raise ValueError(f"there are no frames of type {kind}")
        return self._grown(channel, data[at:end])

    def _grown(self, channel: int, part: bytes) -> Arrival | None:
        method, properties, parts, missing = self._open[channel]
        parts.append(part)
        missing -= len(part)
        if properties is None or missing < 0:
            raise ValueError("a body is longer than was said")
        if missing > 0:
            self._open[channel] = method, properties, parts, missing
            return None
        del self._open[channel]
        if isinstance(properties, Unreadable):
            parts = []
        return Arrival(channel, method, properties, parts[0] if len(parts) == 1 else b"".join(parts))


def frames(channel: int, *methods: base.Frame) -> bytes:
    return b"".join([frame.marshal(method, channel) for method in methods])


@lru_cache(1024)
def _publish(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    method = Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    return frame.marshal(method, channel)


def published(
    channel: int,
    key: str,
    content: Any,
    payload: bytes,
    room: int,
    *,
    exchange: str = "",
    mandatory: bool = False,
) -> bytes:
    """The frames of one message; `room` is the largest frame that both sides take."""
    try:
        parts = [
            _publish(channel, exchange, key, mandatory),
            content_frame(channel, len(payload), content),
        ]
    except _FAILURES as error:
        raise SerializationError(f"a header cannot be sent: {error}") from error
    step = room - OVERHEAD
    for at in range(0, len(payload), step):
        parts.append(body_frame(channel, payload[at : at + step]))
    return b"".join(parts)


def properties_of(
    message: Message, reply_to: str | None = None, *, durable: bool = False, copy: str | None = None
) -> Any:
    """The message's headers, as they travel."""
    table: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    for name, value in message.headers.items():
        if (own := _PROPERTIES.get(name)) and value and len(value) < 64:
            properties[own] = value
        elif name not in ("ttl", "reply-to"):
            table[name] = value
    if table and (len(table) > MAX_HEADERS or sum(map(len, [*table, *table.values()])) > MAX_HEADER_BYTES):
        raise SerializationError(f"at most {MAX_HEADERS} headers, of {MAX_HEADER_BYTES} bytes, are carried")
    if message.reply_to not in (None, message.id):
        table[WAY] = message.reply_to
    ttl = message.ttl
    if ttl is not None:
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
        headers["reply-to"] = (table or {}).get(WAY) or headers.get("id", "")
    if properties.expiration and str(properties.expiration).isdecimal():
        headers["ttl"] = f"{_left(properties):.3f}"
    return Message(payload, headers)


def _left(properties: Any) -> float:
    """RabbitMQ drops what has expired, by its own clock. If the sender's and ours do not agree, it is they
    who are wrong."""
    ttl = int(properties.expiration) / 1000
    age = age_of(properties)
    return ttl if age is None or not 0 <= age < ttl else ttl - age
