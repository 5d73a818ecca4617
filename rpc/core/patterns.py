"""Names with wildcards: `order.*` is all that begins with `order.`"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(1024)
def matcher(pattern: str) -> Callable[[str], object]:
    """What is true of the names that fit a pattern, in which `*` stands for any characters."""
    return re.compile(".*".join(map(re.escape, pattern.split("*")))).fullmatch
