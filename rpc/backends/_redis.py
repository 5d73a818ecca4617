"""What every backend on Redis shares: connections with our own time limits, errors translated in one place,
the way back of a request, topics and inboxes.

A way back, an inbox and a topic are each a stream: reading takes nothing away, so that a reader whose
connection breaks goes on where it was, and nothing is lost with an answer that never arrived. Each key has
a TTL. redis-py's own retries are off, because they repeat commands that may have been carried out: whatever
is repeated here carries an id that makes it harmless.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..addresses import Address
from ..errors import BackendUnavailable, RpcTimeout, SerializationError, Unsupported
from ..message import LOST, STREAM, Handler, Message, packed, unpacked
from ._cancellable import Cancellable

logger = logging.getLogger(__name__)

try:
    from hiredis import pack_command as _packed_by_hiredis
except ModuleNotFoundError:  # the extra `fast`
    PACK: Callable[[Any], bytes] | None = None
else:
    PACK = _packed_by_hiredis

T = TypeVar("T")
BLOCK = 1.0
"""Seconds that a blocking command waits in Redis: how late a stop, or a connection that went half-open, is
noticed at the latest. Always less than SOCKET_TIMEOUT."""
SOCKET_TIMEOUT = 3.0
"""Seconds without an answer after which a connection is given up: what a call may take longer than it is
allowed to, if Redis neither answers nor refuses."""
CONNECT_TIMEOUT = 2.0
RETRY_FOR = 5.0
"""Seconds that sending goes on trying while Redis cannot be had."""
KEEP_REPLY = 60.0
"""Seconds that a way back outlives the last sign of its reader."""
KEEP_TOPIC = 3600.0
TOPIC_LENGTH = 10_000
START = "0-1"
"""The first entry of a way back. It is made with the request, so that whoever replies can tell a caller who
has gone (no stream) from one who has read everything."""

_WHERE_AND_WHO = {"host", "port", "path", "db", "username", "password", "credential_provider", "server"}


def tuned(source: redis.Redis | str) -> Any:
    """A client of our own for the server that a URL, or another client, names. Time limits and retries are
    ours; TypeError for an option that no connection has, Unsupported for a cluster or a sentinel."""
    if isinstance(source, str):
        pool: Any = redis.ConnectionPool.from_url(source)
        pool.connection_class(**pool.connection_kwargs)
    else:
        pool = getattr(source, "connection_pool", None)
    if not isinstance(pool, redis.ConnectionPool) or isinstance(pool, redis.SentinelConnectionPool):
        raise Unsupported(f"a single Redis server is needed, not {type(source).__name__}")
    kept = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name in _WHERE_AND_WHO or name.startswith("ssl")
    }
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            connection_class=pool.connection_class,
            max_connections=2**16,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            **kept,
        )
    )


@contextmanager
def translated() -> Iterator[None]:
    """Driver errors leave as ours."""
    try:
        yield
    except redis.RedisError as error:
        raise BackendUnavailable(f"Redis: {error}") from error


@contextmanager
def translated_or_logged() -> Iterator[None]:
    """For what expires by itself, or is done again by somebody else, if Redis cannot be had now."""
    try:
        with translated():
            yield
    except BackendUnavailable as error:
        logger.warning("%s", error)


def backoff(attempt: int, cap: float) -> float:
    """Seconds to wait before trying again: exponential with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)."""
    return random.uniform(0, min(cap, 0.05 * 2 ** min(attempt, 16)))


def persistent(action: Callable[[], T], seconds: float) -> T:
    """What the action returns; while Redis cannot be had it is tried again for so many seconds, so it must
    do no harm when it is carried out twice. Then raises BackendUnavailable."""
    end, attempt = time.monotonic() + seconds, 0
    while True:
        try:
            return action()
        except redis.RedisError as error:
            pause = backoff(attempt, cap=1.0)
            if time.monotonic() + pause > end:
                raise BackendUnavailable(f"Redis: {error}") from error
            time.sleep(pause)
            attempt += 1


def patience(message: Message) -> float:
    """Seconds that the sending of a message may be tried."""
    return RETRY_FOR if message.ttl is None else min(RETRY_FOR, message.ttl)


def steadily(step: Callable[[], object], stopped: Callable[[], bool]) -> None:
    """Take step after step until stopped, through whatever happens to Redis meanwhile."""
    attempt = 0
    while not stopped():
        try:
            with translated():
                step()
            attempt = 0
        except BackendUnavailable as error:
            if attempt % 10 == 0:
                logger.warning("%s; trying again", error)
            time.sleep(backoff(attempt, cap=BLOCK))
            attempt += 1


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

    def lasting(self, absent: Iterable[T]) -> Iterator[T]:
        """Of those that are absent now, the ones that were for long enough."""
        known, self._since = self._since, {}
        since: dict[T, float] = {}
        for each in absent:
            since[each] = known.get(each, self._last_look)
            if self._last_look - since[each] >= 2 * self._beat:
                yield each
        self._since = since


def reply_key(reply_to: str) -> str:
    """The key of a way back."""
    return f"rpc:re:{reply_to}"


def milliseconds(seconds: float) -> int:
    """For commands and scripts; at least 1, because 0 means for ever to some."""
    return max(1, round(seconds * 1000))


class Link:
    """One connection of redis-py's, driven without its client: commands leave in one write, and their answers
    are read one by one. What its pool knows (TLS, users, addresses) stays redis-py's. Not for two threads."""

    def __init__(self, pool: Any, scripts: Sequence[str]) -> None:
        self._pool, self._scripts = pool, scripts
        self._connection: Any = None
        self._pid = 0
        self._shas: dict[str, str] = {}
        self._pack: Callable[[Sequence[Any]], bytes] = lambda command: b""

    def write(self, *commands: Sequence[Any]) -> None:
        """Send these commands, with the text of a script in place of its digest."""
        if self._connection is None or self._pid != os.getpid():
            self._connect()
        shas = self._shas
        frames = [
            self._pack(("EVALSHA", shas[command[0]], *command[1:]) if command[0] in shas else command)
            for command in commands
        ]
        try:
            self._connection.send_packed_command([b"".join(frames)], check_health=False)
        except BaseException:
            self.drop()
            raise

    def read(self) -> Any:
        """The next answer. Raises what redis-py raises; the connection is given up then, also after an
        interrupted read: what comes next would answer something else."""
        try:
            return self._connection.read_response(disable_decoding=True)
        except BaseException:
            self.drop()
            raise

    def readable(self, seconds: float) -> bool:
        """Whether an answer has come, after waiting for it so many seconds at most."""
        try:
            return bool(self._connection.can_read(max(0.0, seconds)))
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Give the connection up, and whatever answers were still to come."""
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            connection.disconnect()

    def _connect(self) -> None:
        connection = self._pool.make_connection()
        connection.connect()
        for script in self._scripts:
            connection.send_command("SCRIPT", "LOAD", script)
        for script in self._scripts:
            self._shas[script] = connection.read_response().decode()
        self._connection, self._pid = connection, os.getpid()
        self._pack = PACK or (lambda command: b"".join(connection.pack_command(*command)))


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
        end = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while True:
            left = BLOCK if end is None else end - time.monotonic()
            try:
                with translated():
                    reply = self._read(min(left, BLOCK))
                    reason = None if reply else self._check()
                    if reason and not (reply := self._read(0)):
                        reply = Message(headers={LOST: reason})
                attempt = 0
            except BackendUnavailable:
                reply = None
                if end is not None and time.monotonic() >= end:
                    self._unreachable = True
                    raise
                time.sleep(min(backoff(attempt, cap=BLOCK), max(0.0, left)))
                attempt += 1
            if reply and self._id and reply.id not in (self._id, ""):
                logger.warning("a reply to %r came to the caller of %r", reply.id[:128], self._id)
                continue
            if reply:
                self._ended = STREAM not in reply.headers
                return reply
            if end is not None and time.monotonic() >= end:
                raise RpcTimeout(self._hinted())

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

    def _read(self, seconds: float) -> Message | None:
        block = milliseconds(seconds) if seconds > 0 else None
        read = self._client.xread({self._key: self._last}, count=1, block=block)
        if not read:
            return None
        [[_, [(self._last, fields)]]] = read
        return unpacked(fields[b"m"])

    def _check(self) -> str | None:
        if not self._client.pexpire(self._key, milliseconds(KEEP_REPLY)):
            return "its way back is gone"
        return self._lost()


class Channels:
    """Topics and inboxes."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def send(self, to: Address, message: Message) -> None:
        with translated():
            self._put(to, message, opened=None)

    def request(self, to: Address, message: Message) -> RedisReplies:
        opened = reply_key(message.reply_to or "")
        with translated():
            self._put(to, message, opened)
        return RedisReplies(self._client, message.reply_to or "")

    def loops(
        self, addresses: Sequence[Address], handler: Handler, stopped: Callable[[], bool]
    ) -> list[Callable[[], None]]:
        """Loops that hear these addresses until stopped; a thread for each."""
        plain = [address for address in addresses if not address.group]
        loops: list[Callable[[], None]] = []
        if plain:
            loops.append(partial(self._hear, plain, handler, stopped))
        for address in addresses:
            if address.group:
                loops.append(partial(self._share, address, handler, stopped))
        return loops

    def _put(self, to: Address, message: Message, opened: str | None) -> None:
        pipe = self._client.pipeline(transaction=True)
        if opened:
            pipe.xadd(opened, {"m": b""}, id=START)
            pipe.pexpire(opened, milliseconds(KEEP_REPLY + (message.ttl or 0)))
        pipe.xadd(_key(to), {"m": packed(message)}, maxlen=TOPIC_LENGTH, approximate=True)
        pipe.pexpire(_key(to), milliseconds(KEEP_TOPIC))
        pipe.execute()

    def _hear(self, addresses: Sequence[Address], handler: Handler, stopped: Callable[[], bool]) -> None:
        last: dict[str, Any] = {}

        def step() -> None:
            for address in addresses:  # of an inbox all, of a topic only what comes from now on
                if _key(address) not in last:
                    newest = self._client.xrevrange(_key(address), count=1) if address.kind == "topic" else []
                    last[_key(address)] = newest[0][0] if newest else "0-0"
            read = self._client.xread(last, count=64, block=milliseconds(BLOCK))
            for name, entries in read or ():
                key = name.decode()
                for entry, fields in entries:
                    last[key] = entry
                    self._handle(fields, handler)
                    if key.startswith("rpc:in:"):
                        self._client.xdel(key, entry)

        steadily(step, stopped)

    def _share(self, address: Address, handler: Handler, stopped: Callable[[], bool]) -> None:
        key, group = _key(address), address.group
        origin = "$"  # from now on; but after the stream was lost, from its new beginning

        def step() -> None:
            nonlocal origin
            try:
                read = self._client.xreadgroup(
                    group, "any", {key: ">"}, count=1, block=milliseconds(BLOCK), noack=True
                )
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self._join(key, group, origin)
                return
            finally:
                self._client.pexpire(key, milliseconds(KEEP_TOPIC))
            origin = "0"
            for _, entries in read or ():
                for _, fields in entries:
                    self._handle(fields, handler)

        with translated():
            self._join(key, group, origin)
        steadily(step, stopped)

    def _join(self, key: str, group: str | None, origin: str) -> None:
        try:
            self._client.xgroup_create(key, group, id=origin, mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another member was first
                raise

    def _handle(self, fields: dict[bytes, bytes], handler: Handler) -> None:
        try:
            delivery = _ChannelDelivery(self._client, unpacked(fields[b"m"]))
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

    def __init__(self, client: Any, message: Message) -> None:
        self._client, self.message = client, message

    def reply(self, message: Message) -> bool:
        if self.message.reply_to is None:
            return False
        key = reply_key(self.message.reply_to)
        return bool(self._client.xadd(key, {"m": packed(message)}, nomkstream=True))

    def forbid_redelivery(self) -> None:
        """Nothing to do: topics and inboxes never deliver again."""


def _key(address: Address) -> str:
    return f"rpc:{'in' if address.kind == 'inbox' else address.kind}:{address.name}"
