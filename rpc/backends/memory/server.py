"""Takes what a hub holds, and has it handled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from ...transport import Address, Handler
from .._retry import run_together
from .._serially import Serially
from .._serving import Connections, OnChange, Plan, Slots, guarded
from .hub import Hub, MemoryDelivery


class MemoryServer:
    """Takes from the queues, topics and inboxes of a hub, until stopped."""

    def __init__(
        self, hub: Hub, plan: Plan, handler: Handler, threads: int, coroutines: int, on_change: OnChange
    ) -> None:
        self._hub, self._plan, self._handler, self._threads = hub, plan, guarded(handler), threads
        self._slots, self._connections = Slots(coroutines), Connections(on_change)
        self._work_came: SimpleQueue[None] = SimpleQueue()
        self._news_came: SimpleQueue[None] = SimpleQueue()
        """What waits here looks again for each entry; a signal handler may put one, too."""
        self._kept = {each.subscription_queue for each in plan.durable}
        look_again = partial(self._news_came.put, None)
        self._serially = Serially(len(plan.channels) + len(plan.durable), look_again)
        self._stopped = False
        self._busy: set[MemoryDelivery] = set()
        """What handlers have not returned from."""
        self._unheard: set[MemoryDelivery] = set()
        """What was taken from a topic, and its handler has not been called."""

    def run(self) -> None:
        hub, names = self._hub, [each.name for each in (*self._plan.queues, *self._kept)]
        with hub.lock:  # it is served once it is subscribed to; and no queue is made by two at a time
            queues = [hub.waiting[address] for address in self._plan.queues]
            heard = {to: hub.subscribe(to) for to in self._plan.channels + self._plan.durable}
            hub.listening.append(self._wake)
            hub.served.update(names)
        loops = [partial(self._work, queues)] * (self._threads if queues else 0)
        loops += [partial(self._hear, {to: waiting for to, (waiting, _) in heard.items()})] * bool(heard)
        self._connections.notify(True)
        try:
            run_together(loops, self.stop)
            self._serially.end()
            self._put_back()
            self._slots.wait()
        finally:
            with hub.lock:
                hub.listening.remove(self._wake)
                hub.served.subtract(names)
            for _, leave in heard.values():
                leave()
            self._connections.notify(False)

    def _is_over(self) -> bool:
        """Whether nothing is in hand any more: until then, what comes to inboxes may be about that."""
        return self._stopped and not self._busy and not self._slots.in_hand()

    def stop(self) -> None:
        self._stopped = True
        for came in (self._news_came, *[self._work_came] * self._threads):
            came.put(None)

    def _wake(self, to: Address) -> None:
        """Something may have come to this address."""
        if to.kind == "queue" and to not in self._kept:
            self._work_came.put(None)
        else:
            self._news_came.put(None)

    def _finished(self, delivery: MemoryDelivery) -> None:
        if self._slots.done(delivery):
            self._wake(delivery.to)
        if self._stopped:
            self._news_came.put(None)

    def hand_back(self) -> None:
        """Nothing outlives this process."""

    def _work(self, queues: list[deque[MemoryDelivery]]) -> None:
        while (
            delivery := self._next(
                self._work_came, lambda: queues if self._slots.room > 0 else (), lambda: self._stopped
            )
        ) is not None:
            self._busy.add(delivery)
            delivery.start(self._finished)
            self._slots.call(self._handler, delivery)
            self._busy.discard(delivery)
            if self._stopped:
                self._news_came.put(None)

    def _hear(self, channels: dict[Address, deque[MemoryDelivery]]) -> None:
        def ready() -> list[deque[MemoryDelivery]]:
            return [
                waiting
                for to, waiting in channels.items()
                if not self._serially.waiting(to) and (to.kind == "inbox" or not self._stopped)
            ]

        at = {id(waiting): to for to, waiting in channels.items()}
        while (delivery := self._next(self._news_came, ready, self._is_over)) is not None:
            self._unheard.add(delivery)
            self._serially.run(
                at[id(delivery.waiting)], partial(self._heard, at[id(delivery.waiting)], delivery)
            )

    def _put_back(self) -> None:
        """What waited for its turn is for others."""
        with self._hub.lock:
            for delivery in self._unheard:
                delivery.waiting.appendleft(delivery)
                self._hub.wake(delivery.to)

    def _heard(self, to: Address, delivery: MemoryDelivery) -> None:
        self._unheard.discard(delivery)
        delivery.to = to
        delivery.start(self._finished)
        self._handler(delivery)

    def _next(
        self,
        came: SimpleQueue[None],
        lists: Callable[[], Sequence[deque[MemoryDelivery]]],
        is_over: Callable[[], bool],
    ) -> MemoryDelivery | None:
        """The oldest delivery of the first list that has one; None once it is over."""
        while not is_over():
            with self._hub.lock:
                due = self._hub.promote()
                for deliveries in lists():
                    if deliveries:
                        taken = deliveries.popleft()
                        if came.empty() and any(lists()):
                            came.put(None)  # what woke the others may have come while there was no room
                        return taken
            with suppress(Empty):
                came.get(timeout=due)
        return None
