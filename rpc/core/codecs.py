"""Values to bytes and back: JSON by default, MessagePack beside it. There is no pickle.

Whatever msgspec encodes is a value, and what `values` adds to that; anything else is refused. Decoding never
makes anything but dicts, lists, strings, numbers, booleans, None, and with MessagePack bytes and datetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import SerializationError, SettingsError
from .values import parts, to_wire


@dataclass(frozen=True, slots=True)
class Codec:
    """A named pair of functions. `content_type` says on the wire which one it was."""

    name: str
    content_type: str
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes], Any]

    def encode(self, value: Any) -> bytes:
        """The value as bytes; SerializationError if it has something that cannot travel."""
        try:
            return self._encode(value)
        except RecursionError:
            raise SerializationError("it contains itself, or is nested too deeply") from None
        except Exception as error:  # attributes are the user's: reading one may raise anything
            raise SerializationError(str(error) or type(error).__name__) from error

    def embedded(self, encoded: bytes) -> Any:
        """What stands for an encoded value in another one that is encoded."""
        return msgspec.Raw(encoded)

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
            return self._decode(body)
        except RecursionError:
            raise SerializationError(f"not readable as {self.name}: nested too deeply") from None
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
            raise SerializationError(f"not readable as {self.name}: {error}") from error


def _refused(code: int, data: memoryview) -> Any:
    raise ValueError(f"extension type {code} means nothing here")


JSON = Codec(
    "json",
    "application/json",
    msgspec.json.Encoder(enc_hook=to_wire).encode,
    msgspec.json.Decoder().decode,
)
MSGPACK = Codec(
    "msgpack",
    "application/msgpack",
    msgspec.msgpack.Encoder(enc_hook=to_wire).encode,
    msgspec.msgpack.Decoder(ext_hook=_refused).decode,
)
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (JSON, MSGPACK)}


def codec_named(codec: str | Codec) -> Codec:
    """The codec of this name ("json" or "msgpack"); a Codec is returned as it is."""
    if isinstance(codec, Codec):
        return codec
    if codec not in CODECS:
        raise SettingsError(f"there is no codec {codec!r}; there are {', '.join(CODECS)}")
    return CODECS[codec]


class Accepted:
    """The codecs that one side is willing to read. JSON is meant where a message names none."""

    def __init__(self, codecs: Iterable[str | Codec] = tuple(CODECS)) -> None:
        self._by_type = {codec.content_type: codec for codec in map(codec_named, codecs)}

    def codec(self, content_type: str | None) -> Codec:
        """The codec for this content type; SerializationError if it is not accepted here."""
        content_type = content_type or JSON.content_type
        if content_type not in self._by_type:
            raise SerializationError(
                f"{content_type[:80]!r} is not accepted here, but {', '.join(self._by_type) or 'nothing'}"
            )
        return self._by_type[content_type]
