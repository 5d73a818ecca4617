"""RabbitMQ natively, over AMQP 0-9-1: one write and one read for a call.

A caller's message and its wait for the reply leave in one write, and RabbitMQ hands the reply over without a
queue (direct reply-to). What must not be lost is durable, confirmed and acknowledged by hand.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from ...errors import NoReceivers, QueueFull, Unsupported
from ...loops import Alarm, run_together
from ...transport import DELAY, IDEMPOTENCY_KEY, Address, AsyncBackend, DeadLetter, Handler, Message
from ...transport import queue as queue_address
from .._retry import RETRY_FOR, backoff
from .._serving import arriving
from .calls import LaneReplies, Senders, popped, queue_name
from .connection import BLOCK, Link, Pulse
from .dead_letters import Shelf, dead_name
from .locks import Locks
from .recent import Control, Known
from .servers import Place
from .topics import ChannelLoop
from .wire import Broken, Probe, Queue
from .worker import RELIEF, QueueLoop

logger = logging.getLogger(__name__)

Session = Callable[[int, Callable[[], object]], None]
"""Hears until stopped, woken by a file descriptor; calls the other as soon as it would miss nothing."""
LASTED = 0.2
"""Seconds after which a connection that broke had worked."""


class AmqpBackend:
    """RabbitMQ ≥ 3.10.

    `url` is `amqp://[user:password@]host[:port][,host[:port]…][/vhost]`, or `amqps:` with TLS. A message is
    delivered at most `max_deliveries` times; then it is a dead letter. `heartbeat` is the seconds without a
    sign of life after which either side takes the connection for lost (0: none). Queues are of `queue_type`
    "classic" or "quorum". A queue with `max_length` messages refuses more from this sender with QueueFull (0:
    it does not). Connects at first use.
    """

    features = frozenset(
        {
            *("durable", "redelivers", "topics", "groups", "subscriptions", "locks"),
            *("priorities", "processes", "presence", "dead-letters"),
        }
    )
    max_message: int | None = 16 * 1024 * 1024
    on_change: Callable[[bool], object] | None = None

    def __init__(
        self,
        url: str = "amqp://127.0.0.1",
        *,
        heartbeat: float = 30.0,
        max_deliveries: int = 3,
        max_length: int = 0,
        queue_type: Literal["classic", "quorum"] = "classic",
        lease: float | None = None,
    ) -> None:
        """`lease`, which is RPC_LEASE, is that of singleton timers, which name it with each lock. Jobs need
        none: a worker has them for as long as its connection."""
        if max_deliveries < 1 or max_length < 0 or (heartbeat and heartbeat < 2):
            raise ValueError("max_deliveries is at least 1, max_length at least 0, heartbeat at least 2 or 0")
        self.place = Place(url, heartbeat, queue_type)
        self.max_length, self._max_deliveries = max_length, max_deliveries
        self._pulse, self._known = Pulse(), Known()
        self._lanes: list[Link] = []
        self._senders = Senders(self)
        self._shelf = Shelf(self._senders)
        self._locks = Locks(self.link())
        self._changing = threading.Lock()
        self._missing: set[int] = set()
        """Sessions that have not begun yet, since `serve` was called."""
        self._stopped = self._connected = False
        self._bell: socket.socket | None = None
        self._alarm: Alarm | None = None
        """Both are rung by `stop`, if there is somebody to be woken."""
        self._loops: list[QueueLoop] = []

    def link(self) -> Link:
        """A connection that is not open yet."""
        return Link(self.place, self._pulse)

    def make_room(self, link: Link, to: Address) -> None:
        """Raises QueueFull, NoReceivers if it finds the queue full, or none. Only for what has a bound."""
        if not self.max_length or to.kind != "queue":
            return
        try:
            found = link.ask(Probe(queue_name(to)), Queue.DeclareOk)
        except Broken as error:
            if error.code == 404:
                raise NoReceivers(f"nobody has ever served {to}") from None
            raise
        if found.message_count >= self.max_length:
            raise QueueFull(f"{to} has no room: raise max_length, or start more workers")

    def is_served(self, queue: str) -> bool:
        return self._senders.is_heard(queue_address(queue))

    def declare(self, *addresses: Address) -> None:
        """Make these queues, so that messages to them are taken before anybody serves them."""
        for to in addresses:
            queue = self.place.queue(queue_name(to))
            self._senders.do(partial(_made, queue), RETRY_FOR)

    def delete(self, *addresses: Address) -> None:
        """Delete these queues, with what is in them and their dead letters."""
        for to in addresses:
            for name in queue_name(to), dead_name(to.name):
                self._senders.do(partial(_gone, Queue.Delete(queue=name)), RETRY_FOR)

    def send(self, to: Address, message: Message) -> None:
        _check(message)
        self._senders.send(to, message)

    def request(self, to: Address, message: Message) -> LaneReplies:
        _check(message)
        replies = LaneReplies(self, self._lanes, to, message)
        try:
            replies.send()
        except BaseException:
            replies.close()
            raise
        return replies

    def withdraw(self, to: Address, id: str) -> None:
        """Say that nobody waits for a request any more."""
        self._senders.withdraw(to, id)

    def asynchronous(self) -> AsyncBackend:
        """Itself for callers in event loops."""
        from .aio import AsyncAmqp

        return AsyncAmqp(self)

    # Serving.

    def serve(self, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        queues = [address for address in addresses if address.kind == "queue"]
        kept = [address for address in addresses if address.durable]
        others = [each for each in addresses if each.kind != "queue" and not each.durable]
        (ear, bell), alarm = socket.socketpair(), Alarm()
        self._bell, self._alarm = bell, alarm
        bell.setblocking(False)
        served = [*queues, *(each.shelf for each in kept)]
        sessions: list[Session] = []
        self._loops = self._queue_loops(queues, handler, concurrency, alarm) if queues else []
        for each in kept:
            self._loops += self._queue_loops([each.shelf], arriving(each, handler), concurrency, alarm, each)
        sessions += [loop.session for loop in self._loops]
        sessions += [ChannelLoop(self.link(), to, handler, self._is_stopped).session for to in others]
        sessions.append(Control(self.link(), served, self._known, self._tell, self._is_stopped).session)
        self._missing = {*range(len(sessions))}
        together = [
            partial(self._steadily, each, ear, partial(self._arrived, number))
            for number, each in enumerate(sessions)
        ]
        try:
            run_together([*together, partial(self._relieve, alarm)], self.stop)
        finally:
            self._stopped = False
            self._tell(False)
            self._bell = self._alarm = None
            for end in bell, ear, alarm:
                end.close()

    def _relieve(self, alarm: Alarm) -> None:
        """See to it that no loop keeps to itself what others could do."""
        while not self._stopped:
            alarm.wait(RELIEF if any(loop.is_wide for loop in self._loops) else BLOCK)
            for loop in self._loops:
                loop.relieve()

    def _queue_loops(
        self,
        queues: Sequence[Address],
        handler: Handler,
        concurrency: int,
        alarm: Alarm,
        subscription: Address | None = None,
    ) -> list[QueueLoop]:
        known = self._known.apart() if subscription else self._known

        def loop() -> QueueLoop:
            shared = known, self._max_deliveries, self._is_stopped, alarm.ring, subscription
            return QueueLoop(self.link(), queues, handler, *shared)

        return [loop() for _ in range(concurrency)]

    def _steadily(self, session: Session, ear: socket.socket, arrived: Callable[[], object]) -> None:
        """Session after session until stopped, through whatever happens to RabbitMQ meanwhile."""
        attempt = 0
        while not self._stopped:
            began = time.monotonic()
            try:
                session(ear.fileno(), arrived)
            except Broken as error:
                if time.monotonic() - began > LASTED:  # maybe for hours
                    attempt = 0
                if attempt % 10 == 0:
                    logger.warning("RabbitMQ: %s; trying again", error)
                _pause(ear, backoff(attempt))
                attempt += 1

    def stop(self) -> None:
        self._stopped = True
        if bell := self._bell:
            with suppress(OSError):  # it is full, or closed: nobody needs to be woken
                bell.send(b"!")
        if alarm := self._alarm:
            alarm.ring()

    def close(self) -> None:
        for loop in self._loops:
            loop.hand_back()
        while lane := popped(self._lanes):
            lane.hang_up()
        self._senders.close()
        self._locks.close()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _arrived(self, number: int) -> None:
        """That we are connected is said when all hear what they are for: nothing is missed from then on."""
        with self._changing:
            self._missing.discard(number)
        if not self._missing and self._known.attentive is not None:
            self._tell(True)

    def _tell(self, connected: bool) -> None:
        with self._changing:
            changed, self._connected = connected != self._connected, connected
            if changed and self.on_change:
                self.on_change(connected)

    # Subscriptions, locks, dead letters.

    def unsubscribe(self, to: Address) -> None:
        delete = Queue.Delete(queue=queue_name(to.shelf))
        self._senders.do(lambda link: link.ask(delete, Queue.DeleteOk))

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return self._locks.acquire(name, owner, lease)

    def release(self, name: str, owner: str) -> None:
        self._locks.release(name, owner)

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        return self._shelf.letters(queue)

    def revive(self, letter: DeadLetter) -> bool:
        return self._shelf.revive(letter)

    def drop(self, letter: DeadLetter) -> bool:
        return self._shelf.drop(letter)


def _check(message: Message) -> None:
    for header, feature in (DELAY, "delay"), (IDEMPOTENCY_KEY, "idempotency"):
        if header in message.headers:
            raise Unsupported(f"this backend has no feature {feature!r}; redis: and memory: have it")


def _gone(queue: Any, link: Link) -> Any:
    return link.ask(queue, Queue.DeleteOk)


def _made(queue: Any, link: Link) -> Any:
    return link.ask(queue, Queue.DeclareOk)


def _pause(ear: socket.socket, seconds: float) -> None:
    """For so long, or until stopped."""
    select.select([ear], [], [], seconds)
