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
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any
from uuid import uuid4

import redis
from redis.exceptions import NoScriptError

from ...errors import client_closed
from .._retry import backoff
from .aio_connection import AioConnection, connect
from .calls import UNCONFIRMED, full
from .connection import BLOCK, CLOCK_IS_GOOD, Command, is_wrong_type, unavailable
from .keys import Keys
from .pending import AsyncRedisReplies, Controls, InOneLine, PendingSend, Putting
from .scripts import SEND_LATER, SEND_MANY, SEND_ONCE, WITHDRAW
from .sending import UNATTENDED, Sender
from .servers import SOCKET_TIMEOUT, is_elsewhere

SCRIPTS = (SEND_MANY, SEND_ONCE, SEND_LATER, WITHDRAW)
"""Each takes a round trip when a connection is opened."""
AT_ONCE = 64
"""Messages that one command sends, at most: others are not kept waiting by it for long."""
READ_AT_ONCE = 16 * 1024 * 1024
"""Bytes of replies that are read in one go, by the size of the last ones; but at most 256 replies."""
SOON = 0.01
"""Seconds that a withdrawal lets the message go first that it withdraws, on another connection."""
LATE = 5.0
"""Seconds after which a message that was not confirmed is not sent again before the inbox was read."""


class Session:
    """Of one event loop with the server that has the queues of one hash tag."""

    def __init__(self, sender: Sender, keys: Keys) -> None:
        self.loop = asyncio.get_running_loop()
        self.inbox = keys.inbox(uuid4().hex)
        self.pending: dict[str, AsyncRedisReplies] = {}
        self._sender, self._keys = sender, keys
        self._main: AioConnection | None = None
        self._side: AioConnection | None = None
        self._line = InOneLine()
        self._opening: asyncio.Future[None] | None = None
        self._underway: dict[str, PendingSend] = {}
        """What is not known to have arrived, in the order of sending; of it,"""
        self._outbox: dict[str, PendingSend] = {}
        """what is to be written."""
        self._controls = Controls()
        self._flushing: asyncio.Handle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self.failure: redis.RedisError | None = None
        self._failures = 0
        self._by_text = False
        self._had_a_wire = self._armed = self._abandoned = False
        self._is_spoiled = False
        """Whether the inbox is something else, which anybody may have put there."""
        self._head: Any = None
        self._read, self._last = 0, b""
        """How many entries of the inbox were read and are still there, and how the last of them begins."""
        self._attended = self._ticks = self._opens_until = self.loop.time()
        """When the next look is due, and a connection that is opened: past that, nobody may see to it."""

    def post(self, each: PendingSend) -> None:
        self._underway[each.id] = each
        self._outbox[each.id] = each
        self._flush_soon()
        self._tick_soon()

    def withdraw(self, replies: AsyncRedisReplies) -> None:
        """What was not started is not done, what runs is told."""
        each = self._underway.pop(replies.id, None)
        self._outbox.pop(replies.id, None)
        if each is None or each.written is not None:
            said = self._sender.withdrawal(replies.keys, replies.id, replies.ttl, replies.record)
            self._say(said, SOON if each else 0.0)

    def _say(self, commands: Sequence[Command], later: float = 0.0) -> None:
        self._controls.add(due := self.loop.time() + later, commands)
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
        for each in self._underway.values():
            each.fail(client_closed())
        self._underway.clear()
        self._outbox.clear()
        end = self.loop.time() + SOCKET_TIMEOUT
        while self._controls and self.failure is None and (left := end - self.loop.time()) > 0:
            await asyncio.sleep(max(0.0, min(left, self._controls.last - self.loop.time())))
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

    def _is_wanted(self) -> bool:
        return bool(self.pending or self._underway or self._controls)

    def _flush(self) -> None:
        """Write what is to be written; on the first connection, if nobody waits there yet, and wait there."""
        self._flushing = None
        wire = self._side if self._armed else self._main
        if wire is None:
            if self._outbox or self._controls or (self.pending and not self._armed):
                self._open_soon()
            return
        controls = (wire.say(*each) for each in self._controls.due(self.loop.time()))
        waiting = self._wait(wire) if wire is self._main and self.pending else ()
        wire.write(chain(self._written(wire), controls, waiting))
        self._tick_soon()

    def _written(self, wire: AioConnection) -> Iterator[bytes]:
        now = self.loop.time()
        groups: dict[tuple[Keys, bool], list[PendingSend]] = {}
        sent = int((now + wire.clock_offset) * 1000)
        outbox, self._outbox = self._outbox, {}
        for each in outbox.values():
            if not self._line.lets_through(each, wire):
                self._outbox[each.id] = each
                continue
            if each.written is None and not each.special:
                each.stamp(sent)
            each.written = now
            if isinstance(each, Putting):
                yield wire.ask(each.special, partial(self._on_put, each)) + wire.say(each.expire)
                continue
            if each.before:
                yield wire.say(*each.before)
            if not each.special:
                groups.setdefault((each.keys, each.is_asked), []).append(each)
                continue
            if each.is_ordered:
                yield from self._grouped(wire, groups)
                groups = {}
            yield wire.ask(each.special, partial(self._on_outcomes, [each]))
        yield from self._grouped(wire, groups)

    def _grouped(
        self, wire: AioConnection, groups: dict[tuple[Keys, bool], list[PendingSend]]
    ) -> Iterator[bytes]:
        """What is asked or said of each of these."""
        for (keys, is_asked), sends in groups.items():
            for several in (sends[n : n + AT_ONCE] for n in range(0, len(sends), AT_ONCE)):
                command = self._sending(wire, keys, several)
                if is_asked:
                    yield wire.ask(command, partial(self._on_outcomes, several))
                else:
                    yield wire.say(command)

    def _sending(self, wire: AioConnection, keys: Keys, sends: list[PendingSend]) -> Command:
        places = (keys.queue, keys.wakeup, self.inbox)
        read = 0
        if wire is self._main:
            read, self._read = self._read, 0
        bounds = (self._sender.max_length, self._sender.sweep)
        command = [SEND_MANY, len(places), *places, read, self._last, *bounds]
        for each in sends:
            command += (each.id, each.record, each.lifetime)
        return command

    def _wait(self, wire: AioConnection) -> Iterator[bytes]:
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
            key, count = id.decode(), int(number)
        except ValueError:  # it is none of ours
            return
        if replies := self.pending.get(key):
            self._underway.pop(key, None)
            replies.put(count, frame)

    def _on_outcomes(self, sends: list[PendingSend], answer: Any) -> None:
        if self._line.has_arrived(sends) and self._outbox:
            self._flush_soon()
        if isinstance(answer, redis.RedisError):
            self._on_refusal(sends, answer)
            return
        self._failures = 0
        for each, outcome in zip(sends, answer if isinstance(answer, list) else [answer], strict=True):
            self._underway.pop(each.id, None)
            if outcome < 0:
                each.fail(full(each.keys))
            else:
                each.succeed()

    def _on_put(self, each: Putting, answer: Any) -> None:
        self._underway.pop(each.id, None)
        each.answered(answer)

    def _on_refusal(self, sends: list[PendingSend], error: redis.RedisError) -> None:
        if self._is_refused(error, only_if_elsewhere=True):
            return
        for each in sends:  # no memory left, perhaps: a little later there may be
            if each.id in self._underway:
                self._underway[each.id] = self._underway.pop(each.id)
                each.written, each.is_asked = self.loop.time(), False
        self._give_up_late(error)

    def _is_refused(self, answer: Any, *, only_if_elsewhere: bool = False) -> bool:
        """Whether it is an error, after which the connections are given up."""
        if not isinstance(answer, redis.RedisError):
            return False
        self._by_text = isinstance(answer, NoScriptError)  # somebody flushes them: do without
        self._is_spoiled = self._is_spoiled or is_wrong_type(answer)
        if only_if_elsewhere and not (self._by_text or is_elsewhere(answer)):
            return False
        self._on_loss(answer)
        return True

    # Connecting.

    def _open_soon(self) -> None:
        """Have a connection opened: the first one again and again while somebody wants it."""
        is_opening = self._opening is not None and self.loop.time() < self._opens_until
        if not is_opening and not self._abandoned:
            pause = backoff(self._failures - 1, BLOCK) if self._failures else 0
            self._opens_until = self.loop.time() + pause + UNCONFIRMED
            self._opening = self.loop.create_future()
            self.loop.call_later(pause, self._open)

    def _open(self) -> None:
        try:
            self._opens_until = self.loop.time() + 2 * SOCKET_TIMEOUT
            servers, key = self._sender.servers, self._keys.queue
            by_text, self._by_text = self._by_text, False
            connect(servers, key, SCRIPTS, by_text=by_text, opened=self._on_opened, lost=self._on_loss)
        except BaseException as error:
            self._on_opened(redis.ConnectionError(f"interrupted: {error!r}"))
            raise

    def _on_opened(self, made: AioConnection | redis.RedisError) -> None:
        if opening := self._opening:
            self._opening = None
            opening.set_result(None)
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

    def _begin(self, wire: AioConnection) -> None:
        is_first, self._had_a_wire = not self._had_a_wire, True
        if is_first:
            self._outbox = self._underway.copy()
            self._flush()
            return
        self._armed = True  # until it is known what came meanwhile
        room = wire.say(("UNLINK", self.inbox)) if self._is_spoiled else b""
        self._is_spoiled = False
        wire.write([room, wire.ask(("LRANGE", self.inbox, 0, -1), self._on_stock)])
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
            self._sender.servers.moved()
        for wire in filter(None, (self._main, self._side)):
            wire.drop()
        self._main = self._side = self._head = None
        self._armed, self._read, self._line = False, 0, InOneLine()
        self._outbox.clear()
        for each in self._underway.values():
            each.is_asked = True
        if self._is_wanted():
            self._open_soon()

    def _give_up_late(self, error: redis.RedisError) -> None:
        now = self.loop.time()
        for each in [each for each in self._underway.values() if each.until <= now]:
            self._underway.pop(each.id).fail(unavailable(error))
        self._controls.forget(now)

    # Time.

    def _tick_soon(self) -> None:
        if self._ticks <= self.loop.time() and self._is_wanted():
            self._ticks = self.loop.time() + UNCONFIRMED
            self._ticking = self.loop.call_at(self._ticks, self._tick, self._ticks)

    def _tick(self, due: float) -> None:
        """See to what takes long, and to what was interrupted. If this is, the next message does so."""
        now = self.loop.time()
        if self._flushing or self._outbox or (self.pending and not self._armed):
            self._flush()
        for wire in filter(None, (self._main, self._side)):
            if now - wire.clock_read > CLOCK_IS_GOOD:
                wire.read_clock()
        if now - due < BLOCK:  # else it is this loop that was late, and not the others
            for wire in filter(None, (self._main, self._side)):
                if wire.is_waiting and now - wire.heard > SOCKET_TIMEOUT:
                    wire.fail(redis.TimeoutError(f"no answer within {SOCKET_TIMEOUT:g} s"))
            self._repeat(now)
        for replies in self.pending.values():
            if replies.deadline is not None:
                self.wake_in_time(replies, replies.deadline - now)
        if now - self._attended > UNATTENDED / 60:
            self._attended = now
            for replies in [each for each in self.pending.values() if each.ttl is None]:
                self._say(self._sender.attend(replies.keys, replies.id))  # that somebody waits still
        self._tick_soon()

    def _repeat(self, now: float) -> None:
        """Send again what may have been sent in vain."""
        late = []
        for each in self._underway.values():
            if each.written is None or now - each.written < UNCONFIRMED:
                break
            if not each.is_asked:
                late.append(each)
        if late and now - (late[0].written or now) > LATE:
            self._on_loss(redis.ConnectionError("too late to send again"))
            return
        for each in late:
            each.is_asked = True
            self._underway[each.id] = self._outbox[each.id] = self._underway.pop(each.id)
        if late:
            self._flush_soon()
