"""Tokens: which callers may ask for which jobs, and how often.

A token is a secret that travels with the request, where whoever reads the broker can read it: that a request
comes from who it says, a signature shows (see `signing`).
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from ..errors import RateLimited, SettingsError, Unauthorized
from .patterns import first_for, matcher

logger = logging.getLogger(__name__)

UNAUTHORIZED = "this job wants a token, and none came that opens it"
"""What a caller is told, whether it has no token, a wrong one, or one for other methods."""

SHOWN = 20
"""Jobs that a warning names, at most."""


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token allows."""

    token: Annotated[str, msgspec.Meta(min_length=1)]
    methods: tuple[str, ...] | None = None
    """Names of jobs, or patterns, within those that it is for. None: all of them."""
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Calls in a second, on the average, for each worker process; so many, or one, may come at once. None:
    any number."""

    def __repr__(self) -> str:
        return "<Token>"


class _Allowed:
    """A token, as a receiver has it: by its hash, which has the same length for all."""

    def __init__(self, token: Token) -> None:
        self.digest = sha256(token.token.encode("utf-8", "surrogatepass")).digest()
        self._fits = None if token.methods is None else [matcher(each) for each in token.methods]
        self._rate = token.rate
        self._left = self._most = max(1.0, token.rate or 1.0)
        self._counted: float | None = None

    def fits(self, name: str) -> bool:
        return self._fits is None or any(fits(name) for fits in self._fits)

    def count(self, now: float) -> None:
        """Raises RateLimited if there were too many calls until now (in seconds)."""
        if self._rate is None:
            return
        # Without a lock: threads that come at once may let one call more pass.
        since = 0.0 if self._counted is None else max(0.0, now - self._counted)
        self._counted, self._left = now, min(self._most, self._left + since * self._rate)
        if self._left < 1:
            raise RateLimited(f"its token allows {self._rate:g} calls in a second, and there were more")
        self._left -= 1


class Tokens:
    """Those that a receiver asks for, by the names of jobs or patterns: the first that fits counts."""

    def __init__(self, given: Mapping[str, Any], where: str = "RPC_TOKENS") -> None:
        """A token is a text, or has the fields of `Token`; there may be several for a pattern. SettingsError,
        without the token, if it is neither."""
        self._rules: list[tuple[Callable[[str], object], list[_Allowed]]] = []
        self._patterns, self._where = [*given], where
        for pattern, tokens in given.items():
            self._rules.append((matcher(pattern), _allowed(tokens, f"{where}[{pattern!r}]")))

    def require(self, name: str, tokens: Any, where: str) -> None:
        """The job of just this name wants one of these, whatever else was said of it. Raises SettingsError,
        as the constructor does."""
        self._rules.insert(0, (name.__eq__, _allowed(tokens, where)))

    def warn_of_unused(self, names: Collection[str]) -> None:
        """Log each pattern that none of these jobs fits: what it was meant for may be open to everybody, or
        the job of another worker."""
        known = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        for pattern in self._patterns:
            if not any(map(matcher(pattern), names)):
                logger.warning(
                    "%s[%r] fits no job of this worker: there is %s", self._where, pattern, known or "none"
                )

    def check(self, name: str, token: str | None, now: float) -> None:
        """Raises Unauthorized unless this token, if one is wanted, allows the job of this name; RateLimited
        if it was too often until `now` (in seconds on a monotonic clock)."""
        if found := self.opens(name, token):
            found.count(now)

    def opens(self, name: str, token: str | None) -> _Allowed | None:
        """The same, without counting it; what it is, if one is wanted."""
        allowed = self.wanted(name)
        if allowed is None:
            return None
        found = _one_of(allowed, token or "")
        if found is None or not found.fits(name):
            raise Unauthorized(UNAUTHORIZED)
        return found

    def wanted(self, name: str) -> list[_Allowed] | None:
        """Those of which the job of this name wants one; None: it wants none."""
        return first_for(name, self._rules)


def _allowed(tokens: Any, where: str) -> list[_Allowed]:
    several = tokens if isinstance(tokens, list | tuple) else [tokens]
    if not several:
        raise SettingsError(f"{where} has no token: nobody could call it")
    return [_Allowed(_token(each, where)) for each in several]


def _token(given: Any, where: str) -> Token:
    try:
        return msgspec.convert({"token": given} if isinstance(given, str) else given, Token)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {error}") from None


def _one_of(allowed: list[_Allowed], token: str) -> _Allowed | None:
    """The one that this token is, in a time that does not tell how much of it is right, or which it is."""
    digest, found = sha256(token.encode("utf-8", "surrogatepass")).digest(), None
    for each in allowed:
        if hmac.compare_digest(each.digest, digest):
            found = each
    return found


def are_texts(given: object) -> bool:
    """Whether it is texts by texts."""
    return isinstance(given, Mapping) and all(
        isinstance(each, str) for pair in given.items() for each in pair
    )


def sent(given: Mapping[str, str], where: str = "RPC_TOKEN") -> list[tuple[Callable[[str], object], str]]:
    """What a client sends, in the form that `first_for` takes. A token goes with the name of a job, or a
    pattern, so that no other service sees it; SettingsError for one that does not."""
    if not are_texts(given):
        raise SettingsError(f"{where} says for which jobs a token is: {{'pay.*': 'the token'}}")
    return [(matcher(pattern), token) for pattern, token in given.items()]
