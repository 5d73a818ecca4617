"""What can be seen of jobs from outside, beside the conversation between a caller and a handler: what lies in
a queue, what was given up, and what became of a job whose outcome is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .transport import Message


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up."""

    id: str
    queue: str
    at: float
    """When, in seconds of the Unix epoch, by the broker's clock."""
    why: str
    """One line: the type of the error, and its text."""
    frame: bytes
    raw: Any
    """What the backend finds it by."""
    traceback: str = ""

    @staticmethod
    def told(text: str) -> tuple[str, str]:
        """The reason and the traceback in the text that `Delivery.bury` was given."""
        why, _, traceback = text.partition("\n")
        return why, traceback


class DeadLetters(Protocol):
    """A backend with the feature `dead-letters`."""

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        """What was given up, the last one first."""

    def revive(self, letter: DeadLetter) -> bool:
        """Put it back into its queue, as if it had just been sent. False if it is no longer there."""

    def drop(self, letter: DeadLetter) -> bool:
        """Forget it. False if it is no longer there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that is neither done nor given up."""

    id: str
    queue: str
    state: Literal["scheduled", "waiting", "running"]
    frame: bytes
    """Empty if it cannot be read."""
    at: float | None
    """When it was sent, or, if it is scheduled, when it is due, in seconds of the Unix epoch, by the broker's
    clock; None if that is not known."""
    worker: str
    """Who has it; "" if nobody does."""
    raw: Any
    """What the backend finds it by."""


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """How many messages a queue has. None: this backend cannot tell."""

    queue: str
    waiting: int
    running: int | None
    scheduled: int | None
    dead: int
    workers: int
    """How many serve it, each with as many threads and coroutines as it has."""
    oldest: float | None
    """Seconds that the first of those that wait has waited; None also if there is none."""


class Counts(Protocol):
    """A backend with the feature `counts`."""

    def queue_info(self, queue: str) -> QueueInfo:
        """How many messages are in this queue."""


class Inspection(Protocol):
    """A backend with the feature `inspection`."""

    def entries(self, queue: str, id: str | None = None) -> Iterator[Entry]:
        """What is scheduled, what waits, what runs, in this order, so that what moves on meanwhile is seen
        twice rather than never; the oldest first. Only the one with this id, if one is given."""

    def withdraw(self, entry: Entry) -> bool:
        """Take it out of its queue; whoever runs it is told. False if it is no longer there, or nobody
        does."""


class Results(Protocol):
    """A backend with the feature `results`: it keeps the last reply to a message, together with the end of
    its delivery, for as many seconds as the header `keep` of the reply says."""

    def keep(self, queue: str, id: str, last: Message, seconds: float) -> None:
        """Keep the last reply to a message that another backend carried."""

    def result(self, queue: str, id: str) -> Message | None:
        """The last reply, if it is kept."""
