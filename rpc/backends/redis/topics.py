"""Topics, inboxes and ways back on Redis: each is a stream.

Reading takes nothing away, so that a reader whose connection breaks goes on where it was, and nothing is lost
with an answer that never arrived. Each key has a TTL.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis

from ...errors import BackendUnavailable, RpcTimeout, SerializationError, shown
from ...transport import KEEP_SUBSCRIPTION, LOST, STREAM, Address, Message, packed, topic, unpacked
from .._retry import RETRY_FOR, patience
from .connection import (
    BLOCK,
    Command,
    is_wrong_type,
    milliseconds,
    persistent,
    poll_until,
    translated,
    translated_or_logged,
)
from .evaluation import evaluated
from .keys import Names
from .scripts import AGO, BROADCAST, FORGET, GONE, KEEP, MEND
from .servers import Servers

logger = logging.getLogger(__name__)

KEEP_REPLY = 60.0
"""Seconds that a way back outlives the last sign of its reader."""
KEEP_TOPIC = 3600.0
TOPIC_LENGTH = 10_000
REPLAYED = 256
"""Messages that are read at a time to be heard again."""
ANSWERS = 64
"""Replies that are read at a time, if there are as many: all workers may have been asked."""
KEEP_REFUSED = 7 * 86_400_000
"""Milliseconds that a key is kept which was in the place of one of ours."""
START = "0-1"
"""The first entry of a way back. It is made with the request, so that whoever replies can tell a caller who
has gone (no stream) from one who has read everything."""


def entries(read: Any) -> Iterator[tuple[str, bytes, dict[bytes, bytes]]]:
    """Key, id and fields of what XREAD or XREADGROUP answered: in RESP2 a list of pairs, in RESP3 a dict. The
    fields are a flat list, as the server sends them, or a dict, as redis-py's client returns them."""
    for key, several in read.items() if isinstance(read, dict) else read or ():
        nested = several and len(several) == 1 and several[0] and isinstance(several[0][0], list | tuple)
        for id, fields in several[0] if nested else several:
            if not isinstance(fields, dict):
                fields = dict(zip(fields[::2], fields[1::2], strict=True))
            yield key.decode(), id, fields


class RedisReplies:
    """The reader's end of a way back, which has this key. `lost` says, between two reads, why no reply can
    come any more (None if one can); `withdraw` takes back what was asked for."""

    def __init__(
        self,
        client: Any,
        key: str,
        *,
        id: str = "",
        lost: Callable[[], str | None] = lambda: None,
        withdraw: Callable[[], object] = lambda: None,
        finished: Callable[[str], object] = lambda key: None,
    ) -> None:
        self._client, self._key = client, key
        self._last: str | bytes = START
        self._unread: deque[tuple[bytes, dict[bytes, bytes]]] = deque()
        self._id = id
        self._lost, self._withdraw, self._finished = lost, withdraw, finished
        self._ended = self._closed = self._unreachable = self._is_waited_for = False

    def receive(self, timeout: float | None) -> Message:
        self._is_waited_for = True
        try:
            reply = poll_until(self._next, timeout)
        except BackendUnavailable:
            self._unreachable = True
            raise
        finally:
            self._is_waited_for = False
        self._ended = STREAM not in reply.headers
        return reply

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._ended:
            self._finished(self._key)
            return
        if self._unreachable:
            return  # it would take as long again; everything expires
        with translated_or_logged():
            if self._is_waited_for:
                self._client.xadd(self._key, {"": ""})  # for whoever waits to wake up
            self._client.unlink(self._key)  # first, so that a handler that is told finds nobody listening
            self._withdraw()

    def _next(self, seconds: float) -> Message | None:
        reply = self._read(min(seconds, BLOCK))
        reason = None if reply else self._check()
        if reason and not (reply := self._read(0)):
            reply = Message(headers={LOST: reason})
        if reply and self._id and reply.id not in (self._id, ""):
            logger.warning("a reply to %r came to the caller of %r", reply.id[:128], self._id)
            return None
        return reply

    def _read(self, seconds: float) -> Message | None:
        if not self._unread:
            block = milliseconds(seconds) if seconds > 0 else None
            read = self._client.xread({self._key: self._last}, count=ANSWERS, block=block)
            self._unread.extend((id, fields) for _, id, fields in entries(read))
        if self._closed:
            raise RpcTimeout
        while self._unread:
            self._last, fields = self._unread.popleft()
            try:
                return unpacked(fields.get(b"m", b""))
            except SerializationError as error:
                logger.warning("not a reply to %r: %s", self._id, shown(error))
        return None

    def _check(self) -> str | None:
        if not self._client.pexpire(self._key, milliseconds(KEEP_REPLY)):
            return "its way back is gone"
        return None if self._ended else self._lost()  # whoever refused the last reply waits for another one


