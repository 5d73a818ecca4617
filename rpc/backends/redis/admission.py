"""What becomes of a record that was taken: a delivery, if somebody wants it still, and it can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ...errors import SerializationError, shown
from ...transport import HANDED_BACK, Address, Message, packed, unpacked
from .._serving import BEGUN, UNREADABLE, lost
from . import scripts
from .acks import Ack, AckBuffer, Page
from .delivery import Holder, RedisDelivery
from .keys import Keys, Record

logger = logging.getLogger(__name__)

WAITED = 0.001
"""Seconds after which a message was not taken at once: others may wait."""
REMEMBERED = 10_000
"""Ids of messages whose callers have left."""


class Admission:
    """Of the records of one server."""

    def __init__(
        self,
        holder: Holder,
        acks: AckBuffer,
        in_hand: set[bytes],
        *,
        clock: Callable[[], float],
        waited: Callable[[], object],
    ) -> None:
        """`clock` gives the seconds of Redis' own, `waited` hears of a message that was not taken at once."""
        self._holder, self._acks, self._in_hand = holder, acks, in_hand
        self._clock, self._waited = clock, waited
        self._gone: dict[str, None] = {}
        """Ids of the last messages whose callers left."""

    def left(self, id: str) -> None:
        """The caller of this message has left."""
        self._gone[id] = None
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def delivery(self, page: Page, raw: bytes, to: Address | None) -> RedisDelivery | None:
        """It came to the queue of its page, or to `to`. None if nobody wants it any more, or it cannot be
        read. Raises redis.RedisError."""
        try:
            record = Record.unpacked(raw, page.queue.inboxes)
            left, frame = self._left_of(page.queue, record), record.frame
            # What has expired, and nobody waits for, is for the handler to refuse: it may be a dead letter.
            is_over = left is not None and left <= 0 and bool(record.inbox or record.once)
            if record.is_large and not is_over:
                frame = self._fetched(page.queue, record)
            if is_over or (record.is_large and not frame):
                special = (0, b"", 0) if record.is_settled_apart else None
                self._acks.owe(Ack(page, raw, "", b"", special=special))
                return None
            message = unpacked(frame)
        except SerializationError as error:
            self._refuse(page, raw, error)
            return None
        headers: Any = message.headers  # just made, and nobody else's
        if left is not None and "ttl" in headers:
            headers["ttl"] = f"{left:.3f}"
        if record.deaths:
            headers["deliveries"] = str(record.deaths + 1)
        if record.handed_back:
            headers[HANDED_BACK] = "1"
        delivery = RedisDelivery(self._holder, page, raw, record, message)
        delivery.to = to or delivery.to
        if record.deaths >= scripts.FORBIDDEN:  # it was begun here, and could not be buried
            delivery.bury(BEGUN, None)
            return None
        return delivery

    def _left_of(self, queue: Keys, record: Record) -> float | None:
        """Seconds that somebody still wants it; None: without end."""
        if record.inbox and record.id in self._gone and not record.once:
            return 0.0
        if record.is_attended or record.once:
            once = (queue.once(record.once),) if record.once else ()
            places = (queue.token(record.id), *once)
            left = self._acks.ask((scripts.BEGIN, len(places), *places, record.id))[0]
            return float(left) / 1000 if left != -1 and record.is_attended else None
        age = self._clock() - record.sent / 1000
        if age > WAITED:
            self._waited()
        return record.ttl / 1000 - age if record.ttl else None

    def _fetched(self, queue: Keys, record: Record) -> bytes:
        """The body of a large message; empty if its caller left just now, and took it along."""
        frame, token = self._acks.ask(("MGET", queue.body(record.id), queue.token(record.id)))[0]
        has_left = token == b"left" or (token is None and record.is_attended)
        if frame is None and not has_left:
            raise SerializationError("its body has expired")
        return bytes(frame or b"")

    def _refuse(self, page: Page, raw: bytes, error: Exception) -> None:
        """Put what cannot be read among the dead letters, and tell its caller, if it names one."""
        logger.error("refused a record in queue %r: %s", page.queue.name, shown(error))
        id = raw.partition(b"\n")[2].partition(b"\n")[0].decode(errors="replace")
        told = packed(lost(Message(headers={"id": id}), UNREADABLE))
        places = (page.key, page.queue.queue, page.queue.dead)
        self._acks.ask((scripts.BURY, len(places), *places, raw, f"refused: {shown(error)}", 1, told, 0))
        self._in_hand.discard(raw)
        page.change(-1)
