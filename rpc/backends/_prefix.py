"""By which beginning of their names applications that share a broker are told apart."""

from __future__ import annotations

import re

PREFIX = "rpc"
"""What the names of keys, queues and exchanges begin with, unless another prefix is set."""
_FORM = re.compile(r"(?!rq\Z)[A-Za-z0-9_\-]{1,32}")


def checked_prefix(prefix: str) -> str:
    """The prefix (str), if it can be one. Raises ValueError."""
    if not _FORM.fullmatch(prefix):
        raise ValueError(f"prefix is not {prefix!r:.80}: it has letters, digits, '_', '-', at most 32, no rq")
    return prefix
