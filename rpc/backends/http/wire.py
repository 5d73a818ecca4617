"""Our messages in HTTP/1.1: where they are posted, and what is answered.

`POST /_rpc/queue/default` has a message in its body: the compact frame of `rpc.transport`. The answer to one
with `reply-to` has all its replies, each a frame after its length (4 bytes, big-endian). The answer to one
without is 202 once it is taken. 404: nobody serves that here. 503: not now, and the header `x-rpc-why` says
why. `POST /_rpc/cancel/<id>` withdraws what was posted.

At `/_rpc/socket` is a WebSocket on which the same requests and answers share one connection. Each binary
message is a number (4 bytes, big-endian) that the caller gives to a request, and a compact frame.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import httptools

from ...errors import SerializationError
from ...transport import Address, Message, packed, unpacked

ROOT = "/_rpc/"
CONTENT_TYPE = "application/vnd.jobrpc"
OURS: Mapping[str, str] = {"content-type": CONTENT_TYPE}
WHY = "x-rpc-why"
BUSY, FULL, STOPPING, HANDED = "busy", "full", "stopping", "handed back"
"""Values of `x-rpc-why`: others may have room for it, its queue has none, its worker is being stopped and had
not begun it, or had."""
BOUNCED = "x-rpc-bounced"
"""Header of a request whose caller knows other workers: how many were busy."""
ONCE = "once"
"""Header of a frame that is no reply: what was posted is not to be posted again."""
MAX_HEAD = 65536
"""Bytes of the headers of an answer."""
SOCKET = f"{ROOT}socket"
"""Where our callers open a WebSocket."""
METHOD, TARGET, STATUS, LEFT, MORE = ":method", ":path", ":status", ":left", ":more"
"""Headers of the frames on a WebSocket: of a request; of the beginning of an answer; of a frame that says
that nobody waits for the answer; of an answer of which this is not all. The others are those of HTTP."""
OVERHEAD = 16 * 1024
"""Bytes of a message on a WebSocket, at most, beside the body of a request or an answer."""
_LENGTH = struct.Struct("!I")


def framed(message: Message) -> bytes:
    """A reply. Raises SerializationError."""
    data = packed(message)
    return _LENGTH.pack(len(data)) + data


def path_of(to: Address) -> str:
    return f"{ROOT}{to.kind}/{to.name}"


class Request(NamedTuple):
    """What a worker is asked."""

    method: str
    target: str
    host: str
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()

    def encoded(self) -> bytes:
        """In HTTP/1.1."""
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        length = f"content-length: {len(self.body)}\r\n" if self.body or self.method != "GET" else ""
        head = f"{self.method} {self.target} HTTP/1.1\r\nhost: {self.host}\r\n{length}{more}\r\n"
        return head.encode("latin-1") + self.body

    def numbered(self, number: int) -> bytes:
        """As a message on a WebSocket. Raises SerializationError."""
        return numbered(number, self.body, {METHOD: self.method, TARGET: self.target, **dict(self.headers)})


def numbered(number: int, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A message on a WebSocket. Raises SerializationError."""
    return _LENGTH.pack(number) + packed(Message(body, headers))


def numbered_of(data: bytes) -> tuple[int, Message]:
    """The number and the frame of a message on a WebSocket. Raises SerializationError if it is none."""
    if len(data) < _LENGTH.size:
        raise SerializationError("not a message: it has no number")
    return _LENGTH.unpack_from(data)[0], unpacked(data[_LENGTH.size :])


class Answers:
    """Reads the answers that come on one connection, one after the other."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.expect()

    def expect(self) -> None:
        """Another request was sent."""
        self.status, self.is_complete, self.may_stay = 0, False, False
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self._head = 0

    def feed(self, data: bytes) -> None:
        """Raises SerializationError if that is no HTTP."""
        if self.is_complete:
            raise SerializationError("more came than was asked for")
        try:
            self._parser.feed_data(data)
        except (
            httptools.HttpParserError,
            httptools.HttpParserUpgrade,
            httptools.HttpParserCallbackError,
        ) as e:
            cause = e.__context__
            if cause and not isinstance(cause, Exception):  # of a signal handler, in a callback
                raise cause from None
            raise SerializationError(f"no HTTP: {e}") from e

    def frames(self) -> list[Message]:
        """The replies that have come, once. Raises SerializationError."""
        found, body, at = [], self.body, 0
        while len(body) - at >= _LENGTH.size:
            end = at + _LENGTH.size + _LENGTH.unpack_from(body, at)[0]
            if end > len(body):
                break
            found.append(unpacked(bytes(body[at + _LENGTH.size : end])))
            at = end
        if at:
            del body[:at]
        return found

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > MAX_HEAD:
            raise SerializationError("the headers are too long")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.may_stay = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = self.status >= 200
