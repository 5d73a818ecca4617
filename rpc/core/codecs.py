"""Values to bytes and back: JSON by default, MessagePack beside it. There is no pickle.

Whatever msgspec encodes is a value. A plain object becomes its public attributes, recursively; cycles,
functions, classes, modules, generators and files are refused. Decoding never makes anything but dicts,
lists, strings, numbers, booleans, None, and with MessagePack bytes and datetimes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Generic, Protocol

import msgspec

from ..errors import SerializationError, SettingsError


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

    def decode(self, body: bytes) -> Any:
        """The value in these bytes; SerializationError if they are not of this codec."""
        try:
            return self._decode(body)
        except RecursionError:
            raise SerializationError(f"not readable as {self.name}: nested too deeply") from None
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
            raise SerializationError(f"not readable as {self.name}: {error}") from error


_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: lambda value: str.__add__(value, ""),
    int: int.__pos__,
    float: float.__pos__,
    bytes: lambda value: bytes.__add__(value, b""),
}
"""How an instance of a subclass becomes one of the class itself, whatever it overrides."""


def public_attributes(value: Any) -> Any:
    """What a plain object is on the wire: its data attributes without a leading underscore, those of its
    classes first. Properties and methods are not evaluated. An instance of a subclass of str, int, float or
    bytes is one of those. What is not plain (callables, exceptions, files, whatever the standard library
    defines) would lose its meaning, and is refused with TypeError."""
    kind = type(value)
    for builtin, plain in _PLAIN.items():
        if isinstance(value, builtin):
            return plain(value)
    if kind is object or callable(value) or any(map(_is_of_the_library, kind.__mro__[:-1])):
        raise TypeError(f"a value of type {kind.__qualname__} cannot be encoded")
    attributes = {
        name: attribute
        for ancestor in reversed(kind.__mro__[:-1])
        for name, attribute in vars(ancestor).items()
        if not hasattr(attribute, "__get__")
    }
    attributes |= {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
    attributes |= getattr(value, "__dict__", {})
    return {name: attribute for name, attribute in attributes.items() if not name.startswith("_")}


_LIBRARY = {*sys.stdlib_module_names, "builtins"} - {"__main__"}


def _is_of_the_library(kind: type) -> bool:
    module = kind.__module__.partition(".")[0]
    return module in _LIBRARY and kind not in (SimpleNamespace, Generic, Protocol)


def _slots(kind: type) -> list[str]:
    slots = (vars(ancestor).get("__slots__", ()) for ancestor in kind.__mro__)
    return [name for names in slots for name in ([names] if isinstance(names, str) else names)]


def _refused(code: int, data: memoryview) -> Any:
    raise ValueError(f"extension type {code} means nothing here")


JSON = Codec(
    "json",
    "application/json",
    msgspec.json.Encoder(enc_hook=public_attributes).encode,
    msgspec.json.Decoder().decode,
)
MSGPACK = Codec(
    "msgpack",
    "application/msgpack",
    msgspec.msgpack.Encoder(enc_hook=public_attributes).encode,
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
