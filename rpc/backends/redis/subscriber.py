"""Hearing topics and inboxes on Redis: one connection for all that a server hears, which waits for news of
all these streams. A handler that takes long keeps only what comes to the same address waiting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import redis

from ...errors import BackendUnavailable, RpcError, SerializationError, shown
from ...loops import Alarm
from ...transport import Address, Handler, Message, packed, unpacked
from .._retry import Backoff
from .._serially import Serially
from .._serving import BaseDelivery, OnChange
from .connection import (
    BLOCK,
    FAILURES,
    LOOK_AGAIN,
    Connection,
    linger,
    milliseconds,
    run_with_reconnect,
    unavailable,
)
from .keys import Names
from .scripts import JOIN
from .servers import Servers, is_elsewhere
from .topics import (
    KEEP_TOPIC,
    Run,
    Topics,
    entries,
    forget_the_future,
    is_from_the_future,
    mend,
)

logger = logging.getLogger(__name__)

AHEAD = 256
"""Messages of one address that are read before they are handled; what is more waits in Redis. It is looked at
again soon."""
PRESENT = 5.0
"""Seconds after which a group whose members give no sign is empty: whoever joins it then does not hear what
came before."""
ATTEND = 10.0
"""Seconds between two signs that a subscription is served; if Redis forgets it, what comes until the next one
is not kept."""

Heard = Callable[[dict[bytes, bytes]], object]
"""Gets the fields of an entry."""


class Kept(Protocol):
    """What is kept for a durable subscription."""

    def has_some(self) -> bool:
        """Whether there is something to be worked off. Raises redis.RedisError."""

    def work_off(self) -> None:
        """Handle one message after the other, until there is none."""


class Subscriber:
    """What one server hears: `channels` are topics and inboxes, `durable` the subscriptions that it serves,
    with what works off the queue of each, `watched` other streams, from their beginning, with what their
    entries go to. `run` carries out commands; `discard` deletes a queue; `on_change` is told of the
    connection. `stopped` ends the hearing of topics; `ended` also that of inboxes, and of what is watched."""

    def __init__(
        self,
        servers: Servers,
        names: Names,
        *,
        channels: Sequence[Address],
        durable: Mapping[Address, Kept],
        watched: Mapping[str, Heard],
        handler: Handler,
        run: Run,
        discard: Callable[[str], object],
        stopped: Callable[[], bool],
        ended: Callable[[], bool],
        check: Callable[[BackendUnavailable], object],
        on_change: OnChange,
    ) -> None:
        """`check` raises what is not to be tried again at the beginning."""
        self._check, self.names = check, names
        self._run, self._handler, self._stopped, self.ended = run, handler, stopped, ended
        self._topics, self._discard, self._on_change = Topics(servers, names, run), discard, on_change
        self._durable = durable
        alone = len(channels) == 1 and channels[0].kind == "topic" and not (channels[0].group or durable)
        self._serially = Serially(len(channels) + len(durable), in_place=alone and not watched)
        self._groups = [each for each in channels if each.group]
        self._joined: set[Address] = set()
        self._unread: set[Address] = set()
        """Groups whose stream must be looked at again, though there is no news of it."""
        self._signed = self._attended = 0.0
        self._alarm = Alarm()
        """Rung when it is stopped."""
        self._at: dict[str, list[Address]] = {}
        for to in (*channels, *durable):
            self._at.setdefault(names.channel(to), []).append(to)
        self._watched, keys = watched, [*self._at]
        together = [[key] for key in keys] if servers.is_cluster else [keys]
        if servers.is_cluster:
            together.append([*watched])
        else:
            together[0] += watched
        self._readers = [
            _Reader(servers, some, self, n == 0) for n, some in enumerate(filter(None, together))
        ]

    def begin(self) -> None:
        """Settle from where on each address is heard; through whatever happens to Redis meanwhile, unless it
        is stopped. What is published from then on, is heard."""
        left = [*(reader.begin for reader in self._readers), self._begin]

        def step() -> None:
            try:
                left[0]()
            except redis.ResponseError as error:  # what this user may not do, the loop tries again
                self._check(reason := unavailable(error))
                logger.warning("%s", shown(reason))
            del left[0]

        run_with_reconnect(step, lambda: not left or self._stopped(), lost=self._check)
        if not left:
            self._on_change(True)

    def loops(self) -> list[Callable[[], None]]:
        """They hear until it has ended."""
        return [reader.run for reader in self._readers]

    def wait(self) -> None:
        """Until it is stopped; for a server that has no queues."""
        while not self._stopped():
            self._alarm.wait(BLOCK)

    def stop_waiting(self) -> None:
        """It is stopped. Any thread, and signal-safe."""
        self._alarm.ring()

    def end(self) -> None:
        """Wait for what is being handled."""
        self._serially.end()

    def connections(self) -> list[int]:
        """What Redis calls the connections that wait."""
        return [reader.number for reader in self._readers if reader.number]

    def drop(self) -> None:
        """Give the connections up."""
        for reader in self._readers:
            reader.drop()
        self._alarm.close()

    def step(self) -> None:
        """What is to be done now and then, by the first reader."""
        now = time.monotonic()
        if self._groups and now - self._signed > BLOCK / 2 and not self._stopped():
            self._signed = now
            for each in self._groups:
                self._sign(each)
                if each in self._unread:
                    self._unread.discard(each)
                    self.look(each)
        if self._durable and not self._stopped():
            if now - self._attended > ATTEND:
                self._attend()
                self._attended = now
            for to, queue in self._durable.items():
                if queue.has_some():
                    self.look(to)

    def again(self) -> None:
        """There is a new connection: Redis may have forgotten what it was told."""
        self._attended = 0.0
        self._on_change(True)

    def lost(self) -> None:
        """There is none."""
        self._on_change(False)

    def linger(self) -> None:
        """Wait a while before there is another one, if none may be needed."""
        linger(self._stopped, self.ended)

    def is_busy(self, key: str) -> bool:
        """Whether enough has been read there, for now."""
        return any(self._serially.waiting(to) >= AHEAD for to in self._at.get(key, ()))

    def heard(self, key: str, id: bytes, fields: dict[bytes, bytes]) -> None:
        """Something came."""
        if key in self._watched:
            self._watched[key](fields)
            return
        for to in [each for each in self._at[key] if not self._is_over(each)]:
            if to.group:
                self.look(to)
            else:
                self._serially.run(to, partial(self._hear, to, id, fields))

    def watches(self, key: str) -> bool:
        """Whether it is heard also after a stop."""
        return key in self._watched

    def _begin(self) -> None:
        for each in self._groups:
            self._join(each)
        self._attend()

    def _attend(self) -> None:
        """Say that the subscriptions are served, and see to those that nobody has served for long."""
        if not self._durable:
            return
        for each in self._durable:
            self._topics.keep(each)
        for each in self._topics.gone():
            self._discard(each.subscription_queue.name)

    def _is_over(self, to: Address) -> bool:
        """What comes to an inbox may be about what is in hand."""
        return self.ended() if to.kind == "inbox" else self._stopped()

    def _hear(self, to: Address, id: bytes, fields: dict[bytes, bytes]) -> None:
        if self._is_over(to):
            return
        self._handle(to, fields)
        if to.kind == "inbox":
            try:
                key = self.names.channel(to)
                self._run(key, ("XDEL", key, id))
            except FAILURES as error:
                logger.warning("%s; a message of %s may come again", unavailable(error), to)

    def _handle(self, to: Address, fields: dict[bytes, bytes]) -> None:
        try:
            message = unpacked(fields[b"m"])
        except (SerializationError, KeyError) as error:
            logger.warning("not a message of ours (%s): %s", to, shown(error))
        else:
            self._handler(_ChannelDelivery(self._run, self.names, to, message))

    # Groups: what the other members have taken, this one does not see.

    def look(self, to: Address) -> None:
        """Have what there is for a group worked off, if that is not under way."""
        if self._serially.waiting(to) < 2:
            queue = self._durable.get(to)
            self._serially.run(to, queue.work_off if queue else partial(self._work_off, to))

    def _work_off(self, to: Address) -> None:
        key = self.names.channel(to)
        command = ("XREADGROUP", "GROUP", to.group, "any", "COUNT", 1, "NOACK", "STREAMS", key, ">")
        try:
            while not self._stopped() and (read := [*entries(self._run(key, command)[0])]):
                for _, id, fields in read:
                    self._handle(to, fields)
                    if is_from_the_future(id):
                        forget_the_future(partial(self._run, key), key, id, to.group)
        except FAILURES as error:
            self._unread.add(to)
            if "NOGROUP" in str(error):
                self._joined.add(to)
                self._signed = 0.0  # it is made again
            else:
                logger.warning("%s", unavailable(error))

    def _sign(self, to: Address) -> None:
        """Say that the group has members."""
        if to in self._joined:
            self._join(to)
        key = self.names.channel(to)
        self._run(
            key,
            ("PEXPIRE", key, milliseconds(KEEP_TOPIC)),
            ("SET", self.names.members(to), 1, "PX", milliseconds(PRESENT)),
        )

    def _join(self, to: Address) -> None:
        """From now on; but after the stream was lost, from its new beginning."""
        origin = "0" if to in self._joined else "$"
        key = self.names.channel(to)
        self._run(key, (JOIN, 2, key, self.names.members(to), to.group, origin, milliseconds(PRESENT)))
        self._joined.discard(to)


class _Reader:
    """Waits for news of several streams of one server."""

    def __init__(self, servers: Servers, keys: Sequence[str], subscriber: Subscriber, is_first: bool) -> None:
        self._servers, self._subscriber, self._is_first = servers, subscriber, is_first
        self._connection = Connection(servers, keys[0], ())
        self._cursors: dict[str, Any] = dict.fromkeys(keys)
        """The entry up to which each has been read; None: from now on."""
        self._epoch = 0

    @property
    def number(self) -> int:
        return self._connection.number if self._connection.connected else 0

    def begin(self) -> None:
        """Settle from where on each is heard, if that is not settled; what is heard from its beginning, such
        as which callers have left, is known after that."""
        subscriber, ask = self._subscriber, self._connection.ask
        for key in [key for key, last in self._cursors.items() if last is None]:
            past: list[Any] = []
            if subscriber.watches(key):
                past = ask(("XRANGE", key, "-", "+"))
                for _, id, fields in entries([[key.encode(), past]]):
                    subscriber.heard(key, id, fields)
            elif not key.startswith(subscriber.names.inboxes):
                past = ask(("XREVRANGE", key, "+", "-", "COUNT", 1))
            self._cursors[key] = past[-1][0] if past else "0-0"

    def run(self) -> None:
        """Until it has ended."""
        backoff = Backoff(BLOCK)
        while not self._subscriber.ended():
            try:
                self._step()
                backoff.reset()
            except FAILURES as error:
                if isinstance(error, redis.RedisError) and is_elsewhere(error):
                    self._servers.moved()
                self._connection.drop()
                self._subscriber.lost()
                self._mend(error)
                backoff.wait("%s; trying again", unavailable(error))
                self._subscriber.linger()

    def drop(self) -> None:
        self._connection.drop()

    def _mend(self, error: BaseException) -> None:
        mend(self._servers, error, dict.fromkeys(self._cursors, "stream"))

    def _step(self) -> None:
        subscriber = self._subscriber
        self.begin()
        self._connection.packed()
        if self._epoch != self._connection.epoch:
            self._epoch = self._connection.epoch
            subscriber.again()
        if self._is_first:
            subscriber.step()
        wanted = {key: last for key, last in self._cursors.items() if not subscriber.is_busy(key)}
        block = BLOCK if len(wanted) == len(self._cursors) else LOOK_AGAIN
        if not wanted:
            time.sleep(block)
            return
        streams = [*wanted, *wanted.values()]
        read = self._connection.ask(("XREAD", "COUNT", 64, "BLOCK", milliseconds(block), "STREAMS", *streams))
        for key, id, fields in entries(read):
            if is_from_the_future(id):
                forget_the_future(self._connection.ask, key, id)
            else:
                self._cursors[key] = id
            subscriber.heard(key, id, fields)


class _ChannelDelivery(BaseDelivery):
    """A message from a topic or an inbox: any number of receivers may reply to it."""

    def __init__(self, run: Run, names: Names, to: Address, message: Message) -> None:
        self._run, self._names, self.to, self.message = run, names, to, message

    def reply(self, message: Message) -> bool:
        if self.message.reply_to is None:
            return False
        key = self._names.way_back(self.message.reply_to)
        return bool(self._run(key, ("XADD", key, "NOMKSTREAM", "*", "m", packed(message)))[0])

    def _finish(self, last: Message | None) -> None:
        if last is not None:
            try:
                self.reply(last)
            except (*FAILURES, RpcError) as error:
                logger.warning(
                    "%s; a reply is lost", error if isinstance(error, RpcError) else unavailable(error)
                )
