"""Callers in an event loop, on Redis natively: all that wait share two connections and one inbox.

As long as nobody waits, what is sent leaves on the first connection, together with the wait for what comes
back. While that wait lasts, further messages leave on the second one, which is opened when it is needed. What
is sent in one turn of the loop goes in one command, and the replies that have come are read in one: an
inbox is a list, whose entries are taken away once they have been read.

That a message was sent, its reply confirms; if that takes longer, it is sent again, with the same id, and
that is answered. If a connection breaks, both are given up; on the next ones the inbox is read first, so that
nothing is sent again that was answered.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import redis
from redis.exceptions import NoScriptError

from ...errors import Cancelled
from .._retry import backoff
from .aio_connection import Wire, open_wire
from .calls import UNATTENDED, UNCONFIRMED, full
from .connection import BLOCK, SPIN, Command, Lookout, milliseconds, unavailable
from .keys import Keys
from .pending import AsyncRedisReplies, Errand, Sender
from .scripts import SEND_LATER, SEND_MANY, SEND_ONCE
from .servers import SOCKET_TIMEOUT, is_elsewhere

SCRIPTS = (SEND_MANY, SEND_ONCE, SEND_LATER)
AT_ONCE = 64
"""Messages that one command sends, at most: others are not kept waiting by it for long."""
READ_AT_ONCE = 16 * 1024 * 1024
"""Bytes of replies that are read in one go, by the size of the last ones; but at most 256 replies."""
SOON = 0.01
"""Seconds that a withdrawal lets the message go first that it withdraws, on another connection."""
KEEP_WORDS = 60.0
"""Seconds that a withdrawal is kept while Redis cannot be had."""
LATE = 5.0
"""Seconds after which a message that was not confirmed is not sent again before the inbox was read."""


class Session:
    """Of one event loop with the server that has the queues of one hash tag."""

    def __init__(self, backend: Sender, keys: Keys) -> None:
        self.loop = asyncio.get_running_loop()
        self.inbox = keys.inbox(uuid4().hex)
        self.pending: dict[str, AsyncRedisReplies] = {}
        self._backend, self._keys = backend, keys
        self._main: Wire | None = None
        self._side: Wire | None = None
        self._opening: asyncio.Future[None] | None = None
        self._underway: dict[str, Errand] = {}
        """What is not known to have arrived, in the order of sending; of it,"""
        self._outbox: dict[str, Errand] = {}
        """what is to be written."""
        self._words: deque[tuple[float, Sequence[Command]]] = deque()
        """What else is to be said, and when."""
        self._flushing: asyncio.Handle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self.failure: redis.RedisError | None = None
        self._failures = 0
        self._lookout = Lookout()
        self._by_text = False
        self._had_a_wire = self._armed = self._abandoned = False
        self._head: Any = None
        self._read, self._last = 0, b""
        """How many entries of the inbox were read and are still there, and how the last of them begins."""
        self._ticked = self._attended = self.loop.time()

    def post(self, errand: Errand) -> None:
        self._underway[errand.id] = errand
        self._outbox[errand.id] = errand
        self._flush_soon()
        self._tick_soon()

    def withdraw(self, replies: AsyncRedisReplies) -> None:
        """What was not started is not done, what runs is told."""
        errand = self._underway.pop(replies.id, None)
        self._outbox.pop(replies.id, None)
        if errand is None or errand.written is not None:
            keys, id = replies.keys, replies.id
            self._say([("DEL", keys.token(id)), ("PUBLISH", keys.channel, id)], SOON if errand else 0.0)

    def _say(self, commands: Sequence[Command], later: float = 0.0) -> None:
        due = self.loop.time() + later
        self._words.append((due, commands))
        self.loop.call_at(due, self._flush_soon)

    def wake_in_time(self, replies: AsyncRedisReplies, left: float) -> None:
        """Somebody waits for so many seconds more, and is told if nothing came. A time limit that is far off
        costs nothing but a look now and then."""
        if left < 2 * UNCONFIRMED:
            self.loop.call_later(left, replies.late)

    async def close(self) -> None:
        """Fail what waits, say what is to be said, and give up the connections."""
        for replies in list(self.pending.values()):
            replies.cancel()
        for errand in self._underway.values():
            errand.fail(Cancelled("the client was closed"))
        self._underway.clear()
        self._outbox.clear()
        end = self.loop.time() + SOCKET_TIMEOUT
        while self._words and self.failure is None and (left := end - self.loop.time()) > 0:
            await asyncio.sleep(max(0.0, min(left, self._words[-1][0] - self.loop.time())))
            self._flush()
            if self._opening:
                await asyncio.wait([self._opening], timeout=left)
        for wire in filter(None, (self._main, self._side)):
            await wire.flushed(SOCKET_TIMEOUT)
        self.abandon()

    def abandon(self) -> None:
        """Give up the connections."""
        self._abandoned = True
        for timer in self._flushing, self._ticking:
            if timer and not self.loop.is_closed():
                timer.cancel()
        for wire in filter(None, (self._main, self._side)):
            wire.drop()
        self._main = self._side = None

    # Writing.

    def _flush_soon(self) -> None:
        if self._flushing is None:
            self._flushing = self.loop.call_soon(self._flush)

    @property
    def _is_wanted(self) -> bool:
        return bool(self.pending or self._underway or self._words)

    def _flush(self) -> None:
        """Write what is to be written; on the first connection, if nobody waits there yet, and wait there."""
        self._flushing = None
        wire = self._side if self._armed else self._main
        if wire is None:
            if self._outbox or self._words or (self.pending and not self._armed):
                self._open_soon()
            return
        parts = [*self._written(wire), *self._said(wire)]
        if waits := wire is self._main and bool(self.pending):
            parts += self._wait(wire)
        if parts:
            wire.write(parts)
        if waits and len(self.pending) == 1 and self._lookout.is_worth_it():
            self._look(time.perf_counter() + SPIN)
        self._tick_soon()

    def _look(self, end: float) -> None:
        """Keep the loop awake until there is an answer, or for so long; it does what else there is to do."""
        if not self._armed:
            self._lookout.found()
        elif time.perf_counter() > end:
            self._lookout.missed()
        else:
            os.sched_yield()  # other processes may have work for this processor
            self.loop.call_soon(self._look, end)

    def _written(self, wire: Wire) -> Iterator[bytes]:
        now = self.loop.time()
        groups: dict[tuple[Keys, bool], list[Errand]] = {}
        for errand in self._outbox.values():
            errand.written = now
            if errand.before:
                yield wire.say(*errand.before)
            if errand.special:
                yield wire.ask(errand.special, partial(self._on_outcomes, [errand]))
            else:
                groups.setdefault((errand.keys, errand.is_asked), []).append(errand)
        self._outbox.clear()
        for (keys, is_asked), errands in groups.items():
            for several in (errands[n : n + AT_ONCE] for n in range(0, len(errands), AT_ONCE)):
                command = self._sending(wire, keys, several)
                if is_asked:
                    yield wire.ask(command, partial(self._on_outcomes, several))
                else:
                    yield wire.say(command)

    def _sending(self, wire: Wire, keys: Keys, errands: list[Errand]) -> Command:
        places = (keys.queue, keys.bell, self.inbox)
        read = 0
        if wire is self._main:
            read, self._read = self._read, 0
        bounds = (self._backend.max_length, self._backend.sweep)
        command = [SEND_MANY, len(places), *places, read, self._last, *bounds]
        for errand in errands:
            command += (errand.id, errand.record, errand.lifetime)
        return command

    def _said(self, wire: Wire) -> Iterator[bytes]:
        now = self.loop.time()
        while self._words and self._words[0][0] <= now:
            yield wire.say(*self._words.popleft()[1])

    def _wait(self, wire: Wire) -> Iterator[bytes]:
        self._armed = True
        if self._read:
            yield wire.say(self._sending(wire, self._keys, []))
        yield wire.ask(("BLMOVE", self.inbox, self.inbox, "LEFT", "LEFT", BLOCK), self._on_head)
        most = READ_AT_ONCE // max(READ_AT_ONCE // 256, len(self._head or b""))
        yield wire.ask(("LRANGE", self.inbox, 1, max(1, most)), self._on_rest)

    # Reading.

    def _on_head(self, answer: Any) -> None:
        if not self._is_refused(answer):
            self._head = answer

    def _on_rest(self, answer: Any) -> None:
        if self._is_refused(answer):
            return
        self._failures, self._armed = 0, False
        if self._head is not None:
            entries = [self._head, *answer]
            self._read, self._last = len(entries), b"\n".join(entries[-1].split(b"\n", 2)[:2]) + b"\n"
            for entry in entries:
                self._deliver(entry)
        if self.pending:
            self._flush_soon()

    def _deliver(self, entry: bytes) -> None:
        try:
            number, id, frame = entry.split(b"\n", 2)
            key, place = id.decode(), int(number)
        except ValueError:  # it is none of ours
            return
        if replies := self.pending.get(key):
            self._underway.pop(key, None)
            replies.put(place, frame)

    def _on_outcomes(self, errands: list[Errand], answer: Any) -> None:
        if isinstance(answer, redis.RedisError):
            self._on_refusal(errands, answer)
            return
        self._failures = 0
        for errand, outcome in zip(errands, answer if isinstance(answer, list) else [answer], strict=True):
            self._underway.pop(errand.id, None)
            if outcome < 0:
                errand.fail(full(errand.keys))
            else:
                errand.succeed()

    def _on_refusal(self, errands: list[Errand], error: redis.RedisError) -> None:
        if self._is_refused(error, only_if_elsewhere=True):
            return
        for errand in errands:  # no memory left, perhaps: a little later there may be
            if errand.id in self._underway:
                self._underway[errand.id] = self._underway.pop(errand.id)
                errand.written, errand.is_asked = self.loop.time(), False
        self._give_up_late(error)

    def _is_refused(self, answer: Any, *, only_if_elsewhere: bool = False) -> bool:
        """Whether it is an error, after which the connections are given up."""
        if not isinstance(answer, redis.RedisError):
            return False
        self._by_text = isinstance(answer, NoScriptError)  # somebody flushes them: do without
        if only_if_elsewhere and not (self._by_text or is_elsewhere(answer)):
            return False
        self._on_loss(answer)
        return True

    # Connecting.

    def _open_soon(self) -> None:
        """Have a connection opened: the first one again and again while somebody wants it."""
        if self._opening is None and not self._abandoned:
            self._opening = self.loop.create_future()
            self.loop.call_later(backoff(self._failures - 1, BLOCK) if self._failures else 0, self._open)

    def _open(self) -> None:
        place, key = self._backend.place, self._keys.queue
        by_text, self._by_text = self._by_text, False
        open_wire(place, key, SCRIPTS, by_text=by_text, opened=self._on_opened, lost=self._on_loss)

    def _on_opened(self, made: Wire | redis.RedisError) -> None:
        if self._opening:
            self._opening.set_result(None)
            self._opening = None
        if isinstance(made, redis.RedisError):
            self._on_loss(made)
            self._give_up_late(made)
        elif self._abandoned or self._side:
            made.drop()
        elif self._main is None:
            self.failure, self._main = None, made
            self._begin(made)
        else:
            self._side = made
            self._flush_soon()

    def _begin(self, wire: Wire) -> None:
        if not self._had_a_wire:
            self._had_a_wire = True
            self._outbox = self._underway.copy()
            self._flush()
            return
        self._armed = True  # until it is known what came meanwhile
        wire.write([wire.ask(("LRANGE", self.inbox, 0, -1), self._on_stock)])
        self._tick_soon()

    def _on_stock(self, answer: Any) -> None:
        if self._is_refused(answer):
            return
        self._armed = False
        for entry in answer:
            self._deliver(entry)
        self._outbox = self._underway.copy()
        self._flush_soon()

    def _on_loss(self, error: Exception) -> None:
        """Give both connections up; what is not known to have arrived is to be sent again."""
        self.failure = error if isinstance(error, redis.RedisError) else redis.ConnectionError(str(error))
        self._failures += 1
        if is_elsewhere(self.failure):
            self._backend.place.moved()
        for wire in filter(None, (self._main, self._side)):
            wire.drop()
        self._main = self._side = self._head = None
        self._armed, self._read = False, 0
        self._outbox.clear()
        for errand in self._underway.values():
            errand.is_asked = True
        if self._is_wanted:
            self._open_soon()

    def _give_up_late(self, error: redis.RedisError) -> None:
        now = self.loop.time()
        for errand in [errand for errand in self._underway.values() if errand.until <= now]:
            del self._underway[errand.id]
            errand.fail(unavailable(error))
        while self._words and self._words[0][0] < now - KEEP_WORDS:
            self._words.popleft()

    # Time.

    def _tick_soon(self) -> None:
        if self._ticking is None and self._is_wanted:
            self._ticked = self.loop.time()
            self._ticking = self.loop.call_later(UNCONFIRMED, self._tick)

    def _tick(self) -> None:
        """See to what takes long."""
        self._ticking = None
        now = self.loop.time()
        if now - self._ticked < BLOCK:  # else it is this loop that was late, and not the others
            for wire in filter(None, (self._main, self._side)):
                if wire.is_waiting and now - wire.heard > SOCKET_TIMEOUT:
                    wire.fail(redis.TimeoutError(f"no answer within {SOCKET_TIMEOUT:g} s"))
            self._repeat(now)
        for replies in self.pending.values():
            if replies.deadline is not None:
                self.wake_in_time(replies, replies.deadline - now)
        if now - self._attended > UNATTENDED / 60:
            self._attended = now
            self._attend()
        self._tick_soon()

    def _repeat(self, now: float) -> None:
        """Send again what may have been sent in vain."""
        late = []
        for errand in self._underway.values():
            if errand.written is None or now - errand.written < UNCONFIRMED:
                break
            if not errand.is_asked:
                late.append(errand)
        if late and now - (late[0].written or now) > LATE:
            self._on_loss(redis.ConnectionError("too late to send again"))
            return
        for errand in late:
            errand.is_asked = True
            self._underway[errand.id] = self._outbox[errand.id] = self._underway.pop(errand.id)
        if late:
            self._flush_soon()

    def _attend(self) -> None:
        """A caller without a time limit says that it still waits."""
        for replies in self.pending.values():
            if not replies.expires:
                keys = replies.keys.token(replies.id), replies.keys.body(replies.id)
                self._say([("PEXPIRE", key, milliseconds(UNATTENDED)) for key in keys])
