"""A worker's end of its connection: what it owes goes ahead of what it asks for.

An acknowledgement is owed until it is known to have arrived: if the connection breaks, it is said again on
the next one, which does no harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import redis

from . import scripts
from .calls import NO_ANSWER
from .connection import BLOCK, Command, Link
from .keys import LARGE, Keys
from .servers import Place

logger = logging.getLogger(__name__)

LOADED = (scripts.NEXT, scripts.ACK, scripts.REPLY, scripts.FORBID, scripts.POSTPONE, scripts.BURY)


class Ack(msgspec.Struct):
    """What is owed for a message that was handled."""

    keys: Keys
    id: str
    inbox: str
    entry: bytes
    """The last reply, as it lies in an inbox; nothing for none."""

    @property
    def is_large(self) -> bool:
        """Whether the reply stays out of the script, and goes ahead of it."""
        return len(self.entry) > LARGE and bool(self.inbox)


class Group(NamedTuple):
    """Acknowledgements that go in one command."""

    acks: list[Ack]
    quiet: bool
    """Whether they have no answer of their own."""


class Outbox:
    """For the thread of one worker, and for the one that relieves it. A worker that `is_lone` in its process
    looks for the next message before it sleeps, if the last ones came that fast."""

    def __init__(self, place: Place, queues: Sequence[Keys], worker: str, is_lone: bool) -> None:
        self._worker, self._is_lone = worker, is_lone
        self._lock = threading.RLock()
        self._link = Link(place, queues[0].queue, LOADED)
        self._names_all = place.is_cluster
        """Whether an acknowledgement names each key: if some have moved, all of it must be refused."""
        self._done: list[Ack] = []
        self._unread: list[Group] = []
        """What was written, and is not known to have arrived."""
        self._since = 0.0
        self._took_one = False
        self._epoch = 0
        self._receipts: dict[tuple[int, bool], bytes] = {}
        self._wait: Command = ("BLPOP", *(keys.bell for keys in queues), BLOCK)
        slots = [keys.slot(worker) for keys in queues]
        pairs = [key for keys in queues for key in (keys.queue, keys.bell)]
        places = (queues[0].alive(worker), *slots, *pairs)
        self._next: Command = (scripts.NEXT, len(places), *places)
        self._queues = len(queues)

    @property
    def is_empty(self) -> bool:
        return not self._done

    @property
    def connection(self) -> int:
        """What Redis calls the connection, 0 if there is none."""
        return self._link.number if self._link.connected else 0

    def waits_for(self) -> float:
        """Seconds since something was owed first."""
        return time.perf_counter() - self._since

    def owe(self, ack: Ack) -> None:
        """Acknowledge a message some time soon: at the latest, before something is asked for."""
        with self._lock:
            if not self._done:
                self._since = time.perf_counter()
            self._done.append(ack)

    def say(self, script: str, keys: Keys, *arguments: Any) -> None:
        """Run a script on the message that is handled now, without waiting for what it says. What is owed
        need not be said first: the script is told where in the slot the message is."""
        with self._lock:
            place = sum(ack.keys is keys for ack in self._done)
            with suppress(redis.RedisError):  # what matters is said again with the acknowledgement
                self._link.write(NO_ANSWER, (script, *arguments, place, 1))

    def flush(self) -> None:
        """Acknowledge what is owed now, without waiting for the answer."""
        with self._lock:
            if acks := self._acks(quiet=False):
                self._link.write_packed(acks)

    def ask(self, *commands: Command) -> list[Any]:
        """The answers to these commands."""
        with self._lock:
            self._link.write_packed(self._acks(quiet=False) + self._link.packed(*commands))
            self._read_acks()
            return [self._link.read() for _ in commands]

    def receive(self, most: int, *, wait: bool) -> Any:
        """What NEXT returns; `wait`: once there is something, and after a second at the latest."""
        with self._lock:
            self._link.write_packed(self._acks(quiet=True) + self._receipt(most, wait))
            if wait and self._is_lone and self._took_one:  # of many callers, some would have to wait for it
                self._link.look()
            self._read_acks()
            if wait:
                self._link.read()
            answer = self._link.read()
            if answer != scripts.NOT_EMPTY:
                self._unread.clear()
            self._took_one = isinstance(answer, list) and len(answer) == 3
            return answer

    def drop(self) -> None:
        """Give the connection up."""
        self._link.drop()

    def _receipt(self, most: int, wait: bool) -> bytes:
        """The wait and the receipt, as they are written on this connection."""
        if (most, wait) not in self._receipts:
            waiting = [self._wait] if wait else []
            self._receipts[most, wait] = self._link.packed(*waiting, (*self._next, most, self._queues))
        return self._receipts[most, wait]

    def _acks(self, *, quiet: bool) -> bytes:
        """What acknowledges all that is owed, packed for this connection, to be written at once. `quiet` asks
        for no answers: the receipt that follows tells whether anything is left in a slot."""
        if not self._link.connected:
            self._link.packed()
        if self._epoch != self._link.epoch or (self._unread and self._unread[0].quiet):
            self._done = [ack for group in self._unread for ack in group.acks] + self._done
            self._unread.clear()
        if self._epoch != self._link.epoch:
            self._epoch = self._link.epoch
            self._receipts.clear()
        if not self._done:
            return b""
        groups: list[Group] = []
        for ack in self._done:
            if (
                not groups
                or groups[-1].acks[0].keys is not ack.keys
                or ack.is_large
                or groups[-1].acks[0].is_large
            ):
                groups.append(Group([], quiet and not ack.is_large))
            groups[-1].acks.append(ack)
        self._done = []
        self._unread += groups
        return self._link.packed(*(command for group in groups for command in self._said(group)))

    def _said(self, group: Group) -> list[Command]:
        """The commands that acknowledge a group."""
        first = group.acks[0]
        places = [first.keys.slot(self._worker), first.keys.queue]
        if self._names_all:
            for each in group.acks:
                places += (each.keys.token(each.id), each.inbox or first.keys.queue)
        replies = [(each.id, b"" if first.is_large else each.entry) for each in group.acks]
        ack = (scripts.ACK, len(places), *places, *chain(*replies))
        if group.quiet:
            return [NO_ANSWER, ack]
        if not first.is_large:
            return [ack]
        return [("RPUSH", first.inbox, first.entry), ("PEXPIRE", first.inbox, 60_000), ack]

    def _read_acks(self) -> None:
        """The answers to acknowledgements that have one."""
        while self._unread and not self._unread[0].quiet:
            acks = self._unread[0].acks
            if acks[0].is_large:
                self._link.read()
                self._link.read()
            if lost := len(acks) - self._link.read():
                ids = ", ".join(ack.id for ack in acks)
                why = "acknowledged on a connection that broke, or given to another worker"
                logger.warning("%d of %s are not held any more: %s", lost, ids, why)
            del self._unread[0]
