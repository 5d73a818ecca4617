"""What a broker would hold, in this process."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from copy import copy
from heapq import heapify, heappop, heappush
from itertools import count, islice
from threading import Condition, RLock
from typing import Any

from ...errors import Cancelled, QueueFull, RpcTimeout
from ...inspection import DeadLetter, Entry
from ...transport import DELAY, IDEMPOTENCY_KEY, ORDER_KEY, STREAM, Address, Message, packed
from .._serving import WITHDRAWN, BaseDelivery


class Hub:
    """What a broker would hold: a list of waiting deliveries for each queue and inbox, and one for each
    subscriber, or group of subscribers, of a topic."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.begin()

    def begin(self) -> None:
        """Nothing waits, and nobody serves. The lock is held, or known to nobody else."""
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
        self.lines: dict[tuple[Address, str], deque[MemoryDelivery]] = {}
        """What was sent with an order key, and is not done: only the first of each is where it waits, runs,
        or is delayed to be tried again."""
        self.dead: defaultdict[str, list[DeadLetter]] = defaultdict(list)
        self.running: dict[MemoryDelivery, None] = {}
        self.results: dict[tuple[str, str], tuple[float, Message]] = {}
        """The last replies that are kept: until when, in seconds of the monotonic clock."""
        self.listening: list[Callable[[Address], None]] = []
        """What servers want called whenever something may have come to an address."""
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
            if to.kind == "queue" and most and self._length(to, message) >= most:
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
                    self._line_up(delivery)
            self.wake(to)

    def _line_up(self, delivery: MemoryDelivery) -> None:
        """Put it where it waits, or behind those with its order key. The lock is held."""
        if (place := delivery.place) is not None:
            line = self.lines.setdefault(place, deque())
            if not line or line[0] is not delivery:
                line.append(delivery)
            if line[0] is not delivery:
                return
        delivery.waiting.append(delivery)

    def leave_line(self, delivery: MemoryDelivery) -> None:
        """It is done, or given up: the next one with its order key comes after all that waits."""
        if (place := delivery.place) is None:
            return
        with self.lock:
            line = self.lines.get(place)
            if not line or line[0] is not delivery:
                return
            line.popleft()
            if line:
                line[0].waiting.append(line[0])
                self.wake(delivery.to)
            else:
                del self.lines[place]

    def take_out(self, delivery: MemoryDelivery) -> bool:
        """Nobody is to begin it. False if it does not wait; the lock is held."""
        line = self.lines.get(delivery.place) if delivery.place else None
        if delivery in delivery.waiting:
            delivery.waiting.remove(delivery)
            self.leave_line(delivery)
        elif line and line[0] is not delivery and delivery in line:
            line.remove(delivery)
        else:
            return False
        return True

    def _behind(self, to: Address) -> list[MemoryDelivery]:
        """What waits in a queue for others with its order key."""
        lines = (line for (queue, _), line in self.lines.items() if queue == to)
        return [each for line in lines for each in islice(line, 1, None)]

    def wake(self, to: Address) -> None:
        """Something may have come to this address."""
        for wake in self.listening:
            wake(to)

    def _lists(self, to: Address) -> list[tuple[Address, deque[MemoryDelivery]]]:
        """Where what is sent to an address will wait: at which address it arrives."""
        if to.kind != "topic":
            return [(to, self.waiting[to])]
        heard = [(each.address, each.waiting) for each in self.subscribers[to.name].values()]
        return heard + [(each, self.waiting[each.subscription_queue]) for each in self.kept[to.name]]

    def _length(self, to: Address, message: Message) -> int:
        """How many wait in a queue; what will come to it takes no room away but from its like."""
        waiting = self.waiting[to]
        length = len(waiting) + sum(len(line) - 1 for (queue, _), line in self.lines.items() if queue == to)
        if DELAY in message.headers:
            length += sum(delivery.waiting is waiting for _, _, delivery in self.delayed)
        return length

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
                self._line_up(delivery)
                self.wake(delivery.to)
            else:
                self.leave_line(delivery)
        return None

    def keep(self, queue: str, id: str, last: Message, seconds: float) -> None:
        now = time.monotonic()
        with self.lock:
            while self.results and (oldest := next(iter(self.results))) and self.results[oldest][0] <= now:
                del self.results[oldest]
            self.results[queue, id] = now + seconds, last

    def result(self, queue: str, id: str) -> Message | None:
        until, last = self.results.get((queue, id), (0.0, None))
        return last if until > time.monotonic() else None

    def entries(self, to: Address) -> list[Entry]:
        """What was sent to a queue, and is neither done nor given up."""
        with self.lock:
            waiting = self.waiting[to]
            due = {each: at for at, _, each in self.delayed if each.waiting is waiting}
            running = [each for each in self.running if each.to == to]
            found = [*(("scheduled", each) for each in due), *(("waiting", each) for each in waiting)]
            found += [("waiting", each) for each in self._behind(to)]
            found += [("running", each) for each in running]
            ago = time.time() - time.monotonic()
            return [each.entry(state, due.get(each, each.since) + ago) for state, each in found]

    def withdraw(self, delivery: MemoryDelivery) -> bool:
        """Take it out of its queue, or tell its handler; False if it is neither there nor runs."""
        with self.lock:
            is_waiting = self.take_out(delivery)
            kept = [each for each in self.delayed if each[2] is not delivery]
            if len(kept) < len(self.delayed):
                is_waiting = True
                self.leave_line(delivery)
            self.delayed[:] = kept
            heapify(self.delayed)
            is_running = delivery in self.running
            delivery.cancelled = delivery.cancelled or is_running
        if is_running:
            delivery.cancel()
        return is_waiting or is_running

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


