"""Names with wildcards: `order.*` is all that begins with `order.`"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


@lru_cache(1024)
def matcher(pattern: str) -> Callable[[str], object]:
    """What is true of the names that fit a pattern, in which `*` stands for any characters."""
    return re.compile(".*".join(map(re.escape, pattern.split("*")))).fullmatch


def first_for(name: str, rules: list[tuple[Callable[[str], object], T]]) -> T | None:
    """What the first of the rules says that is true of this name."""
    for fits, said in rules:
        if fits(name):
            return said
    return None
