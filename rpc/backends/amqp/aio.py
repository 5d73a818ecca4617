"""Callers in event loops, on one connection for each loop. What a lane is to those that block, a *room* is
here: a channel, which one request has for itself as long as there are enough."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import Cancelled, NoReceivers, QueueFull, RpcError, RpcTimeout
from ...loops import PerLoop
from ...transport import STREAM, Address, Message
from .._retry import backoff, patience
from .aio_connection import Peer
from .calls import (
    CLAIM,
    HAVE,
    KEEP_INBOX,
    MOVED,
    OWN_EXCHANGE,
    queue_name,
    refused,
    route,
)
from .reply_channels import Room
from .servers import unavailable
from .wire import (
    REPLY_TO,
    Arrival,
    Basic,
    Broken,
    Channel,
    Probe,
    Queue,
    frames,
    message_of,
    properties_of,
)

if TYPE_CHECKING:
    from .backend import AmqpBackend

T = TypeVar("T")
MOST = 32
"""Channels of a connection that requests have for themselves; of more requests, several share one."""
ASIDE = 2
FIRST = 3


class AsyncAmqp:
    """An AmqpBackend for callers in event loops."""

    def __init__(self, backend: AmqpBackend) -> None:
        self.features, self.max_message = backend.features, backend.max_message
        self._stations = PerLoop(lambda: Station(backend), lambda station: station.forget())

    async def send(self, to: Address, message: Message) -> None:
        await self._stations.here().send(to, message)

    async def request(self, to: Address, message: Message) -> AsyncLaneReplies:
        station = self._stations.here()
        replies = AsyncLaneReplies(station, to, message)
        station.open.add(replies)
        try:
            await station.persistently(replies.send, patience(message.ttl))
        except RpcError:
            station.open.discard(replies)
            raise
        except BaseException:
            replies.close()
            raise
        return replies

    async def close(self) -> None:
        if station := self._stations.pop():
            await station.close()


class Station:
    """Of one event loop."""

    def __init__(self, backend: AmqpBackend) -> None:
        self.backend = backend
        self.open: set[AsyncLaneReplies] = set()
        self.is_over = False
        self.failure: Broken | None = None
        """Why there is no connection."""
        self._loop = asyncio.get_running_loop()
        self._peer: Peer | None = None
        self._opening = asyncio.Lock()
        self._recovery: asyncio.Task[None] | None = None
        self._idle: list[Room] = []
        self._rooms: list[Room] = []

    async def peer(self) -> Peer:
        """Connected. Raises Broken."""
        async with self._opening:
            if self._peer is None or not self._peer.is_open:
                if self.is_over:
                    raise Cancelled("the client was closed")
                self._idle, self._rooms = [], []
                peer = Peer(self.backend.place, self._lost)
                try:
                    await peer.open()
                except Broken as error:
                    self.failure = error
                    raise
                self._peer, self.failure = peer, None
            return self._peer

    async def room(self) -> Room:
        """A channel with no request, or with few."""
        peer = await self.peer()
        while self._idle:
            room = self._idle.pop()
            if room.peer is peer and not room.requests and not room.is_tainted:
                return room
        if len(self._rooms) < min(MOST, peer.terms.channels - FIRST):
            room = Room(peer, FIRST + len(self._rooms))
            self._rooms.append(room)
            return room
        return min(self._rooms, key=lambda room: (room.is_tainted, len(room.requests)))

    def vacate(self, room: Room) -> None:
        if room.peer is self._peer and not room.requests:
            self._idle.append(room)

    async def send(self, to: Address, message: Message) -> None:
        properties = properties_of(message, durable=True)
        exchange, key = route(to)

        async def attempt() -> Arrival | None:
            peer = await self.peer()
            if to.kind == "topic":
                peer.write(frames(1, OWN_EXCHANGE))
            await self.make_room(peer, to)
            publishing = peer.published(
                1, key, properties, message.body, exchange=exchange, mandatory=to.kind != "topic"
            )
            came_back = await peer.confirmed(message.id, publishing)
            if came_back and to.kind == "inbox":  # it is made by whoever comes first
                await peer.ask(self.backend.place.queue(key, KEEP_INBOX), Queue.DeclareOk)
                came_back = await peer.confirmed(message.id, publishing)
            return came_back

        came_back = await self.persistently(attempt, patience(message.ttl))
        if came_back and to.kind != "topic":
            raise refused(to, came_back)

    async def make_room(self, peer: Peer, to: Address) -> None:
        """As that of the backend."""
        if not self.backend.max_length or to.kind != "queue":
            return
        peer.write(frames(ASIDE, Channel.Open()))
        try:
            found = await peer.ask(Probe(queue_name(to)), Queue.DeclareOk, channel=ASIDE)
        except Broken as error:
            if error.code == 404:
                raise NoReceivers(f"nobody has ever served {to}") from None
            raise
        await peer.ask(Channel.Close(200, "", 0, 0), Channel.CloseOk, channel=ASIDE)
        if found.message_count >= self.backend.max_length:
            raise QueueFull(f"{to} has no room: raise max_length, or start more workers")

    async def persistently(self, action: Callable[[], Awaitable[T]], seconds: float) -> T:
        end, attempt = self._loop.time() + seconds, 0
        while True:
            try:
                return await action()
            except Broken as error:
                if self.is_over:
                    raise Cancelled("the client was closed") from error
                pause = backoff(attempt)
                if self._loop.time() + pause > end:
                    raise unavailable(error) from error
                await asyncio.sleep(pause)
                attempt += 1

    def _lost(self, peer: Peer) -> None:
        if peer is self._peer:
            self.failure = peer.failure
            if not self.is_over and (self._recovery is None or self._recovery.done()):
                self._recovery = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        """Give those who wait another way back."""
        attempt = 0
        while left := [each for each in self.open if each.is_stranded]:
            try:
                for replies in left:
                    await replies.move()
                attempt = 0
            except Broken:
                await asyncio.sleep(backoff(attempt))
                attempt += 1

    async def close(self) -> None:
        self.forget()
        if self._recovery:
            self._recovery.cancel()
        if self._peer:
            await self._peer.hang_up()

    def forget(self) -> None:
        """Nobody will hear anything any more."""
        self.is_over = True
        for replies in list(self.open):
            replies.end()


class AsyncLaneReplies:
    """The way back of one request."""

    def __init__(self, station: Station, to: Address, message: Message) -> None:
        self._station, self._to, self.message = station, to, message
        self.properties = properties_of(message, REPLY_TO)
        self._room: Room | None = None
        self._arrived: deque[Message] = deque()
        self._failure: RpcError | None = None
        self._ended = self._closed = self._claimed = False
        self._waiter: asyncio.Future[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._due: float | None = None
        """When it is sent again, unless somebody says that he has it."""

    @property
    def is_stranded(self) -> bool:
        """Whether the connection that it waited on is gone."""
        return not (self._ended or self._closed or self._failure) and not (
            self._room and self._room.peer.is_open
        )

    async def send(self) -> None:
        await self._settle()
        self._publish()

    async def _settle(self) -> None:
        station = self._station
        if station.backend.max_length:
            await station.make_room(await station.peer(), self._to)
        self._room = await station.room()
        self._room.requests[self.message.id] = self

    def _publish(self) -> None:
        if self._room and self._room.peer.is_open:
            if self._to.kind != "queue":
                self._prepare(self._room)
            self._room.publish(self, *route(self._to))

    def _prepare(self, room: Room) -> None:
        made = OWN_EXCHANGE
        if self._to.kind == "inbox":
            made = self._station.backend.place.queue(queue_name(self._to), KEEP_INBOX)
        room.peer.write(frames(room.number, made))

    async def move(self) -> None:
        """The connection broke: the way back has another name from now on. However often that happens, it is
        sent again in time. Raises Broken."""
        if self.is_stranded:
            self._room = await self._station.room()
            self._room.requests[self.message.id] = self
            soon = asyncio.get_running_loop().time() + CLAIM
            self._ask_for_it(soon if self._due is None else min(self._due, soon))

    def _ask_for_it(self, until: float) -> None:
        """Of those who serve the queue whether they have it."""
        self._claimed = False
        if self._room:
            self._room.notice(MOVED, self._to, self.message.id)
        self._later(until)

    def _ask_again(self) -> None:
        if self.is_stranded or self._ended or self._closed:
            return
        if self._claimed:
            self._ask_for_it(asyncio.get_running_loop().time() + CLAIM)
        else:
            self._quiet()
            self._publish()

    def _later(self, due: float) -> None:
        self._quiet()
        self._due = due
        self._again = asyncio.get_running_loop().call_at(due, self._ask_again)

    def _quiet(self) -> None:
        self._due = None
        if self._again:
            self._again.cancel()
            self._again = None

    def hear(self, arrival: Arrival) -> None:
        if not isinstance(arrival.method, Basic.Deliver):
            self._failure = refused(self._to, arrival)
        elif arrival.properties.message_type == HAVE:
            self._claimed = True
            self._later(asyncio.get_running_loop().time() + 2 * CLAIM)
            return
        else:
            reply = message_of(arrival.properties, arrival.body)
            self._ended = self._ended or STREAM not in reply.headers
            self._arrived.append(reply)
        self._wake()

    def _wake(self, _: Any = None) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self, timeout: float | None) -> Message:
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while not self._arrived:
            if self._failure:
                raise self._failure
            self._waiter = loop.create_future()
            timer = None if end is None else loop.call_at(end, self._wake)
            try:
                await self._waiter
            finally:
                if timer:
                    timer.cancel()
            if not self._arrived and not self._failure and end is not None and loop.time() >= end:
                raise self._late()
        return self._arrived.popleft()

    def _late(self) -> RpcError:
        if self._station.failure:
            return unavailable(self._station.failure)
        blocked = self._room.peer.blocked if self._room else ""
        return RpcTimeout(f"RabbitMQ: {blocked}" if blocked else "")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._quiet()
        self._station.open.discard(self)
        room = self._room
        if room and room.peer.is_open:
            room.leave(self.message.id, self._to, self._ended or self._failure is not None)
            self._station.vacate(room)

    def end(self) -> None:
        """Nothing will come any more."""
        self.close()
        if not self._arrived:
            self._failure = Cancelled("the client was closed")
        self._wake()
