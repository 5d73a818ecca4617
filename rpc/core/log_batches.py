"""Log records on their way to other processes: several in one message, and which of them somebody wants.

A message is an event `rpc.logs`, whose headers say which service has sent it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from ..errors import SerializationError, shown
from ..identity import NAMELESS
from ..transport import topic
from .codecs import JSON
from .events import Event
from .log_entries import LogEntry, Whole
from .patterns import matcher
from .protocol import Call, encode_call

logger = logging.getLogger(__name__)

LOGS = topic("rpc.logs")
METHOD = "rpc.logs"
"""The event's name, and the logger of entries that are about the records themselves."""
SENDERS = 10_000
"""Of which it is remembered how many records have come, at most."""


class Sender(msgspec.Struct, frozen=True):
    """The process whose records a message carries."""

    id: Annotated[str, msgspec.Meta(max_length=64)]
    """Its own, at random; another one after a fork."""
    host: str
    pid: Whole
    process: str
    """The name of the process, as `multiprocessing` has it."""


def batch_body(id: str, sender: Sender, first: int, dropped: int, records: Sequence[bytes]) -> bytes:
    """The body of an event with encoded records, the first of which has this number among those that its
    sender sends; before it, so many were dropped."""
    params: dict[str, Any] = {
        "sender": sender,
        "first": first,
        "dropped": dropped,
        "records": [msgspec.Raw(each) for each in records],
    }
    return encode_call(Call(METHOD, params), id, JSON)


class Batch(msgspec.Struct, frozen=True):
    """What a message carries."""

    sender: Sender
    first: Whole
    records: list[Any]
    dropped: Whole = 0


class Heard:
    """Makes entries of messages: each record once, and an entry of its own where some are missing."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        """By the id of the sender: the number of the record that comes next."""

    def entries(self, event: Event) -> Iterator[LogEntry]:
        """Those in an event. Raises SerializationError. A record that is none is logged and left out."""
        try:
            batch = msgspec.convert(event.data, Batch)
        except msgspec.ValidationError as error:
            raise SerializationError(f"they are no log records: {error}") from error
        sender, expected = batch.sender, self._next.pop(batch.sender.id, batch.first)
        about = {
            "process": sender.process,
            "pid": sender.pid,
            "host": sender.host,
            "service": _service(event.headers),
            "version": str(event.headers.get("service_version", "")),
        }
        self._next[sender.id] = max(expected, batch.first + len(batch.records))
        if len(self._next) > SENDERS:
            del self._next[next(iter(self._next))]
        if batch.first < expected:  # it was sent again
            return
        entries = list(_entries(batch.records))
        now = entries[0].time if entries else 0.0
        for number, why in (
            (batch.dropped, "dropped by their process, whose buffer was full"),
            (batch.first - expected, "lost on their way"),
        ):
            if number > 0:
                yield msgspec.structs.replace(_missing(now, number, why), **about)
        for entry in entries:
            yield msgspec.structs.replace(entry, **about)


def _service(headers: Mapping[str, Any]) -> str:
    domain, *rest = (str(headers.get(name, "")) for name in ("domain", "service_type", "service_id"))
    return ".".join((domain or NAMELESS, *rest)) if rest[0] else domain


def _entries(records: Iterable[Any]) -> Iterator[LogEntry]:
    for record in records:
        try:
            yield msgspec.convert(record, LogEntry)
        except msgspec.ValidationError as error:
            logger.warning("refused a log record of another process: %s", shown(error))


def _missing(now: float, number: int, why: str) -> LogEntry:
    return LogEntry(
        time=now,
        level="WARNING",
        level_number=logging.WARNING,
        logger=METHOD,
        message=f"{number} log record{'s' * (number > 1)} {'were' if number > 1 else 'was'} {why}",
        extra={"missing": number},
    )


def level_number(level: str | int) -> int:
    """The number of a level, given by its name or its number; ValueError if there is none."""
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{level!r} is no level: debug, info, warning, error or critical, or a number")  # noqa: TRY004
    return number


def wanted_entries(
    level: str | int | None, service: str | None, logger: str | None
) -> Callable[[LogEntry], bool]:
    """Whether an entry is of this level or a higher one, of a service that fits this pattern, and of this
    logger, one below it, or one that fits it as a pattern. What is missing of a service is wanted whatever
    the rest says. ValueError for a level that is none."""
    least = 0 if level is None else level_number(level)
    serves = matcher(service or "*")
    fits = matcher(logger or "*")
    below = matcher(f"{logger}.*")

    def wants(entry: LogEntry) -> bool:
        if not serves(entry.service):
            return False
        is_of_it = bool(fits(entry.logger) or below(entry.logger))
        return entry.logger == METHOD or (entry.level_number >= least and is_of_it)

    return wants
