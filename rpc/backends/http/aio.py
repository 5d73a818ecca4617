"""Callers in event loops: each loop has connections of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any

from ...deadlines import left
from ...errors import NoReceivers, RpcError, RpcTimeout, SerializationError, client_closed
from ...loops import PerLoop
from ...transport import Address, AsyncReplies, Message, packed
from .._retry import patience
from .endpoints import CONNECT, FAREWELL, Peer
from .exchange import Exchange, Patience, Silence, Turn
from .links import Lines, Link
from .wire import ROOT, Answers, path_of


class AsyncHttp:
    """An HttpBackend for callers in event loops."""

    def __init__(
        self, lines: Callable[[], Lines], most: Patience, features: frozenset[str], max_message: int | None
    ) -> None:
        """`lines` makes the connections of the running loop."""
        self.features, self.max_message, self._most = features, max_message, most
        self._lines = PerLoop(lines, Lines.abandon)

    async def send(self, to: Address, message: Message) -> None:
        with closing(await self._asked(to, message)) as sending:
            await sending.until_taken(min(patience(message.ttl), self._most.seconds))

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        if to.kind == "topic":
            return await Gathered.of(self._lines.here(), to, message)
        return await self._asked(to, message)

    async def _asked(self, to: Address, message: Message) -> AsyncHttpReplies:
        replies = AsyncHttpReplies(self._lines.here(), to, message, self._most)
        try:
            await replies.begin(left(CONNECT if message.ttl is None else message.ttl))
        except BaseException:
            replies.close()
            raise
        return replies

    async def exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> Answers:
        """As `HttpBackend.exchange`."""
        lines = self._lines.here()
        turn = Turn(lines.peers, lines.loop.time(), min(seconds, self._most.seconds))
        while True:
            peer = turn.next(lines.loop.time())
            if isinstance(peer, float):
                await asyncio.sleep(peer)
                continue
            try:
                return await lines.ask(peer, method, path, body, headers, seconds)
            except (OSError, SerializationError) as error:
                turn.failed(peer, error, lines.loop.time())

    async def close(self) -> None:
        if lines := self._lines.pop():
            await lines.close()


class AsyncHttpReplies:
    """The way back of one request."""

    def __init__(self, lines: Lines, to: Address, message: Message, most: Patience) -> None:
        self._lines = lines
        self._exchange = Exchange(lines.peers, to, message, most, lines.loop.time())
        self._line: Link | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = self._is_over = False
        self._trying: asyncio.Task[None] | None = None
        lines.open.add(self)

    async def receive(self, timeout: float | None) -> Message:
        loop, come = self._lines.loop, self._exchange.come
        end = None if timeout is None else loop.time() + timeout
        while not come:
            if self._is_over:
                raise client_closed()
            left = None if end is None else end - loop.time()
            if self._is_closed or self._exchange.is_over or (left is not None and left <= 0):
                raise self._exchange.late()
            await self._wait(left)
        reply = come.popleft()
        if isinstance(reply, RpcError):
            raise reply
        return reply

    async def until_taken(self, seconds: float) -> None:
        """A worker has it: it waits for no reply. Raises why not."""
        with suppress(RpcTimeout):
            await self.receive(seconds)
        if not self._exchange.is_over:
            raise self._exchange.why

    async def begin(self, seconds: float) -> None:
        """Post it at once, if that can be; else soon, whether anybody waits or not."""
        loop = self._lines.loop
        end = loop.time() + seconds
        while self._line is None and (now := loop.time()) < end:
            peer = self._exchange.next_peer(now)
            if peer is None:
                break
            await self._post(peer, end - now)
        self._go_on()

    def _go_on(self) -> None:
        if self._line is None and self._trying is None and self._is_wanted:
            self._trying = self._lines.loop.create_task(self._try_on())

    @property
    def _is_wanted(self) -> bool:
        return not (self._exchange.is_over or self._is_closed or self._is_over)

    async def _try_on(self) -> None:
        try:
            while self._line is None and self._is_wanted:
                await self._try(CONNECT)
        except SerializationError as error:
            self._exchange.failed(error)
        finally:
            self._trying = None
            self._wake()

    async def _wait(self, seconds: float | None) -> None:
        """Until something may have happened, for so long at most."""
        self._waiter = self._lines.loop.create_future()
        timer = None if seconds is None else self._lines.loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            if timer:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _changed(self) -> None:
        line, exchange = self._line, self._exchange
        if line is None:
            return
        now = self._lines.loop.time()
        try:
            if line.error:
                raise line.error
            exchange.fed(line.answers, now)
        except SerializationError as error:
            exchange.failed(error)
        if line.is_lost and not line.answers.is_complete:
            exchange.broken(line.lost_by, now)
        if exchange.is_over or line.is_lost or line.answers.is_complete:
            self._give_up_line()
        self._wake()
        self._go_on()

    def _give_up_line(self) -> None:
        line, self._line = self._line, None
        if line:
            self._lines.put_back(line)

    async def _try(self, seconds: float) -> None:
        """Post it, or pause for so many seconds at most, as it is to be posted again."""
        exchange, now = self._exchange, self._lines.loop.time()
        if peer := exchange.next_peer(now):
            await self._post(peer, seconds)
        elif not exchange.is_over:
            await asyncio.sleep(max(0.0, min(exchange.pause_until - now, seconds)))

    async def _post(self, peer: Peer[Any], seconds: float) -> None:
        exchange, loop = self._exchange, self._lines.loop
        try:
            line = await self._lines.get(peer, max(0.001, seconds))
        except OSError as error:
            exchange.unreachable(peer, error, loop.time())
            return
        self._line = line
        if self._is_closed or self._is_over:
            self._give_up_line()
            return
        line.changed = self._changed
        if line.is_lost and not line.error:  # at once
            self._give_up_line()
            exchange.unreachable(peer, Silence(), loop.time())
            return
        request = exchange.request(peer, loop.time())
        if line.is_lost:
            self._changed()
        else:
            line.send(request)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._lines.open.discard(self)
        exchange = self._exchange
        if self._trying:
            self._trying.cancel()
        self._give_up_line()
        self._wake()
        if exchange.is_withdrawn and exchange.peer and not self._lines.is_over:
            self._lines.tell(exchange.peer, f"{ROOT}cancel/{exchange.message.id}")

    def end(self) -> None:
        """The client is closed."""
        self._is_over = True
        self.close()


class Gathered:
    """The replies of all workers, which are asked side by side."""

    def __init__(self, come: deque[Message]) -> None:
        self._come = come

    @classmethod
    async def of(cls, lines: Lines, to: Address, message: Message) -> Gathered:
        seconds = FAREWELL if message.ttl is None else message.ttl
        come: deque[Message] = deque()

        async def ask(peer: Peer[Any]) -> None:
            with suppress(OSError, SerializationError):
                answers = await lines.ask(peer, "POST", path_of(to), packed(message), seconds=seconds)
                if answers.status == 200:
                    come.extend(answers.frames())

        await asyncio.gather(*map(ask, lines.peers.all))
        return cls(come)

    async def receive(self, timeout: float | None) -> Message:
        if not self._come:
            raise NoReceivers("all workers have answered")
        return self._come.popleft()

    def close(self) -> None:
        """Nothing is under way."""
