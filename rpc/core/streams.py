"""Streams: what the two ends of one count, and what they say to each other.

A stream begins with a request that has the header `credit`. Its replies carry the header `stream`, which
says what they are, until the last one, which has none; what its caller says meanwhile goes to the inbox that
the first reply names. Items are numbered from 0 on. Credit is the number of items, and of their bytes, that
whoever consumes them takes *in all, since the beginning*: it may arrive twice, late, or not at all, and the
next one mends that. (RSocket's REQUEST_N, https://rsocket.io/about/protocol, adds up, and must arrive once.)
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

from ..errors import SerializationError, StreamBroken
from ..transport import STREAM, Message
from .codecs import Codec
from .protocol import in_short

CREDIT, CREDIT_BYTES = "credit", "credit-bytes"
"""Headers: how many items, and bytes of them, the sender of this takes in all."""
SEQ, SIZE = "seq", "size"
"""Headers: the number of the first item in a message, or of all items in the last one; how many bytes all
items have, since the beginning and with its own."""
INBOX, IDLE = "inbox", "idle"
"""Headers of the first reply: where the worker hears its caller; seconds after which it ends the stream if it
does not."""
UPLOAD = "upload"
"""Header of a request whose caller has items for the handler, and of the messages with these."""
RESUME = "resume-from"
"""Header of a request: how many items its caller has got already, from another worker."""
PROGRESS = "progress"
"""Header of a request: its caller wants to hear how far it is."""

OPEN, ITEMS, GRANT, ALIVE, PROGRESSED = "open", "items", "credit", "alive", "progress"
"""What a reply of a stream is: it has begun; items; credit for uploads; a sign of life; how far it is."""
SEND, THROW = "send", "throw"
"""What a caller says beside credit: what `yield` returns, or raises."""
PING = "ping"
"""Header of what a caller says that wants a sign of life."""

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes of items that are on their way at most, not counting the last one of them."""
BATCH_BYTES, BATCH_ITEMS = 64 * 1024, 1024
"""What travels in one message, at most, of small items."""
MOST = 2**62


