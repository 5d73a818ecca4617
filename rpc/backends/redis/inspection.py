"""What people see of the native Redis backend, and do to it: what is in its queues, what was given up, and
the last replies that are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

from ...errors import SerializationError
from ...inspection import DeadLetter, Entry, QueueInfo
from ...transport import ATTEMPT, IDEMPOTENCY_KEY, UNKNOWN, Message, packed, unpacked
from . import scripts
from .connection import Command, milliseconds, translated
from .delivery import NEW_LINE
from .keys import Keys, QueueNames, Record, plain
from .recovery import workers_of
from .sending import CONTROL_LENGTH, Sender
from .servers import Servers
from .topics import run_on_client

_LETTER = re.compile(rb"(\d{1,16})\n([^\n]*)\n").match
AT_A_TIME = 1000
"""Records that are read with one command."""


class RedisInspection:
    """A part of RedisBackend. Each method raises BackendUnavailable."""

    servers: Servers
    names: QueueNames
    _sender: Sender

    def is_served(self, queue: str) -> bool:
        with translated():
            return any(lives for _, lives in self._workers(self.names.queue(queue)).values())

    @translated()
    def queue_info(self, queue: str) -> QueueInfo:
        keys = self.names.queue(queue)
        workers = self._workers(keys)
        pages = [keys.page(*page) for page in _pages(workers)]
        (now, _), first, *counts = self._ask(
            keys,
            ("TIME",),
            ("LINDEX", keys.queue, 0),
            ("LLEN", keys.queue),
            ("HGET", keys.order, ""),
            ("ZCARD", keys.delayed),
            ("LLEN", keys.dead),
            *(("LLEN", page) for page in pages),
        )
        in_queue, behind, scheduled, dead, *held = counts
        waiting = in_queue + count_of(behind)
        oldest = _read(first) if first else None
        age = max(0.0, now - oldest.sent / 1000) if oldest else None
        alive = sum(lives for _, lives in workers.values())
        return QueueInfo(queue, waiting, sum(held), scheduled, dead, alive, age)

    def entries(self, queue: str, id: str | None = None) -> Iterator[Entry]:
        keys, wanted = self.names.queue(queue), None if id is None else plain(id)
        with translated():
            client = self.servers.client(keys.queue)
            for raw, due in client.zrange(keys.delayed, 0, -1, withscores=True):
                yield from self._entry(keys, wanted, raw, "scheduled", due / 1000)
            for place in keys.queue, *self._lines(keys):
                start = 0
                while chunk := client.lrange(place, start, start + AT_A_TIME - 1):
                    for raw in chunk:
                        yield from self._entry(keys, wanted, raw, "waiting")
                    start += AT_A_TIME
            for worker, number in _pages(self._workers(keys)):
                for raw in client.lrange(keys.page(worker, number), 0, -1):
                    yield from self._entry(keys, wanted, raw, "running", worker=worker)

    def _lines(self, keys: Keys) -> Iterator[str]:
        """The lists of those that wait behind others with their order key."""
        client = self.servers.client(keys.queue)
        firsts = client.hgetall(keys.order)
        names = [name.decode(errors="replace") for name in firsts if name and b"" in firsts]
        for start in range(0, len(names), AT_A_TIME):
            places = [keys.line(name) for name in names[start : start + AT_A_TIME]]
            pipe = client.pipeline(transaction=False)
            for place in places:
                pipe.llen(place)
            yield from (place for place, length in zip(places, pipe.execute(), strict=True) if length)

    def _entry(
        self,
        keys: Keys,
        wanted: str | None,
        raw: bytes,
        state: Any,
        due: float | None = None,
        worker: str = "",
    ) -> Iterator[Entry]:
        """What a record is, if it is that which is wanted, and can be read."""
        if (record := _read(raw)) and wanted in (None, record.id):
            at = record.sent / 1000 if due is None else due
            yield Entry(record.id, keys.name, state, self._frame(keys, record), at, worker, raw)

    def withdraw(self, entry: Entry) -> bool:
        keys = self.names.queue(entry.queue)
        with translated():
            if entry.state != "running":
                return bool(self._ask(keys, (scripts.WITHDRAW, 2, keys.queue, keys.delayed, entry.raw))[0])
            held, _ = self._workers(keys).get(entry.worker.encode(), (0, False))
            pages = [keys.page(entry.worker, number) for number in range(held)]
            places = (keys.cancelled(entry.id), keys.control, *pages)
            return bool(self._ask(keys, (scripts.CANCEL, len(places), *places, entry.id, CONTROL_LENGTH))[0])

    def keep(self, queue: str, id: str, last: Message, seconds: float) -> None:
        keys = self.names.queue(queue)
        with translated():
            self._ask(keys, ("SET", keys.result(plain(id)), packed(last), "PX", milliseconds(seconds)))

    def result(self, queue: str, id: str) -> Message | None:
        keys = self.names.queue(queue)
        with translated():
            frame = self._ask(keys, ("GET", keys.result(plain(id))))[0]
            return unpacked(frame) if frame else None

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        keys, found = self.names.queue(queue), []
        with translated():
            for raw in self._ask(keys, ("LRANGE", keys.dead, 0, -1))[0]:
                if (letter := _LETTER(raw)) is None:
                    continue  # it is none of ours
                told, rest = letter[2].decode(errors="replace"), raw[letter.end() :]
                if record := _read(rest):
                    id, frame = record.id, self._frame(keys, record)
                else:  # it was given up for that
                    id, frame = sha256(rest).hexdigest()[:32], rest
                why, trace = DeadLetter.told(told.replace(NEW_LINE, "\n"))
                found.append(DeadLetter(id, queue, int(letter[1]) / 1000, why, frame, raw, trace))
        return found

    def revive(self, letter: DeadLetter) -> bool:
        """If its caller still waits, it does not get the reply."""
        keys = self.names.queue(letter.queue)
        message = unpacked(letter.frame).replace(
            **{"reply_to": None, "ttl": None, ATTEMPT: None, IDEMPOTENCY_KEY: None, UNKNOWN: None}
        )
        changed, record, _ = self._sender.encode(keys, message, plain(letter.id), "", 0)
        body = [(*command[:3], "XX", "KEEPTTL") for command in changed]
        return self._settle(letter, body, record.unsent())

    def drop(self, letter: DeadLetter) -> bool:
        return self._settle(letter, [])

    def _settle(self, letter: DeadLetter, before: Sequence[Command], *record: bytes) -> bool:
        keys = self.names.queue(letter.queue)
        command = (scripts.REVIVE, 3, keys.dead, keys.queue, keys.wakeup, letter.raw, *record)
        with translated():
            return bool(self._ask(keys, *before, command)[-1])

    def _ask(self, keys: Keys, *commands: Command) -> list[Any]:
        return run_on_client(self.servers, keys.queue, *commands)

    def _workers(self, keys: Keys) -> dict[bytes, tuple[int, bool]]:
        return workers_of(partial(self._ask, keys), keys)

    def _frame(self, keys: Keys, record: Record) -> bytes:
        if not record.is_large:
            return record.frame
        return bytes(self._ask(keys, ("GET", keys.body(record.id)))[0] or b"")


def _pages(workers: dict[bytes, tuple[int, bool]]) -> Iterator[tuple[str, int]]:
    """The pages of these workers, the first ones first."""
    for name, (pages, _) in workers.items():
        yield from ((name.decode(errors="replace"), number) for number in range(pages))


def count_of(text: bytes | None) -> int:
    """What a counter says; 0 if somebody wrote something else there."""
    return int(text) if text and text.isdigit() and len(text) < 16 else 0


def _read(raw: bytes) -> Record | None:
    try:
        return Record.unpacked(raw)
    except SerializationError:
        return None
