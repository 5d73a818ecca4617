"""Inside one process: the reference for what a backend does, for tests, and for a program that is not
distributed yet. What is not handled when the process ends is gone."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from urllib.parse import parse_qsl, urlsplit

from ..errors import QueueFull, RpcTimeout
from ..loops import run_together
from ..transport import (
    ATTEMPT,
    DELAY,
    IDEMPOTENCY_KEY,
    LOST,
    STREAM,
    Address,
    AsyncBackend,
    DeadLetter,
    Handler,
    Message,
    packed,
    unpacked,
)
from ..transport import queue as queue_address
from ._serving import Cancellable, arriving

logger = logging.getLogger(__name__)

FOREVER = float("inf")


class Hub:
    """What a broker would hold: a list of waiting deliveries for each queue and inbox, and one for each
    subscriber, or group of subscribers, of a topic. All waiting is on one condition."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.waiting: defaultdict[Address, deque[MemoryDelivery]] = defaultdict(deque)
        self.delayed: list[tuple[float, int, MemoryDelivery]] = []
        """A heap: when each is due, in seconds of the monotonic clock."""
        self.subscribers: defaultdict[str, dict[object, Subscriber]] = defaultdict(dict)
        self.kept: defaultdict[str, set[Address]] = defaultdict(set)
        """The durable subscriptions of each topic."""
        self.locks: dict[str, tuple[str, float]] = {}
        """Who has each, and until when."""
        self.firsts: dict[tuple[Address, str], First] = {}
        """What was sent with an idempotency key. It is forgotten with the process."""
        self.dead: defaultdict[str, list[DeadLetter]] = defaultdict(list)
        self.served: Counter[str] = Counter()
        """How many serve each queue."""
        self._count = count()

    def put(self, to: Address, message: Message, replies: MemoryReplies | None, most: int = 0) -> None:
        key = message.headers.get(IDEMPOTENCY_KEY)
        with self.changed:
            first = self.firsts.get((to, key)) if key is not None else None
            if first and not first.is_void():
                first.join(message, replies)
                return
            lists = self._lists(to)
            waiting = self.waiting[to]
            if to.kind == "queue" and most and len(waiting) + self._delayed_to(waiting, message) >= most:
                raise QueueFull(f"{to} has no room: raise max_length, or start more workers")
            for arrival, waiting in lists:
                delivery = MemoryDelivery(self, arrival, message, replies, waiting)
                if key is not None:
                    self.firsts[to, key] = delivery.first = First(delivery)
                if replies:
                    replies.deliveries.append(delivery)
                if DELAY in message.headers:
                    self.put_later(float(message.headers[DELAY]), delivery)
                else:
                    waiting.append(delivery)
            self.changed.notify_all()

    def _lists(self, to: Address) -> list[tuple[Address, deque[MemoryDelivery]]]:
        """Where what is sent to an address will wait: at which address it arrives."""
        if to.kind != "topic":
            return [(to, self.waiting[to])]
        heard = [(each.address, each.waiting) for each in self.subscribers[to.name].values()]
        return heard + [(each, self.waiting[each.shelf]) for each in self.kept[to.name]]

    def _delayed_to(self, waiting: deque[MemoryDelivery], message: Message) -> int:
        """How many will come to this queue. They take no room away but from their like."""
        if DELAY not in message.headers:
            return 0
        return sum(delivery.waiting is waiting for _, _, delivery in self.delayed)

    def put_later(self, seconds: float, delivery: MemoryDelivery) -> None:
        with self.changed:
            heappush(self.delayed, (time.monotonic() + seconds, next(self._count), delivery))
            self.changed.notify_all()

    def promote(self) -> float:
        """Put what is due where it waits; seconds until more is. The lock is held."""
        while self.delayed:
            left = self.delayed[0][0] - time.monotonic()
            if left > 0:
                return left
            delivery = heappop(self.delayed)[2]
            if not delivery.cancelled:
                delivery.waiting.append(delivery)
        return FOREVER

    def subscribe(self, to: Address) -> tuple[deque[MemoryDelivery], Callable[[], None]]:
        """Where what is sent to a topic or an inbox will wait, and how to leave it."""
        if to.kind == "inbox":
            return self.waiting[to], lambda: None
        key = to.group or object()
        with self.changed:
            subscriber = self.subscribers[to.name].setdefault(key, Subscriber(to))
            subscriber.members += 1

        def leave() -> None:
            with self.changed:
                subscriber.members -= 1
                if not subscriber.members:
                    del self.subscribers[to.name][key]

        return subscriber.waiting, leave


