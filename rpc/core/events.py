"""Events on the wire: their bodies, and their headers.

A dict or a list travels as the `params` of a JSON-RPC call, whose `method` is the event's name. Of any other
value, the header `event` has the name, and the body is the value, or the bytes themselves. Headers that are
texts travel under their names, behind `x-`; the others together, as a JSON object in one header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..errors import SerializationError
from ..transport import NAME, OWN, Message, Needs
from .bodies import Writing
from .codecs import Accepted
from .conversation import call_message
from .filters import Filter, Scalar, checked
from .protocol import decode_call, params_of

EVENT = "event"
"""Header: the event's name, if the body is the value itself."""
TYPED = "typed-headers"
"""Header: a JSON object, of the headers that are no texts."""
OCTETS = "application/octet-stream"
"""The content type of raw bytes."""
NOTHING: Final[Any] = msgspec.UNSET
"""Stands for no data at all, which arrives as {}."""


class Event(msgspec.Struct, frozen=True):
    """What a listener gets that asks for it."""

    topic: str
    """The event's name."""
    data: Any
    """What was published; {} if nothing was."""
    headers: Mapping[str, Scalar]
    """The headers that were published with it, and those that say who published it."""
    id: str
    """The same for all listeners, and if it is delivered again; but on rq a durable group has its own."""


def header_parts(headers: Mapping[str, Scalar]) -> tuple[dict[str, str], dict[str, str]]:
    """The headers of a message that carry these, which are left as they are: those that are texts, and the
    one with the others. Raises ValueError for what cannot be a header."""
    texts: dict[str, str] = {}
    others: dict[str, Scalar] = {}
    for name, value in headers.items():
        plain = checked(name, value)
        if isinstance(plain, str):
            texts[f"{OWN}{name}"] = plain
        else:
            others[name] = plain
    return texts, {TYPED: msgspec.json.encode(others).decode()} if others else {}


def needs(wanted: Filter) -> Needs | None:
    """What a broker can see of it that an event is wanted: of the texts among its headers, sets of which the
    message has one then. None: it can see nothing."""
    counted = wanted.counted
    texts = tuple((f"{OWN}{name}", value) for name, value in counted.items() if isinstance(value, str))
    if wanted.match.startswith("all"):
        return (texts,) if texts else None
    return tuple((each,) for each in texts) if len(texts) == len(counted) else None


def event_message(id: str, name: str, data: Any, headers: Mapping[str, str], writing: Writing) -> Message:
    """The message of an event, with these headers besides. Raises SerializationError if the data cannot be
    encoded or is too large, ValueError for a bad name."""
    params = None if data is NOTHING else params_of(data, writing.codec)
    if data is NOTHING or isinstance(params, dict | list | tuple):
        return call_message(id, name, params, writing, ttl=None, replies=False, headers=headers)
    all_headers = {"id": id, NAME: name, EVENT: name, **headers}
    if isinstance(data, bytes | bytearray | memoryview):
        return writing.sealed(bytes(data), all_headers, "event").replace(content_type=OCTETS)
    return writing.message(data, all_headers, "data")


def decode_event(message: Message, accepted: Accepted) -> Event:
    """The event in a message; SerializationError if there is none."""
    data: Any
    name = message.headers.get(EVENT)
    if name is None:
        call = decode_call(*accepted.opened(message))
        name, data = call.method, {} if call.params is None else call.params
    elif message.headers.get("content-type") == OCTETS:
        data = accepted.body(message)
    else:
        data = accepted.value(message)
    return Event(name, data, _headers_of(message), message.id)


_typed_headers = msgspec.json.Decoder(dict[str, Scalar]).decode


def _headers_of(message: Message) -> dict[str, Scalar]:
    headers = message.headers
    found: dict[str, Scalar] = {
        name.removeprefix(OWN): text for name, text in headers.items() if name.startswith(OWN)
    }
    if TYPED in headers:
        try:
            found |= _typed_headers(headers[TYPED])
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise SerializationError(f"the header {TYPED} cannot be read: {error}") from error
    return found
