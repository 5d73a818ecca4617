"""What a worker has in hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from ...transport import Address, Message, packed
from .._serving import BaseDelivery
from .session import LAST, ONCE, REPLY, Session
from .wire import NUMBER, last_data


class Serving(Protocol):
    """What is needed of the server."""

    lease: float

    @property
    def load(self) -> int: ...

    def say(
        self, session: Session, kind: bytes, data: bytes, confirmed: Callable[[], object] | None = None
    ) -> None: ...

    def finished(self, delivery: ZeromqDelivery) -> None: ...


class ZeromqDelivery(BaseDelivery):
    """A message that a caller has sent to this worker."""

    def __init__(self, server: Serving, session: Session, number: int, to: Address, message: Message) -> None:
        self._server, self.session, self.number = server, session, number
        self.to, self.message = to, message
        self._came = time.monotonic()
        self.is_begun = False

    def begin(self) -> None:
        """Tell the handler how much time is left."""
        self.is_begun = True
        waited, ttl = time.monotonic() - self._came, self.message.ttl
        if ttl is not None and waited > 0.001:
            self.message = self.message.replace(ttl=f"{ttl - waited:.3f}")

    def reply(self, message: Message) -> bool:
        if self.cancelled or self.finished or self.message.reply_to is None:
            return False
        self._server.say(self.session, REPLY, NUMBER.pack(self.number) + packed(message))
        return True

    def _finish(self, last: Message | None) -> None:
        if self.message.reply_to is None:
            last = None
        self._server.say(self.session, LAST, last_data(self.number, max(0, self._server.load - 1), last))
        self._server.finished(self)

    def forbid_redelivery(self) -> None:
        """Returns once the caller has noted it, or is gone."""
        noted = threading.Event()
        self._server.say(self.session, ONCE, NUMBER.pack(self.number), noted.set)
        noted.wait(self._server.lease)
