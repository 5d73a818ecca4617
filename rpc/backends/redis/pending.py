"""What callers in an event loop wait for, on Redis: that a message is sent, or what comes back for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import redis

from ...errors import RpcError, RpcTimeout, SerializationError, client_closed, shown
from ...transport import DELAY, IDEMPOTENCY_KEY, ORDER_KEY, STREAM, Message, unpacked
from .._retry import patience
from .calls import full
from .connection import Command, unavailable
from .keys import Keys, plain
from .sending import Sender

logger = logging.getLogger(__name__)

KEEP_CONTROLS = 60.0
"""Seconds that a withdrawal is kept while Redis cannot be had."""


class PendingSend:
    """A message on its way to Redis."""

    __slots__ = (
        *("_record", "_sent", "before", "id", "is_asked", "is_ordered", "keys", "lifetime", "special"),
        *("until", "written"),
    )

    def __init__(
        self, sender: Sender, keys: Keys, message: Message, inbox: str, ttl: float | None, now: float
    ) -> None:
        self.keys, self.id = keys, plain(message.id)
        self.until = now + patience(ttl)
        """When to stop trying."""
        self.is_ordered = ORDER_KEY in message.headers
        self.is_asked = self.is_ordered or not inbox
        """Whether there will be an answer to the command that sends it."""
        self.written: float | None = None
        self.special: Command | None = None
        """What sends it, if it does not go with others: as this record, for so many milliseconds."""
        headers = message.headers
        if DELAY in headers or IDEMPOTENCY_KEY in headers:
            self.is_asked = True
            *self.before, self.special = sender.sending(keys, message, self.id, inbox, 0, shared=True)
        else:
            self.before, record, self.lifetime = sender.encode(keys, message, self.id, inbox, 0)
            self._record, self._sent = record.unsent(), 0

    def stamp(self, sent: int) -> None:
        """It is written, at this time in milliseconds of the server's clock. The first time counts."""
        self._sent = self._sent or sent

    @property
    def record(self) -> bytes:
        """As it is sent."""
        return b"%d %s" % (self._sent, self._record)

    def succeed(self) -> None:
        """It was sent."""

    def fail(self, error: RpcError) -> None:
        raise NotImplementedError


class _Done(PendingSend):
    """One that nobody replies to."""

    __slots__ = ("done",)
    done: asyncio.Future[None]

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: RpcError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Sending(_Done):
    """To a queue."""

    __slots__ = ()

    def __init__(self, session: Waiting, sender: Sender, keys: Keys, message: Message) -> None:
        super().__init__(sender, keys, message, "", message.ttl, session.loop.time())
        self.done = session.loop.create_future()


class Putting(_Done):
    """To an inbox that is a stream."""

    __slots__ = ("expire",)
    special: Command

    def __init__(self, session: Waiting, id: str, add: Command, expire: Command) -> None:
        """`id` is that of this sending alone: others of one conversation have the same message id."""
        self.id, self.special, self.expire = id, add, expire
        self.is_ordered, self.is_asked, self.written = False, True, None
        self.until = session.loop.time() + patience(None)
        self.done = session.loop.create_future()

    def answered(self, answer: Any) -> None:
        """It was put there, or this is the error."""
        if isinstance(answer, redis.RedisError):
            self.fail(unavailable(answer))
        else:
            self.succeed()


class InOneLine:
    """Has what has an order key written on one connection at a time: on two, one could overtake another."""

    def __init__(self) -> None:
        self._wire: Any = None
        self._under_way = 0

    def lets_through(self, each: PendingSend, wire: Any) -> bool:
        """Whether it may be written there now; if so, it is."""
        if not each.is_ordered:
            return True
        if self._under_way and self._wire is not wire:
            return False
        self._wire, self._under_way = wire, self._under_way + 1
        return True

    def has_arrived(self, sends: Sequence[PendingSend]) -> bool:
        """These have been answered. Whether any connection will do for the next ones."""
        self._under_way -= sum(each.is_ordered for each in sends)
        return not self._under_way


