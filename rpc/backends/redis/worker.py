"""A worker of the native Redis backend: one loop, one connection, one slot for each queue.

After a handler, one write carries its reply and acknowledgement, the wait for the next message and its
receipt. While handlers are fast, several messages are taken, and acknowledged, at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from msgspec.structs import replace

from ...errors import BackendUnavailable, SerializationError, WorkerLost
from ...loops import Alarm
from ...transport import LOST, STREAM, Handler, Message, packed, unpacked
from .._serving import Cancellable
from . import scripts
from .acks import Ack, Outbox
from .connection import evaluated, milliseconds, persistent, steadily, translated_or_logged
from .keys import LARGE, Keys, Record, entry
from .servers import Place

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
MOST = 32
"""Messages that are taken at a time, at most."""
AHEAD = 0.002
"""Seconds of work that are taken at a time, by what the last messages took: it bounds what others, who are
idle, cannot have, and how much is done again if this process dies."""
FLUSH_AFTER = 0.002
"""Seconds that an acknowledgement may wait for others to go with, while handlers are fast."""
TOO_LONG = 0.05
"""Seconds after which a handler is not fast: what was taken with its message goes back."""


@dataclass(frozen=True)
class Options:
    """Times are in seconds."""

    lease: float
    max_deliveries: int


class RedisDelivery(Cancellable):
    """A message in the hands of a handler."""

    def __init__(self, worker: RedisWorker, keys: Keys, record: Record, message: Message) -> None:
        self._worker, self.keys, self.record, self.message = worker, keys, record, message
        self.to = keys.address
        self.number = 1
        self.said = b""
        """The last reply, if the handler is not done yet."""
        self.unsaid = False
        """Whether it waits to be sent."""
        self._is_final = False
        self._answered = False
        self.settled = False
        """Whether it left the slot otherwise than by an acknowledgement."""
        self.unsettled = False
        """Whether it should have, and could not: it stays in the slot, and is delivered again."""

    @property
    def is_awaited(self) -> bool:
        """Whether it has one caller, who may leave."""
        return bool(self.record.lane) and not self.record.once and not self._answered

    def reply(self, message: Message) -> bool:
        """Send a reply at once. False if it is known that nobody listens: for the last one it is not waited
        for whether anybody does. It goes with the acknowledgement, too, if it has not arrived by then. While
        handlers are fast, it goes with that alone, unless the handler takes long all the same."""
        if not self.record.lane or self.cancelled:
            return False
        frame = packed(message)
        self._answered = STREAM not in message.headers
        if self._answered and len(frame) <= LARGE:
            self.said, self.unsaid = frame, True
            if self._is_final or not self._worker.is_watched:
                self.say()
            return True
        sent = self._worker.carry_out(scripts.REPLY, *self._reply(frame), 0, 0)
        self.number += 1
        return bool(sent)

    def say(self) -> None:
        """Send the last reply, if it waits for that. Any thread: to send it twice does no harm."""
        if self.unsaid:
            self.unsaid = False
            self._worker.outbox.say(scripts.REPLY, self.keys, *self._reply(self.said))

    def _reply(self, frame: bytes) -> tuple[Any, ...]:
        id, lane = self.record.id, self.record.lane
        return (3, self._slot, self.keys.token(id), lane, id, self.number, frame)

    def forbid_redelivery(self) -> None:
        """Make the next death of a worker that holds this message its last."""
        if not self._worker.carry_out(scripts.FORBID, 1, self._slot, self.record.id):
            raise WorkerLost("it was given to another worker meanwhile")
        self._is_final = True

    def postpone(self, seconds: float, message: Message) -> None:
        """Instead of acknowledging it: have it delivered again, as this message, after so many seconds."""
        record = self.record
        later = replace(record, frame=b"" if record.is_large else packed(message))
        arguments = (record.id, later.packed(), milliseconds(seconds), self.keys.channel)
        with self._settling():
            if record.is_large:
                self._worker.carry_out("SET", self.keys.body(record.id), packed(message), "XX", "KEEPTTL")
            self._worker.carry_out(scripts.POSTPONE, 2, self._slot, self.keys.delayed, *arguments)

    def bury(self, why: str, last: Message | None) -> None:
        """Instead of acknowledging it: send the last reply, and put it among the dead letters."""
        keys = (self._slot, self.keys.queue, self.keys.dead)
        frame = b"" if last is None else packed(last)
        arguments = (self.record.id, why.replace("\n", " "), self.number, frame)
        with self._settling():
            self._worker.carry_out(scripts.BURY, 3, *keys, *arguments)

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """If it fails, a caller is told, and that was it. What nobody waits for stays in the slot, and is
        delivered again."""
        try:
            yield
        except BackendUnavailable:
            self.unsettled = self.to.durable or not self.record.lane
            raise
        self.settled = True

    @property
    def _slot(self) -> str:
        return self.keys.slot(self._worker.name)


class RedisWorker:
    """Receives messages of its queues and handles them one at a time, until stopped. `alarm` is rung when
    something was taken that is not begun, and at the end; `told`, whether there is a connection."""

    def __init__(
        self,
        place: Place,
        queues: Sequence[Keys],
        handler: Handler,
        options: Options,
        stopped: Callable[[], bool],
        alarm: Alarm,
        is_lone: bool,
        told: Callable[[bool], None],
    ) -> None:
        self._place, self.queues, self._handler, self._told = place, queues, handler, told
        self._options, self._stopped, self._alarm = options, stopped, alarm
        self.name = uuid4().hex
        self.delivery: RedisDelivery | None = None
        self.backlog: deque[tuple[int, bytes, int]] = deque()
        """Taken and not begun: number of the queue, record, milliseconds left or -1. Whoever pops one from it
        has it: this loop begins it, the steward gives it back."""
        self.taking_stock = threading.Lock()
        """Held to look at the slot, and to give back what is in it: what is on its way back is not begun."""
        self.left: dict[str, None] = {}
        """Ids of the last messages whose callers left. Whoever adds one looks at `delivery` after that."""
        self.ended = False
        self._signing = threading.Lock()
        """Held to give a sign of life, and to leave for good: who has left gives none."""
        self._last_beat = 0.0
        self.outbox = Outbox(place, queues, self.name, is_lone)
        self._since = 0.0
        self._most = 1
        self._missed = False
        """Whether it may have been woken up in vain: then it looks before it waits."""

    def work(self) -> None:
        """Receive and handle until stopped, through whatever happens to Redis meanwhile."""
        try:
            steadily(self.beat, lambda: self._last_beat > 0 or self._stopped())
            steadily(self._session, self._stopped, lost=lambda: self._told(False))
            with translated_or_logged():
                self.outbox.ask(("PING",))
        finally:
            self.outbox.drop()
            with self._signing:
                self.ended = True
            self._alarm.ring()
            with translated_or_logged():
                self._place.client(self.queues[0].queue).publish(self.queues[0].channel, "")

    def _session(self) -> None:
        """Serve on one connection, until it breaks."""
        self._missed = True
        self._take_stock()
        self._told(True)
        while not self._stopped():
            if self.backlog:
                self._work_off()
            else:
                self._receive()

    def _receive(self) -> None:
        """Take what is there; wait for it if there is nothing."""
        answer = self.outbox.receive(self._most, wait=not self._missed)
        self._missed = answer == scripts.GIVEN_UP
        if answer == scripts.GIVEN_UP:
            logger.warning("worker %s was given up: what it held last may be done again", self.name)
            self._last_beat = 0.0
            self.beat()
        elif answer == scripts.NOT_EMPTY:
            self._take_stock()
        elif answer:
            for n in range(0, len(answer), 3):
                self.backlog.append((answer[n], answer[n + 1], answer[n + 2]))
            if len(answer) > 3:
                self._alarm.ring()

    def _take_stock(self) -> None:
        """The backlog is what the slots have: also what was taken with an answer that was lost, not what was
        recovered by others meanwhile."""
        with self.taking_stock:
            answers = self.outbox.ask(*(("LRANGE", keys.slot(self.name), 0, -1) for keys in self.queues))
        self.backlog.clear()
        for number, records in enumerate(answers):
            for record in records:
                self.backlog.append((number, record, scripts.UNWANTED if record[:1] in b"wW" else -1))
        self._alarm.ring()

    def _work_off(self) -> None:
        begun, handled = time.perf_counter(), 0
        while not self._stopped():
            try:
                each = self.backlog.popleft()
            except IndexError:  # done, or given back by the steward
                break
            self._handle(*each)
            handled += 1
            if self.backlog and self.outbox.waits_for() > FLUSH_AFTER:
                self.outbox.flush()
        took = time.perf_counter() - begun
        if self._options.max_deliveries > 1:
            fits = AHEAD * handled / took
            if fits >= 2 * self._most and self._most < MOST:
                self._most *= 2
            elif fits < self._most and self._most > 1:
                self._most //= 2

    # The handler.

    def _handle(self, number: int, record: bytes, left: int) -> None:
        keys = self.queues[number]
        try:
            parts = Record.unpacked(record)
            frame = parts.frame if not parts.is_large else self._fetched(keys, parts.id)
            message = unpacked(frame)
        except (SerializationError, ValueError) as error:
            logger.error("refused a record in queue %r: %s", keys.queue, error)
            id, lane = [*record.decode(errors="replace").split("\n", 3), "", "", ""][1:3]
            lost = packed(Message(headers={"id": id[:128], LOST: "it could not be read"}))
            self.outbox.owe(Ack(keys, id, lane, entry(1, id, lost) if lane else b""))
            return
        if left == scripts.UNWANTED:
            [left] = self.outbox.ask(("PTTL", keys.token(parts.id)))
        if left == scripts.UNWANTED:
            self.outbox.owe(Ack(keys, parts.id, "", b""))
            return
        headers: Any = message.headers  # just made, and nobody else's
        if left >= 0 and "ttl" in headers:  # else its token only says that its caller lives
            headers["ttl"] = str(left / 1000)
        if parts.deaths:
            headers["deliveries"] = str(parts.deaths + 1)
        delivery = RedisDelivery(self, keys, parts, message)
        self._since = time.monotonic()
        self.delivery = delivery
        if parts.id in self.left:
            delivery.cancelled = True
        reply = self._handled(delivery) or delivery.said
        self.delivery = None
        if delivery.unsettled:  # what was taken after it is acknowledged after it
            raise BackendUnavailable(f"{parts.id} could not be postponed, or buried")
        if not delivery.settled:
            inbox = parts.lane if not parts.once else ""  # it goes to more than one
            last = entry(delivery.number, parts.id, reply) if reply else b""
            self.outbox.owe(Ack(keys, parts.id, inbox, last))

    def _handled(self, delivery: RedisDelivery) -> bytes:
        """The last reply, in its frame."""
        wanted = delivery.record.lane or delivery.record.once
        if delivery.record.deaths >= scripts.FORBIDDEN:  # it was begun here, and could not be buried
            with suppress(BackendUnavailable):
                delivery.bury("it was begun, and may not be done twice", None)
            return b""
        try:
            last = self._handler(delivery)
            return packed(last) if last is not None and wanted else b""
        except Exception:
            logger.exception("a handler raised: %r", delivery.message)
            failed = Message(headers={"id": delivery.message.id[:128], LOST: "its handler failed"})
            return packed(failed) if wanted else b""

    def _fetched(self, keys: Keys, id: str) -> bytes:
        frame = persistent(lambda: self._place.client(keys.queue).get(keys.body(id)), self._options.lease)
        if frame is None:
            raise ValueError("its body has expired")
        return bytes(frame)

    def carry_out(self, command: str, *arguments: Any) -> Any:
        """Run a command or a script on the connection of this worker, from within its handler."""
        return persistent(lambda: self.outbox.ask((command, *arguments))[0], self._options.lease)

    # Signs of life.

    def beat(self) -> None:
        """Say that this worker lives, if that is due."""
        if time.monotonic() - self._last_beat < self._options.lease / BEATS_PER_LEASE:
            return
        with self._signing:
            if not self.ended:
                self._beat()

    def _beat(self) -> None:
        client = self._place.client(self.queues[0].queue)
        tags = {keys.alive(self.name) for keys in self.queues}
        lease = milliseconds(self._options.lease)
        pipe = client.pipeline(transaction=False)
        for key in tags:
            pipe.pexpire(key, lease)  # goes on when the memory is used up
        if not all(pipe.execute()):
            places = [key for keys in self.queues for key in (keys.alive(self.name), keys.workers)]
            evaluated(client, scripts.SIGN_ON, places, self.name, lease)
        self._last_beat = time.monotonic()

    @property
    def is_watched(self) -> bool:
        """Whether others wait for the handler that runs now: messages that were taken with its own, callers
        whose replies leave with its reply. They are seen to if it takes long."""
        return bool(self.backlog) or not self.outbox.is_empty

    @property
    def is_laden(self) -> bool:
        """Whether anything waits for the handler that runs now."""
        delivery = self.delivery
        return self.is_watched or (delivery is not None and delivery.unsaid)

    def is_slow(self) -> bool:
        """Whether the handler that runs now keeps waiting what was taken with its message."""
        return self.delivery is not None and time.monotonic() - self._since > TOO_LONG
