"""A job in the hands of a handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ...transport import Message
from ...transport import queue as address
from .._serving import BaseDelivery


@dataclass(slots=True)
class Claimed:
    """A job in a worker's hands."""

    queue: str
    id: str
    reply_to: str | None = None
    once: str = ""
    """Where it says what became of its idempotency key; "" if it has none."""


class Holder(Protocol):
    """What a delivery needs of its worker."""

    def send_reply(self, claimed: Claimed, message: Message, number: int) -> bool:
        """Send a reply before the end. False if nobody listens. Raises BackendUnavailable."""

    def forbid_redelivery(self, claimed: Claimed) -> None:
        """Raises BackendUnavailable, and WorkerLost if it is not this worker's any more."""


class RqDelivery(BaseDelivery):
    """A job in the hands of a handler, which finishes it before it returns."""

    def __init__(self, worker: Holder, claimed: Claimed, message: Message) -> None:
        self._worker, self.claimed, self.message = worker, claimed, message
        self.to = address(claimed.queue)
        self.number = 1
        """Of the next reply: a reply that is there already, from an earlier delivery, is not sent again."""
        self.buried = ""
        """Why, if it was."""
        self.last: Message | None = None
        self.again: tuple[float, Message] | None = None
        """In how many seconds it is delivered again, and as what, if it was postponed."""

    def _finish(self, last: Message | None) -> None:
        self.last = last

    def reply(self, message: Message) -> bool:
        if self.claimed.reply_to is None:
            return False
        sent = self._worker.send_reply(self.claimed, message, self.number)
        self.number += 1
        return sent

    def forbid_redelivery(self) -> None:
        self._worker.forbid_redelivery(self.claimed)

    def postpone(self, seconds: float, message: Message) -> None:
        """It will be one of rq's scheduled jobs."""
        self.again, self.finished = (seconds, message), True

    def bury(self, why: str, last: Message | None) -> None:
        """It will be one of rq's failed jobs."""
        self.buried, self.last, self.finished = why or "it was given up", last, True
