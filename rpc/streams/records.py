"""Log records of other processes, as clients take them: each message with some is an event."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta

from ..core.events import Event
from ..core.log_batches import LOGS, METHOD, Heard
from ..core.log_entries import LogEntry
from ..durations import Duration, seconds_or_none
from ..errors import Cancelled, RpcError, RpcTimeout, SubscriberLagged, shown
from ..events import Subscription
from ..identity import NAMELESS
from ..transport import Address
from .subscribing import AsyncEventStream, EventStream, Wanted, checked_since

logger = logging.getLogger(__name__)

MESSAGES = 100
"""That wait to be taken, at most; each has some hundred records, if many were logged."""


class _OfLogs(Subscription):
    """Hears the records of all domains."""

    __slots__ = ()

    def address(self, domain: str = NAMELESS) -> Address:
        return LOGS


def of_logs(since: datetime | timedelta | None) -> Wanted:
    """What is subscribed to. Raises ValueError."""
    return Wanted(_OfLogs(METHOD), None, MESSAGES, checked_since(since))


class _Entries:
    """What has come in a message and is not taken yet. Of a message that was missed, others tell how many
    records it had."""

    def __init__(self, wants: Callable[[LogEntry], bool]) -> None:
        self._wants, self._heard = wants, Heard()
        self._left: deque[LogEntry] = deque()

    def put(self, event: Event) -> None:
        try:
            self._left.extend(filter(self._wants, self._heard.entries(event)))
        except RpcError as error:
            logger.warning("refused log records (%s): %s", shown(event.id), shown(error))

    def take(self) -> LogEntry | None:
        return self._left.popleft() if self._left else None


class LogStream(Iterator[LogEntry]):
    """What `RpcClient.logs` returns: an iterator of log records, and a context manager, which closes it. For
    one thread; others may close it."""

    def __init__(self, events: EventStream, wants: Callable[[LogEntry], bool]) -> None:
        self._events, self._entries = events, _Entries(wants)

    def get(self, timeout: Duration | None = None) -> LogEntry:
        """The next one. Raises RpcTimeout after so many seconds (None: waits without end), and Cancelled once
        it is closed."""
        waiting = _Waiting(timeout)
        while (entry := self._entries.take()) is None:
            try:
                self._entries.put(self._events.get(waiting.left()))
            except SubscriberLagged:
                continue
            except RpcTimeout:
                raise waiting.late() from None
        return entry

    def __next__(self) -> LogEntry:
        """The next one, however long that takes."""
        try:
            return self.get()
        except Cancelled:
            raise StopIteration from None

    def close(self) -> None:
        """Hear no more; whoever waits gets StopIteration. Returns once the connection is given back.
        Idempotent."""
        self._events.close()

    def __enter__(self) -> LogStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncLogStream(AsyncIterator[LogEntry]):
    """What `AsyncRpcClient.logs` returns: as `LogStream`, but an async iterator, for one task."""

    def __init__(self, events: AsyncEventStream, wants: Callable[[LogEntry], bool]) -> None:
        self._events, self._entries = events, _Entries(wants)

    async def get(self, timeout: Duration | None = None) -> LogEntry:
        """As `LogStream.get`. If the task is cancelled, nothing is lost."""
        waiting = _Waiting(timeout)
        while (entry := self._entries.take()) is None:
            try:
                self._entries.put(await self._events.get(waiting.left()))
            except SubscriberLagged:
                continue
            except RpcTimeout:
                raise waiting.late() from None
        return entry

    async def __anext__(self) -> LogEntry:
        """As `LogStream.__next__`."""
        try:
            return await self.get()
        except Cancelled:
            raise StopAsyncIteration from None

    async def close(self) -> None:
        """As `LogStream.close`."""
        await self._events.close()

    async def __aenter__(self) -> AsyncLogStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Waiting:
    """The time that somebody waits for a record."""

    def __init__(self, timeout: Duration | None) -> None:
        self._allowed = seconds_or_none(timeout, "timeout")
        self._end = None if self._allowed is None else time.monotonic() + self._allowed
        self._is_over = False

    def left(self) -> float | None:
        """In seconds; 0, once, if it is over, and then RpcTimeout; None: it has no end."""
        if self._end is None:
            return None
        if self._is_over:  # what comes is not wanted, and more and more of it may come
            raise self.late()
        left = self._end - time.monotonic()
        self._is_over = left <= 0
        return max(0.0, left)

    def late(self) -> RpcTimeout:
        return RpcTimeout(f"no log record came within {self._allowed:g} s")