class First:
    """The first message with an idempotency key, and who else waits for its last reply."""

    def __init__(self, delivery: MemoryDelivery) -> None:
        self.delivery = delivery
        """Of the last attempt."""
        self._waiting: list[MemoryReplies] = []
        self._last: Message | None = None

    def is_void(self) -> bool:
        """Whether it will never be answered: it expired before anybody began."""
        return self._last is None and self.delivery.has_expired()

    def join(self, message: Message, replies: MemoryReplies | None) -> None:
        """It is wanted until the last one that asked for it has left."""
        self.delivery.extend(message.ttl)
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
            if not self._come.wait_for(lambda: self._arrived or self._closed, timeout) or not self._arrived:
                raise RpcTimeout
            reply = self._arrived.popleft()
            self._ended = STREAM not in reply.headers
            return reply

    def close(self) -> None:
        with self.hub.lock:
            self._closed = True
            self._come.notify_all()
            left = [] if self._ended else [each for each in self.deliveries if not each.first]
            for delivery in left:
                self.hub.take_out(delivery)
                delivery.cancelled = True
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
        key = message.headers.get(ORDER_KEY) if to.kind == "queue" else None
        self.place = None if key is None else (to, key)
        """Its line."""
        self._on_finished: Callable[[MemoryDelivery], None] = lambda delivery: None
        self._begun = False
        self.since = time.monotonic()

    def entry(self, state: Any, at: float) -> Entry:
        """How it is shown to people."""
        worker = "this process" if state == "running" else ""
        return Entry(self.message.id, self.to.name, state, packed(self.message), at, worker, self)

    def start(self, on_finished: Callable[[MemoryDelivery], None]) -> None:
        """Tell the handler how much time is left."""
        self._on_finished, self.finished = on_finished, False
        self._begun = not self.has_expired()
        self.hub.running[self] = None
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
            if keep := last.keep:
                self.hub.keep(self.to.name, self.message.id, last, keep)
            self.reply(last)
            if self.first and self._begun:
                with self.hub.lock:
                    self.first.answer(last)
        self._end()

    def _end(self) -> None:
        self.finished = True
        self.hub.running.pop(self, None)
        self._on_finished(self)
        self.hub.leave_line(self)

    def postpone(self, seconds: float, message: Message) -> None:
        with self.hub.lock:
            if self.cancelled:
                raise Cancelled(WITHDRAWN)
            again = copy(self)  # who finishes this one later does nothing to the next attempt
            again.message, again.on_cancel = message, None
            if self.first:
                self.first.delivery = again
            line = self.hub.lines.get(self.place) if self.place else None
            if line and line[0] is self:
                line[0] = again
            if self.replies:
                self.replies.deliveries = [
                    again if each is self else each for each in self.replies.deliveries
                ]
            self.hub.running.pop(self, None)
            self.hub.put_later(seconds, again)
        self._end()

    def bury(self, why: str, last: Message | None) -> None:
        self.finish(last)
        queue = self.to.subscription_queue.name if self.to.durable else self.to.name
        line, trace = DeadLetter.told(why)
        frame = packed(self.message.replace(deliveries=None))
        letter = DeadLetter(self.message.id, queue, time.time(), line, frame, self, trace)
        self.hub.dead[queue].insert(0, letter)

    def reply(self, message: Message) -> bool:
        return self.replies is not None and self.replies.put(message)
