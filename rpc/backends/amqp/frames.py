"""The frames that a call consists of, to bytes and back: what is delivered, confirmed, published.

pamqp takes a frame field by field and looks up the type of each, which for a call costs more than all else
that we do. What is of the usual kind is taken in one piece here. Whatever is not, or makes no sense, is left
to pamqp, so that the result, or the exception, is always its own.

The layouts are those of AMQP 0-9-1, sections 2.3.5 and 4.2
(https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf); the types of the fields of tables are RabbitMQ's
(https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from struct import Struct, error, pack
from typing import Any

from pamqp import frame, header
from pamqp.commands import Basic

METHOD, HEADER, BODY, HEARTBEATS = 1, 2, 3, 8
START = Struct(">BHI")
"""Of each frame: its type, its channel, how many bytes there are until the last one."""
END = 0xCE
"""The last byte."""
_END = bytes((END,))
_DELIVER, _GET_OK, _ACK, _NACK = (pack(">HH", 60, method) for method in (60, 71, 80, 120))
_TAG, _ANSWER = Struct(">qB"), Struct(">4sqB")
"""The number of a delivery, and bits."""
_ACK_FRAME = Struct(">BHI4sqBB")
_CONTENT, _CONTENT_FRAME = Struct(">HHQH"), Struct(">BHIHHQH")
"""Class, weight, bytes of the body, and which properties there are."""
_TABLE, _MODE = 0x2000, 0x1000
_FLAGS = (0x8000, _TABLE, _MODE, 0x400, 0x200, 0x100, 0x20)
_OTHERS = 0xFFFF & ~sum(_FLAGS)
_MORE = 1
"""Another word of flags follows, which nobody sends: one is enough for all properties. pamqp 3 would read the
first word again and again."""
_USUAL = (
    *("content_type", "headers", "delivery_mode", "correlation_id"),
    *("reply_to", "expiration", "message_type"),
)
"""The properties with these flags."""
_usual, _others = attrgetter(*_USUAL), attrgetter(*sorted(set(Basic.Properties.flags) - set(_USUAL)))
_NONE = _others(Basic.Properties())
_LONGEST_NAME, _LARGE = 128, 2**32
"""Longer names are cut by pamqp, smaller integers shortened."""
_LONG, _STRING, _INTEGER = Struct(">I"), Struct(">cI"), Struct(">cq")
_UNUSUAL = (error, IndexError, ValueError, TypeError, AttributeError, OverflowError)
_new = object.__new__


# From bytes: data[at:end] is what is in a frame. Each raises what pamqp raises, and ValueError for a second
# word of flags.


def method_of(data: bytes, at: int, end: int) -> Any:
    try:
        method = _method(data, at, end)
    except _UNUSUAL:
        method = None
    return frame.unmarshal(data[at - START.size : end + 1])[2] if method is None else method


def _method(data: bytes, at: int, end: int) -> Any:
    """None if it is an unusual one."""
    kind = data[at : at + 4]
    if kind == _DELIVER:
        return _deliver(data, at + 4, end)
    if end - at == _ANSWER.size and kind in (_ACK, _NACK):
        _, tag, bits = _ANSWER.unpack_from(data, at)
        multiple = bits & 1 != 0
        return Basic.Ack(tag, multiple) if kind == _ACK else Basic.Nack(tag, multiple, bits & 2 != 0)
    return None


def _deliver(data: bytes, at: int, end: int) -> Any:
    method = _new(Basic.Deliver)  # pamqp checks the names that are sent, not those that come
    method.consumer_tag = data[at + 1 : (at := at + 1 + data[at])].decode()
    method.delivery_tag, bits = _TAG.unpack_from(data, at)
    method.redelivered = bits & 1 != 0
    at += _TAG.size
    method.exchange = data[at + 1 : (at := at + 1 + data[at])].decode()
    method.routing_key = data[at + 1 : (at := at + 1 + data[at])].decode()
    return method if at == end else None


def taken_of(data: bytes, at: int, end: int) -> Any:
    """A Deliver or a GetOk of a message whose exchange or routing key is no text, without these: RabbitMQ
    takes any bytes, and where such a message goes may be bound to a queue of ours. Raises ValueError for
    another method."""
    kind, at, tag = data[at : at + 4], at + 4, ""
    if kind == _DELIVER:
        tag = data[at + 1 : (at := at + 1 + data[at])].decode()
    elif kind != _GET_OK:
        raise ValueError("a method has names that are no text")
    number, bits = _TAG.unpack_from(data, at)
    at += _TAG.size
    for _ in "exchange", "routing_key":
        at += 1 + data[at]
    if at != end - (0 if tag else _LONG.size):
        raise ValueError("a method does not end where it should")
    return Basic.Deliver(tag, number, bits & 1 != 0) if tag else Basic.GetOk(number, bits & 1 != 0)


def content_of(data: bytes, at: int, end: int) -> tuple[int, Any]:
    """The length of the body, and the properties."""
    try:
        _, _, size, flags = _CONTENT.unpack_from(data, at)
        return size, _properties(data, at + _CONTENT.size, end, flags)
    except _UNUSUAL:
        if end - at >= _CONTENT.size and data[at + _CONTENT.size - 1] & _MORE:
            raise ValueError("flags of properties that there are not") from None
        content: Any = frame.unmarshal(data[at - START.size : end + 1])[2]
        return content.body_size, content.properties


def size_of(data: bytes, at: int) -> int:
    """The length of the body alone."""
    size: int = _CONTENT.unpack_from(data, at)[2]
    return size


def _properties(data: bytes, at: int, end: int, flags: int) -> Any:
    values: list[Any] = [None] * len(_FLAGS)
    for number, flag in enumerate(_FLAGS):
        if flags & flag == 0:
            continue
        if flag == _TABLE:
            start = at + _LONG.size
            at = start + _LONG.unpack_from(data, at)[0]
            values[number] = _table(data, start, at)
        elif flag == _MODE:
            values[number] = data[at]
            at += 1
        else:
            values[number] = data[at + 1 : (at := at + 1 + data[at])].decode()
    if at != end or flags & _OTHERS:
        raise ValueError(flags)
    kind, table, mode, id, way, ttl, name = values
    return Basic.Properties(kind, None, table, mode, None, id, way, ttl, None, None, name)


def _table(data: bytes, at: int, end: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    while at < end:
        name = data[at + 1 : (at := at + 1 + data[at])].decode()
        kind, value = _STRING.unpack_from(data, at)
        if kind == b"S":
            start = at + _STRING.size
            at = start + value
            table[name] = data[start:at].decode()
        elif kind == b"l":
            table[name] = _INTEGER.unpack_from(data, at)[1]
            at += _INTEGER.size
        else:
            raise ValueError(kind)
    if at != end:
        raise ValueError(at)
    return table


# To bytes.


def ack(tag: int, channel: int = 1) -> bytes:
    """Of one delivery."""
    return _ACK_FRAME.pack(METHOD, channel, _ANSWER.size, _ACK, tag, 0, END)


def content_frame(channel: int, size: int, properties: Any) -> bytes:
    """What goes before so many bytes of a message. Raises what pamqp raises."""
    try:
        if _others(properties) == _NONE:
            flags, encoded = _encoded(properties)
            length = _CONTENT.size + len(encoded)
            return _CONTENT_FRAME.pack(HEADER, channel, length, 60, 0, size, flags) + encoded + _END
    except _UNUSUAL:
        pass
    return frame.marshal(header.ContentHeader(0, size, properties), channel)


def body_frame(channel: int, part: bytes) -> bytes:
    return START.pack(BODY, channel, len(part)) + part + _END


def _encoded(properties: Any) -> tuple[int, bytes]:
    """Which properties there are, and what they are."""
    flags, parts = 0, []
    for value, flag, encode in zip(_usual(properties), _FLAGS, _ENCODERS, strict=True):
        if value is not None:
            flags |= flag
            parts.append(encode(value))
    return flags, b"".join(parts)


def _text(value: str) -> bytes:
    if not value:
        raise ValueError(value)  # is left out
    raw = value.encode()
    return b"%c%b" % (len(raw), raw)


_known = lru_cache(1024)(_text)
"""Of what repeats itself."""


@lru_cache(1024)
def _name(name: str) -> bytes:
    """Of a field of a table."""
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(name)
    return _text(name)


def _packed(table: dict[str, Any]) -> bytes:
    parts: list[bytes] = []
    for name, value in sorted(table.items()):
        if type(value) is str:
            raw = value.encode()
            parts += _name(name), _STRING.pack(b"S", len(raw)), raw
        elif type(value) is int and value >= _LARGE:
            parts += _name(name), _INTEGER.pack(b"l", value)
        else:
            raise ValueError(value)
    fields = b"".join(parts)
    return _LONG.pack(len(fields)) + fields


_ENCODERS: tuple[Callable[[Any], bytes], ...] = (
    *(_known, _packed, lambda mode: bytes((mode,)), _text),
    *(_known, _known, _known),
)
"""Of the usual properties."""
