"""Topics, inboxes and ways back on Redis: each is a stream.

Reading takes nothing away, so that a reader whose connection breaks goes on where it was, and nothing is lost
with an answer that never arrived. Each key has a TTL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import redis

from ..addresses import Address
from ..errors import BackendUnavailable, RpcTimeout, SerializationError
from ..message import LOST, STREAM, Handler, Message, packed, unpacked
from ._cancellable import Cancellable
from ._redis import BLOCK, awaited, milliseconds, steadily, translated, translated_or_logged
from ._redis_places import Place

logger = logging.getLogger(__name__)

KEEP_REPLY = 60.0
"""Seconds that a way back outlives the last sign of its reader."""
KEEP_TOPIC = 3600.0
TOPIC_LENGTH = 10_000
START = "0-1"
"""The first entry of a way back. It is made with the request, so that whoever replies can tell a caller who
has gone (no stream) from one who has read everything."""


def reply_key(reply_to: str) -> str:
    """The key of a way back."""
    return f"rpc:re:{reply_to}"


def _entries(read: Any) -> Iterator[tuple[str, Any, dict[bytes, bytes]]]:
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
        hint: Callable[[], str] = lambda: "",
        withdraw: Callable[[], object] = lambda: None,
        finished: Callable[[str], object] = lambda key: None,
    ) -> None:
        self._client, self._key, self._last = client, reply_key(reply_to), START
        self._id = id
        self._lost, self._hint, self._withdraw, self._finished = lost, hint, withdraw, finished
        self._ended = self._closed = self._unreachable = False

    def receive(self, timeout: float | None) -> Message:
        try:
            reply = awaited(self._next, timeout)
        except RpcTimeout:
            raise RpcTimeout(self._hinted()) from None
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

    def _hinted(self) -> str:
        with translated_or_logged():
            return self._hint()
        return ""

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
        for _, entry, fields in _entries(read):
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
        with translated():
            self._put(to, message, opened=None)

    def request(self, to: Address, message: Message) -> RedisReplies:
        opened = reply_key(message.reply_to or "")
        with translated():
            self._put(to, message, opened)
        return RedisReplies(self._place.client(opened), message.reply_to or "")

    def loops(
        self, addresses: Sequence[Address], handler: Handler, stopped: Callable[[], bool]
    ) -> list[Callable[[], None]]:
        """Loops that hear these addresses until stopped; a thread for each."""
        return [
            partial(self._share if address.group else self._hear, address, handler, stopped)
            for address in addresses
        ]

    def _put(self, to: Address, message: Message, opened: str | None) -> None:
        if opened:  # on a cluster, it may be on another node than the topic
            pipe = self._place.client(opened).pipeline(transaction=True)
            pipe.xadd(opened, {"m": b""}, id=START)
            pipe.pexpire(opened, milliseconds(KEEP_REPLY + (message.ttl or 0)))
            pipe.execute()
        pipe = self._place.client(_key(to)).pipeline(transaction=True)
        pipe.xadd(_key(to), {"m": packed(message)}, maxlen=TOPIC_LENGTH, approximate=True)
        pipe.pexpire(_key(to), milliseconds(KEEP_TOPIC))
        pipe.execute()

    def _hear(self, address: Address, handler: Handler, stopped: Callable[[], bool]) -> None:
        key, last = _key(address), None

        def step() -> None:
            nonlocal last
            client = self._place.client(key)
            if last is None:  # of an inbox all, of a topic only what comes from now on
                newest = client.xrevrange(key, count=1) if address.kind == "topic" else []
                last = newest[0][0] if newest else "0-0"
            read = client.xread({key: last}, count=64, block=milliseconds(BLOCK))
            for _, entry, fields in _entries(read):
                last = entry
                self._handle(fields, handler)
                if address.kind == "inbox":
                    client.xdel(key, entry)

        steadily(step, stopped)

    def _share(self, address: Address, handler: Handler, stopped: Callable[[], bool]) -> None:
        key, group = _key(address), address.group
        origin = "$"  # from now on; but after the stream was lost, from its new beginning

        def step() -> None:
            nonlocal origin
            client = self._place.client(key)
            try:
                read = client.xreadgroup(
                    group, "any", {key: ">"}, count=1, block=milliseconds(BLOCK), noack=True
                )
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self._join(key, group, origin)
                return
            finally:
                client.pexpire(key, milliseconds(KEEP_TOPIC))
            origin = "0"
            for _, _, fields in _entries(read):
                self._handle(fields, handler)

        with translated():
            self._join(key, group, origin)
        steadily(step, stopped)

    def _join(self, key: str, group: str | None, origin: str) -> None:
        try:
            self._place.client(key).xgroup_create(key, group, id=origin, mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another member was first
                raise

    def _handle(self, fields: dict[bytes, bytes], handler: Handler) -> None:
        try:
            delivery = _ChannelDelivery(self._place, unpacked(fields[b"m"]))
            last = handler(delivery)
        except SerializationError as error:
            logger.warning("not a message of ours: %s", error)
        except Exception:
            logger.exception("a handler raised")
        else:
            if last is not None:
                delivery.reply(last)


class _ChannelDelivery(Cancellable):
    """A message from a topic or an inbox: any number of receivers may reply to it."""

    def __init__(self, place: Place, message: Message) -> None:
        self._place, self.message = place, message

    def reply(self, message: Message) -> bool:
        if self.message.reply_to is None:
            return False
        key = reply_key(self.message.reply_to)
        return bool(self._place.client(key).xadd(key, {"m": packed(message)}, nomkstream=True))

    def forbid_redelivery(self) -> None:
        """Nothing to do: topics and inboxes never deliver again."""


def _key(address: Address) -> str:
    return f"rpc:{'in' if address.kind == 'inbox' else address.kind}:{address.name}"
