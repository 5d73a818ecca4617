"""Bodies on their way: a value to a message, within the limits, and smaller where that is wanted.

`Writing.message` and `Accepted.value` are the pair for values of any kind; requests, replies and items of
streams have members of JSON-RPC around theirs (see `protocol`), and use `Writing.sealed`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import SerializationError
from ..transport import ENCODING, Message
from .codecs import Codec
from .compression import Compression
from .protocol import ENVELOPE, encode_items


class Writing(NamedTuple):
    """How one side writes bodies. Sizes are in bytes, None is no limit."""

    codec: Codec
    most: int | None = None
    """What a body may have before it is compressed: what the other side is to decode."""
    most_sent: int | None = None
    """What it may have as it is sent: what the transport carries."""
    compression: Compression | None = None

    def message(self, value: Any, headers: dict[str, str], what: str = "item") -> Message:
        """The message with a value, and these headers. SerializationError if the value cannot be encoded,
        with the path to what cannot, beginning with `what`; or if it is too large."""
        try:
            body = self.codec.encode(value)
        except SerializationError as error:
            raise self.codec.located(error, **{what: value}) from error
        return self.sealed(body, headers, what)

    def item(self, value: Any) -> bytes:
        """An item of a stream, encoded. SerializationError if it cannot be, or no message can carry it."""
        try:
            body = self.codec.encode(value)
        except SerializationError as error:
            why = self.codec.located(error, item=value)
            raise SerializationError(f"an item cannot be encoded: {why}") from error
        limits = [most for most in (self.most, self.most_sent) if most is not None]
        if limits and len(body) + ENVELOPE > min(limits):  # perhaps it is small enough once it is compressed
            self.items("", [body], {})
        return body

    def items(self, id: str, items: list[bytes], headers: dict[str, str]) -> Message:
        """The message with some that are encoded. SerializationError if it is too large."""
        return self.sealed(encode_items(id, items, self.codec), headers, "item")

    @property
    def most_of_items(self) -> int | None:
        """Bytes of items that one message carries."""
        return None if self.most is None else max(1, self.most - ENVELOPE)

    def sealed(self, body: bytes, headers: dict[str, str], what: str) -> Message:
        """The message with a body that is encoded; `headers` are added to. SerializationError if it is too
        large: `what` it is, is said then."""
        size, compression = len(body), self.compression
        if self.most is not None and size > self.most:
            raise too_large(what, size, self.most)
        if compression and size >= compression.threshold:
            smaller = compression.compressed(body)
            if len(smaller) < size:
                body, headers[ENCODING] = smaller, compression.encoding
        if self.most_sent is not None and len(body) > self.most_sent:
            raise too_large(what, len(body), self.most_sent)
        headers["content-type"] = self.codec.content_type
        return Message(body, headers)


def too_large(what: str, size: int, most: int) -> SerializationError:
    """The error of something that has too many bytes."""
    return SerializationError(f"the {what} has {size} bytes: more than {most}")
