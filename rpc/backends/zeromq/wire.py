"""What is in the frames of a session."""

from __future__ import annotations

import struct
from functools import lru_cache

import msgspec

from ...errors import SerializationError
from ...transport import Address, Message, inbox, packed, queue, topic, unpacked

NUMBER = struct.Struct(">Q")
"""The number that a caller gives to a message, by which both sides name it."""
_TO = struct.Struct(">QH")
"""Of a message: its number, and the length of the address that follows."""
_LAST = struct.Struct(">QI")
"""Of a last reply: the number of its message, and how many the worker has in hand."""


class About(msgspec.Struct, array_like=True):
    """What a side says of itself: where it takes messages, how many at a time, how many it has."""

    addresses: list[str] = []
    threads: int = 1
    load: int = 0


encode_about = msgspec.msgpack.Encoder().encode
decode_about = msgspec.msgpack.Decoder(About).decode


@lru_cache(4096)
def text_of(to: Address) -> str:
    """An address as text."""
    return f"{to.kind[0]}{to.name}" + (f"\n{to.group}" if to.group else "")


@lru_cache(4096)
def address_of(text: str) -> Address:
    """The address in a text. Raises ValueError."""
    name, _, group = text[1:].partition("\n")
    if text[:1] == "t":
        return topic(name, group or None)
    if text[:1] not in ("q", "i") or group:
        raise ValueError("no address")
    return queue(name) if text[0] == "q" else inbox(name)


@lru_cache(4096)
def _bytes_of(to: Address) -> bytes:
    return text_of(to).encode()


def message_data(number: int, to: Address, message: Message) -> bytes:
    """Raises SerializationError."""
    at = _bytes_of(to)
    return b"".join((_TO.pack(number, len(at)), at, packed(message)))


def message_in(data: bytes) -> tuple[int, Address, Message]:
    """Raises SerializationError for what is none."""
    try:
        number, length = _TO.unpack_from(data)
        end = _TO.size + length
        return number, address_of(data[_TO.size : end].decode()), unpacked(data[end:])
    except (struct.error, ValueError) as error:
        raise SerializationError(f"not a message: {error}") from error


def last_data(number: int, load: int, last: Message | None) -> bytes:
    return _LAST.pack(number, load) + (packed(last) if last is not None else b"")


def last_in(data: bytes) -> tuple[int, int, Message | None]:
    """Raises SerializationError."""
    try:
        number, load = _LAST.unpack_from(data)
    except struct.error as error:
        raise SerializationError(f"not a reply: {error}") from error
    rest = data[_LAST.size :]
    return number, load, unpacked(rest) if rest else None


def number_in(data: bytes) -> int:
    """Raises SerializationError."""
    try:
        return int(NUMBER.unpack_from(data)[0])
    except struct.error as error:
        raise SerializationError(f"no number: {error}") from error
