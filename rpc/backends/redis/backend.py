"""Redis natively: between a message and its worker is one list, and nothing is lost.

A caller's message and its wait for the reply leave in one write, on a connection (a *lane*) that is its own
for as long as it waits. A lane's inbox is a list whose head is read before it is taken away, so that a reply
whose receipt broke off is read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import redis

from ...errors import Unsupported
from ...transport import (
    ATTEMPT,
    DELAY,
    IDEMPOTENCY_KEY,
    Address,
    AsyncBackend,
    DeadLetter,
    Handler,
    Message,
    packed,
    unpacked,
)
from .._in_threads import InThreads
from .._retry import patience
from . import scripts
from .calls import SCRIPTS, UNATTENDED, LaneReplies, Lanes, full, popped
from .connection import (
    BLOCK,
    Command,
    Link,
    milliseconds,
    persistent,
    translated,
    translated_or_logged,
)
from .keys import LARGE, Keys, Record, digest, keys_of, plain
from .maintenance import Minder, workers_of
from .scripts import REVIVE
from .servers import place
from .serving import Serving
from .topics import Channels
from .worker import Options, RedisWorker

REMEMBERED = 10.0
"""Seconds that the sending of a message that does not expire is remembered: longer than it is repeated."""
KEEP_BODY = 60.0
"""Seconds that the body of a large message outlives it."""


class RedisBackend(Serving):
    """Redis ≥ 6.2 or Valkey: one server, the master that sentinels know, or a cluster.

    `source` is a URL (`redis://`, `rediss://`, `redis+unix://`, `redis+sentinel://host,host/master/0`,
    `redis+cluster://host,host`), or a `redis.Redis` or `redis.RedisCluster`, of which only the addresses and
    the credentials are used. A worker without a sign of life for `lease` seconds has lost its messages, and
    they are delivered again, at most `max_deliveries` times; then they are dead letters. A queue with
    `max_length` messages refuses more with QueueFull (0: it does not). What was sent with an idempotency key
    is remembered for `idempotency_window` seconds. Connects at first use.
    """

    features = frozenset(
        {"durable", "redelivers", "topics", "groups", "subscriptions", "locks", "priorities", "processes"}
        | {"presence", "delay", "idempotency", "dead-letters"}
    )
    max_message: int | None = 64 * 1024 * 1024

    def __init__(
        self,
        source: redis.Redis | redis.RedisCluster | str,
        *,
        lease: float = 10.0,
        max_deliveries: int = 3,
        max_length: int = 0,
        idempotency_window: float = 86400.0,
    ) -> None:
        if lease < 1 or max_deliveries < 1 or max_length < 0 or idempotency_window <= 0:
            raise ValueError(
                "lease and max_deliveries are at least 1, max_length at least 0, idempotency_window above it"
            )
        self.place = place(source)
        self.is_spread = isinstance(source, redis.RedisCluster) or str(source).startswith("redis+cluster:")
        self.sweep = 0 if self.is_spread else 2
        """How many of the oldest messages a sender looks at, to drop those that nobody wants any more. On a
        cluster it cannot tell."""
        self._options = Options(lease, max_deliveries)
        self.max_length, self._window = max_length, idempotency_window
        self.channels = Channels(self.place)
        self._lanes: defaultdict[str, Lanes] = defaultdict(Lanes)
        self._senders: defaultdict[str, list[Link]] = defaultdict(list)

    def send(self, to: Address, message: Message) -> None:
        if to.kind != "queue":
            return self._publish(to, message)
        self._send(to.name, message, self.max_length)

    def _keep(self, subscription: Address, message: Message) -> None:
        self._send(subscription.shelf.name, message, 0)

    def _send(self, queue: str, message: Message, max_length: int) -> None:
        keys = keys_of(queue)
        idle = self._senders[keys.tag]
        link = popped(idle) or Link(self.place, keys.queue, SCRIPTS)
        commands = self.sending(keys, message, plain(message.id), "", max_length=max_length)
        outcome = persistent(lambda: link.ask(*commands), patience(message.ttl))
        idle.append(link)
        if outcome < 0:
            raise full(keys)

    def request(self, to: Address, message: Message) -> Any:
        if to.kind != "queue":
            return self.channels.request(to, message)
        keys = keys_of(to.name)
        replies = LaneReplies(self, self._lanes[keys.tag], keys, message)
        try:
            replies.send()
        except BaseException:
            replies.close()
            raise
        return replies

    def asynchronous(self) -> AsyncBackend:
        """Itself for callers in event loops: native if hiredis is installed, else in threads."""
        try:
            from .aio import AsyncRedis
        except ModuleNotFoundError:  # the extra `fast`
            return InThreads(self)
        return AsyncRedis(self)

    def close(self) -> None:
        self._hand_back()
        for senders in self._senders.values():
            while link := popped(senders):
                link.drop()
        for lanes in self._lanes.values():
            while lane := popped(lanes.idle):
                lanes.forget(lane)
        self.place.close()

    def withdraw(self, keys: Keys, id: str) -> None:
        """What was not started is not, what runs is told."""
        with translated_or_logged():
            pipe = self.place.client(keys.queue).pipeline(transaction=False)
            pipe.delete(keys.token(id)).publish(keys.channel, id)
            pipe.execute()

    def sending(
        self,
        keys: Keys,
        message: Message,
        id: str,
        inbox: str,
        *,
        again: bool = False,
        max_length: int | None = None,
    ) -> list[Command]:
        """The commands that send a message; the answer to the last one is that of the script. `max_length`
        stands for this backend's."""
        if DELAY in message.headers or IDEMPOTENCY_KEY in message.headers:
            return self.sending_specially(keys, message, id, inbox)
        before, record, lifetime = self.laid_out(keys, message, id, inbox, message.ttl)
        if inbox:
            return [
                *before,
                (scripts.SEND, 4, keys.queue, keys.bell, keys.token(id), inbox,
                 id, record, lifetime, self.max_length, self.sweep, int(again)),
            ]  # fmt: skip
        return [
            *before,
            (scripts.SEND, 3, keys.queue, keys.bell, keys.token(id),
             id, record, lifetime, self.max_length if max_length is None else max_length, self.sweep, 0),
        ]  # fmt: skip

    def sending_specially(
        self, keys: Keys, message: Message, id: str, inbox: str, *, shared: bool = False
    ) -> list[Command]:
        """The same for what has a delay or an idempotency key; `shared`: into an inbox of many."""
        before, record, lifetime = self.laid_out(keys, message, id, inbox, message.ttl)
        arguments = (id, record, lifetime, self.max_length, self.sweep, int(shared))
        way_back = (inbox,) if inbox else ()
        if DELAY in message.headers:
            due = (milliseconds(float(message.headers[DELAY])), keys.channel)
            places = (keys.queue, keys.delayed, keys.token(id), *way_back)
            return [*before, (scripts.SEND_LATER, len(places), *places, *arguments, *due)]
        once = keys.once(digest(message.headers[IDEMPOTENCY_KEY]))
        places = (keys.queue, keys.bell, keys.token(id), once, *way_back)
        return [
            *before,
            (scripts.SEND_ONCE, len(places), *places, *arguments, milliseconds(self._window)),
        ]

    def laid_out(
        self, keys: Keys, message: Message, id: str, inbox: str, ttl: float | None
    ) -> tuple[list[Command], bytes, int]:
        """What must be said first, the record, and the milliseconds that its token lives."""
        frame, once = packed(message), ""
        if ttl is not None:
            kind, seconds = "w", ttl
        else:
            kind, seconds = ("w", UNATTENDED) if inbox else ("k", REMEMBERED)
        if IDEMPOTENCY_KEY in message.headers:
            once = digest(message.headers[IDEMPOTENCY_KEY])
            seconds = self._window if kind == "k" else seconds
        before: list[Command] = []
        if len(frame) > LARGE:
            kind = kind.upper()  # if it is sent, the script lets the body of a message that waits live on
            before = [("SET", keys.body(id), frame, "NX", "PX", milliseconds(seconds + KEEP_BODY))]
            frame = b""
        return before, f"{kind}\n{id}\n{inbox}\n{once}\n".encode() + frame, milliseconds(seconds)

    def is_served(self, queue: str) -> bool:
        with translated():
            return any(workers_of(self.place, keys_of(queue)).values())

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        keys = keys_of(queue)
        with translated():
            client = self.place.client(keys.queue)
            found = []
            for raw in client.lrange(keys.dead, 0, -1):
                at, why, packed_record = raw.split(b"\n", 2)
                record = Record.unpacked(packed_record)
                frame = (client.get(keys.body(record.id)) or b"") if record.is_large else record.frame
                found.append(
                    DeadLetter(record.id, queue, int(at) / 1000, why.decode(errors="replace"), frame, raw)
                )
            return found

    def revive(self, letter: DeadLetter) -> bool:
        """If its caller still waits, it does not get the reply."""
        keys = keys_of(letter.queue)
        message = unpacked(letter.frame).replace(
            **{"reply_to": None, "ttl": None, ATTEMPT: None, IDEMPOTENCY_KEY: None}
        )
        changed, record, _ = self.laid_out(keys, message, plain(letter.id), "", None)
        body = [(*command[:3], "XX", "KEEPTTL") for command in changed]
        return self._settle(letter, body, record)

    def drop(self, letter: DeadLetter) -> bool:
        return self._settle(letter, [])

    def _settle(self, letter: DeadLetter, before: Sequence[Command], *record: bytes) -> bool:
        keys = keys_of(letter.queue)
        link = Link(self.place, keys.queue, (REVIVE,))
        command = (REVIVE, 3, keys.dead, keys.queue, keys.bell, letter.raw, *record)
        try:
            return bool(persistent(lambda: link.ask(*before, command), BLOCK))
        finally:
            link.drop()

    def _queue_loops(
        self, queues: Sequence[str], handler: Handler, concurrency: int
    ) -> list[Callable[[], None]]:
        served = [keys_of(name) for name in queues]
        if self.is_spread and len({keys.tag for keys in served}) > 1:
            raise Unsupported(
                f"on a cluster, queues of one worker need one hash slot, not {', '.join(queues)}: give them "
                "names like shop.high and shop.low, or start a worker for each"
            )
        alarm = self._alarm()
        common = (self.place, served, handler, self._options, self._is_stopped, alarm)
        workers = [RedisWorker(*common, concurrency == 1, self._tell) for _ in range(concurrency)]
        minder = Minder(self.place, served, workers, self._options, self._is_stopped, alarm)
        self._ending = [*self._ending, minder]
        return [*(worker.work for worker in workers), minder.mind, minder.relieve]

    def _discard(self, queue: str) -> None:
        keys = keys_of(queue)
        client = self.place.client(keys.queue)
        while raw := client.lpop(keys.queue):
            record = Record.unpacked(raw)
            if record.is_large:
                client.unlink(keys.body(record.id))
        client.unlink(keys.delayed, keys.bell)
