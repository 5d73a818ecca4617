"""Values to bytes and back: JSON by default, MessagePack, JSON that keeps types; pickle for those who name
it.

Whatever msgspec encodes is a value, and what `values` adds to that; anything else is refused. Decoding JSON
and MessagePack makes nothing but dicts, lists, strings, numbers, booleans, None, and with MessagePack bytes
and datetimes; `typed` makes what it has tags for, and instances of classes that are `known`. Unpickling may
do anything at all: it is for those who trust whoever can write into the broker.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import SerializationError
from ..transport import ENCODING, Message
from .compression import decompressed
from .typed import from_tagged, to_tagged
from .values import parts, refusal, to_wire

MAX_DEPTH = 256
"""Arrays and objects within each other that a body has at most, those of JSON-RPC included. In all languages,
so that what one side takes, the other does, too; and far from where recursion ends in any of them."""
_NOT_OF_MSGPACK = bytes({*range(256)} - {*range(0x80, 0xA0), *range(0xDC, 0xE0)})
"""Bytes with which no array and no map begins."""


def _brackets(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _headers(body: bytes) -> int:
    return len(body.translate(None, _NOT_OF_MSGPACK))


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if type(each) is dict or type(each) is list]
        if not level:
            return
        level = [each for part in level for each in (part.values() if type(part) is dict else part)]
    raise RecursionError


@dataclass(frozen=True, slots=True)
class Codec:
    """A named pair of functions. `content_type` says on the wire which one it was."""

    name: str
    content_type: str
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes], Any]
    keeps_types: bool = True
    """Whether instances of classes come back as such: what is to be a dict is made one before."""
    takes_raw: bool = False
    """Whether it encodes `msgspec.Raw`, a part that is encoded already."""
    _nested: Callable[[bytes], int] | None = None
    """How many arrays and objects a body may have: it is looked how deep they are if they may be too deep."""
    _restored: Callable[[Any], Any] | None = None
    """Makes the value of what `_decode` came to, and was not nested too deeply."""

    def encode(self, value: Any) -> bytes:
        """The value as bytes; SerializationError if it has something that cannot travel."""
        try:
            return self._encode(value)
        except RecursionError:
            raise SerializationError("it contains itself, or is nested too deeply") from None
        except Exception as error:  # attributes are the user's: reading one may raise anything
            raise SerializationError(str(error) or type(error).__name__) from error

    def embedded(self, encoded: bytes) -> Any:
        """What stands for an encoded value in another one that is encoded. SerializationError as `decode`, of
        a codec that has to decode it."""
        return msgspec.Raw(encoded) if self.takes_raw else self.decode(encoded)

    def located(self, error: SerializationError, **values: Any) -> SerializationError:
        """What `encode` raised of these values, each under its name, with the path to the part that it is
        about."""
        path, why, inner = "", str(error), values
        while error.__cause__:  # what is nested too deeply has none
            for step, part in parts(inner):
                try:
                    self.encode(part)
                except SerializationError as narrower:
                    path, inner, error, why = path + step, part, narrower, str(narrower)
                    break
            else:
                break
        return SerializationError(f"{path[1:200]}: {why}" if path else why)

    def decode(self, body: bytes) -> Any:
        """The value in these bytes; SerializationError if they are not of this codec."""
        try:
            value = self._decode(body)
            if self._nested and len(body) > MAX_DEPTH and self._nested(body) > MAX_DEPTH:
                _check_depth(value)
            return self._restored(value) if self._restored else value
        except RecursionError:
            raise SerializationError(
                f"not readable as {self.name}: nested more deeply than {MAX_DEPTH}"
            ) from None
        except Exception as error:  # the codec, or a class that it makes, may be the user's
            why = error.args[0] if isinstance(error, LookupError) and error.args else error
            raise SerializationError(f"not readable as {self.name}: {why or type(error).__name__}") from error


def _refused(code: int, data: memoryview) -> Any:
    raise ValueError(f"extension type {code} means nothing here")


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=pickle.DEFAULT_PROTOCOL)
    except RecursionError:
        raise
    except Exception as error:
        raise TypeError(f"{refusal(type(value))} ({error})") from error


_as_json, _of_json = msgspec.json.Encoder(enc_hook=to_wire).encode, msgspec.json.Decoder().decode
JSON = Codec("json", "application/json", _as_json, _of_json, False, True, _brackets)
MSGPACK = Codec(
    "msgpack",
    "application/msgpack",
    msgspec.msgpack.Encoder(enc_hook=to_wire).encode,
    msgspec.msgpack.Decoder(ext_hook=_refused).decode,
    keeps_types=False,
    takes_raw=True,
    _nested=_headers,
)
TYPED = Codec(
    "json+types",
    "application/json+types",
    lambda value: _as_json(to_tagged(value)),
    _of_json,
    takes_raw=True,
    _nested=_brackets,
    _restored=from_tagged,
)
PICKLE = Codec("pickle", "application/x-python-pickle", _pickled, pickle.loads)
SAFE = JSON, MSGPACK, TYPED
"""What anybody may send."""
CODECS = {codec.name: codec for codec in (*SAFE, PICKLE)}


class Accepted:
    """The codecs that one side is willing to read. JSON is meant where a message names none."""

    def __init__(
        self, codecs: Iterable[Codec] = SAFE, most: int | None = None, where: str = "RPC_ACCEPT of this side"
    ) -> None:
        """`most` is the bytes that a body may have before it is decoded, `where` what names the codecs."""
        self._by_type = {codec.content_type: codec for codec in codecs}
        self._most, self._where = most, where
        self._limit = sys.maxsize if most is None else most

    def codec(self, content_type: str | None) -> Codec:
        """The codec for this content type; SerializationError if it is not accepted here."""
        content_type = content_type or JSON.content_type
        if content_type not in self._by_type:
            known = ", ".join(self._by_type) or "nothing"
            raise SerializationError(
                f"{content_type[:80]!r} is not accepted here, but {known}: see {self._where}"
            )
        return self._by_type[content_type]

    def reading(self, codec: Codec) -> Accepted:
        """The same with another codec for its content type."""
        return Accepted([*self._by_type.values(), codec], self._most, self._where)

    def body(self, message: Message) -> bytes:
        """The body of a message as it is to be decoded. SerializationError if it is too large, or cannot be
        decompressed."""
        headers, body = message.headers, message.body
        if len(body) > self._limit:
            raise SerializationError(f"the message has {len(body)} bytes: more than {self._most}")
        return decompressed(body, headers[ENCODING], self._most) if ENCODING in headers else body

    def opened(self, message: Message) -> tuple[bytes, Codec]:
        """The body of a message as it is to be decoded, and the codec for that. SerializationError as `codec`
        and `body`."""
        headers, body = message.headers, message.body
        content_type = headers.get("content-type")
        codec = self._by_type.get(content_type or "") or self.codec(content_type)
        if ENCODING in headers or len(body) > self._limit:
            body = self.body(message)
        return body, codec

    def answering(self, message: Message) -> Codec:
        """The codec in which a message is answered that may have been refused: its own if it is accepted
        here, else JSON, which anybody reads."""
        return self._by_type.get(message.headers.get("content-type", ""), JSON)

    def value(self, message: Message) -> Any:
        """The value in the body of a message. SerializationError as `opened`, and if there is none."""
        body, codec = self.opened(message)
        return codec.decode(body)


ACCEPTED = Accepted()
"""What is read by those who have no settings."""
