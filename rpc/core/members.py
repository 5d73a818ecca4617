"""Members of enums among values that are converted: `msgspec.convert` wants their values in their place.

Most codecs have just that on the wire. Those that keep classes decode the members themselves, which are right
where an annotation says Any, and not where it names the enum.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec

_WHERE = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>.*)`$", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")


def with_values(value: Any, error: msgspec.ValidationError, convert: Callable[[Any], Any]) -> Any:
    """What `convert` makes of a value, of which it said this error: members of enums are replaced by their
    values where it does not take them. Raises ValidationError as `convert` does."""
    while True:
        found = _WHERE.search(str(error))
        steps = _STEP.findall(found["path"]) if found else []
        lowered = _lowered(value, steps, bool(found and found["key"]))
        if lowered is value:
            raise error
        try:
            return convert(lowered)
        except msgspec.ValidationError as another:
            value, error = lowered, another


def _lowered(value: Any, steps: list[tuple[str, str]], are_keys: bool) -> Any:
    """The value with the values of the members that are at the end of this path, or are keys of dicts there;
    the value itself if there are none."""
    if not steps and are_keys and isinstance(value, dict):
        if not any(isinstance(key, Enum) for key in value):
            return value
        return {key.value if isinstance(key, Enum) else key: each for key, each in value.items()}
    if not steps:
        return value.value if isinstance(value, Enum) else value
    (name, index), rest = steps[0], steps[1:]
    if isinstance(value, dict):
        parts = {key: each for key, each in value.items() if index or key == name}
        lowered = {key: _lowered(each, rest, are_keys) for key, each in parts.items()}
        return {**value, **lowered} if _differ(parts.values(), lowered.values()) else value
    if isinstance(value, list | tuple | set | frozenset):
        only = int(index) if isinstance(value, tuple) and index.isdigit() else None
        items = [
            each if only not in (None, at) else _lowered(each, rest, are_keys)
            for at, each in enumerate(value)
        ]
        return items if _differ(items, value) else value
    return value


def _differ(some: Any, others: Any) -> bool:
    return any(one is not other for one, other in zip(some, others, strict=True))