class Subscriber:
    """One that hears a topic by itself, or the members of a group."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.waiting: deque[MemoryDelivery] = deque()
        self.members = 0


HUBS: defaultdict[str, Hub] = defaultdict(Hub)
"""A URL names the same hub everywhere in the process, as it names the same broker elsewhere."""


class First:
    """The first message with an idempotency key, and who else waits for its last reply."""

    def __init__(self, delivery: MemoryDelivery) -> None:
        self._delivery = delivery
        self._waiting: list[MemoryReplies] = []
        self._last: Message | None = None

    def is_void(self) -> bool:
        """Whether it will never be answered: it expired before anybody began."""
        return self._last is None and self._delivery.has_expired()

    def join(self, message: Message, replies: MemoryReplies | None) -> None:
        """It is wanted until the last one that asked for it has left."""
        self._delivery.extend(message.ttl)
        if replies and self._last is None:
            self._waiting.append(replies)
        elif replies and self._last:
            replies.put(self._last)

    def answer(self, last: Message) -> None:
        self._last = last
        for replies in self._waiting:
            replies.put(last)


class MemoryReplies:
    """The way back of one request."""

    def __init__(self, hub: Hub, wake: Callable[[], object] = lambda: None) -> None:
        self.hub, self._wake = hub, wake
        self._arrived: deque[Message] = deque()
        self._closed = self._ended = False
        self.deliveries: list[MemoryDelivery] = []

    def put(self, message: Message) -> bool:
        with self.hub.changed:
            if not self._closed:
                self._arrived.append(message)
                self.hub.changed.notify_all()
                self._wake()
            return not self._closed

    def receive(self, timeout: float | None) -> Message:
        with self.hub.changed:
            if not self.hub.changed.wait_for(lambda: self._arrived, timeout):
                raise RpcTimeout
            reply = self._arrived.popleft()
            self._ended = STREAM not in reply.headers
            return reply

    def close(self) -> None:
        with self.hub.changed:
            self._closed = True
            left = [] if self._ended else [each for each in self.deliveries if not each.first]
            for delivery in left:
                if delivery in delivery.waiting:
                    delivery.waiting.remove(delivery)
        for delivery in left:
            delivery.cancel()


class MemoryDelivery(Cancellable):
    """A message, waiting or in the hands of a handler."""

    def __init__(
        self,
        hub: Hub,
        to: Address,
        message: Message,
        replies: MemoryReplies | None,
        waiting: deque[MemoryDelivery],
    ) -> None:
        ttl = message.ttl
        self._expires = None if ttl is None else time.monotonic() + ttl
        self.hub, self.to = hub, to
        self.message, self.replies, self.waiting = message, replies, waiting
        self.first: First | None = None
        self._begun = False

    def start(self) -> None:
        """Tell the handler how much time is left."""
        self._begun = not self.has_expired()
        if self._expires is not None:
            self.message = self.message.replace(ttl=self._expires - time.monotonic())

    def has_expired(self) -> bool:
        """Before anybody began."""
        return not self._begun and self._expires is not None and self._expires <= time.monotonic()

    def extend(self, ttl: float | None) -> None:
        """Somebody else wants it, for so many seconds."""
        if self._expires is not None:
            self._expires = None if ttl is None else max(self._expires, time.monotonic() + ttl)

    def end(self, last: Message | None) -> None:
        """Send the last reply, if there is one."""
        if last is not None:
            self.reply(last)
            if self.first and self._begun:
                with self.hub.changed:
                    self.first.answer(last)

    def postpone(self, seconds: float, message: Message) -> None:
        self.message = message
        self.hub.put_later(seconds, self)

    def bury(self, why: str, last: Message | None) -> None:
        self.end(last)
        queue = self.to.shelf.name if self.to.durable else self.to.name
        letter = DeadLetter(self.message.id, queue, time.time(), why, packed(self.message), self)
        self.hub.dead[queue].insert(0, letter)

    def reply(self, message: Message) -> bool:
        return self.replies is not None and self.replies.put(message)

    def forbid_redelivery(self) -> None:
        """Nothing to do: memory never delivers again."""


class MemoryBackend:
    """`memory://name`: every MemoryBackend of that name in this process is on the same hub."""

    features = frozenset(
        {
            *("topics", "groups", "subscriptions", "locks", "presence"),
            *("priorities", "delay", "idempotency", "dead-letters"),
        }
    )
    max_message: int | None = None
    on_change: Callable[[bool], object] | None = None

    def __init__(self, url: str = "memory://", *, max_length: int = 0) -> None:
        """A queue with `max_length` messages refuses more with QueueFull (0: it does not)."""
        if max_length < 0:
            raise ValueError("max_length is not negative")
        if unknown := dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)):
            raise ValueError(f"no options of this backend: {', '.join(sorted(unknown))}")
        self.hub, self._max_length = HUBS[url], max_length
        self._stopped = False

    def send(self, to: Address, message: Message) -> None:
        self.put(to, message, None)

    def request(self, to: Address, message: Message) -> MemoryReplies:
        replies = MemoryReplies(self.hub)
        self.put(to, message, replies)
        return replies

    def put(self, to: Address, message: Message, replies: MemoryReplies | None) -> None:
        self.hub.put(to, message, replies, self._max_length)

    def asynchronous(self) -> AsyncBackend:
        from ._memory_aio import AsyncMemory

        return AsyncMemory(self)

    def serve(self, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        names = [address.name for address in addresses if address.kind == "queue"]
        queues = [self.hub.waiting[queue_address(name)] for name in names]
        kept = [address for address in addresses if address.durable]
        heard = [
            self.hub.subscribe(address)
            for address in addresses
            if address.kind != "queue" and not address.durable
        ]
        loops = [partial(self._loop, queues, handler)] * (concurrency if queues else 0)
        for address in kept:
            self.hub.kept[address.name].add(address)
            waiting = self.hub.waiting[address.shelf]
            loops.append(partial(self._loop, [waiting], arriving(address, handler)))
        loops += [partial(self._loop, [waiting], handler) for waiting, _ in heard]
        told = self.on_change or (lambda connected: None)
        with self.hub.changed:
            self.hub.served.update(names)
        told(True)
        try:
            run_together(loops, self.stop)
        finally:
            self._stopped = False
            with self.hub.changed:
                self.hub.served.subtract(names)
            for _, leave in heard:
                leave()
            told(False)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """Nothing to give back."""

    def is_served(self, queue: str) -> bool:
        return self.hub.served[queue] > 0

    def unsubscribe(self, to: Address) -> None:
        with self.hub.changed:
            self.hub.kept[to.name].discard(to)
            self.hub.waiting.pop(to.shelf, None)

    def subscribed(self) -> list[Address]:
        return [each for kept in list(self.hub.kept.values()) for each in list(kept)]

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        now = time.monotonic()
        with self.hub.changed:
            holder, until = self.hub.locks.get(name, (owner, 0.0))
            if holder != owner and until > now:
                return False
            self.hub.locks[name] = owner, now + lease
            return True

    def release(self, name: str, owner: str) -> None:
        with self.hub.changed:
            if self.hub.locks.get(name, ("", 0.0))[0] == owner:
                del self.hub.locks[name]

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        return list(self.hub.dead[queue])

    def revive(self, letter: DeadLetter) -> bool:
        found = self.drop(letter)
        if found:
            again = dict.fromkeys(("ttl", "reply-to", "deliveries", ATTEMPT, DELAY, IDEMPOTENCY_KEY))
            message = unpacked(letter.frame).replace(**again)
            self.hub.put(queue_address(letter.queue), message, None)
        return found

    def drop(self, letter: DeadLetter) -> bool:
        with self.hub.changed:
            letters = self.hub.dead[letter.queue]
            if letter not in letters:
                return False
            letters.remove(letter)
            return True

    def _loop(self, lists: list[deque[MemoryDelivery]], handler: Handler) -> None:
        while (delivery := self._next(lists)) is not None:
            delivery.start()
            try:
                last = handler(delivery)
            except Exception:
                logger.exception("a handler raised: %r", delivery.message)
                last = Message(headers={"id": delivery.message.id, LOST: "its handler failed"})
            delivery.end(last)

    def _next(self, lists: list[deque[MemoryDelivery]]) -> MemoryDelivery | None:
        """The oldest delivery of the first list that has one; None once stopped."""
        with self.hub.changed:
            while not self._stopped:
                due = self.hub.promote()
                for deliveries in lists:
                    if deliveries:
                        return deliveries.popleft()
                self.hub.changed.wait(
                    min(due, 0.2)
                )  # stop() must not take the lock: it may run in a signal handler
            return None
