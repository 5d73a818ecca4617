"""Inside one process: the reference for what a backend does, for tests, and for a program that is not
distributed yet. What is not handled when the process ends is gone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from itertools import count
from queue import Empty, SimpleQueue
from threading import Condition, RLock
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

from ..errors import Cancelled, QueueFull, RpcTimeout
from ..loops import PerLoop, run_together
from ..transport import (
    ATTEMPT,
    DELAY,
    IDEMPOTENCY_KEY,
    STREAM,
    Address,
    DeadLetter,
    Handler,
    Message,
    packed,
    unpacked,
)
from ..transport import queue as queue_address
from ._serving import BaseDelivery, Connections, OnChange, Plan, Serially, Slots, guarded
from .features import FEATURES


class Hub:
    """What a broker would hold: a list of waiting deliveries for each queue and inbox, and one for each
    subscriber, or group of subscribers, of a topic."""

    def __init__(self) -> None:
        self.lock = RLock()
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
        self.servers: list[MemoryServer] = []
        self.served: Counter[str] = Counter()
        """How many serve each queue."""
        self._count = count()

    def put(self, to: Address, message: Message, replies: MemoryReplies | None, most: int = 0) -> None:
        key = message.headers.get(IDEMPOTENCY_KEY)
        with self.lock:
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
            self.wake(to)

    def wake(self, to: Address) -> None:
        """Something may have come to this address."""
        for server in self.servers:
            server.wake(to)

    def _lists(self, to: Address) -> list[tuple[Address, deque[MemoryDelivery]]]:
        """Where what is sent to an address will wait: at which address it arrives."""
        if to.kind != "topic":
            return [(to, self.waiting[to])]
        heard = [(each.address, each.waiting) for each in self.subscribers[to.name].values()]
        return heard + [(each, self.waiting[each.subscription_queue]) for each in self.kept[to.name]]

    def _delayed_to(self, waiting: deque[MemoryDelivery], message: Message) -> int:
        """How many will come to this queue. They take no room away but from their like."""
        if DELAY not in message.headers:
            return 0
        return sum(delivery.waiting is waiting for _, _, delivery in self.delayed)

    def put_later(self, seconds: float, delivery: MemoryDelivery) -> None:
        with self.lock:
            heappush(self.delayed, (time.monotonic() + seconds, next(self._count), delivery))
            self.wake(delivery.to)

    def promote(self) -> float | None:
        """Put what is due where it waits; seconds until more is, None if nothing is delayed. The lock is
        held."""
        while self.delayed:
            left = self.delayed[0][0] - time.monotonic()
            if left > 0:
                return left
            delivery = heappop(self.delayed)[2]
            if not delivery.cancelled:
                delivery.waiting.append(delivery)
                self.wake(delivery.to)
        return None

    def subscribe(self, to: Address) -> tuple[deque[MemoryDelivery], Callable[[], None]]:
        """Where what is sent to a topic or an inbox will wait, and how to leave it."""
        if to.kind == "inbox":
            return self.waiting[to], lambda: None
        if to.durable:
            self.kept[to.name].add(to)
            return self.waiting[to.subscription_queue], lambda: None
        key = to.group or object()
        with self.lock:
            subscriber = self.subscribers[to.name].setdefault(key, Subscriber(to))
            subscriber.members += 1

        def leave() -> None:
            with self.lock:
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
        self._come = Condition(hub.lock)
        self._arrived: deque[Message] = deque()
        self._closed = self._ended = False
        self.deliveries: list[MemoryDelivery] = []

    def put(self, message: Message) -> bool:
        with self.hub.lock:
            if not self._closed:
                self._arrived.append(message)
                self._come.notify_all()
                self._wake()
            return not self._closed

    def receive(self, timeout: float | None) -> Message:
        with self.hub.lock:
            if not self._come.wait_for(lambda: self._arrived, timeout):
                raise RpcTimeout
            reply = self._arrived.popleft()
            self._ended = STREAM not in reply.headers
            return reply

    def close(self) -> None:
        with self.hub.lock:
            self._closed = True
            left = [] if self._ended else [each for each in self.deliveries if not each.first]
            for delivery in left:
                if delivery in delivery.waiting:
                    delivery.waiting.remove(delivery)
        for delivery in left:
            delivery.cancel()


class MemoryDelivery(BaseDelivery):
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
        self._server: MemoryServer | None = None
        self._begun = False

    def start(self, server: MemoryServer) -> None:
        """Tell the handler how much time is left."""
        self._server, self.finished = server, False
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

    def _finish(self, last: Message | None) -> None:
        if last is not None:
            self.reply(last)
            if self.first and self._begun:
                with self.hub.lock:
                    self.first.answer(last)
        self._end()

    def _end(self) -> None:
        self.finished = True
        if self._server and self._server.slots.done(self):
            self._server.wake(self.to)

    def postpone(self, seconds: float, message: Message) -> None:
        self.message = message
        self._end()
        self.hub.put_later(seconds, self)

    def bury(self, why: str, last: Message | None) -> None:
        self.finish(last)
        queue = self.to.subscription_queue.name if self.to.durable else self.to.name
        letter = DeadLetter(self.message.id, queue, time.time(), why, packed(self.message), self)
        self.hub.dead[queue].insert(0, letter)

    def reply(self, message: Message) -> bool:
        return self.replies is not None and self.replies.put(message)


class MemoryBackend:
    """`memory://name`: every MemoryBackend of that name in this process is on the same hub."""

    features = FEATURES["memory"]
    max_message: int | None = None

    def __init__(self, url: str = "memory://", *, max_length: int = 0) -> None:
        """A queue with `max_length` messages refuses more with QueueFull (0: it does not)."""
        if max_length < 0:
            raise ValueError("max_length is not negative")
        if unknown := dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)):
            raise ValueError(f"no options of this backend: {', '.join(sorted(unknown))}")
        self.hub, self._max_length = HUBS[url], max_length

    def send(self, to: Address, message: Message) -> None:
        self.put(to, message, None)

    def request(self, to: Address, message: Message) -> MemoryReplies:
        replies = MemoryReplies(self.hub)
        self.put(to, message, replies)
        return replies

    def put(self, to: Address, message: Message, replies: MemoryReplies | None) -> None:
        self.hub.put(to, message, replies, self._max_length)

    def asynchronous(self) -> AsyncMemory:
        return AsyncMemory(self)

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> MemoryServer:
        return MemoryServer(self.hub, Plan(addresses), handler, threads, coroutines, on_change)

    def close(self) -> None:
        """Nothing to give back."""

    def is_served(self, queue: str) -> bool:
        return self.hub.served[queue] > 0

    def unsubscribe(self, to: Address) -> None:
        with self.hub.lock:
            self.hub.kept[to.name].discard(to)
            self.hub.waiting.pop(to.subscription_queue, None)

    def subscribed(self) -> list[Address]:
        return [each for kept in list(self.hub.kept.values()) for each in list(kept)]

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        now = time.monotonic()
        with self.hub.lock:
            holder, until = self.hub.locks.get(name, (owner, 0.0))
            if holder != owner and until > now:
                return False
            self.hub.locks[name] = owner, now + lease
            return True

    def release(self, name: str, owner: str) -> None:
        with self.hub.lock:
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
        with self.hub.lock:
            letters = self.hub.dead[letter.queue]
            if letter not in letters:
                return False
            letters.remove(letter)
            return True


class MemoryServer:
    """Takes from the queues, topics and inboxes of a hub, until stopped."""

    def __init__(
        self, hub: Hub, plan: Plan, handler: Handler, threads: int, coroutines: int, on_change: OnChange
    ) -> None:
        self._hub, self._plan, self._handler, self._threads = hub, plan, guarded(handler), threads
        self.slots, self._connections = Slots(coroutines), Connections(on_change)
        self._work_came: SimpleQueue[None] = SimpleQueue()
        self._news_came: SimpleQueue[None] = SimpleQueue()
        """What waits here looks again for each entry; a signal handler may put one, too."""
        self._kept = {each.subscription_queue for each in plan.durable}
        self._serially = Serially(len(plan.channels) + len(plan.durable))
        self._stopped = False

    def run(self) -> None:
        hub, names = self._hub, [address.name for address in self._plan.queues]
        queues = [hub.waiting[address] for address in self._plan.queues]
        heard = {to: hub.subscribe(to) for to in self._plan.channels + self._plan.durable}
        loops = [partial(self._work, queues)] * (self._threads if queues else 0)
        loops += [partial(self._hear, {to: waiting for to, (waiting, _) in heard.items()})] * bool(heard)
        with hub.lock:
            hub.servers.append(self)
            hub.served.update(names)
        self._connections.notify(True)
        try:
            run_together(loops, self.stop)
            self._serially.end()
            self.slots.wait()
        finally:
            with hub.lock:
                hub.servers.remove(self)
                hub.served.subtract(names)
            for _, leave in heard.values():
                leave()
            self._connections.notify(False)

    def stop(self) -> None:
        self._stopped = True
        for came in (self._news_came, *[self._work_came] * self._threads):
            came.put(None)

    def wake(self, to: Address) -> None:
        """Something may have come to this address."""
        if to.kind == "queue" and to not in self._kept:
            self._work_came.put(None)
        else:
            self._news_came.put(None)

    def hand_back(self) -> None:
        """Nothing outlives this process."""

    def _work(self, queues: list[deque[MemoryDelivery]]) -> None:
        while (
            delivery := self._next(self._work_came, lambda: queues if self.slots.room > 0 else ())
        ) is not None:
            delivery.start(self)
            self.slots.call(self._handler, delivery)

    def _hear(self, channels: dict[Address, deque[MemoryDelivery]]) -> None:
        def ready() -> list[deque[MemoryDelivery]]:
            return [waiting for to, waiting in channels.items() if not self._serially.waiting(to)]

        at = {id(waiting): to for to, waiting in channels.items()}
        while (delivery := self._next(self._news_came, ready)) is not None:
            self._serially.run(
                at[id(delivery.waiting)], partial(self._heard, at[id(delivery.waiting)], delivery)
            )

    def _heard(self, to: Address, delivery: MemoryDelivery) -> None:
        delivery.to = to
        delivery.start(self)
        self._handler(delivery)
        self._news_came.put(None)

    def _next(
        self, came: SimpleQueue[None], lists: Callable[[], Sequence[deque[MemoryDelivery]]]
    ) -> MemoryDelivery | None:
        """The oldest delivery of the first list that has one; None once stopped."""
        while not self._stopped:
            with self._hub.lock:
                due = self._hub.promote()
                for deliveries in lists():
                    if deliveries:
                        return deliveries.popleft()
            with suppress(Empty):
                came.get(timeout=due)
        return None


class AsyncMemoryReplies:
    """The way back of a request of an event loop: whoever replies wakes the task that waits."""

    def __init__(self, hub: Hub) -> None:
        self._loop = asyncio.get_running_loop()
        self._come = asyncio.Event()
        self.replies = MemoryReplies(hub, self._wake)
        self._is_over = False

    async def receive(self, timeout: float | None) -> Message:
        end = None if timeout is None else self._loop.time() + timeout
        while True:
            self._come.clear()
            with suppress(RpcTimeout):
                return self.replies.receive(0)
            if self._is_over:
                raise Cancelled("the client was closed")
            left = None if end is None else end - self._loop.time()
            try:
                await asyncio.wait_for(self._come.wait(), left)
            except asyncio.TimeoutError:
                raise RpcTimeout from None

    def close(self) -> None:
        self.replies.close()

    def end(self) -> None:
        """Nothing will come any more."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._come.set)


class AsyncMemory:
    """A MemoryBackend for callers in event loops."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self.features, self.max_message = backend.features, backend.max_message
        self._open: PerLoop[WeakSet[AsyncMemoryReplies]] = PerLoop(WeakSet)

    async def send(self, to: Address, message: Message) -> None:
        self._backend.send(to, message)

    async def request(self, to: Address, message: Message) -> AsyncMemoryReplies:
        replies = AsyncMemoryReplies(self._backend.hub)
        self._open.here().add(replies)
        self._backend.put(to, message, replies.replies)
        return replies

    async def close(self) -> None:
        for replies in self._open.pop() or ():
            replies.end()
