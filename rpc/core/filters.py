"""Which events a subscriber wants, by their headers. The rules are those of RabbitMQ's headers exchange
(https://www.rabbitmq.com/docs/exchanges#headers), for every backend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal, get_args

import msgspec

Scalar = str | int | float | bool
"""What the value of an event's header may be."""
Match = Literal["all", "any", "all-with-x", "any-with-x"]

IGNORED = "x-"
"""What the names of headers begin with that are ignored, unless the match is one `-with-x`."""


class Filter(msgspec.Struct, frozen=True):
    """The headers that an event must have. A value of None stands for any."""

    headers: Mapping[str, Scalar | None] = {}
    match: Match = "all"

    @classmethod
    def of(cls, headers: Mapping[str, Scalar | None] | None, match: Match = "all") -> Filter:
        """Raises ValueError for what is none."""
        if match not in get_args(Match):
            raise ValueError(f"match is one of {', '.join(get_args(Match))}, not {match!r:.80}")
        wanted = {} if headers is None else headers
        if "x-match" in wanted:
            raise ValueError("how headers match is said by match=, not by a header 'x-match'")
        plain = {name: checked(name, "" if value is None else value) for name, value in wanted.items()}
        return cls({name: None if wanted[name] is None else value for name, value in plain.items()}, match)

    def __call__(self, headers: Mapping[str, Scalar]) -> bool:
        """Whether what has these headers is wanted."""
        return matches(self.headers, self.match, headers)

    @property
    def counted(self) -> dict[str, Scalar | None]:
        """The headers that are not ignored."""
        return counted(self.headers, self.match)

    @property
    def is_everything(self) -> bool:
        """Whether nothing is asked for."""
        return not self.headers and self.match.startswith("all")

    @property
    def digest(self) -> str:
        """The same for all filters that ask for the same; "" if nothing is asked for."""
        if self.is_everything:
            return ""
        wanted = {name: _plain(self.headers[name]) for name in sorted(self.headers)}
        return sha256(msgspec.json.encode([self.match, wanted])).hexdigest()[:12]


def counted(headers: Mapping[str, Scalar | None], match: str) -> dict[str, Scalar | None]:
    """Those of the headers that are wanted that are not ignored: without "-with-x", names that begin with
    `x-` are."""
    with_x = match.endswith("-with-x")
    return {name: value for name, value in headers.items() if with_x or not name.startswith(IGNORED)}


def matches(wanted: Mapping[str, Scalar | None], match: str, headers: Mapping[str, Scalar]) -> bool:
    """Whether headers match those that are wanted: "all" of them, or "any" (so none if nothing is wanted).
    Numbers are equal as such, but neither to texts nor to True and False. Names that begin with `x-` do not
    count, but with "all-with-x" and "any-with-x"."""
    found = (
        name in headers and (value is None or _is_equal(value, headers[name]))
        for name, value in counted(wanted, match).items()
    )
    return any(found) if match.startswith("any") else all(found)


def checked(name: Any, value: Any) -> Scalar:
    """The value that a header may have, as an instance of the very class; ValueError if it may not have it,
    or the name is none."""
    if not isinstance(name, str) or not name or not _can_travel(name):
        raise ValueError(f"the name of a header is a text, not {name!r:.80}")
    if isinstance(value, str) and _can_travel(value):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    kinds = "a str, an int of at most 64 bits, a float that is finite, or a bool"
    # The value may be a secret: it is not shown.
    raise ValueError(f"header {name!r:.80} is {kinds}, not this {type(value).__name__}")


def _can_travel(text: str) -> bool:
    """Whether there are no lone surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_equal(one: Scalar, other: Scalar) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _plain(value: Scalar | None) -> Scalar | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value
