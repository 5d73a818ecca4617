"""Durations, as callers and settings give them: checked once, here."""

from __future__ import annotations

from datetime import timedelta
from numbers import Real
from typing import Any

Duration = float | timedelta
"""Seconds, or as long as that."""

LONGEST = 100 * 365 * 86400.0
"""Seconds: more than anybody means, and less than any broker, lock or clock could not count."""


def seconds(value: Any, what: str, *, least: float = 0.0, above: bool = False) -> float:
    """A duration in seconds (float), of a number of them or a timedelta. `what` is what errors call it.

    Raises ValueError for what is neither, and for what is less than `least` (or `least` itself, if it must be
    `above`), not a number, infinite or longer than a hundred years.
    """
    if type(value) is float and least < value <= LONGEST:
        return value
    number = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if is_number and least <= number <= LONGEST and not (above and number == least):
        return float(number)
    limit = f"{'more than' if above else 'at least'} {least:g}"
    raise ValueError(f"{what} is in seconds, a number or a timedelta, {limit} and finite, not {value!r:.80}")


def seconds_or_none(value: Any, what: str, *, above: bool = False) -> float | None:
    """The same, or None, which says that there is no such duration."""
    return None if value is None else seconds(value, what, above=above)
