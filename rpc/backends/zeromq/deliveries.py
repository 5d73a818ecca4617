"""What a worker has in hand."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ...errors import SerializationError, shown
from ...transport import STREAM, Address, Message, packed
from .._serving import BaseDelivery, lost
from .session import ONCE, REPLY, Session
from .wire import NUMBER, last_data

logger = logging.getLogger(__name__)


class Serving(Protocol):
    """What is needed of the server."""

    lease: float

    @property
    def load(self) -> int: ...

    def say(
        self, session: Session, kind: bytes, data: bytes, confirmed: Callable[[], object] | None = None
    ) -> None: ...

    def finished(self, delivery: ZeromqDelivery, last: bytes) -> None: ...

    def is_riding(self, delivery: ZeromqDelivery) -> bool: ...


class ZeromqDelivery(BaseDelivery):
    """A message that a caller has sent to this worker."""

    def __init__(self, server: Serving, session: Session, number: int, to: Address, message: Message) -> None:
        self._server, self.session, self.number = server, session, number
        self.to, self.message, self.caller = to, message, session.token.hex()
        self._came = time.monotonic()
        self.is_begun = False
        self._unsaid: Message | None = None
        """The last reply, if it waits for the end of its handler."""

    def begin(self) -> None:
        """Tell the handler how much time is left."""
        self.is_begun = True
        self.has_waited(time.monotonic() - self._came)

    def reply(self, message: Message) -> bool:
        if self.cancelled or self.finished or self.message.reply_to is None:
            return False
        data = packed(message)
        if STREAM in message.headers or not self._server.is_riding(self):
            self._server.say(self.session, REPLY, NUMBER.pack(self.number) + data)
        else:
            self._unsaid = message
        return True

    def say(self) -> None:
        """Send the last reply, if it waits. The handler takes long all the same."""
        message, self._unsaid = self._unsaid, None
        if message is not None and not self.finished:
            self.session.send(REPLY, NUMBER.pack(self.number) + packed(message))

    def _finish(self, last: Message | None) -> None:
        last, self._unsaid = last or self._unsaid, None
        load = max(0, self._server.load - 1)
        if self.message.reply_to is None:
            last = None
        try:
            data = last_data(self.number, load, last)
        except SerializationError as error:
            logger.error("the last reply to %s cannot be sent: %s", self.message.id, shown(error))
            data = last_data(self.number, load, lost(self.message, "its reply cannot be sent"))
        self._server.finished(self, data)

    def forbid_redelivery(self) -> None:
        """Returns once the caller has noted it, or is gone."""
        noted = threading.Event()
        self._server.say(self.session, ONCE, NUMBER.pack(self.number), noted.set)
        noted.wait(self._server.lease)
