"""How a server gets the messages of its queues: with one wait, on one connection, for one thread at a time.

The acknowledgements of fast handlers leave in one write with the wait for more. While messages are waiting,
several are taken at a time: the more of them, the faster the last ones were handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import scripts
from .acks import SCRIPTS, AckBuffer, Group, Page
from .connection import BLOCK, Command, Connection, pop_or_none
from .keys import Keys
from .servers import Servers

MOST = 32
"""Messages that are taken at a time, at most."""
AHEAD = 0.002
"""Seconds of work that are taken at a time, by what the last messages took: it bounds what others, who are
idle, cannot have, and how much is done again if this process dies."""
PAGE = 64
"""Messages of a page, about: as many are looked at to acknowledge one of them."""


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
    """For one thread at a time. `knows` says whether a record is in hand; `sign_on` tells others how many
    pages there are."""

    def __init__(
        self,
        servers: Servers,
        pages: Sequence[Pages],
        acks: AckBuffer,
        *,
        knows: Callable[[bytes], bool],
        sign_on: Callable[[], object],
    ) -> None:
        self.pages, self._acks, self._knows, self._sign_on = pages, acks, knows, sign_on
        self._connection = Connection(servers, pages[0].queue.queue, SCRIPTS)
        self._wakeups = [each.queue.wakeup for each in pages]
        self.backlog: deque[Taken] = deque()
        """Taken and not begun. Whoever pops one from it has it."""
        self._most = 1
        self._crowded = True
        """Whether more is likely to be there: then it looks before it waits."""
        self._known_pages = len(pages)
        self.doubtful = True
        """Whether what is in hand must be compared with what Redis has."""

    @property
    def connection(self) -> int:
        """What Redis calls the connection, 0 if there is none."""
        return self._connection.number if self._connection.connected else 0

    def pop(self) -> Taken | None:
        """What is to be begun next, of what was taken. Any thread."""
        taken: Taken | None = pop_or_none(self.backlog)
        return taken

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
        if self.doubtful or not self._connection.connected:
            self._take_stock()
            return
        pages = [each.roomy() for each in self.pages]
        if sum(len(each.all) for each in self.pages) != self._known_pages:
            self._known_pages = sum(len(each.all) for each in self.pages)
            self._sign_on()  # whoever recovers what we have must know of all pages
        groups, before = self._acks.take(), [page.count for page in pages]
        try:
            held, taken = (
                self._receive_some(pages, groups, min(self._most, room))
                if self._crowded
                else (self._receive_one(pages, groups))
            )
        except BaseException:
            self._acks.owe_again(groups)
            raise
        said = {id(page): 0 for page in pages}
        for group in groups:
            said[id(group[0].page)] = said.get(id(group[0].page), 0) + len(group)
        most = (count + more - said[id(page)] for page, count, more in zip(pages, before, taken, strict=True))
        if any(has > may_have for has, may_have in zip(held, most, strict=True)):
            self._acks.owe_again(groups)  # not all of them have arrived
            self.doubtful = True
        else:
            self._acks.confirm(groups)

    def drop(self) -> None:
        """Give the connection up."""
        self._connection.drop()

    def _receive_one(self, pages: list[Page], groups: list[Group]) -> tuple[list[int], list[int]]:
        """Wait for a message, and take one of each queue; how many each page has then, and how many were
        added. Plain commands, of which a lone call needs few, cost Redis less than a script."""
        connection, queues = self._connection, [page.queue.queue for page in pages]
        if len(pages) == 1:
            takes: list[Command] = [("BLMOVE", queues[0], pages[0].key, "LEFT", "RIGHT", BLOCK)]
        else:
            moves = zip(queues, pages, strict=True)
            takes = [("LMOVE", queue, page.key, "LEFT", "RIGHT") for queue, page in moves]
            takes.insert(0, ("BZPOPMIN", *self._wakeups, BLOCK))
        connection.write(
            *(part for group in groups for part in (Connection.NO_ANSWER, self._acks.commands(group))),
            *takes,
            *(("LLEN", page.key) for page in pages),
            *(("LLEN", queue) for queue in queues),
        )
        taken = [connection.read() for _ in takes][-len(pages) :]
        for page, record in zip(pages, taken, strict=True):
            if record is not None:
                self._add(page, record)
        held = [connection.read() for _ in pages]
        self._crowded = sum([connection.read() for _ in queues]) > 0
        return held, [int(record is not None) for record in taken]

    def _receive_some(self, pages: list[Page], groups: list[Group], most: int) -> tuple[list[int], list[int]]:
        """Take what is there, without waiting; how many each page has then, and how many were added."""
        connection = self._connection
        places = [key for page in pages for key in (page.queue.queue, page.key, page.queue.wakeup)]
        # The answers to acknowledgements cost nothing here: they come with that to the last command.
        acks = [self._acks.commands(group) for group in groups]
        connection.write(*acks, (scripts.NEXT, len(places), *places, most))
        for _ in acks:
            connection.read()
        answer = connection.read()
        held, taken = answer[: len(pages)], answer[len(pages) :]
        added = [0] * len(pages)
        for number, record in zip(taken[::2], taken[1::2], strict=True):
            self._add(pages[number], record)
            added[number] += 1
        self._crowded = len(taken) >= 2 * most
        return list(held), added

    def _add(self, page: Page, record: bytes) -> None:
        page.change(1)
        self.backlog.append(Taken(page, record))

    def _take_stock(self) -> None:
        """What lies in the pages and is not in hand was taken with an answer that was lost; what is in hand
        and not there was given to others, and is not begun."""
        pages = [page for each in self.pages for page in each.all]
        self._acks.read_answers()
        connection = self._connection
        connection.write(*(("LRANGE", page.key, 0, -1) for page in pages))
        lists = [connection.read() for _ in pages]
        there = {record for records in lists for record in records}
        waiting = [each for each in self.emptied() if each.raw in there]
        known = {each.raw for each in waiting}
        for page, records in zip(pages, lists, strict=True):
            page.count = len(records)
            waiting += [Taken(page, raw) for raw in records if raw not in known and not self._knows(raw)]
        self.backlog.extend(waiting)
        self.doubtful, self._crowded = False, True

    def emptied(self) -> list[Taken]:
        """All that is not begun, which is then not here any more. Any thread."""
        emptied = []
        while taken := self.pop():
            emptied.append(taken)
        return emptied
