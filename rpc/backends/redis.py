"""Redis, natively: nothing between a message and its worker but one list, and nothing is lost.

A caller's message and its wait for the reply leave in one write, on a connection (a *lane*) that is its own
for as long as it waits. A lane's inbox is a stream, so that a reply whose receipt broke off is read again.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any
from uuid import uuid4

import redis

from ..addresses import Address
from ..errors import BackendUnavailable, QueueFull, RpcTimeout
from ..message import STREAM, Handler, Message, packed, unpacked
from . import _redis_scripts as scripts
from ._loops import run_together
from ._redis import (
    BLOCK,
    Channels,
    Link,
    backoff,
    milliseconds,
    patience,
    persistent,
    translated_or_logged,
    tuned,
)
from ._redis_worker import Keys, RedisWorker, keep_alive, keys_of

_PLAIN = re.compile(r"[!-~]{1,128}")


class Lane:
    """A connection and an inbox, for one request at a time."""

    def __init__(self, client: Any) -> None:
        self.name = uuid4().hex
        self.link = Link(client.connection_pool, (scripts.SEND,))
        self.pid = os.getpid()
        self.asked = False
        """Whether a read is on its way, whose answer was not taken yet."""


class LaneReplies:
    """What comes back on a lane for one request."""

    def __init__(self, backend: RedisBackend, lane: Lane, keys: Keys, id: str) -> None:
        self._backend, self._lane, self._keys, self._id = backend, lane, keys, id
        self._inbox = keys.inbox(lane.name)
        self._last: Any = "0-0"
        self._arrived: deque[Message] = deque()
        self._number = 0
        self._ended = self._closed = False

    def read_command(self) -> Sequence[Any]:
        block = milliseconds(BLOCK)
        return ("XREAD", "COUNT", 64, "BLOCK", block, "STREAMS", self._inbox, self._last)

    def receive(self, timeout: float | None) -> Message:
        """The next reply."""
        end = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while not self._arrived:
            left = BLOCK if end is None else end - time.monotonic()
            try:
                self._read(left)
                attempt = 0
            except redis.RedisError as error:
                self._lane.asked = False
                if end is not None and time.monotonic() >= end:
                    raise BackendUnavailable(f"Redis: {error}") from error
                time.sleep(min(backoff(attempt, cap=BLOCK), max(0.0, left)))
                attempt += 1
            if not self._arrived and end is not None and time.monotonic() >= end:
                raise RpcTimeout
        reply = self._arrived.popleft()
        self._ended = STREAM not in reply.headers
        return reply

    def _read(self, left: float) -> None:
        lane = self._lane
        if not lane.asked:
            lane.link.write(self.read_command())
            lane.asked = True
        if left < BLOCK and not lane.link.readable(left):
            return
        answer = lane.link.read()
        lane.asked = False
        for entry, fields in answer[0][1] if answer else ():
            self._last = entry
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            number = int(named[b"n"])
            # What was for an earlier request on this lane, or came twice, is not for us.
            if named[b"i"].decode() == self._id and (number > self._number or number == 0):
                self._number = number
                self._arrived.append(unpacked(named[b"m"]))

    def close(self) -> None:
        """Give the lane back; withdraw the request if it was not answered."""
        if self._closed:
            return
        self._closed = True
        if not self._ended:
            self._backend.withdraw(self._keys, self._id)
        self._backend.give_back(self._lane)


class RedisBackend:
    """Redis ≥ 6.2 or Valkey.

    `source` is a URL (`redis://`, `rediss://`, `redis+unix://`) or a `redis.Redis`, of which only the address
    and the credentials are used. A worker without a sign of life for `lease` seconds has lost its message,
    and it is delivered again, at most `max_deliveries` times. A queue with `max_length` messages refuses more
    with QueueFull (0: it does not). Connects at first use.
    """

    features = frozenset({"durable", "redelivers", "topics", "groups", "priorities", "processes"})
    max_message = 64 * 1024 * 1024

    def __init__(
        self,
        source: redis.Redis | str,
        *,
        lease: float = 10.0,
        max_deliveries: int = 3,
        max_length: int = 0,
    ) -> None:
        if lease < 1 or max_deliveries < 1 or max_length < 0:
            raise ValueError("lease and max_deliveries are at least 1, max_length is at least 0")
        self._client = tuned(source.removeprefix("redis+") if isinstance(source, str) else source)
        self._lease, self._max_deliveries, self._max_length = lease, max_deliveries, max_length
        self._channels = Channels(self._client)
        self._withdraw = self._client.register_script(scripts.WITHDRAW)
        self._lanes: list[Lane] = []
        self._senders: list[Link] = []
        self._workers: list[RedisWorker] = []
        self._stopped = False

    def send(self, to: Address, message: Message) -> None:
        if to.kind != "queue":
            return self._channels.send(to, message)
        link = _popped(self._senders) or Link(self._client.connection_pool, (scripts.SEND,))
        keys = keys_of(to.name)
        command = self._command(keys, message, "")

        def once() -> Any:
            link.write(command)
            return link.read()

        _check(to, persistent(once, patience(message)))
        self._senders.append(link)

    def request(self, to: Address, message: Message) -> Any:
        if to.kind != "queue":
            return self._channels.request(to, message)
        lane = _popped(self._lanes)
        if lane is None or lane.pid != os.getpid():  # a parent's inbox is not a child's
            lane = Lane(self._client)
        keys = keys_of(to.name)
        replies = LaneReplies(self, lane, keys, _plain(message.id))
        command = self._command(keys, message, keys.inbox(lane.name))

        def once() -> Any:
            lane.link.write(command, replies.read_command())
            return lane.link.read()

        lane.asked = True
        try:
            _check(to, persistent(once, patience(message)))
        except BaseException:
            self.give_back(lane)
            raise
        return replies

    def serve(self, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        queues = [keys_of(address.name) for address in addresses if address.kind == "queue"]
        others = [address for address in addresses if address.kind != "queue"]
        self._workers = [
            RedisWorker(self._client, queues, handler, self._lease, self._max_deliveries, self._is_stopped)
            for _ in range(concurrency if queues else 0)
        ]
        loops = [worker.work for worker in self._workers]
        loops += self._channels.loops(others, handler, self._is_stopped)
        if self._workers:
            loops.append(partial(keep_alive, self._workers, self._client, queues))
        try:
            run_together(loops, self.stop)
        finally:
            self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        for worker in self._workers:
            worker.hand_back()
        while link := _popped(self._senders):
            link.drop()
        while lane := _popped(self._lanes):
            lane.link.drop()
        self._client.close()

    def give_back(self, lane: Lane) -> None:
        """Keep a lane for the next request. An answer that is still to come would be taken for its own."""
        if lane.asked:
            lane.link.drop()
            lane.asked = False
        self._lanes.append(lane)

    def withdraw(self, keys: Keys, id: str) -> None:
        """What was not started is not, what runs is told."""
        with translated_or_logged():
            self._withdraw([keys.ids, keys.cancelled], [id, keys.channel])

    def _is_stopped(self) -> bool:
        return self._stopped

    def _command(self, keys: Keys, message: Message, inbox: str) -> Sequence[Any]:
        ttl = 0 if message.ttl is None else milliseconds(message.ttl)
        return (
            scripts.SEND, 4, keys.queue, keys.bell, keys.ids, inbox or keys.queue,
            _plain(message.id), ttl, inbox, packed(message), self._max_length,
        )  # fmt: skip


def _popped(idle: list[Any]) -> Any:
    try:
        return idle.pop()
    except IndexError:  # another thread may be faster
        return None


def _check(to: Address, sent: int) -> None:
    if sent < 0:
        raise QueueFull(f"{to} has no room: raise max_length, or start more workers")


def _plain(id: str) -> str:
    """An id that can be part of a record."""
    return id if _PLAIN.fullmatch(id) else sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
