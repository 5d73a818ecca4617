"""How a message is written down in Redis, and the commands that send it and take it back."""

from __future__ import annotations

from ...transport import DELAY, IDEMPOTENCY_KEY, ORDER_KEY, Message, packed
from . import scripts
from .connection import Command, milliseconds, translated_or_logged
from .keys import LARGE, Keys, Record, digest, is_ordered
from .servers import Servers
from .topics import run_on_client

REMEMBERED = 10.0
"""Seconds that the sending of a message is remembered: longer than it is repeated."""
UNATTENDED = 3600.0
"""Seconds that a message is wanted whose caller waits without end, after its last sign of life."""
KEEP_BODY = 60.0
"""Seconds that the body of a large message outlives it."""
KEEP_WAKEUP, END_EVERY = 60_000, 10_000
"""Milliseconds that a queue which nobody serves any more can wake somebody up, and how often callers say so:
it would cost as much as a message to say it with each."""
KEEP_CONTROL = 3600.0
CONTROL_LENGTH = 10_000
"""Entries of a control stream, about, that are kept."""

_BY_SCRIPT = {DELAY, IDEMPOTENCY_KEY, ORDER_KEY}
"""Headers of what plain commands do not send."""


def _delay_of(message: Message) -> float:
    """Seconds."""
    return float(message.headers.get(DELAY, 0))


class Sender:
    """What all callers of one backend send by. `max_length` is the most messages that a queue takes (0: no
    bound), `window` the seconds that an idempotency key is remembered."""

    def __init__(self, servers: Servers, max_length: int, window: float) -> None:
        self.servers, self.max_length, self._window = servers, max_length, window
        self._ended: dict[Keys, int] = {}
        """When the wakeup of each queue was last given an end, in milliseconds of the server's clock."""
        self.sweep = 0 if servers.is_cluster else 2
        """How many of the oldest messages a sender looks at, to drop those that have expired. On a cluster it
        cannot tell."""

    def encode(
        self, keys: Keys, message: Message, id: str, inbox: str, sent: int
    ) -> tuple[list[Command], Record, int]:
        """What must be said first, the record, and the milliseconds that its token lives; `sent` is the time
        in milliseconds of the server's clock."""
        frame, once, ttl = packed(message), "", message.ttl
        kind, seconds = ("k" if ttl is None else "w"), REMEMBERED
        if ttl is None and inbox:
            kind, seconds = "a", UNATTENDED
        key = message.headers.get(ORDER_KEY)
        order = "" if key is None else digest(key)[:32]
        if IDEMPOTENCY_KEY in message.headers:
            once = digest(message.headers[IDEMPOTENCY_KEY])
            window = self._window + _delay_of(message)
            kind, seconds = ("k", window) if kind == "k" else ("a", seconds if ttl is None else ttl)
        before: list[Command] = []
        if len(frame) > LARGE:
            kind = kind.upper()  # if it is sent, the script lets the body of a message that is kept live on
            lifetime = milliseconds((seconds if ttl is None else ttl) + KEEP_BODY)
            before = [("SET", keys.body(id), frame, "NX", "PX", lifetime)]
            frame = b""
        until = 0 if ttl is None else milliseconds(ttl)
        record = Record(kind, id, inbox, once, until, frame, sent, order=order)
        return before, record, milliseconds(seconds)

    def at_once(self, keys: Keys, message: Message, id: str, inbox: str, sent: int) -> list[Command] | None:
        """Plain commands that send a call for the first time, of which no answer is wanted; they cost Redis
        less than a script. None if they will not do."""
        if self.max_length or not _BY_SCRIPT.isdisjoint(message.headers):
            return None
        before, record, lifetime = self.encode(keys, message, id, inbox, sent)
        if sent - self._ended.get(keys, 0) > END_EVERY:  # what has a TTL keeps it
            self._ended[keys] = sent
            before = [*before, ("ZADD", keys.wakeup, 0, "1"), ("PEXPIRE", keys.wakeup, KEEP_WAKEUP)]
        return [
            *before,
            ("DEL", inbox),
            ("RPUSH", keys.queue, record.packed()),
            ("SET", keys.token(id), "", "PX", lifetime),
            ("ZADD", keys.wakeup, 0, "1"),
        ]

    def sending(
        self,
        keys: Keys,
        message: Message,
        id: str,
        inbox: str,
        sent: int,
        *,
        again: bool = False,
        max_length: int | None = None,
        shared: bool = False,
    ) -> list[Command]:
        """Commands that send a message, also if it may have been sent before; the answer to the last one is
        that of the script. `max_length` stands for this backend's; `shared`: into an inbox of many."""
        before, record, lifetime = self.encode(keys, message, id, inbox, sent)
        way_back = (inbox,) if inbox else ()
        most = self.max_length if max_length is None else max_length
        token = keys.token(id)
        delay = (milliseconds(_delay_of(message)),) if DELAY in message.headers else ()
        packed_record = record.unsent() if delay else record.packed()
        usual = (
            id,
            packed_record,
            lifetime,
            most,
            self.sweep,
            int(shared if delay or record.once else again),
        )
        if record.once:
            places: tuple[str, ...] = (keys.queue, keys.wakeup, token, keys.once(record.once), *way_back)
            window = milliseconds(self._window + _delay_of(message))
            return [*before, (scripts.SEND_ONCE, len(places), *places, *usual, window, *delay)]
        if delay:
            places = (keys.queue, keys.delayed, token, keys.control, *way_back)
            return [*before, (scripts.SEND_LATER, len(places), *places, *usual, *delay)]
        places = (keys.queue, keys.wakeup, token, *way_back)
        return [*before, (scripts.SEND, len(places), *places, *usual)]

    def withdrawal(self, keys: Keys, id: str, ttl: float | None, record: bytes) -> list[Command]:
        """What was not started is not, what runs is told, and what nobody comes to takes no room; `ttl` is
        the message's, `record` how it lies in its queue, mostly near the head when its time is up."""
        token = keys.token(id)
        body = [("UNLINK", keys.body(id))] if record[: record.find(b"\n")].isupper() else []
        return [
            ("DEL", token) if ttl is None else ("SET", token, "left", "PX", milliseconds(ttl)),
            ("XADD", keys.control, "MAXLEN", "~", CONTROL_LENGTH, "*", "left", id),
            ("PEXPIRE", keys.control, milliseconds(KEEP_CONTROL)),
            (scripts.WITHDRAW, 2, keys.queue, keys.delayed, record)
            if is_ordered(record)
            else ("LREM", keys.queue, 1, record),
            ("PEXPIRE", keys.wakeup, KEEP_WAKEUP),
            *body,
        ]

    def withdraw(self, keys: Keys, message: Message, id: str, inbox: str, sent: int) -> None:
        """Say so of a message that was sent at this time; if Redis can be had."""
        _, record, _ = self.encode(keys, message, id, inbox, sent)
        with translated_or_logged():
            if record.order:
                run_on_client(
                    self.servers, keys.queue, *self.withdrawal(keys, id, message.ttl, record.packed())
                )
                return
            pipe = self.servers.client(keys.queue).pipeline(transaction=False)
            for command in self.withdrawal(keys, id, message.ttl, record.packed()):
                pipe.execute_command(*command)
            pipe.execute()

    def attend(self, keys: Keys, id: str) -> list[Command]:
        """A caller without a time limit still waits."""
        return [("PEXPIRE", key, milliseconds(UNATTENDED)) for key in (keys.token(id), keys.body(id))]
