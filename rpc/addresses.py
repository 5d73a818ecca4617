"""Where a message goes: to a queue, a topic or an inbox. A backend knows nothing else of the world."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


@dataclass(frozen=True, slots=True)
class Address:
    """One of the three kinds of address; make it with `queue()`, `topic()` or `inbox()`."""

    kind: Literal["queue", "topic", "inbox"]
    name: str
    group: str | None = None
    durable: bool = False

    def __post_init__(self) -> None:
        for part in self.name, self.group:
            if part is not None and not NAME.fullmatch(part):
                raise ValueError(
                    f"{part!r} is no {self.kind} name: letters, digits, '_', '.', '-', at most 128"
                )
        if self.durable and (self.kind != "topic" or self.group is None):
            raise ValueError(
                "what is durable is a subscription: a topic with a group, by which it is remembered"
            )

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" (group {self.group})" if self.group else "")

    @property
    def shelf(self) -> Address:
        """The queue in which a durable subscription keeps its copies, where a backend has no better way."""
        return queue(f"_{self.name}.{self.group}")


@lru_cache(1024)
def queue(name: str) -> Address:
    """Exactly one of the receivers that serve it gets each message."""
    return Address("queue", name)


def topic(name: str, group: str | None = None, *, durable: bool = False) -> Address:
    """Every receiver that serves it gets each message; those that name one `group` share a copy. If that is
    `durable`, once it was served what comes is kept while nobody serves it, and handled as in a queue."""
    return Address("topic", name, group, durable)


def inbox(name: str) -> Address:
    """Its single owner gets each message."""
    return Address("inbox", name)
