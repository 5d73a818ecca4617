"""Callers in event loops, on one connection for each loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ...deadlines import left, within
from ...errors import Cancelled, RpcError, RpcTimeout, client_closed
from ...loops import PerLoop
from ...transport import Address, Message
from .._retry import backoff, patience
from .aio_connection import AsyncConnection
from .dialogue import Steps
from .order import is_ordered
from .requests import (
    REQUESTS,
    SEND,
    PendingRequest,
    ReplyQueue,
    Sending,
    next_step,
    preparing,
    too_late,
)
from .servers import Servers, unavailable
from .wire import Arrival, Broken

logger = logging.getLogger(__name__)

T = TypeVar("T")
PATIENT = 3600.0
"""Seconds: attempts to connect have limits of their own."""


class AsyncAmqp:
    """An AmqpBackend for callers in event loops."""

    def __init__(
        self, servers: Servers, most: int, features: frozenset[str], max_message: int | None
    ) -> None:
        """`most` is how many messages may wait in a queue (0: any number)."""
        self.features, self.max_message = features, max_message
        self._of = PerLoop(lambda: LoopConnection(servers, most), lambda gone: gone.forget())

    async def send(self, to: Address, message: Message) -> None:
        await self._of.here().send(to, message)

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        here = self._of.here()
        replies = AsyncReplies(here, to, message)
        here.open[replies] = None
        try:
            await here.sent(to, message, replies.send)
        except BaseException:
            replies.close()
            raise
        return replies

    async def close(self) -> None:
        if here := self._of.pop():
            await here.close()


class LoopConnection:
    """The connection of an event loop, through all its breaks, and what waits on it."""

    def __init__(self, servers: Servers, most: int) -> None:
        self._servers, self._most = servers, most
        self.open: dict[AsyncReplies, None] = {}
        """In the order in which they were sent."""
        self.is_over = False
        self.failure: Broken | None = None
        """Why there is no connection."""
        self._loop = asyncio.get_running_loop()
        self._connection: AsyncConnection | None = None
        self._connecting: asyncio.Task[AsyncConnection] | None = None
        self._ordered = asyncio.Lock()
        """Held to send what has an order key, so that nothing overtakes it on its way."""
        self._recovery: asyncio.Task[None] | None = None
        self._replies: ReplyQueue | None = None
        """Where the replies to new requests come."""
        self._waiting: dict[str, AsyncReplies] = {}
        self._used_by: dict[ReplyQueue, int] = {}
        """How many requests wait for replies in each of our queues."""

    @property
    def blocked(self) -> str:
        return self._connection.blocked if self._connection else ""

    async def connection(self) -> AsyncConnection:
        """Connected, by a task that all wait for: whoever is cancelled meanwhile leaves it to the others. A
        lock would stay locked, if it was left by an exception of a signal handler. Raises Broken, Cancelled.
        """
        if self._connection and self._connection.is_open:
            return self._connection
        connecting = self._connecting
        if connecting is None or connecting.done():
            with within(None):  # it is for others, too, and what it begins goes on for longer
                connecting = self._connecting = self._loop.create_task(self._connected())
            connecting.add_done_callback(_looked_at)
        await asyncio.wait([connecting], timeout=(seconds := left(PATIENT)))
        if not connecting.done():
            raise Broken(f"{self._servers.places}: no answer within {seconds:.3g} s")
        if connecting.cancelled():
            raise client_closed()
        return connecting.result()

    async def _connected(self) -> AsyncConnection:
        if self.is_over:
            raise client_closed()
        try:
            connection = await AsyncConnection.connect(self._servers, self._lost)
        except Broken as error:
            self.failure = error
            raise
        try:
            connection.listeners[REQUESTS] = self._hear
            connection.tell(SEND, self._servers.names.own_exchange)
            self.failure, self._replies = None, None
            self._used_by.clear()
        except BaseException as error:
            connection.drop(error)
            raise
        self._connection = connection
        return connection

    def forget_queue(self, name: str) -> None:
        """A queue of this name is not there."""
        self._servers.forget(name)

    def _hear(self, arrival: Arrival) -> None:
        if replies := self._waiting.get(arrival.properties.correlation_id or ""):
            replies.request.hear(arrival)

    async def request(self, replies: AsyncReplies) -> ReplyQueue:
        """Send it, and say where its replies come."""
        connection, request = await self.connection(), replies.request
        await self._perform(preparing(self._servers, self._most, request.to, request.message), connection)
        if replies not in self.open:
            raise Cancelled("nobody waits for it any more")
        queue = self._replies = self._replies or ReplyQueue(connection, self._servers.names)
        self._used_by[queue] = self._used_by.get(queue, 0) + 1
        self._waiting[replies.request.message.id] = replies
        queue.send(replies.request)
        return queue

    def leave(self, request: PendingRequest, queue: ReplyQueue | None) -> None:
        """Nobody waits for it any more, whether it is answered or not. The queue of one that was given up in
        time is not used for others, and deleted with the last of its requests."""
        self._waiting.pop(request.message.id, None)
        if queue is None or queue not in self._used_by:
            return  # its connection is gone
        self._used_by[queue] -= 1
        if not request.is_over:
            queue.withdraw(request)
            if queue is self._replies and time.monotonic() < request.expires:
                self._replies = None
        if queue is not self._replies and not self._used_by[queue]:
            del self._used_by[queue]
            queue.delete()

    async def send(self, to: Address, message: Message) -> None:
        """Raises NoReceivers, QueueFull, BackendUnavailable."""

        sending = Sending(self._servers, self._most, to, message)

        async def send() -> None:
            await self._perform(sending.steps(), await self.connection())

        await self.sent(to, message, send)

    async def sent(self, to: Address, message: Message, send: Callable[[], Awaitable[object]]) -> None:
        """Send a new message, by as many attempts as it takes. What has an order key is not overtaken by what
        comes after it here, and does not overtake what is sent again."""
        end = self._loop.time() + patience(message.ttl)
        if not is_ordered(to, message):
            await self.persistently(send, end)
            return

        async def in_order() -> None:
            if self._recovery and not self._recovery.done():
                await asyncio.wait([self._recovery], timeout=1)
                if not self._recovery.done():
                    raise self.failure or Broken("what was sent before has not been sent again")
            await send()

        async with self._ordered:
            await self.persistently(in_order, end)

    async def _perform(self, steps: Steps, connection: AsyncConnection) -> None:
        outcome: Any = None
        with suppress(StopIteration):
            while True:
                step = next_step(steps, outcome)
                try:
                    outcome = await step(connection)
                except Broken as error:
                    outcome = error

    async def persistently(self, action: Callable[[], Awaitable[T]], end: float) -> T:
        """What the action returns; while RabbitMQ cannot be had it is tried again until this time of the
        loop. Then raises BackendUnavailable."""
        attempt = 0
        while True:
            try:
                return await action()
            except Broken as error:
                if self.is_over:
                    raise client_closed() from error
                pause = backoff(attempt)
                if self._loop.time() + pause > end:
                    raise unavailable(error) from error
                await asyncio.sleep(pause)
                attempt += 1

    def _lost(self, connection: AsyncConnection) -> None:
        if connection is self._connection:
            self.failure = connection.failure
            self._used_by.clear()
            if not self.is_over and (self._recovery is None or self._recovery.done()):
                self._recovery = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        """Send again what nobody has answered."""
        attempt = 0
        while left := [each for each in self.open if self._is_stranded(each)]:
            try:
                for replies in left:
                    if self._is_stranded(replies):
                        await replies.send()
                attempt = 0
            except RpcError as error:
                replies.request.fail(error)
            except Broken:
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            except Exception as error:
                logger.exception("a call cannot be sent again")
                replies.request.fail(unavailable(error))

    def _is_stranded(self, replies: AsyncReplies) -> bool:
        """Whether the queue that it waited on is gone."""
        return (
            not replies.request.is_over and replies.queue is not None and replies.queue not in self._used_by
        )

    async def close(self) -> None:
        self.forget()
        for task in self._recovery, self._connecting:
            if task:
                task.cancel()
        if self._connection:
            await self._connection.close()

    def forget(self) -> None:
        """Nobody will hear anything any more."""
        self.is_over = True
        for replies in list(self.open):
            replies.end()


class AsyncReplies:
    """The way back of one request."""

    def __init__(self, here: LoopConnection, to: Address, message: Message) -> None:
        self._here = here
        self.request = PendingRequest(to, message, time.monotonic(), here.forget_queue, self._wake)
        self.queue: ReplyQueue | None = None
        """Where the replies come; None if it has not been sent yet."""
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    async def send(self) -> None:
        """Raises Broken, QueueFull, NoReceivers."""
        self.queue = await self._here.request(self)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self, timeout: float | None) -> Message:
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while not (reply := self.request.next()):
            if self._is_closed:
                raise RpcTimeout("the request was withdrawn")
            if end is not None and loop.time() >= end:
                raise too_late(self._here.failure, self._here.blocked)
            self._waiter = loop.create_future()
            timer = None if end is None else loop.call_at(end, self._wake)
            try:
                await self._waiter
            finally:
                if timer:
                    timer.cancel()
        return reply

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._here.open.pop(self, None)
            self._here.leave(self.request, self.queue)
            self._wake()

    def end(self) -> None:
        """Nothing will come any more."""
        self.close()
        if not self.request.arrived:
            self.request.fail(client_closed())
        self._wake()


def _looked_at(connecting: asyncio.Task[AsyncConnection]) -> None:
    """asyncio complains of what failed if nobody comes for it."""
    if not connecting.cancelled():
        connecting.exception()
