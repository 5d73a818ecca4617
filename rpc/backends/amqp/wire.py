"""AMQP 0-9-1 without I/O: bytes to arrivals, methods and messages to bytes. What frames consist of is told by
`frames` and pamqp. Whatever a peer announces has a bound: it makes us neither allocate memory nor wait."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import base, frame, header, heartbeat
from pamqp.commands import Basic, Channel, Confirm, Connection, Exchange, Queue
from pamqp.exceptions import PAMQPException

from ...errors import SerializationError
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
    taken_of,
)

__all__ = ["Basic", "Channel", "Confirm", "Connection", "Exchange", "Queue", "ack"]
OVERHEAD = 8
"""Bytes of a frame besides its content."""
LARGEST_FRAME = 131072
"""Bytes that we allow RabbitMQ to send in one frame."""
LARGEST_HEADER = 32768
"""Bytes of properties that are looked at."""
LARGEST_BODY = 64 * 1024 * 1024
"""Bytes of a body that is kept. What is larger is passed over, up to what RabbitMQ carries at all."""
LARGEST_CARRIED = 512 * 1024 * 1024
"""Bytes: the limit of RabbitMQ's own setting `max_message_size`."""
HEARTBEAT = heartbeat.Heartbeat.marshal()
GREETING = header.ProtocolHeader().marshal()
_KINDS = (METHOD, HEADER, BODY, HEARTBEATS)
_CARRYING = (Basic.Deliver, Basic.GetOk, Basic.Return)
_FAILURES = (
    *(PAMQPException, ValueError, TypeError, LookupError, ArithmeticError, struct.error),
    *(RecursionError, OSError),  # tables in tables in tables; years that the system does not know
)


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


class Unreadable(Basic.Properties):
    """Of a message that is too large, or whose properties make no sense. Its body is not kept."""


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
            try:
                method = method_of(data, at, end)
            except (UnicodeDecodeError, PAMQPException):
                method = taken_of(data, at, end)
            if not isinstance(method, _CARRYING):
                return Arrival(channel, method, None, b"")
            self._open[channel] = method, None, [], 0
            return None
        if kind == HEADER:
            return self._begun(channel, data, at, end)
        if kind != BODY:
            raise ValueError(f"there are no frames of type {kind}")
        return self._grown(channel, data[at:end])

    def _begun(self, channel: int, data: bytes, at: int, end: int) -> Arrival | None:
        """The message, if its body is empty."""
        method = self._open[channel][0]
        try:
            if end - at > LARGEST_HEADER or size_of(data, at) > LARGEST_BODY:
                raise ValueError("too large")
            size, properties = content_of(data, at, end)
        except _FAILURES:  # its sender's fault: what comes after it is still AMQP
            size, properties = size_of(data, at), Unreadable()
        if size > LARGEST_CARRIED:
            raise ValueError(f"there are no bodies of {size} bytes")
        if not size:
            del self._open[channel]
            return Arrival(channel, method, properties, b"")
        self._open[channel] = method, properties, [], size
        return None

    def _grown(self, channel: int, part: bytes) -> Arrival | None:
        method, properties, parts, missing = self._open[channel]
        missing -= len(part)
        if properties is None or missing < 0:
            raise ValueError("a body is longer than was said")
        if not isinstance(properties, Unreadable):
            parts.append(part)
        if missing > 0:
            self._open[channel] = method, properties, parts, missing
            return None
        del self._open[channel]
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
    frame_max: int,
    *,
    exchange: str = "",
    mandatory: bool = False,
) -> bytes:
    """The frames of one message; `frame_max` is the largest that both sides take, in bytes."""
    try:
        parts = [
            _publish(channel, exchange, key, mandatory),
            content_frame(channel, len(payload), content),
        ]
    except _FAILURES as error:
        raise SerializationError(f"a header cannot be sent: {error}") from error
    step = frame_max - OVERHEAD
    for at in range(0, len(payload), step):
        parts.append(body_frame(channel, payload[at : at + step]))
    return b"".join(parts)