class Sending:
    """The end that has items to send: they are collected, as long as there is credit for them."""

    __slots__ = ("_bytes", "_due", "_items", "_most", "made", "made_bytes", "sent", "unsent", "unsent_bytes")

    def __init__(self, items: int = 0, size: int = 0, most: int | None = None) -> None:
        """There is credit for so many items and bytes; a message carries at most so many bytes of them, but
        for one that has more."""
        self._items, self._bytes = items, size
        self._most = 2 * BATCH_BYTES if most is None else min(2 * BATCH_BYTES, most)
        self._due = min(BATCH_BYTES, self._most // 2)
        self.made = self.made_bytes = 0
        """In all."""
        self.sent = 0
        self.unsent: list[bytes] = []
        self.unsent_bytes = 0

    def grant(self, items: int, size: int) -> bool:
        """Take credit. False if it is not more than there was."""
        more = items > self._items or size > self._bytes
        self._items, self._bytes = max(items, self._items), max(size, self._bytes)
        return more

    @property
    def has_room(self) -> bool:
        """Whether there is credit for another item."""
        return self.made < self._items and self.made_bytes < self._bytes

    @property
    def is_due(self) -> bool:
        """Whether what is collected is not to wait for more."""
        is_much = self.unsent_bytes >= self._due or len(self.unsent) >= BATCH_ITEMS
        return bool(self.unsent) and (is_much or not self.has_room)

    def add(self, item: bytes) -> None:
        """Collect an encoded item."""
        self.unsent.append(item)
        self.unsent_bytes += len(item)
        self.made += 1
        self.made_bytes += len(item)

    def batch(self) -> list[bytes]:
        """The first of what is collected, as much as one message carries: a list of its own, which does not
        grow with what is collected afterwards."""
        left = self._most
        if self.unsent_bytes + len(self.unsent) > left:
            for number, item in enumerate(self.unsent):
                left -= len(item) + 1
                if left < 0:
                    return self.unsent[: number or 1]
        return self.unsent[:]

    def headers(self, batch: list[bytes]) -> dict[str, str]:
        """Of the message that carries these."""
        size = self.made_bytes - self.unsent_bytes + sum(map(len, batch))
        return {STREAM: ITEMS, SEQ: str(self.sent), SIZE: str(size)}

    def taken(self, batch: list[bytes]) -> None:
        """They were sent."""
        self.sent += len(batch)
        self.unsent_bytes -= sum(map(len, batch))
        self.unsent = self.unsent[len(batch) :]


class Receiving:
    """The end that takes items: it finds out which of them are missing, or come twice, and gives credit."""

    __slots__ = (
        *("_bytes", "_items", "_window", "_window_bytes"),
        *("received", "received_bytes", "taken", "taken_bytes"),
    )

    def __init__(self, window: int, window_bytes: int = WINDOW_BYTES) -> None:
        self._window, self._window_bytes = window, window_bytes
        self._items, self._bytes = window, window_bytes
        self.received = self.received_bytes = 0
        """How many items have arrived, and"""
        self.taken = self.taken_bytes = 0
        """how many of them were consumed, with how many bytes."""

    def feed(self, first: int, number: int, size: int) -> tuple[int, int]:
        """So many items have arrived, of which this is the number of the first, and the bytes of all until
        then: how many at their beginning are to be left out, since they had arrived before, and how many
        bytes the others have. Raises StreamBroken if some are missing, or there are too many."""
        self.expect(first)
        if first + number > self._items:
            raise StreamBroken(f"more items than there was credit for came: {first + number}")
        again, more = min(self.received - first, number), max(0, size - self.received_bytes)
        self.received = max(self.received, first + number)
        self.received_bytes += more
        return again, more

    def expect(self, number: int) -> None:
        """So many were sent before this was said. Raises StreamBroken if some are missing."""
        if number > self.received:
            raise StreamBroken(f"items {self.received} to {number - 1} of the stream were lost")

    def end(self, number: int) -> None:
        """There were so many in all. Raises StreamBroken if that is not what has arrived."""
        if number > self.received:
            raise StreamBroken(f"{number - self.received} items at the end of the stream were lost")
        if number < self.received:
            raise StreamBroken(f"{self.received} items of the stream have come, of {number}")

    def take(self, items: int, size: int) -> None:
        """So many items were consumed."""
        self.taken += items
        self.taken_bytes += size

    def renew(self) -> bool:
        """Give credit again, if half of it is used up; whether it was."""
        items, size = self._items - self.taken, self._bytes - self.taken_bytes
        if items > self._window // 2 and size > self._window_bytes // 2:
            return False
        self._items, self._bytes = self.taken + self._window, self.taken_bytes + self._window_bytes
        return True

    def credit(self) -> dict[str, str]:
        """The headers that tell of it, as often as one likes."""
        return {CREDIT: str(self._items), CREDIT_BYTES: str(self._bytes)}


def number_in(message: Message, header: str, default: int | None = None) -> int:
    """A number that a header is; SerializationError if it is none."""
    text = message.headers.get(header, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise SerializationError(f"the {header} header is not a number from 0 on")
    return min(int(text), MOST)


def credit_in(message: Message) -> tuple[int, int]:
    """Items and bytes that a message gives credit for; (0, 0) if it gives none. Raises SerializationError."""
    if CREDIT not in message.headers:
        return 0, 0
    return number_in(message, CREDIT), number_in(message, CREDIT_BYTES, MOST)


def is_stream(headers: Mapping[str, str]) -> bool:
    """Whether a request with these headers begins a stream."""
    return CREDIT in headers


def thrown(error: BaseException, codec: Codec) -> bytes:
    """What `throw` is told in. TypeError for an exception that the other side does not know."""
    kind = type(error)
    if getattr(builtins, kind.__name__, None) is not kind or not isinstance(error, Exception):
        raise TypeError(f"only built-in exceptions can be thrown into a stream, not {kind.__name__}")
    only = error.args[0] if len(error.args) == 1 else None
    # The text of a KeyError is that of its argument in quotes, which it would have twice.
    return codec.encode({"type": kind.__name__, "message": only if isinstance(only, str) else str(error)})


def to_throw(body: bytes, codec: Codec) -> Exception:
    """The exception that is told of. Raises SerializationError."""
    told: Any = codec.decode(body)
    if isinstance(told, dict):
        kind, text = getattr(builtins, str(told.get("type")), None), str(told.get("message"))
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError as error:  # UnicodeDecodeError and its like take more
                return RuntimeError(f"{kind.__name__}: {text} ({in_short(error)})")
    raise SerializationError("no exception that can be thrown")
