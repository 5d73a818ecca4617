"""Callers in event loops. Each loop has sockets of its own, and reads them when their descriptors say so.

Those are edge-triggered: they say once that something has changed, also while something is sent. So whoever
has sent something looks once more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ...errors import Cancelled, RpcTimeout, client_closed
from ...loops import PerLoop
from ...transport import STREAM, Address, AsyncReplies, Message
from .._retry import patience
from .blocking import FAREWELL, Watch, nobody
from .peers import TICK
from .session import END
from .workers import GREETING, Pending, Workers

T = TypeVar("T")
SOON = 0.01
"""Seconds after which what ZeroMQ had no room for is written again."""


class AsyncZeromq:
    """A ZeromqBackend for callers in event loops."""

    def __init__(
        self, make: Callable[[], tuple[Workers, Watch]], features: frozenset[str], max_message: int | None
    ) -> None:
        self.features, self.max_message = features, max_message
        self._loops = PerLoop(lambda: LoopCaller(*make()), LoopCaller.abandon)

    async def send(self, to: Address, message: Message) -> None:
        caller = self._loops.here()
        if to.kind == "topic":
            await caller.publish(to, message, lambda reply: None)
        else:
            await caller.send(to, message)

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        caller = self._loops.here()
        replies = AsyncZeromqReplies(caller)
        if to.kind == "topic":
            replies.pendings = await caller.publish(to, message, replies.put)
        else:
            replies.pendings = [pending := Pending(to, message, replies.put)]
            try:
                caller.submit(pending)
            except BaseException:
                replies.close()
                raise
        caller.open.add(replies)
        return replies

    async def close(self) -> None:
        if caller := self._loops.pop():
            await caller.close()


class LoopCaller:
    """What calls in one event loop."""

    def __init__(self, workers: Workers, watch: Watch) -> None:
        self.workers, self.loop = workers, asyncio.get_running_loop()
        workers.peers.gathers = True
        self.open: set[AsyncZeromqReplies] = set()
        self.is_over = False
        self._ended = threading.Event()
        self._readers: list[int] = []
        self._will_work = False
        self._watchers: list[asyncio.Future[None]] = []
        """Woken whenever something may have changed."""
        here = threading.get_ident()

        def found(endpoints: list[str]) -> None:
            if threading.get_ident() == here:
                self._connect(endpoints)
            else:
                with suppress(RuntimeError):  # the loop was closed
                    self.loop.call_soon_threadsafe(self._connect, endpoints)

        watch(found, self._ended)
        self._connect([*workers.peers.links])
        self._ticks = self.loop.time() + TICK
        """When there is to be work at the latest: once that is past, nobody may see to it any more."""
        self._ticking = self.loop.call_at(self._ticks, self._work)

    def _connect(self, endpoints: list[str]) -> None:
        if self.is_over:
            return
        self._stop_reading()
        self.workers.peers.connect(endpoints)
        self._read()

    def _read(self) -> None:
        """Whatever there is to be read now."""
        if (descriptors := self.workers.peers.fds()) != self._readers:
            self._stop_reading()
            self._readers = descriptors
            for descriptor in descriptors:
                self.loop.add_reader(descriptor, self._work)
        self.work_soon()

    def _stop_reading(self) -> None:
        for descriptor in self._readers:
            self.loop.remove_reader(descriptor)
        self._readers = []

    def work_soon(self) -> None:
        """What was sent may have made something come."""
        if not self._will_work:
            self._will_work = True
            self.loop.call_soon(self._work)

    def _work(self) -> None:
        self._will_work = False
        if self.is_over:
            return
        if self._ticks <= (now := self.loop.time()):
            self._ticks = now + TICK
            self._ticking = self.loop.call_at(self._ticks, self._work)
            for replies in self.open:
                replies.wake_in_time(now)
        self._in_step(self._work_off)
        if self.workers.peers.has_more:
            self.work_soon()
        elif self.workers.peers.is_blocked():
            self.loop.call_later(SOON, self._work)
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _work_off(self) -> None:
        self.workers.work()
        self.workers.peers.write()

    def _in_step(self, action: Callable[..., object], *arguments: Any) -> None:
        """Do this with the sockets. If it is interrupted, all sessions start over."""
        try:
            action(*arguments)
        except Exception:
            raise
        except BaseException:
            self.workers.peers.start_over()
            self.work_soon()
            raise

    async def until(self, happened: Callable[[], T], seconds: float) -> T:
        """What `happened` returns, as soon as it is true, or the time is up. Raises Cancelled if this was
        closed."""
        end = self.loop.time() + seconds
        while not (result := happened()) and self.loop.time() < end:
            if self.is_over:
                raise client_closed()
            watcher: asyncio.Future[None] = self.loop.create_future()
            self._watchers.append(watcher)
            await asyncio.wait([watcher], timeout=end - self.loop.time())
        return result

    def submit(self, pending: Pending) -> None:
        self._in_step(self.workers.submit, pending)
        self.work_soon()

    async def send(self, to: Address, message: Message) -> None:
        outcome: list[Exception | None] = []
        pending = Pending(
            to, message, lambda last: outcome.append(last) if isinstance(last, Exception) else None
        )
        pending.accepted = lambda: outcome.append(None)
        self.submit(pending)
        seconds = patience(message.ttl)
        try:
            await self.until(lambda: outcome, seconds)
        finally:
            if not outcome:
                self.withdraw([pending])
        if not outcome:
            raise nobody(to, seconds)
        if outcome[0] is not None:
            raise outcome[0]

    async def publish(
        self, to: Address, message: Message, put: Callable[[Message | Exception], object]
    ) -> list[Pending]:
        """Send it to all that serve a topic; returns once they have it."""
        accepted: list[None] = []

        def make(at: Address) -> Pending:
            pending = Pending(at, message, put)
            pending.accepted = lambda: accepted.append(None)
            return pending

        await self.until(self.workers.is_greeted, 3600)
        await self._look()
        sent = self.workers.publish(to, make)
        self.work_soon()
        await self.until(lambda: len(accepted) >= len(sent), patience(message.ttl))
        return sent

    async def _look(self) -> None:
        """Until it is known whether somebody has come where nobody was."""
        peers = self.workers.peers
        look = peers.look(GREETING, self.work_soon)
        if look.is_over():
            return
        self._read()
        try:
            await self.until(look.is_over, GREETING)
        finally:
            peers.end_look(look)

    def withdraw(self, pendings: list[Pending]) -> None:
        if not self.is_over:
            self._in_step(self.workers.withdraw, [each for each in pendings if not each.is_over])
            self.work_soon()

    async def close(self) -> None:
        for session in self.workers.peers.sessions.values():
            session.send(END)
        self.work_soon()
        with suppress(Cancelled):
            await self.until(lambda: not self.workers.peers.is_unconfirmed(), FAREWELL)
        self._stop_reading()
        self.abandon()
        for replies in [*self.open]:
            replies.end()

    def abandon(self) -> None:
        """Without a word: the loop may be closed."""
        self.is_over = True
        self._ended.set()
        self._ticking.cancel()
        self.workers.peers.close()


class AsyncZeromqReplies:
    """The way back of one request."""

    def __init__(self, caller: LoopCaller) -> None:
        self._caller = caller
        self._come: deque[Message | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._end: float | None = None
        """When whoever waits stops waiting."""
        self._closed = self._ended = False
        self.pendings: list[Pending] = []

    def put(self, reply: Message | Exception) -> None:
        """A worker says this, or there will be none for this reason."""
        self._come.append(reply)
        self._wake()

    def wake_in_time(self, now: float) -> None:
        """A time limit that is far off costs nothing but a look now and then."""
        if self._end is not None and self._end - now < 2 * TICK:
            self._caller.loop.call_at(self._end, self._wake)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self, timeout: float | None) -> Message:
        loop = self._caller.loop
        self._end = None if timeout is None else loop.time() + timeout
        try:
            while not self._come:
                if self._caller.is_over:
                    raise client_closed()
                if self._closed or (self._end is not None and loop.time() >= self._end):
                    raise RpcTimeout
                self._waiter = loop.create_future()
                self.wake_in_time(loop.time())
                await self._waiter
        finally:
            self._waiter = self._end = None
        reply = self._come.popleft()
        if isinstance(reply, Exception):
            raise reply
        self._ended = STREAM not in reply.headers
        return reply

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._caller.open.discard(self)
            if not self._ended:
                self._caller.withdraw(self.pendings)
            self._wake()

    def end(self) -> None:
        """Nothing will come any more."""
        self._wake()
