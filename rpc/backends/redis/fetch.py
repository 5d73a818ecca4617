"""How a server gets the messages of its queues: with one wait, on one connection, for one thread at a time.

The acknowledgements of fast handlers leave in one write with the wait for more. While messages are waiting,
several are taken at a time: the more of them, the faster the last ones were handled.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...loops import pop_or_none
from . import scripts
from .acks import SCRIPTS, AckBuffer, Group, Page
from .connection import BLOCK, Command, Connection
from .keys import Keys
from .servers import Servers

MOST = 32
"""Messages that are taken at a time, at most."""
AHEAD = 0.002
"""Seconds of work that are taken at a time, by what the last messages took: it bounds what others, who are
idle, cannot have, and how much is done again if this process dies."""
PAGE = 64
"""Messages of a page, about: as many are looked at to acknowledge one of them."""


UNCHECKED, CHECK = 16, 0.05
"""Acknowledgements, and seconds, after which it is checked whether what was said has arrived."""


class Taken(NamedTuple):
    """What lies in a page, and is not begun."""

    page: Page
    raw: bytes


class Pages:
    """The processing list of one server, for one queue."""

    def __init__(self, queue: Keys, worker: str) -> None:
        self.queue, self._worker = queue, worker
        self.all = [Page(queue, worker, 0)]

    def roomy(self) -> Page:
        """One that is not full, a new one if there is none."""
        for page in self.all[-1], *self.all:
            if page.count < PAGE:
                return page
        self.all.append(Page(self.queue, self._worker, len(self.all)))
        return self.all[-1]


class Fetcher:
    """For one thread at a time. `in_hand` are the records that are; `sign_on` tells others how many pages
    there are."""

    def __init__(
        self,
        servers: Servers,
        pages: Sequence[Pages],
        acks: AckBuffer,
        *,
        in_hand: set[bytes],
        sign_on: Callable[[], object],
    ) -> None:
        self.pages, self._acks, self._in_hand, self._sign_on = pages, acks, in_hand, sign_on
        self._connection = Connection(servers, pages[0].queue.queue, SCRIPTS)
        self._wakeups = [each.queue.wakeup for each in pages]
        self.backlog: deque[Taken] = deque()
        """Taken and not begun. Whoever pops one from it has it."""
        self._most = 1
        self._crowded = True
        """Whether more is likely to be there: then it looks before it waits."""
        self.may_be_crowded = False
        """Whether to take what else is there, with the next wait."""
        self._took_one = False
        """Whether the last wait was for one message."""
        self._known_pages = len(pages)
        self.doubtful = True
        """Whether what is in hand must be compared with what Redis has."""
        self._doubtful_from = math.inf
        """When it is so again, in seconds of the monotonic clock."""
        self._settling = threading.Lock()
        """Held to compare them, and to give back what is not begun."""
        self._unchecked: list[Group] = []
        """Acknowledgements that were said without an answer: the lengths of the pages tell that of them."""
        self._checked = 0.0
        self._waits: dict[tuple[Page, ...], bytes] = {}
        """How a wait is written on this connection."""
        self._epoch = 0

    @property
    def connection(self) -> int:
        """What Redis calls the connection, 0 if there is none."""
        return self._connection.number if self._connection.connected else 0

    def pop(self) -> Taken | None:
        """What is to be begun next, of what was taken. Any thread."""
        return pop_or_none(self.backlog) if self.backlog else None

    def paced(self, handled: int, seconds: float) -> None:
        """So many messages took so long."""
        fits = AHEAD * handled / max(seconds, 1e-6)
        if fits >= 2 * self._most and self._most < MOST:
            self._most *= 2
        elif fits < self._most and self._most > 1:
            self._most //= 2

    def receive(self, room: int) -> None:
        """Say what is owed, and take at most so many messages into the backlog; wait for one, for a second at
        most, if there is none. Raises redis.RedisError."""
        if self._connection.due:  # it was interrupted
            self._connection.drop()
        is_new = not self._connection.connected
        if self.doubtful or is_new or time.monotonic() > self._doubtful_from:
            self.doubtful = False  # first: others may have doubts meanwhile
            try:
                with self._settling:
                    self._take_stock(is_new)
            except BaseException:
                self.doubtful = True
                raise
            return
        pages = tuple([each.roomy() for each in self.pages])
        if (count := sum([len(each.all) for each in self.pages])) != self._known_pages:
            self._sign_on()  # whoever recovers what we have must know of all pages
            self._known_pages = count
        groups = self._acks.take()
        try:
            if self._crowded:
                self._receive_some(pages, groups, min(self._most, room))
            else:
                self._wait(pages, groups, min(self._most, room))
        except BaseException:
            self._connection.drop()  # who knows what its next answers are answers to
            self._acks.owe_again([*self._unchecked, *groups])
            self._unchecked = []
            raise

    def drop(self) -> None:
        """Give the connection up."""
        self._connection.drop()

    def _wait(self, pages: tuple[Page, ...], groups: list[Group], most: int) -> None:
        """Wait for messages, and take them. For one queue that is a plain command, which costs Redis less
        than a script; and each answer that is not needed would cost it a write."""
        connection = self._connection
        acks = connection.packed(*map(self._acks.commands, groups), quiet=True)
        self._unchecked += groups
        checks = self._due_checks()
        more: list[Command] = [("LLEN", page.key) for page in checks]
        if len(pages) == 1:
            most = most - 1 if self.may_be_crowded else 0  # the wait itself takes one
        if most:
            more.insert(0, self._next(pages, most, also=len(pages) == 1))
        wait = self._packed_wait(pages)
        connection.write_packed(b"".join((acks, wait, connection.packed(*more))), 1 + len(more))
        if self._took_one:  # of many callers, some would have to wait for it
            connection.look()
        before, answer = len(self.backlog), connection.read()
        if len(pages) == 1 and answer is not None:
            self._add(pages[0], answer)
        if most:
            taken = connection.read() or ()
            self._crowded, self.may_be_crowded = len(taken) >= 2 * most, len(taken) > 0
            self._take(pages, taken)
        self._took_one = len(self.backlog) == before + 1
        self._check(checks)

    def _receive_some(self, pages: tuple[Page, ...], groups: list[Group], most: int) -> None:
        """Take what is there, without waiting. The answers to acknowledgements cost nothing here: they come
        with that to the last command."""
        connection = self._connection
        acks = [self._acks.commands(group) for group in groups]
        connection.write(*acks, self._next(pages, most, also=False))
        for _ in acks:
            connection.read()
        taken = connection.read() or ()
        self._acks.confirm(groups)
        self._crowded, self.may_be_crowded = len(taken) >= 2 * most, True
        self._take(pages, taken)

    def _next(self, pages: tuple[Page, ...], most: int, *, also: bool) -> Command:
        """What takes so many; `also`: beside one that was just taken."""
        places = [key for page in pages for key in (page.queue.queue, page.key, page.queue.wakeup)]
        return (scripts.NEXT, len(places), *places, most, int(also))

    def _take(self, pages: tuple[Page, ...], taken: Sequence[Any]) -> None:
        if not taken:
            return
        several = [Taken(pages[taken[n]], taken[n + 1]) for n in range(0, len(taken), 2)]
        for page, added in Counter([each.page for each in several]).items():
            page.change(added)
        self.backlog.extend(several)

    def _packed_wait(self, pages: tuple[Page, ...]) -> bytes:
        if self._epoch != self._connection.epoch or len(self._waits) > MOST:
            self._epoch = self._connection.epoch
            self._waits.clear()
        if (known := self._waits.get(pages)) is not None:
            return known
        wait: Command = ("BZPOPMIN", *self._wakeups, BLOCK)
        if len(pages) == 1:
            wait = ("BLMOVE", pages[0].queue.queue, pages[0].key, "LEFT", "RIGHT", BLOCK)
        packed = self._waits[pages] = self._connection.packed(wait)
        return packed

    def _due_checks(self) -> dict[Page, int]:
        """The pages that are to be looked at, and how long each is at most if all has arrived."""
        now = time.monotonic()
        if not self._unchecked or (len(self._unchecked) < UNCHECKED and now - self._checked < CHECK):
            return {}
        self._checked = now
        checks: dict[Page, int] = {}
        for group in self._unchecked:
            page = group[0].page
            checks[page] = checks.get(page, page.count) - len(group)
        return checks

    def _check(self, checks: dict[Page, int]) -> None:
        if not checks:
            return
        has = [self._connection.read() for _ in checks]
        unchecked, self._unchecked = self._unchecked, []
        taken = Counter(each.page for each in [*self.backlog])  # with this very wait
        if any(count > most + taken[page] for count, (page, most) in zip(has, checks.items(), strict=True)):
            self._acks.owe_again(unchecked)  # not all of them have arrived
            self.doubtful = True
        else:
            self._acks.confirm(unchecked)

    def _add(self, page: Page, record: bytes) -> None:
        page.change(1)
        self.backlog.append(Taken(page, record))

    def _take_stock(self, is_new: bool) -> None:
        """What lies in the pages and is not in hand was taken with an answer that was lost; what is in hand
        and not there was given to others, and is not begun. A new connection: Redis may wait a while on the
        one before it, of whose end it was not told."""
        self._connection.packed()  # connects
        self._doubtful_from = time.monotonic() + 2 * BLOCK if is_new and self._epoch else math.inf
        self._acks.owe_again(self._unchecked)
        self._unchecked = []
        pages = [page for each in self.pages for page in each.all]
        self.emptied()
        for page, records in zip(pages, self._acks.stock(pages, self._in_hand), strict=True):
            self.backlog.extend([Taken(page, raw) for raw in records])
        self._crowded = True

    def give_back(self, release: Callable[[Sequence[Taken]], object]) -> None:
        """Have what is not begun released. Any thread. Raises redis.RedisError."""
        with self._settling:
            unbegun = self.emptied()
            try:
                if unbegun:
                    release(unbegun)
            except BaseException:
                self.doubtful = True  # it lies in its page, and nobody has it
                raise

    def emptied(self) -> list[Taken]:
        """All that is not begun, which is then not here any more. Any thread."""
        emptied = []
        while taken := self.pop():
            emptied.append(taken)
        return emptied
