"""The queues of durable subscriptions: each is worked off by one thread at a time, when there is news of its
topic, and now and then."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

from ...transport import Address
from .acks import AckBuffer
from .connection import FAILURES, unavailable
from .delivery import RedisDelivery
from .fetch import Pages, Taken
from .keys import Keys

logger = logging.getLogger(__name__)


class Holder(Protocol):
    """What is needed of the server."""

    acks: AckBuffer
    in_hand: set[bytes]
    """Records."""

    def begun(self, taken: Taken, to: Address | None = None) -> RedisDelivery | None: ...
    def handle(self, delivery: RedisDelivery) -> None: ...
    def is_stopped(self) -> bool: ...
    def sign_if_late(self) -> None: ...
    def mend(self, error: BaseException) -> None: ...


class SubscriptionQueue:
    """What is kept for one durable subscription."""

    def __init__(self, server: Holder, to: Address, keys: Keys, pages: Pages) -> None:
        self._server, self.to, self._keys, self._pages = server, to, keys, pages
        self._found: deque[Taken] = deque()
        self.doubtful = False
        """Whether what is in hand must be compared with what Redis has."""

    def has_some(self) -> bool:
        """Whether there is something to be worked off. Raises redis.RedisError."""
        try:
            return self.doubtful or self._server.acks.ask(("LLEN", self._keys.queue))[0] > 0
        except FAILURES as error:
            self._server.mend(error)
            raise

    def work_off(self) -> None:
        """Handle one message after the other, until there is none."""
        server = self._server
        try:
            while not server.is_stopped() and (taken := self._next()):
                if delivery := server.begun(taken, self.to):
                    server.handle(delivery)
        except FAILURES as error:
            self.doubtful = True
            self._server.mend(error)
            logger.warning("%s; %s is looked at again", unavailable(error), self.to)

    def _next(self) -> Taken | None:
        if self.doubtful:
            self.doubtful = False  # first: others may have doubts meanwhile
            self._take_stock()  # if it fails, `work_off` has them again
        if self._found:
            return self._found.popleft()
        self._server.sign_if_late()
        page = self._pages.roomy()
        move = ("LMOVE", self._keys.queue, page.key, "LEFT", "RIGHT")
        raw = self._server.acks.ask(move)[0]
        if raw is None:
            return None
        page.change(1)
        return Taken(page, raw)

    def _take_stock(self) -> None:
        """What lies in the pages and is not in hand was taken with an answer that was lost, or is to be
        delivered again."""
        pages, server = self._pages.all, self._server
        self._found.clear()
        for page, records in zip(pages, server.acks.stock(pages, server.in_hand), strict=True):
            self._found += [Taken(page, raw) for raw in records]
