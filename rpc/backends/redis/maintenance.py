"""What a server needs beside its work: signs of life, delayed messages that are due, what workers held that
died, and relief where handlers take long. There is no leader: every worker does it for all."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import redis

from ...errors import BackendUnavailable
from ...loops import Alarm
from .._lease import LeaseKeeper
from .._retry import Backoff
from . import scripts
from .acks import AckBuffer
from .connection import (
    BLOCK,
    FAILURES,
    Command,
    linger,
    milliseconds,
    run_with_reconnect,
    translated_or_logged,
    unavailable,
)
from .fetch import Fetcher, Pages, Taken
from .keys import Keys
from .recovery import Held, bring_back, recover_dead, workers_of
from .sending import KEEP_WAKEUP
from .servers import Servers
from .topics import mend

logger = logging.getLogger(__name__)

T = TypeVar("T")
BEATS_PER_LEASE = 3
TOO_LONG = 0.05
"""Seconds after which a handler is not fast: what was taken with its message goes back."""
KEEP_WORKERS = 86_400_000
"""Milliseconds that it is remembered who served a queue, after the last sign of life of anybody who did."""
FORGET_AFTER = 2 * BLOCK
"""Seconds of absence after which it is forgotten who served a queue: for who was stopped, or died just now,
Redis may go on waiting for a message, and give him one."""


@dataclass(frozen=True)
class Options:
    """Times are in seconds."""

    lease: float
    max_deliveries: int


class Served(Protocol):
    """What is needed of the server."""

    name: str
    prefix: str
    options: Options
    servers: Servers
    keys: list[Keys]
    pages: Mapping[Keys, Pages]
    acks: AckBuffer
    alarm: Alarm
    fetcher: Fetcher | None

    def is_stopped(self) -> bool: ...
    def has_ended(self) -> bool: ...
    def is_laden(self) -> bool: ...
    def relieve(self) -> None: ...
    def promoted(self) -> None: ...
    def check(self, error: BackendUnavailable) -> None: ...


class Absences(Generic[T]):
    """Who was absent at two looks, two beats or more apart: by then those that live have given a sign again,
    whatever befell Redis. An error in between makes it start anew. `beat` is in seconds."""

    def __init__(self, beat: float) -> None:
        self._beat, self._last_look = beat, 0.0
        self._since: dict[T, float] = {}

    def look_is_due(self) -> bool:
        """Whether a beat has passed since this was last said."""
        now = time.monotonic()
        if now - self._last_look < self._beat:
            return False
        self._last_look = now
        return True

    def lasting(self, absent: Iterable[T]) -> Iterator[tuple[T, float]]:
        """Of those that are absent now, the ones that were for long enough, and for how many seconds."""
        known, self._since = self._since, {}
        since: dict[T, float] = {}
        for each in absent:
            since[each] = known.get(each, self._last_look)
            if (seconds := self._last_look - since[each]) >= 2 * self._beat:
                yield each, seconds
        self._since = since


class Maintenance:
    """For one server, in a thread of its own."""

    def __init__(self, server: Served) -> None:
        self._server, self._lease = server, server.options.lease
        self._beat = min(BLOCK, self._lease / BEATS_PER_LEASE)
        self._absences: Absences[tuple[Keys, bytes, int]] = Absences(self._lease / BEATS_PER_LEASE)
        self._last_beat = self._last_look = 0.0
        self._due = 0.0
        """When the next delayed message is due, in seconds of the monotonic clock."""
        self.clock_offset = 0.0
        """What to add to `time.monotonic()` for the clock of the server, in seconds."""
        self._keeper = LeaseKeeper(
            self._lease,
            recover_dead,
            prefix=server.prefix,
            queues=[keys.name for keys in server.keys],
            worker=server.name,
            max_deliveries=server.options.max_deliveries,
        )

    def begin(self) -> None:
        """Sign on, through whatever happens to Redis meanwhile, unless it is stopped. In the thread that runs
        the server. Raises BackendRefused."""
        if self._server.keys:
            self._keeper.start()
            is_done = lambda: self._last_beat > 0 or self._server.is_stopped()  # noqa: E731
            run_with_reconnect(self._sign_on_or_mend, is_done, lost=self._server.check)

    def end(self) -> None:
        """What was begun has ended, whether it ran or not."""
        self._keeper.end()

    def _sign_on_or_mend(self) -> None:
        try:
            self.sign_on()
        except FAILURES as error:
            self.mend(error)
            raise

    def run(self) -> None:
        """Until the server has ended."""
        backoff = Backoff(self._beat / 4)
        while not self._server.has_ended():
            if laden := self._server.is_laden():
                time.sleep(TOO_LONG)  # the alarm is rung for each message meanwhile
            else:
                self._server.alarm.wait(self._pause())
            try:
                if laden and self._server.is_laden():
                    self._server.relieve()
                if self._server.keys:
                    self._step()
                backoff.reset()
            except FAILURES as error:
                self.mend(error)
                if not isinstance(error, redis.RedisError):  # who knows what its answers are answers to
                    self._server.acks.drop()
                backoff.wait("%s; trying again", unavailable(error))
                linger(self._server.is_stopped, self._server.has_ended)
        self._keeper.end()
        if self._server.acks.hangs:
            logger.warning("Redis hangs: what this worker had is delivered again after the lease")
            return
        with translated_or_logged():
            self._leave()

    def _pause(self) -> float:
        """Seconds until there is something to do, if nothing happens."""
        if self._server.is_stopped():
            return TOO_LONG
        due = self._due - time.monotonic() if self._server.keys else self._beat
        return max(0.0, min(self._beat, due))

    def hand_back(self) -> None:
        """Give back all that is in hand, at once. Raises redis.RedisError."""
        for keys in self._server.keys:
            self._bring_back(keys, self._own, len(self._server.pages[keys].all), force=True, died=False)

    def sign_on(self) -> None:
        """Say who serves the queues, and how many pages each has. Raises redis.RedisError."""
        server, lease = self._server, milliseconds(self._lease)
        if not server.keys:
            return
        first, *others = self._signs
        if others:
            server.acks.ask(*(("SET", key, 1, "PX", lease) for key in others))
        places = (first, *(keys.workers for keys in server.keys))
        pages = [len(server.pages[keys].all) for keys in server.keys]
        new = self._ask_timed(
            (scripts.SIGN_ON, len(places), *places, server.name, lease, KEEP_WORKERS, *pages)
        )
        for keys in (server.keys[number] for number in new):
            self._find_orphans(keys)

    def _find_orphans(self, keys: Keys) -> None:
        """Nobody served this queue for so long that it is forgotten who did: what they had when they died is
        found by the names of the keys, and brought back as that of others."""
        with translated_or_logged():
            found = dict[bytes, int]()
            for key in self._scanned(f"{keys.queue}:taken:*"):
                *_, name, number = key.split(b":")
                if name != self._own and number.isdigit() and len(number) < 6:
                    found[name] = max(found.get(name, 0), int(number) + 1)
            for name, pages in found.items():
                self._server.acks.ask(("HSETNX", keys.workers, name, pages))

    def _scanned(self, pattern: str) -> Iterator[bytes]:
        """The keys that have such a name. Raises redis.RedisError."""
        servers, cursor = self._server.servers, 0
        if servers.is_cluster:
            yield from servers.client(pattern).scan_iter(pattern, count=1000)
            return
        while True:
            answer = self._server.acks.ask(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))[0]
            cursor = int(answer[0])
            yield from answer[1]
            if not cursor:
                return

    def mend(self, error: BaseException) -> None:
        """If it says that a key of ours is something else, have that make room. Does not raise."""
        kinds: dict[str, str] = {}
        for keys in self._server.keys:
            kinds |= {keys.queue: "list", keys.wakeup: "zset", keys.delayed: "zset", keys.dead: "list"}
            kinds |= {keys.workers: "hash", keys.control: "stream"}
            kinds |= dict.fromkeys((page.key for page in self._server.pages[keys].all), "list")
        mend(self._server.servers, error, kinds)

    def wake_up(self, *connections: int) -> None:
        """End the waits of these connections. Raises redis.RedisError."""
        if commands := [("CLIENT", "UNBLOCK", number) for number in connections if number]:
            self._server.acks.ask(*commands)

    def release(self, unbegun: Sequence[Taken]) -> None:
        """Give back what was taken and is not begun. Raises redis.RedisError."""
        by_queue: defaultdict[Keys, list[Any]] = defaultdict(list)
        for page, raw in unbegun:
            by_queue[page.queue] += (page.key, raw)
        commands: list[Command] = [
            (scripts.RELEASE, 2, keys.queue, keys.wakeup, *arguments) for keys, arguments in by_queue.items()
        ]
        self._server.acks.ask(*commands)
        for page, _ in unbegun:
            page.change(-1)

    @property
    def _own(self) -> bytes:
        return self._server.name.encode()

    @property
    def _signs(self) -> list[str]:
        """The keys that say that it lives: one for each hash tag of its queues, where others look for it."""
        return [*dict.fromkeys(keys.alive(self._server.name) for keys in self._server.keys)]

    def _step(self) -> None:
        now, server = time.monotonic(), self._server
        if server.is_stopped() and server.fetcher:
            self.wake_up(server.fetcher.connection)
        self._sign_if_due()
        if self._absences.look_is_due():
            for (keys, name, pages), seconds in self._absences.lasting(self._absent()):
                is_over = seconds > FORGET_AFTER
                self._bring_back(keys, name, pages, force=False, died=True, forget=is_over)
                self._sign_if_due()  # there may be many, or what says that it has many pages
        if now >= self._due or now - self._last_look >= self._beat:
            self._last_look = now
            left = [self._promote(keys) for keys in server.keys]
            server.promoted()
            self._due = time.monotonic() + min((each for each in left if each >= 0), default=self._beat)

    def look_for_due(self) -> None:
        """Something was delayed: it may be due before all else. Any thread."""
        self._due = 0.0
        self._server.alarm.ring()

    def sign_if_late(self) -> None:
        """Before it takes anything: who gave no sign for a lease may have been given up, and whoever brings
        back what it has must know of it. Any thread. Raises redis.RedisError."""
        if time.monotonic() - self._last_beat > self._lease:
            self._sign_if_due()

    def _sign_if_due(self) -> None:
        if time.monotonic() - self._last_beat < self._lease / BEATS_PER_LEASE:
            return
        server, lease = self._server, milliseconds(self._lease)
        first, *others = self._signs
        renewed = server.acks.ask(
            *(("PEXPIRE", key, lease) for key in others),
            *(("PEXPIRE", keys.workers, KEEP_WORKERS) for keys in server.keys),
        )[: len(others)]
        if not all([self._ask_timed(("PEXPIRE", first, lease)), *renewed]):
            logger.warning("worker %s was given up: what it held may be done again", server.name)
            try:
                self.sign_on()
            finally:  # it may have been heard, though its answer was lost
                if server.fetcher:
                    server.fetcher.doubtful = True

    def _ask_timed(self, command: Command) -> Any:
        """The answer to a sign of life; the server's clock is looked at, too."""
        before = time.monotonic()
        (seconds, microseconds), answer = self._server.acks.ask(("TIME",), command)
        self.clock_offset = int(seconds) + int(microseconds) / 1e6 - (before + time.monotonic()) / 2
        self._last_beat = before
        self._keeper.beat(self._signs, self._server.acks.how())
        return answer

    def _promote(self, keys: Keys) -> float:
        """Move what is due; seconds until more will be, less than 0 if nothing is delayed."""
        answer = self._server.acks.ask((scripts.PROMOTE, 3, keys.delayed, keys.queue, keys.wakeup))[0]
        return float(answer) / 1000

    def _absent(self) -> Iterator[tuple[Keys, bytes, int]]:
        """Each worker that gives no sign of life, by queue."""
        for keys in self._server.keys:
            for name, (pages, lives) in workers_of(self._server.acks.ask, keys).items():
                if not lives and name != self._own:
                    yield keys, name, pages

    def _leave(self) -> None:
        server = self._server
        if server.keys:
            self.hand_back()
            forgotten = [("PEXPIRE", keys.wakeup, KEEP_WAKEUP) for keys in server.keys]
            server.acks.ask(*forgotten, *(("DEL", key) for key in self._signs))

    def _bring_back(
        self, keys: Keys, name: bytes, pages: int, *, force: bool, died: bool, forget: bool = True
    ) -> None:
        dead, most = Held(keys, name, pages), self._server.options.max_deliveries
        bring_back(
            self._server.acks.ask, dead, most, force=force, died=died, forget=forget, before=self._sign_if_due
        )
