"""What a server owes for the messages that it handled, and the connection on which everything is said that
does not ride with the wait for more.

An acknowledgement is owed until it is known to have arrived: if a connection breaks, it is said again on the
next one, which does no harm.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis

from . import scripts
from .connection import FAILURES, Command, Connection, unavailable
from .keys import Keys
from .servers import Servers

logger = logging.getLogger(__name__)

SCRIPTS = (
    *(scripts.ACK, scripts.FINISH, scripts.CHANGE, scripts.BEGIN, scripts.POSTPONE, scripts.BURY),
    *(scripts.SIGN_ON, scripts.NEXT, scripts.RECOVER, scripts.RELEASE, scripts.PROMOTE),
    *(scripts.JOIN, scripts.KEEP, scripts.GONE, scripts.BROADCAST, scripts.AGO),
)
KEEP_REPLY = 60_000
"""Milliseconds that an inbox outlives a reply."""
UNREAD = 64
"""Answers to acknowledgements that may be outstanding before somebody waits for them."""
TOGETHER = 1024 * 1024
"""Bytes of replies, about, that are acknowledged in one command."""
SMALL = 64 * 1024
"""Bytes that an event loop writes itself: more might have to wait for Redis."""


class Page:
    """A part of what a server has taken and not acknowledged."""

    __slots__ = ("count", "key", "queue")

    def __init__(self, queue: Keys, worker: str, number: int) -> None:
        self.queue, self.key = queue, queue.page(worker, number)
        self.count = 0
        """How many messages it has, as far as is known here."""

    def change(self, by: int) -> None:
        """So many more are known to be there."""
        with _counting:
            self.count += by


_counting = threading.Lock()


class Ack(msgspec.Struct, eq=False):
    """What is owed for a message that was handled."""

    page: Page
    record: bytes
    inbox: str
    """Where the last reply goes; "" for none."""
    entry: bytes
    """It, as it lies there."""
    keep: int = KEEP_REPLY
    """Milliseconds that the inbox outlives the reply."""
    special: tuple[int, bytes, int] | None = None
    """Number and frame of the reply to a message with an idempotency key, or an order key, or whose body lies
    elsewhere, or whose reply is kept; for how many milliseconds (0: it is not)."""


Group = list[Ack]
"""Acknowledgements that go in one command."""


class AckBuffer:
    """For any thread. `confirmed` hears which acknowledgements have arrived; `late`, from an event loop, that
    somebody else must write what is owed."""

    def __init__(
        self,
        servers: Servers,
        key: str,
        confirmed: Callable[[Group], object],
        late: Callable[[], object],
    ) -> None:
        self._connection = Connection(servers, key, SCRIPTS)
        self._confirmed, self._late = confirmed, late
        self._names_all = servers.is_cluster
        """Whether an acknowledgement names each key: if some have moved, all of it must be refused."""
        self._lock = threading.RLock()
        """Held to use the connection."""
        self._owed: list[Ack] = []
        self._owing = threading.Lock()
        """Held to change what is owed."""
        self._unread: deque[Group] = deque()
        """What was written, and is not known to have arrived."""
        self._epoch, self._failed = 0, False
        self._timeouts = 0
        """How often an answer did not come in time."""
        self.hangs = False
        """Whether the last one that was waited for did not."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written."""
        return not self._owed

    def owe(self, ack: Ack) -> None:
        """Acknowledge a message with what is written next."""
        with self._owing:
            self._owed.append(ack)

    def take(self) -> list[Group]:
        """All that is owed, for another connection to write: it is owed again if that fails."""
        with self._owing:
            acks, self._owed = self._owed, []
        return _grouped(acks)

    def owe_again(self, groups: Sequence[Group]) -> None:
        """These have not arrived, or it is not known."""
        with self._owing:
            self._owed[:0] = [ack for group in groups for ack in group]

    def confirm(self, groups: Sequence[Group]) -> None:
        """These have arrived."""
        for group in groups:
            group[0].page.change(-len(group))
            self._confirmed(group)

    def flush(self, *, in_loop: bool = False) -> None:
        """Acknowledge what is owed now, without waiting for answers. Whoever uses the connection just then
        does it when it is free. An event loop does not wait to write, either."""
        while self._owed and self._lock.acquire(blocking=False):
            try:
                if in_loop and not self._may_write():
                    self._late()
                    return
                self._write()
                self._failed = False
            except FAILURES as error:
                if not self._failed:  # a thousand handlers may end while Redis is away
                    logger.warning("%s; what is owed is said again", unavailable(error))
                self._failed = True
                self._late()
                return
            finally:
                self._lock.release()

    def ask(self, *commands: Command) -> list[Any]:
        """The answers to these commands, after all that is owed. Raises redis.RedisError; at once, if Redis
        has let somebody else wait in vain while this waited for the connection."""
        before = self._timeouts
        with self._lock:
            if self._timeouts != before:
                raise redis.TimeoutError("it did not answer somebody else in time")
            answers = self._asked(commands)
        self.flush()
        return answers

    def stock(self, pages: Sequence[Page], in_hand: set[bytes]) -> list[list[bytes]]:
        """What lies in each of these pages, and is not in hand, nor was when this was asked: it may be
        acknowledged meanwhile. Raises redis.RedisError."""
        with self._lock:  # what changes a record does so here, and has the new one in hand before
            known = in_hand.copy()
            lists = self._asked([("LRANGE", page.key, 0, -1) for page in pages])
            for page, records in zip(pages, lists, strict=True):
                page.count = len(records)
        self.flush()
        return [[raw for raw in records if raw not in known] for records in lists]

    def say(self, *commands: Command) -> None:
        """Have these carried out, without waiting for it."""
        with self._lock:
            self._connection.write_packed(self._connection.packed(*commands, quiet=True), 0)

    def how(self) -> dict[str, Any]:
        """How the connection was made."""
        return self._connection.how()

    def drop(self) -> None:
        """Give the connection up."""
        with self._lock:
            self._connection.drop()

    def commands(self, group: Group) -> Command:
        """What acknowledges a group."""
        first = group[0]
        if first.special:
            settled = [part for each in group for part in (each.record, *(each.special or ()))]
            return (scripts.FINISH, 2, first.page.key, first.page.queue.queue, *settled)
        inboxes = dict.fromkeys(each.inbox for each in group if each.inbox) if self._names_all else ()
        arguments = [part for each in group for part in (each.record, each.inbox, each.entry)]
        return (scripts.ACK, 1 + len(inboxes), first.page.key, *inboxes, first.keep, *arguments)

    def _asked(self, commands: Sequence[Command]) -> list[Any]:
        try:
            self._write(commands)
            self._read(len(self._unread))
            answers = [self._connection.read() for _ in commands]
        except redis.TimeoutError:
            self._timeouts, self.hangs = self._timeouts + 1, True
            raise
        self.hangs = False
        return answers

    def _may_write(self) -> bool:
        size = sum(len(ack.record) + len(ack.entry) for ack in [*self._owed])
        return size < SMALL and self._connection.connected and self._connection.is_writable()

    def _write(self, commands: Sequence[Command] = ()) -> None:
        """Write what is owed, and these commands; read the answers that are there."""
        if self._connection.due != len(self._unread):  # somebody was interrupted
            self._connection.drop()
        self._connection.packed()  # connects
        if self._epoch != self._connection.epoch:
            self._epoch = self._connection.epoch
            self.owe_again([*self._unread])
            self._unread.clear()
        groups = self.take()
        try:
            self._connection.write(*map(self.commands, groups), *commands)
        except BaseException:
            self.owe_again(groups)
            raise
        self._unread += groups
        if not commands:
            self._read(max(0, len(self._unread) - UNREAD))
            while self._unread and self._connection.readable(0):
                self._read(1)

    def _read(self, count: int) -> None:
        for _ in range(count):
            group = self._unread[0]
            if lost := len(group) - self._connection.read():
                logger.info("%d messages are not held any more: others may have them", lost)
            self._unread.popleft()
            self.confirm([group])


def _grouped(acks: list[Ack]) -> list[Group]:
    if len(acks) < 2:
        return [acks] if acks else []
    unfinished: dict[tuple[Page, int, bool], Group] = {}
    sizes: dict[tuple[Page, int, bool], int] = {}
    groups: list[Group] = []
    for ack in acks:
        kind = ack.page, ack.keep, ack.special is not None
        if kind not in unfinished or sizes[kind] > TOGETHER:
            unfinished[kind], sizes[kind] = [], 0
            groups.append(unfinished[kind])
        unfinished[kind].append(ack)
        sizes[kind] += len(ack.special[1] if ack.special else ack.entry)
    return groups