class Waiting(Protocol):
    """What is needed of the session."""

    loop: asyncio.AbstractEventLoop
    inbox: str
    pending: dict[str, AsyncRedisReplies]
    failure: redis.RedisError | None

    def post(self, pending: PendingSend) -> None: ...

    def wake_in_time(self, replies: AsyncRedisReplies, left: float) -> None: ...

    def withdraw(self, replies: AsyncRedisReplies) -> None: ...


class AsyncRedisReplies(PendingSend):
    """A request, and the way back."""

    __slots__ = ("_arrived", "_is_kept", "_number", "_session", "_waiter", "deadline", "ended", "ttl")

    def __init__(self, session: Waiting, sender: Sender, keys: Keys, message: Message) -> None:
        self.ttl = message.ttl
        super().__init__(sender, keys, message, session.inbox, self.ttl, session.loop.time())
        self._session, self._is_kept = session, IDEMPOTENCY_KEY in message.headers
        self._arrived: list[Message | RpcError] = []  # a deque is 600 bytes, and there is mostly one
        self._waiter: asyncio.Future[Any] | None = None
        self._number = 0
        self.deadline: float | None = None
        """When whoever waits stops waiting."""
        self.ended = False

    async def receive(self, timeout: float | None) -> Message:
        if not self._arrived:
            if self.id not in self._session.pending:
                raise RpcTimeout
            loop = self._session.loop
            self._waiter = loop.create_future()
            if timeout is not None:
                self.deadline = loop.time() + timeout
                self._session.wake_in_time(self, timeout)
            try:
                await self._waiter
            finally:
                self._waiter = self.deadline = None
        reply = self._arrived.pop(0)
        if isinstance(reply, RpcError):
            raise reply
        return reply

    def close(self) -> None:
        self._leave(RpcTimeout() if self._waiter else None)  # somebody else waits

    def cancel(self) -> None:
        """Close it, and tell whoever waits."""
        self._leave(client_closed())

    def _leave(self, error: RpcError | None) -> None:
        if self._session.pending.pop(self.id, None) is not self:
            return
        if not self.ended and not self._is_kept:
            self._session.withdraw(self)
        if error:
            self.fail(error)

    def put(self, number: int, frame: bytes) -> None:
        """What came into the inbox."""
        if number < 0:
            self.fail(full(self.keys))
            return
        try:
            reply = unpacked(frame)
        except SerializationError as error:  # anybody may have put it there: the reply is still to come
            logger.warning("not a reply to %s: %s", self.id, shown(error))
            return
        if STREAM in reply.headers and 0 < number <= self._number:
            return  # it came twice; of the last one, another worker may have another count
        self._number, self.ended = number, STREAM not in reply.headers
        self._wake(reply)

    def fail(self, error: RpcError) -> None:
        self.ended = True
        self._wake(error)

    def late(self) -> None:
        """The time may be up for whoever waits."""
        is_late = self.deadline is not None and self.deadline <= self._session.loop.time()
        if is_late and self._waiter and not self._waiter.done():
            failure = self._session.failure
            self._waiter.set_exception(unavailable(failure) if failure else RpcTimeout())

    def _wake(self, arrived: Message | RpcError) -> None:
        self._arrived.append(arrived)
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class Controls:
    """What else is to be said, such as that nobody waits any more, and when."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Sequence[Command]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def last(self) -> float:
        """When the last of them is due."""
        return self._waiting[-1][0]

    def add(self, due: float, commands: Sequence[Command]) -> None:
        self._waiting.append((due, commands))

    def due(self, now: float) -> Iterator[Sequence[Command]]:
        """Take those that are."""
        while self._waiting and self._waiting[0][0] <= now:
            yield self._waiting.popleft()[1]

    def forget(self, now: float) -> None:
        """Those that could not be said for too long."""
        for _ in self.due(now - KEEP_CONTROLS):
            pass