Run = Callable[..., list[Any]]
"""Carries out commands on a key, the first argument; the text of a script stands for running it."""


class Topics:
    """Publishes to topics, and to inboxes; keeps account of durable subscriptions."""

    def __init__(self, servers: Servers, names: Names, run: Run | None = None) -> None:
        self._servers, self.names, self._run = servers, names, run or partial(run_on_client, servers)

    def send(self, to: Address, message: Message) -> None:
        """To an inbox. If an answer is lost it may come twice; what must not, says so in its number."""
        persistent(partial(self._put, to, message), patience(message.ttl))

    def entry(self, to: Address, message: Message) -> tuple[Command, Command]:
        """The commands that put it there, and that say how long it is kept."""
        key = self.names.channel(to)
        add = ("XADD", key, "MAXLEN", "~", TOPIC_LENGTH, "*", "m", packed(message))
        return add, ("PEXPIRE", key, milliseconds(KEEP_TOPIC))

    def publish(
        self, to: Address, message: Message, *, is_kept: bool = False
    ) -> tuple[list[Address], list[Address]]:
        """Returns the durable subscriptions that are to keep it, and those that have just been forgotten. If
        there are any, nothing else is done: see to them, and say that it `is_kept`."""
        frame, again = packed(message), 0

        def publish() -> tuple[list[Address], list[Address]]:
            nonlocal again
            looked_through, again = again, milliseconds(2 * RETRY_FOR)
            arguments = frame, TOPIC_LENGTH, milliseconds(KEEP_TOPIC), int(is_kept), looked_through
            key, subscriptions = self.names.channel(to), self.names.subscriptions_to(to)
            kept, gone = self._run(key, (BROADCAST, 2, key, subscriptions, *arguments))[0]
            return _durable(to, kept), _durable(to, gone)

        return persistent(publish, patience(message.ttl))

    def replay(self, to: Address, seconds: float | None) -> Iterator[Message]:
        """What was published in the last so many seconds, of what is still there; None: all of that."""
        key, after = self.names.channel(to), "-"
        if seconds is not None:
            with translated():
                after = self._run(key, (AGO, 1, key, round(seconds * 1000)))[0].decode()
        while True:
            with translated():
                read = self._run(key, ("XRANGE", key, after, "+", "COUNT", REPLAYED))[0]
            for _, id, fields in entries([[key.encode(), read]]):
                after = f"({id.decode()}"
                try:
                    yield unpacked(fields.get(b"m", b""))
                except SerializationError as error:
                    logger.warning("not a message of ours (%s): %s", to, shown(error))
            if len(read) < REPLAYED:
                return

    def request(self, to: Address, message: Message) -> RedisReplies:
        """Publish it, with a way back."""
        opened = self.names.way_back(message.reply_to or "")
        with translated():  # on a cluster, it may be on another node than the topic
            lifetime = milliseconds(KEEP_REPLY + (message.ttl or 0))
            self._run(opened, ("XADD", opened, START, "m", b""), ("PEXPIRE", opened, lifetime))
            self._put(to, message)
        return RedisReplies(self._servers.client(opened), opened)

    def keep(self, to: Address) -> None:
        """Have what comes to a topic kept for a durable subscription, for a long time from now on."""
        for key, member in self._entered(to):
            self._run(key, (KEEP, 1, key, member, milliseconds(KEEP_SUBSCRIPTION)))

    def forget(self, to: Address) -> None:
        """Have it kept no more."""
        for key, member in self._entered(to):
            self._run(key, ("ZREM", key, member))

    def kept_until(self, to: Address) -> list[bytes]:
        """Until when what comes is kept, in each place where that is written down; each sign that it is
        served says it anew. Empty texts: it is not."""
        return [self._run(key, (FORGET, 1, key, member))[0] for key, member in self._entered(to)]

    def forget_unless_served(self, to: Address, until: Sequence[bytes]) -> bool:
        """Have it kept no more; False if there was a sign that it is served since that was `kept_until`."""
        entered = zip(self._entered(to), until, strict=True)
        return not any(self._run(key, (FORGET, 1, key, member, said))[0] for (key, member), said in entered)

    def subscribed(self) -> list[Address]:
        """All durable subscriptions."""
        key = self.names.subscriptions
        return _subscribed(self._run(key, ("ZRANGE", key, 0, -1))[0])

    def gone(self) -> list[Address]:
        """Those that have just been forgotten, because nobody served them for long."""
        key = self.names.subscriptions
        return _subscribed(self._run(key, (GONE, 1, key))[0])

    def _entered(self, to: Address) -> list[tuple[str, str]]:
        """Where a durable subscription is written down, and as what."""
        names, group = self.names, to.group or ""
        return [(names.subscriptions_to(to), group), (names.subscriptions, f"{to.name} {group}")]

    def _put(self, to: Address, message: Message) -> None:
        self._run(self.names.channel(to), *self.entry(to, message))


