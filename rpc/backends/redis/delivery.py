"""A message of a queue in the hands of a handler."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from msgspec.structs import replace

from ...errors import BackendUnavailable, Cancelled, SerializationError, WorkerLost, shown
from ...transport import STREAM, Message, packed
from .._serving import WITHDRAWN, BaseDelivery, lost
from . import scripts
from .acks import KEEP_REPLY, Ack, Page
from .connection import Command, milliseconds
from .keys import Record, entry

logger = logging.getLogger(__name__)

NEW_LINE = "\x1e"
"""In the reason of a dead letter, which lies in one line."""
CANCELLED = 2
"""What is returned of a message that was to be postponed."""
KEEP_STREAM = 600.0
"""Seconds that an inbox outlives a reply after which more will come, if its owner gives no sign."""


class Holder(Protocol):
    """What a delivery needs of its server."""

    def carry_out(self, *command: Any) -> Any:
        """The answer to a command or a script. Raises BackendUnavailable."""

    def say(self, *commands: Command) -> None:
        """Have these carried out, without waiting for it. Raises BackendUnavailable."""

    def is_riding(self, delivery: RedisDelivery) -> bool:
        """Whether its acknowledgement will leave soon, with the wait for more."""

    def waits(self) -> None:
        """A reply waits for the end of its handler: somebody must say it if that takes long."""

    def change(self, page: Page, before: bytes, after: bytes, said: Sequence[Command] = ()) -> bool:
        """Write a record in hand anew, once these were carried out; False if it is not held any more. Raises
        BackendUnavailable."""

    def finished(self, delivery: RedisDelivery, ack: Ack | None) -> None:
        """It ended; `ack` is what is owed for it: None if it is to be delivered again, one without a record
        if nothing is."""


class RedisDelivery(BaseDelivery):
    """Made by a server from what lies in one of its pages."""

    def __init__(self, server: Holder, page: Page, raw: bytes, record: Record, message: Message) -> None:
        self._server, self.page, self.raw, self.record, self.message = server, page, raw, record, message
        self.to = page.queue.address
        self.unsaid: Message | None = None
        """The last reply, if it waits to be sent with the acknowledgement."""
        self.is_apart = False
        """Whether its replies have left on the connection of acknowledgements: the last one must follow."""
        self._number = 1
        self._is_final = False

    def reply(self, message: Message) -> bool:
        """Send a reply at once; the last one while handlers are fast with the acknowledgement, unless the
        handler takes long all the same. False if it is known that nobody listens."""
        if not self.record.inbox or self.cancelled:
            return False
        if STREAM in message.headers:
            self._send(packed(message), milliseconds(KEEP_STREAM))
            self._number += 1
            return True
        self.unsaid = message
        packed(message)  # raises SerializationError here
        if self._is_final or not self._server.is_riding(self):
            self.say()
        else:
            self._server.waits()
        return True

    def say(self) -> None:
        """Send the last reply now, if it waits for that. Any thread: to send it twice does no harm."""
        message = self.unsaid
        if message is None or self.finished:
            return
        if self.record.once:
            self._send(packed(message), KEEP_REPLY)
            return
        # Whoever gets it next has nobody to answer: the reply must have arrived before that is written down.
        self._change(replace(self.record, inbox=""), self._said(packed(message), KEEP_REPLY))
        self.unsaid = None

    def _send(self, frame: bytes, keep: int) -> None:
        self._server.say(*self._said(frame, keep))

    def _said(self, frame: bytes, keep: int) -> Sequence[Command]:
        """What sends a reply."""
        inbox = self.record.inbox
        self.is_apart = True
        return ("RPUSH", inbox, entry(self._number, self.record.id, frame)), ("PEXPIRE", inbox, keep)

    def _change(self, record: Record, said: Sequence[Command] = ()) -> bool:
        changed = record.packed()
        if not self._server.change(self.page, self.raw, changed, said):
            return False
        self.raw, self.record = changed, record
        if self.finished:  # meanwhile, as what it was before
            special = (0, b"", 0) if record.order else None
            self._server.finished(self, Ack(self.page, changed, "", b"", special=special))
        return True

    def marked_as_begun(self) -> Command:
        """What tells the next one, if it is handed back now."""
        marked = replace(self.record, handed_back=True)
        return (scripts.CHANGE, 1, self.page.key, self.raw, marked.packed())

    def forbid_redelivery(self) -> None:
        """Make the next death of a worker that holds this message its last."""
        if not self._change(replace(self.record, deaths=scripts.FORBIDDEN)):
            raise WorkerLost("it was given to another worker meanwhile")
        self._is_final = True

    def _finish(self, last: Message | None) -> None:
        last = last or self.unsaid
        record, special, reply = self.record, None, b""
        keep = _keep_ms(last)
        if last is not None and (record.inbox or record.once or keep):
            reply = self._frame(last)
        if record.is_settled_apart or keep:
            special = (self._number, reply, keep)
        inbox = record.inbox if reply and not special else ""
        last_entry = entry(self._number, record.id, reply) if inbox else b""
        lifetime = milliseconds(KEEP_STREAM) if self._number > 1 else KEEP_REPLY
        self._server.finished(self, Ack(self.page, self.raw, inbox, last_entry, lifetime, special))

    def _frame(self, last: Message) -> bytes:
        try:
            return packed(last)
        except SerializationError as error:
            logger.error("the last reply to %s cannot be sent: %s", self.record.id, shown(error))
            return packed(lost(self.message, "its reply cannot be sent"))

    def postpone(self, seconds: float, message: Message) -> None:
        """Instead of finishing it: have it delivered again, as this message, after so many seconds."""
        record, keys, ttl = self.record, self.page.queue, message.ttl
        frame = packed(message)
        later = replace(
            record,
            deaths=0,
            handed_back=False,
            ttl=0 if ttl is None else milliseconds(ttl),
            frame=b"" if record.is_large else frame,
        )
        with self._settling():
            if record.is_large:
                self._server.carry_out("SET", keys.body(record.id), frame, "XX", "KEEPTTL")
            places = (self.page.key, keys.delayed, keys.control, keys.cancelled(record.id))
            arguments = (self.raw, later.unsent(), milliseconds(seconds))
            if self._server.carry_out(scripts.POSTPONE, len(places), *places, *arguments) == CANCELLED:
                raise Cancelled(WITHDRAWN)

    def bury(self, why: str, last: Message | None) -> None:
        """Instead of finishing it: send the last reply, and put it among the dead letters."""
        places = (self.page.key, self.page.queue.queue, self.page.queue.dead)
        frame = b"" if last is None else packed(last)
        with self._settling():
            arguments = (self.raw, why.replace("\n", NEW_LINE), self._number, frame, _keep_ms(last))
            self._server.carry_out(scripts.BURY, 3, *places, *arguments)

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """If it fails, a caller is told, and that was it. What nobody waits for stays where it is, and is
        delivered again."""
        try:
            yield
        except BackendUnavailable:
            if self.to.durable or not self.record.inbox:
                self.finished = True
                self._server.finished(self, None)
            raise
        self.finished = True
        self._server.finished(self, Ack(self.page, b"", "", b""))


def _keep_ms(last: Message | None) -> int:
    keep = None if last is None else last.keep
    return milliseconds(keep) if keep else 0
