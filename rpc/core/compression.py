"""Bodies made smaller: `content-encoding` gzip, or zstd, where that is installed.

What is decompressed stops at a limit, before it is there: a small body may stand for any number of bytes.
"""

from __future__ import annotations

import re
import sys
import zlib
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from ..errors import RpcError, SerializationError, SettingsError, not_installed

ENCODINGS = ("gzip", "zstd")
THRESHOLD = 16_000
"""Bytes, from which on a body is compressed if nothing else is said."""
_GZIP = 31
"""To zlib: with gzip's header, and the largest window."""
_LEVEL = 1
"""Of gzip: a message is to be small soon."""
_WINDOW = 23
"""Of zstd, as a power of two: what a decoder has to take (RFC 8878), and no more, as it costs memory."""
_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}


class Compression(NamedTuple):
    """How bodies are made smaller."""

    encoding: str
    threshold: int = THRESHOLD
    """Bytes that a body has at least, to be compressed."""

    @property
    def accepts(self) -> str:
        """The header `accept-encoding` of one who writes so: what it reads, the best first."""
        return f"{self.encoding}, gzip" if self.encoding != "gzip" else "gzip"

    def compressed(self, body: bytes) -> bytes:
        """The body in this encoding."""
        if self.encoding == "zstd":
            return bytes(_zstd().compress(body))
        squeezing = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        return squeezing.compress(body) + squeezing.flush()


def compression(text: str | None) -> Compression | None:
    """What a text such as "gzip", or "zstd:64kB", says: the encoding, and the bytes from which on it is used.
    SettingsError if it says nothing of the kind, Unsupported if the encoding is not installed."""
    if text is None:
        return None
    found = _parsed(text)
    if found.encoding == "zstd":
        _zstd()
    return found


def _parsed(text: str) -> Compression:
    encoding, _, size = text.partition(":")
    found = re.fullmatch(r"(\d{1,12}) ?([kKmM]?i?B?)", size) if size else None
    if encoding not in ENCODINGS or (":" in text and (not found or found[2].upper() not in _UNITS)):
        raise SettingsError(
            f"{text!r} is no compression (see RPC_COMPRESS): {' or '.join(ENCODINGS)}, with a size or "
            "without, as in 'gzip:16kB'"
        )
    return Compression(encoding, int(found[1]) * _UNITS[found[2].upper()] if found else THRESHOLD)


def compress_from(text: str | None) -> int:
    """The bytes from which on it says that bodies are compressed; SettingsError as `compression`, but whether
    the encoding is installed is not asked."""
    return THRESHOLD if text is None else _parsed(text).threshold


@lru_cache(64)
def first_of(accepts: str) -> str | None:
    """The first encoding that a header `accept-encoding` names and that can be written here; None if there is
    none."""
    for each in accepts.split(","):
        name = each.partition(";")[0].strip().lower()
        if name == "gzip" or (name == "zstd" and _is_installed()):
            return name
    return None


def decompressed(body: bytes, encoding: str, most: int | None) -> bytes:
    """What a body stands for. Raises SerializationError if it has more than `most` bytes, if it is not of
    this encoding, or is cut off, and if there is no such encoding here."""
    if encoding not in ENCODINGS:
        raise SerializationError(
            f"the content-encoding {encoding[:80]!r} is not accepted here, but {', '.join(ENCODINGS)}"
        )
    limit = sys.maxsize if most is None else most
    try:
        plain = _stretched(zlib.decompressobj(_GZIP) if encoding == "gzip" else _zstd_reader(), body, limit)
    except RpcError as error:  # it is not installed
        raise SerializationError(str(error)) from None
    except Exception as error:  # of which class, the library says
        raise SerializationError(f"not readable as {encoding}: {error}") from error
    if plain is None:
        raise SerializationError(f"the body has more than {most} bytes when it is decompressed")
    return plain


def _stretched(reader: Any, body: bytes, most: int) -> bytes | None:
    """All that a reader makes of the body; None if that is more than so many bytes."""
    plain = reader.decompress(body, min(most, sys.maxsize - 1) + 1)
    if len(plain) > most:
        return None
    if not reader.eof or reader.unused_data:
        raise ValueError("it is cut off, or something follows it")
    return bytes(plain)


def _zstd_reader() -> Any:
    zstd = _zstd()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW})


def _is_installed() -> bool:
    try:
        _zstd()
    except RpcError:
        return False
    return True


@lru_cache(1)
def _zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):  # the one is in Python since 3.14
        try:
            return import_module(name)
        except ImportError:
            continue
    raise not_installed("zstd", "zstd")
