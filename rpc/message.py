"""What travels: a flat map of short strings, and a body that is opaque to whoever carries it; and what it
is in the hands of a handler.

A backend acts on the headers `id`, `ttl` and `reply-to`, sets `deliveries` and the `ttl` that is left, and
carries the others as they are. Transports with headers of their own use them; for the rest there is one
compact frame: `packed()` and `unpacked()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from .addresses import Address
from .errors import SerializationError

LOST = "lost"
"""Header of a reply that a backend writes in place of a handler that died; its text says what happened."""

FAILED = "error"
"""Header of a reply that carries an error: the name of its type. For logs, dashboards, dead letters."""

STREAM = "stream"
"""Header of a reply after which more will come. One without it ends the conversation."""

NAME = "name"
"""Header that tells people what a message asks for. A label: nothing is ever looked up by it."""

DELAY = "delay"
"""Header: seconds, from the sending, before which nobody is given the message (feature `delay`)."""

IDEMPOTENCY_KEY = "idempotency-key"
"""Header: of the messages with the same one, in one queue, only the first is handled, and its last reply goes
to all (feature `idempotency`)."""

ATTEMPT = "attempt"
"""Header: how often the job has been tried, if it failed before."""

TRACE = ("traceparent", "tracestate", "baggage")
"""Headers of a trace (https://www.w3.org/TR/trace-context/)."""

OWN = "x-"
"""What headers begin with that belong to the application."""

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8192


class Message(msgspec.Struct, frozen=True):
    """Headers (short strings) and a body (bytes). Changed by making another one: see `but()`."""

    body: bytes = b""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Message {self.id or '-'}, {len(self.body)} bytes>"  # bodies and tokens stay out of logs

    @property
    def id(self) -> str:
        """The request's id, which its replies carry too; "" if it has none."""
        return self.headers.get("id", "")

    @property
    def reply_to(self) -> str | None:
        """The name of the caller's inbox; None if nobody waits for a reply."""
        return self.headers.get("reply-to")

    @property
    def ttl(self) -> float | None:
        """Seconds left until nobody wants it any more; None if it does not expire."""
        if "ttl" not in self.headers:
            return None
        try:
            ttl = float(self.headers["ttl"])
        except ValueError:
            ttl = math.nan
        if not math.isfinite(ttl):
            raise SerializationError("the ttl header is not a number of seconds")
        return ttl

    @property
    def deliveries(self) -> int:
        """How often it was handed to a receiver, this time included."""
        return self._count("deliveries")

    @property
    def attempt(self) -> int:
        """How often the job has been tried, this time included."""
        return self._count(ATTEMPT)

    def _count(self, header: str) -> int:
        count = self.headers.get(header)
        return int(count) if count and count.isdecimal() and len(count) < 10 else 1

    def but(self, **headers: str | float | None) -> Message:
        """The same message with other headers; None removes one. `reply_to` stands for `reply-to`."""
        merged = dict(self.headers)
        for name, value in headers.items():
            if value is None:
                merged.pop(name.replace("_", "-"), None)
            else:
                merged[name.replace("_", "-")] = str(value)
        return Message(self.body, merged)


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that calls made for a request inherit from it: of the trace, and the application's own."""
    return {name: value for name, value in headers.items() if name in TRACE or name.startswith(OWN)}


_encode_headers = msgspec.msgpack.Encoder().encode
_decode_headers = msgspec.msgpack.Decoder(dict[str, str]).decode


def packed(message: Message) -> bytes:
    """The compact frame: two bytes, big-endian, the length of the headers; the headers as a MessagePack map
    of strings; the body."""
    try:
        headers = _encode_headers(message.headers)
    except UnicodeEncodeError as error:
        raise SerializationError(f"a header is no text: {error}") from error
    if len(headers) > MAX_HEADER_BYTES or len(message.headers) > MAX_HEADERS:
        raise SerializationError(f"at most {MAX_HEADERS} headers, of {MAX_HEADER_BYTES} bytes, are carried")
    return len(headers).to_bytes(2, "big") + headers + message.body


def unpacked(frame: bytes) -> Message:
    """The message in a compact frame; SerializationError if it is none."""
    end = 2 + int.from_bytes(frame[:2], "big")
    if not 2 < end <= len(frame) or end > MAX_HEADER_BYTES + 2:
        raise SerializationError("not a frame: its length does not fit")
    try:
        headers = _decode_headers(frame[2:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"not a frame: {error}") from error
    if len(headers) > MAX_HEADERS:
        raise SerializationError(f"not a frame: it has more than {MAX_HEADERS} headers")
    return Message(frame[end:], headers)


class Delivery(Protocol):
    """One message in the hands of a handler.

    What could not be postponed or buried (BackendUnavailable) is not acknowledged: it is delivered again.
    But if a caller waits for it, and the handler returns his last reply, that was it.
    """

    message: Message
    to: Address
    """Which of the addresses that are served it came to."""
    cancelled: bool
    """True as soon as nobody listens for the reply any more. May change at any time."""
    on_cancel: Callable[[], object] | None
    """Called, from any thread, when `cancelled` becomes true."""

    def reply(self, message: Message) -> bool:
        """Send a reply at once, before the handler is done. False if nobody listens."""

    def forbid_redelivery(self) -> None:
        """If this process dies now, nobody gets this message again: its caller is told instead."""

    def postpone(self, seconds: float, message: Message) -> None:
        """Instead of a last reply (the handler returns None then): somebody gets this message, in place of
        the one that was delivered, after so many seconds. Feature `delay`."""

    def bury(self, why: str, last: Message | None) -> None:
        """The same, but nobody gets it again, unless people say so: it is a dead letter. Feature
        `dead-letters`."""


Handler = Callable[[Delivery], Message | None]
"""Takes a delivery and returns the last reply, which leaves together with the acknowledgement; None if
there is no reply (left) to send. A handler does not raise; if it does, the loop survives it. If the
process dies first, the message is delivered again (feature `redelivers`)."""