def run_on_client(servers: Servers, key: str, *commands: Sequence[Any]) -> list[Any]:
    """What these come to, on redis-py's client."""
    client, answers = servers.client(key), []
    for command in commands:
        if "redis.call" in str(command[0]):
            keys = command[2 : 2 + command[1]]
            answers.append(evaluated(client, command[0], keys, *command[2 + command[1] :]))
        else:
            answers.append(client.execute_command(*command))
    return answers


def mend(servers: Servers, error: BaseException, kinds: Mapping[str, str]) -> None:
    """If the error says that a key of ours is something else, which anybody may have put there, have it make
    room: it is renamed, and expires. `kinds` are the types of the keys that it may be. Does not raise."""
    if not is_wrong_type(error):
        return
    with translated_or_logged():
        for key, kind in kinds.items():
            found = run_on_client(servers, key, (MEND, 1, key, kind, KEEP_REFUSED))[0]
            if found:
                logger.error("%s was a %s, not a %s: it is %s:refused now", key, found.decode(), kind, key)


def is_from_the_future(id: bytes) -> bool:
    """Of an entry of a topic, an inbox or a control stream: anybody may have put it there, and nothing could
    come after it."""
    return id[13:14] != b"-"  # as milliseconds of the Unix epoch have 13 digits until the year 2286


def forget_the_future(ask: Callable[..., Any], key: str, id: bytes, group: str | None = None) -> None:
    """Delete such an entry, so that others come after the last one before it. `ask` carries out commands."""
    logger.error("%s had an entry %r, which is not from Redis: it is deleted", key, id)
    now = f"{int(time.time() * 1000)}-0"
    for command in (
        ("XDEL", key, id),
        ("XSETID", key, now),
        *([("XGROUP", "SETID", key, group, now)] if group else ()),
    ):
        with suppress(redis.ResponseError):  # another reader was faster
            ask(command)


def _durable(to: Address, groups: Sequence[bytes]) -> list[Address]:
    return _readable(b"%s %s" % (to.name.encode(), group) for group in groups)


def _subscribed(members: Sequence[bytes]) -> list[Address]:
    return _readable(members)


def _readable(members: Iterable[bytes]) -> list[Address]:
    """The durable subscriptions; without what is none, which anybody may have put there."""
    found = []
    for member in members:
        with suppress(ValueError):
            name, group = member.decode().split(" ")
            found.append(topic(name, group, durable=True))
    return found
