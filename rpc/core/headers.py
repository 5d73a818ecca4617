"""Headers that a caller gives to a call."""

from __future__ import annotations

from collections.abc import Mapping

from ..transport import OWN, TRACE, VERSION


def wrong_in(headers: object) -> str:
    """What hinders that they are the headers of a call; without their values, which may be secrets."""
    if not isinstance(headers, Mapping):
        return f"headers are texts by their names, not a {type(headers).__name__}"
    for name, text in headers.items():
        if not _may_be_named(name):
            known = f"{OWN}..., {VERSION} or {', '.join(TRACE)}"
            is_large = isinstance(name, str) and _may_be_named(name.lower())
            hint = f", in small letters: {name.lower()!r:.80}" if is_large else ""
            return f"headers are named {known}, not {name!r:.80}{hint}"
        if not isinstance(text, str):
            return f"headers are texts, but {name!r:.80} is a {type(text).__name__}"
    return ""


def _may_be_named(name: object) -> bool:
    return isinstance(name, str) and (name == VERSION or name in TRACE or name.startswith(OWN))
