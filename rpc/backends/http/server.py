"""Hands what is posted to handlers, until stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from ...transport import Address, Handler, Message
from .._retry import run_together
from .._serially import Serially
from .._serving import STOPPED, Connections, OnChange, Plan, Slots, guarded
from .deliveries import HttpDelivery, Way
from .listener import Listener
from .wire import BUSY, FULL, HANDED, STOPPING

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Messages that wait for a listener who is too slow; more are refused."""
MOST_ENDED = 1024
"""Deliveries that are kept for a while after their end."""
LOOK_EVERY = 0.25
FAREWELL = 1.0
"""Seconds in which what was said last may still leave."""


class Refused(Exception):
    """What was posted is not taken: `why` is one of the reasons in `wire`, or None if nobody serves it."""

    def __init__(self, why: str | None) -> None:
        super().__init__(why)
        self.why = why


class HttpServer:
    """One event loop, which is a thread of its own or an application's, takes what is posted; as many threads
    as handlers may have take turns at calling them."""

    def __init__(
        self,
        listener: Callable[[HttpServer], Listener | None],
        plan: Plan,
        handler: Handler,
        *,
        threads: int,
        coroutines: int,
        on_change: OnChange,
        lease: float,
        high_water: int,
    ) -> None:
        """`listener` is what listens; None: this is mounted in an application."""
        self._listener, self._plan, self._handler = listener, plan, guarded(handler)
        self._threads, self._high_water, self.lease = threads, high_water, lease
        self._slots, self._connections = Slots(coroutines), Connections(on_change)
        self._serially = Serially(len(plan.channels))
        self._waiting: dict[Address, deque[HttpDelivery]] = {to: deque() for to in plan.queues}
        """What is not begun, in order of priority."""
        self._in_hand: dict[str, HttpDelivery] = {}
        """Of queues, by the ids of the messages."""
        self._ended: deque[tuple[float, HttpDelivery]] = deque()
        """Those that are finished, and when."""
        self._count = self._running = 0
        """Of those that wait; of handlers that have not returned."""
        self._lock = threading.Lock()
        self._came: SimpleQueue[None] = SimpleQueue()
        self._stop_came: SimpleQueue[None] = SimpleQueue()
        self._stopped = self._is_over = False
        self.loop: asyncio.AbstractEventLoop | None = None
        """In which something was posted last."""
        self._came_round = time.monotonic()

    def run(self) -> None:
        listening = self._listener(self) if not self._stopped else None
        try:
            if self._stopped:
                return
            if listening:
                listening.start()
            self._connections.notify(True)
            loops = [self._look_after] + [self._work] * (self._threads if self._waiting else 0)
            run_together(loops, self.stop)
            self._slots.wait()
            self._serially.end()
        finally:
            self._is_over = True
            if listening:
                listening.end(FAREWELL)
            self._connections.notify(False)

    def stop(self) -> None:
        self._stopped = True
        self._stop_came.put(None)

    def stalled(self) -> float:
        """As `transport.Liveness` has it."""
        if self.loop is None or self._running >= self._threads:
            return 0.0
        return time.monotonic() - self._came_round

    def hand_back(self) -> None:
        """Returns once callers have it, or soon."""
        with self._lock:
            left = [*self._in_hand.values()]
        for delivery in left:
            delivery.give_back(HANDED if delivery.is_begun else STOPPING, STOPPED)
        end = time.monotonic() + FAREWELL
        while any(each.way and each.way.is_open for each in left) and time.monotonic() < end:
            time.sleep(0.01)

    # The event loop: nothing here waits.

    @property
    def is_stopping(self) -> bool:
        return self._stopped

    def serves(self, to: Address) -> bool:
        return not self._stopped and (to in self._waiting or to in self._plan.channels)

    def take(self, to: Address, message: Message, way: Way | None, caller: str | None = "") -> HttpDelivery:
        """What was posted, to be finished, from the address of a `caller`. Raises Refused."""
        if to in self._waiting:
            return self._queued(to, message, way, caller)
        if to not in self._plan.channels:
            raise Refused(None)
        if self._is_over or (self._stopped and to.kind != "inbox"):
            raise Refused(STOPPING)
        if self._serially.waiting(to) >= MOST_WAITING:
            raise Refused(FULL)
        delivery = HttpDelivery(self, to, message, way)
        self._serially.run(to, partial(self._heard, delivery))
        return delivery

    def _queued(self, to: Address, message: Message, way: Way | None, caller: str | None) -> HttpDelivery:
        id = message.id
        if message.deliveries > 1 and (found := self._in_hand.get(id)) and way and found.may_resume:
            found.go_on(way)
            return found
        delivery = HttpDelivery(self, to, message, way, caller)
        with self._lock:
            if self._stopped:  # with the lock: what waits is given back once
                raise Refused(STOPPING)
            if self._count >= self._high_water:
                raise Refused(FULL)
            if way and ((found := self._in_hand.get(id)) is None or found.finished):
                self._in_hand[id] = delivery
            self._waiting[to].append(delivery)
            self._count += 1
        self._came.put(None)
        return delivery

    def left(self, delivery: HttpDelivery, way: Way, *, for_good: bool) -> None:
        """The connection on which somebody waits is lost, `for_good` if he does not come again."""
        if delivery.way is not way:
            return
        way.leave()
        has_part = way.is_used and not delivery.is_answered  # of a stream
        if for_good or delivery.is_once or has_part:
            self.withdraw(delivery)
        elif not delivery.finished:  # what has ended is forgotten in its time
            asyncio.get_running_loop().call_later(self.lease, self._not_come_again, delivery, way)

    def _not_come_again(self, delivery: HttpDelivery, way: Way) -> None:
        if delivery.way is way:
            self.withdraw(delivery)

    def cancel(self, id: str) -> bool:
        """Its caller says that he does not wait any more."""
        delivery = self._in_hand.get(id)
        if delivery:
            self.withdraw(delivery)
        return delivery is not None

    def withdraw(self, delivery: HttpDelivery) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._in_hand.pop(delivery.message.id, None)
            if delivery.finished:
                return
            waits = self._remove(delivery)
        if waits:
            delivery.finished = True
        else:
            delivery.cancel()

    def bounce(self, delivery: HttpDelivery) -> None:
        """Others may have room for it."""
        with self._lock:
            waits = self._remove(delivery)
        if waits:
            delivery.give_back(BUSY, STOPPED)

    def _remove(self, delivery: HttpDelivery) -> bool:
        """Whether it was not begun, and will not be. With the lock."""
        if not delivery.is_begun and delivery.to in self._waiting:
            with suppress(ValueError):
                self._waiting[delivery.to].remove(delivery)
                self._count -= 1
                return True
        return False

    # Threads.

    def finished(self, delivery: HttpDelivery) -> None:
        """Any thread. It is kept for a while: its caller comes again if the connection broke just now."""
        now = time.monotonic()
        with self._lock:
            if delivery.is_given_back:
                self._drop(delivery)
            elif self._in_hand.get(delivery.message.id) is delivery:
                self._ended.append((now, delivery))
                self._forget(now - self.lease)
        if self._slots.done(delivery):
            self._came.put(None)

    def _forget(self, before: float) -> None:
        """What ended before then, and what is too much. With the lock."""
        ended = self._ended
        while ended and (ended[0][0] < before or len(ended) > MOST_ENDED):
            self._drop(ended.popleft()[1])

    def _drop(self, delivery: HttpDelivery) -> None:
        if self._in_hand.get(delivery.message.id) is delivery:
            del self._in_hand[delivery.message.id]

    def _look_after(self) -> None:
        """Until stopped; then what is not begun goes back, but for what nobody would post again."""
        while not self._stopped:
            with suppress(Empty):
                self._stop_came.get(timeout=LOOK_EVERY)
            with self._lock:
                self._forget(time.monotonic() - self.lease)
            if self.loop and not self.loop.is_closed():
                with suppress(RuntimeError):  # it was closed just now
                    self.loop.call_soon_threadsafe(self._come_round)
        with self._lock:
            left = [each for waiting in self._waiting.values() for each in waiting if each.way]
            left = [each for each in left if self._remove(each)]
        for delivery in left:
            delivery.give_back(STOPPING, STOPPED)
        for _ in range(self._threads):
            self._came.put(None)

    def _come_round(self) -> None:
        self._came_round = time.monotonic()

    def _work(self) -> None:
        while True:
            delivery = self._next()
            if delivery is None:
                if self._stopped and not self._count:
                    return
                self._came.get()
                continue
            try:
                self._slots.call(self._handler, delivery)
            finally:
                with self._lock:
                    self._running -= 1

    def _next(self) -> HttpDelivery | None:
        """What is begun now."""
        with self._lock:
            if self._count and self._slots.room > 0:
                for waiting in self._waiting.values():
                    # What somebody would post again is given back by a worker that is being stopped.
                    left = (each for each in waiting if not (self._stopped and each.way))
                    if delivery := next(left, None):
                        waiting.remove(delivery)
                        self._count -= 1
                        self._running += 1
                        delivery.begin()
                        return delivery
        return None

    def _heard(self, delivery: HttpDelivery) -> None:
        delivery.begin()
        if not delivery.finished:
            self._handler(delivery)
