"""Inside one process: the reference for what a backend does, for tests, and for a program that is not
distributed yet. What is not handled when the process ends is gone."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Condition

from ..addresses import Address
from ..errors import RpcTimeout
from ..message import LOST, STREAM, Handler, Message
from ._cancellable import Cancellable
from ._loops import run_together

logger = logging.getLogger(__name__)


class Hub:
    """What a broker would hold: a list of waiting deliveries for each queue and inbox, and one for each
    subscriber, or group of subscribers, of a topic. All waiting is on one condition."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.waiting: defaultdict[Address, deque[MemoryDelivery]] = defaultdict(deque)
        self.subscribers: defaultdict[str, dict[object, Subscriber]] = defaultdict(dict)

    def put(self, to: Address, message: Message, replies: MemoryReplies | None) -> None:
        with self.changed:
            if to.kind == "topic":
                lists = [subscriber.waiting for subscriber in self.subscribers[to.name].values()]
            else:
                lists = [self.waiting[to]]
            for waiting in lists:
                delivery = MemoryDelivery(message, replies, waiting)
                waiting.append(delivery)
                if replies:
                    replies.deliveries.append(delivery)
            self.changed.notify_all()

    def subscribe(self, to: Address) -> tuple[deque[MemoryDelivery], Callable[[], None]]:
        """Where what is sent to a topic or an inbox will wait, and how to leave it."""
        if to.kind == "inbox":
            return self.waiting[to], lambda: None
        key = to.group or object()
        with self.changed:
            subscriber = self.subscribers[to.name].setdefault(key, Subscriber())
            subscriber.members += 1

        def leave() -> None:
            with self.changed:
                subscriber.members -= 1
                if not subscriber.members:
                    del self.subscribers[to.name][key]

        return subscriber.waiting, leave


class Subscriber:
    """One that hears a topic by itself, or the members of a group."""

    def __init__(self) -> None:
        self.waiting: deque[MemoryDelivery] = deque()
        self.members = 0


HUBS: defaultdict[str, Hub] = defaultdict(Hub)
"""A URL names the same hub everywhere in the process, as it names the same broker elsewhere."""


class MemoryReplies:
    """The way back of one request."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._arrived: deque[Message] = deque()
        self._closed = self._ended = False
        self.deliveries: list[MemoryDelivery] = []

    def put(self, message: Message) -> bool:
        with self._hub.changed:
            if not self._closed:
                self._arrived.append(message)
                self._hub.changed.notify_all()
            return not self._closed

    def receive(self, timeout: float | None) -> Message:
        with self._hub.changed:
            if not self._hub.changed.wait_for(lambda: self._arrived, timeout):
                raise RpcTimeout
            reply = self._arrived.popleft()
            self._ended = STREAM not in reply.headers
            return reply

    def close(self) -> None:
        with self._hub.changed:
            self._closed = True
            if self._ended:
                return
            for delivery in self.deliveries:
                if delivery in delivery.waiting:
                    delivery.waiting.remove(delivery)
        for delivery in self.deliveries:
            delivery.cancel()


class MemoryDelivery(Cancellable):
    """A message, waiting or in the hands of a handler."""

    def __init__(
        self, message: Message, replies: MemoryReplies | None, waiting: deque[MemoryDelivery]
    ) -> None:
        ttl = message.ttl
        self._expires = None if ttl is None else time.monotonic() + ttl
        self.message, self.replies, self.waiting = message, replies, waiting

    def start(self) -> None:
        """Tell the handler how much time is left."""
        if self._expires is not None:
            self.message = self.message.but(ttl=self._expires - time.monotonic())

    def reply(self, message: Message) -> bool:
        return self.replies is not None and self.replies.put(message)

    def forbid_redelivery(self) -> None:
        """Nothing to do: memory never delivers again."""


class MemoryBackend:
    """`memory://name`: every MemoryBackend of that name in this process is on the same hub."""

    features = frozenset({"topics", "groups", "priorities"})
    max_message = None

    def __init__(self, url: str = "memory://") -> None:
        self._hub = HUBS[url]
        self._stopped = False

    def send(self, to: Address, message: Message) -> None:
        self._hub.put(to, message, None)

    def request(self, to: Address, message: Message) -> MemoryReplies:
        replies = MemoryReplies(self._hub)
        self._hub.put(to, message, replies)
        return replies

    def serve(self, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        queues = [self._hub.waiting[address] for address in addresses if address.kind == "queue"]
        heard = [self._hub.subscribe(address) for address in addresses if address.kind != "queue"]
        loops = [partial(self._loop, queues, handler)] * (concurrency if queues else 0)
        if heard:
            loops.append(partial(self._loop, [waiting for waiting, _ in heard], handler))
        try:
            run_together(loops, self.stop)
        finally:
            self._stopped = False
            for _, leave in heard:
                leave()

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """Nothing to give back."""

    def _loop(self, lists: list[deque[MemoryDelivery]], handler: Handler) -> None:
        while (delivery := self._next(lists)) is not None:
            delivery.start()
            try:
                last = handler(delivery)
            except Exception:
                logger.exception("a handler raised: %r", delivery.message)
                last = Message(headers={"id": delivery.message.id, LOST: "its handler failed"})
            if last is not None:
                delivery.reply(last)

    def _next(self, lists: list[deque[MemoryDelivery]]) -> MemoryDelivery | None:
        """The oldest delivery of the first list that has one; None once stopped."""
        with self._hub.changed:
            while not self._stopped:
                for deliveries in lists:
                    if deliveries:
                        return deliveries.popleft()
                self._hub.changed.wait(0.2)  # stop() must not take the lock: it may run in a signal handler
            return None
