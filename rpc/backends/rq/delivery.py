"""A job in the hands of a handler."""

from __future__ import annotations

from dataclasses import dataclass
from threading import get_ident
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

    def settle(self, delivery: RqDelivery) -> None:
        """Write down what it came to."""

    def postpone(self, claimed: Claimed, seconds: float, message: Message) -> None:
        """Have it delivered again, as this message. Raises Cancelled."""


class RqDelivery(BaseDelivery):
    """A job in the hands of a handler. What it came to is written down when that returns; at once, if it was
    finished by another thread, or postponed."""

    def __init__(self, worker: Holder, claimed: Claimed, message: Message) -> None:
        self._worker, self.claimed, self.message = worker, claimed, message
        self.to = address(claimed.queue)
        self.number = 1
        """Of the next reply: a reply that is there already, from an earlier delivery, is not sent again."""
        self.buried = ""
        """Why, if it was."""
        self.last: Message | None = None
        self.is_settled = False
        """Whether what it came to was written down."""
        self._thread = get_ident()

    def _finish(self, last: Message | None) -> None:
        self.last = last
        if get_ident() != self._thread and not self.is_settled:
            self._worker.settle(self)

    def reply(self, message: Message) -> bool:
        if self.claimed.reply_to is None:
            return False
        sent = self._worker.send_reply(self.claimed, message, self.number)
        self.number += 1
        return sent

    def forbid_redelivery(self) -> None:
        self._worker.forbid_redelivery(self.claimed)

    def postpone(self, seconds: float, message: Message) -> None:
        """It is one of rq's scheduled jobs then."""
        self._worker.postpone(self.claimed, seconds, message)
        self.is_settled = True
        self.finish(None)

    def bury(self, why: str, last: Message | None) -> None:
        """It will be one of rq's failed jobs."""
        self.buried = why or "it was given up"
        self.finish(last)
