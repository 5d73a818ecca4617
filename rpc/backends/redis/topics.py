"""Topics, inboxes and ways back on Redis: each is a stream.

Reading takes nothing away, so that a reader whose connection breaks goes on where it was, and nothing is lost
with an answer that never arrived. Each key has a TTL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...errors import BackendUnavailable
from ...transport import KEEP_SUBSCRIPTION, LOST, STREAM, Address, Message, packed, topic, unpacked
from .._retry import RETRY_FOR
from .connection import (
    BLOCK,
    awaited,
    milliseconds,
    persistent,
    translated,
    translated_or_logged,
)
from .scripts import BROADCAST, GONE, KEEP
from .servers import Place

logger = logging.getLogger(__name__)

KEEP_REPLY = 60.0
"""Seconds that a way back outlives the last sign of its reader."""
KEEP_TOPIC = 3600.0
TOPIC_LENGTH = 10_000
START = "0-1"
"""The first entry of a way back. It is made with the request, so that whoever replies can tell a caller who
has gone (no stream) from one who has read everything."""


SUBSCRIPTIONS = "rpc:subscriptions"
"""All of them, of all topics: for whoever looks after them."""


def reply_key(reply_to: str) -> str:
    """The key of a way back."""
    return f"rpc:re:{reply_to}"


def entries(read: Any) -> Iterator[tuple[str, Any, dict[bytes, bytes]]]:
    """Key, id and fields of what XREAD or XREADGROUP returned: a list of pairs, in RESP3 a dict."""
    for key, entries in read.items() if isinstance(read, dict) else read or ():
        for id, fields in entries[0] if isinstance(read, dict) else entries:
            yield key.decode(), id, fields


class RedisReplies:
    """The reader's end of a way back. `lost` says, between two reads, why no reply can come any more (None if
    one can); `withdraw` takes back what was asked for."""

    def __init__(
        self,
        client: Any,
        reply_to: str,
        *,
        id: str = "",
        lost: Callable[[], str | None] = lambda: None,
        withdraw: Callable[[], object] = lambda: None,
        finished: Callable[[str], object] = lambda key: None,
    ) -> None:
        self._client, self._key, self._last = client, reply_key(reply_to), START
        self._id = id
        self._lost, self._withdraw, self._finished = lost, withdraw, finished
        self._ended = self._closed = self._unreachable = False

    def receive(self, timeout: float | None) -> Message:
        try:
            reply = awaited(self._next, timeout)
        except BackendUnavailable:
            self._unreachable = True
            raise
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
        block = milliseconds(seconds) if seconds > 0 else None
        read = self._client.xread({self._key: self._last}, count=1, block=block)
        for _, entry, fields in entries(read):
            self._last = entry
            return unpacked(fields[b"m"])
        return None

    def _check(self) -> str | None:
        if not self._client.pexpire(self._key, milliseconds(KEEP_REPLY)):
            return "its way back is gone"
        return self._lost()


class Channels:
    """Topics and inboxes."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def send(self, to: Address, message: Message) -> None:
        """To an inbox."""
        with translated():
            self._put(to, message)

    def publish(
        self, to: Address, message: Message, *, is_kept: bool = False
    ) -> tuple[list[Address], list[Address]]:
        """Returns the durable subscriptions that are to keep it, and those that have just been forgotten. If
        there are any, nothing else is done: see to them, and say that it `is_kept`."""
        frame, again = packed(message), 0

        def publish() -> Any:
            nonlocal again
            looked_through, again = again, milliseconds(2 * RETRY_FOR)
            arguments = frame, TOPIC_LENGTH, milliseconds(KEEP_TOPIC), int(is_kept), looked_through
            return self._run(BROADCAST, channel_key(to), *arguments, more=[_subscriptions(to)])

        kept, gone = persistent(publish, RETRY_FOR)
        return _durable(to, kept), _durable(to, gone)

    def request(self, to: Address, message: Message) -> RedisReplies:
        opened = reply_key(message.reply_to or "")
        with translated():  # on a cluster, it may be on another node than the topic
            pipe = self._place.client(opened).pipeline(transaction=True)
            pipe.xadd(opened, {"m": b""}, id=START)
            pipe.pexpire(opened, milliseconds(KEEP_REPLY + (message.ttl or 0)))
            pipe.execute()
            self._put(to, message)
        return RedisReplies(self._place.client(opened), message.reply_to or "")

    def keep(self, to: Address) -> None:
        """Have what comes to a topic kept for a durable subscription, for a long time from now on."""
        for key, member in (_subscriptions(to), to.group), (SUBSCRIPTIONS, f"{to.name} {to.group}"):
            self._run(KEEP, key, member, milliseconds(KEEP_SUBSCRIPTION))

    def forget(self, to: Address) -> None:
        for key, member in (_subscriptions(to), to.group or ""), (SUBSCRIPTIONS, f"{to.name} {to.group}"):
            self._place.client(key).zrem(key, member)

    def subscribed(self) -> list[Address]:
        """All durable subscriptions."""
        return _subscribed(self._place.client(SUBSCRIPTIONS).zrange(SUBSCRIPTIONS, 0, -1))

    def gone(self) -> list[Address]:
        """Those that have just been forgotten, because nobody served them for long."""
        return _subscribed(self._run(GONE, SUBSCRIPTIONS))

    def _run(self, script: str, key: str, *arguments: Any, more: Sequence[str] = ()) -> Any:
        return self._place.client(key).register_script(script)([key, *more], arguments)

    def _put(self, to: Address, message: Message) -> None:
        pipe = self._place.client(channel_key(to)).pipeline(transaction=True)
        pipe.xadd(channel_key(to), {"m": packed(message)}, maxlen=TOPIC_LENGTH, approximate=True)
        pipe.pexpire(channel_key(to), milliseconds(KEEP_TOPIC))
        pipe.execute()


def channel_key(address: Address) -> str:
    """The key of a topic, or of an inbox."""
    return f"rpc:in:{address.name}" if address.kind == "inbox" else f"rpc:topic:{{{address.name}}}"


def _subscriptions(topic: Address) -> str:
    """The groups that have what comes to a topic kept, by the time at which they are forgotten."""
    return f"rpc:subscriptions:{{{topic.name}}}"


def _durable(to: Address, groups: Sequence[bytes]) -> list[Address]:
    return [topic(to.name, group.decode(), durable=True) for group in groups]


def _subscribed(members: Sequence[bytes]) -> list[Address]:
    return [topic(*member.decode().split(" "), durable=True) for member in members]
