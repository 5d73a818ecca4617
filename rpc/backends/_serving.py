"""What all backends do alike when they serve: the plan of addresses, the guard around handlers, what is in
hand, and who is told of the connection."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ..errors import BackendRefused, BackendUnavailable
from ..transport import FAILED, LOST, Address, Delivery, Handler, Message
from .features import unsupported

logger = logging.getLogger(__name__)

T = TypeVar("T")
FAST = 150e-6
"""Seconds: while handlers take less, on the average, the thread that fetches calls them itself, and fetches
again: to wake another one up would take as long."""
STUCK = 0.005
"""Seconds after which a handler that was taken to be fast is not: another thread fetches."""

DIED = "its worker died; it is not delivered again"
BEGUN = "it was begun, and may not be done twice"
STOPPED = "its worker was stopped"
UNREADABLE = "it could not be read"
WITHDRAWN = "it was withdrawn as it was to be postponed"
"""Why a message is given up, in the words that callers and dead letters have on every backend."""

OnChange = Callable[[bool], object]
"""Hears True when there is a connection to serve on, and False when it is lost."""


class Plan:
    """The addresses of a server, by how they are served."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.queues = [each for each in addresses if each.kind == "queue"]
        """In order of priority."""
        self.durable = [each for each in addresses if each.durable]
        """Topics whose subscriptions have a queue each."""
        self.channels = [each for each in addresses if each.kind != "queue" and not each.durable]
        """Topics and inboxes."""


def guarded(handler: Handler) -> Handler:
    """The handler; what it raises ends the delivery, not the loop that it was called from."""

    def handle(delivery: Delivery) -> None:
        try:
            handler(delivery)
        except Exception:
            logger.exception("a handler raised: %r", delivery.message)
            delivery.finish(lost(delivery.message, "its handler failed"))

    return handle


def arriving(to: Address, handler: Handler) -> Handler:
    """The handler of what arrives at this address, whichever way it took."""

    def handle(delivery: Delivery) -> None:
        delivery.to = to
        handler(delivery)

    return handle


def lost(message: Message, why: str) -> Message:
    """The last reply in place of a handler that will not give one."""
    return Message(headers={"id": message.id[:128], LOST: why, FAILED: "WorkerLost"})


class BaseDelivery:
    """The part of a delivery that is the same everywhere: where it came to, how its handler learns that
    nobody listens any more, that it ends once, and the answer of backends that cannot do everything."""

    message: Message
    to: Address
    caller: str | None = ""
    cancelled = False
    on_cancel: Callable[[], object] | None = None
    error: BaseException | None = None
    finished = False
    """Whether it was finished, postponed or buried."""

    def has_waited(self, seconds: float) -> None:
        """Tell the handler that so much less time is left; a thousandth of it does not count."""
        ttl = self.message.ttl
        if ttl is not None and seconds * 1000 > ttl:
            self.message = self.message.replace(ttl=f"{ttl - seconds:.3f}")

    def cancel(self) -> None:
        """Tell the handler that nobody listens any more. Any thread."""
        self.cancelled = True
        if self.on_cancel and not self.finished:
            self.on_cancel()

    def finish(self, last: Message | None) -> None:
        if not self.finished:
            self.finished = True
            self._finish(last)

    def _finish(self, last: Message | None) -> None:
        raise NotImplementedError

    def reply(self, message: Message) -> bool:
        raise NotImplementedError

    def forbid_redelivery(self) -> None:
        """Nothing to do where nothing is delivered again."""

    def postpone(self, seconds: float, message: Message) -> None:
        raise unsupported("delay")

    def bury(self, why: str, last: Message | None) -> None:
        raise unsupported("dead-letters")


class Slots:
    """What a server may have in hand: `threads` messages that a handler has not returned from, and
    `coroutines` that it has returned from and not finished."""

    def __init__(self, coroutines: int) -> None:
        self._most = coroutines
        self._detached: set[BaseDelivery] = set()
        self._lock = threading.RLock()  # entered by itself: Condition.__enter__ may be interrupted in it
        self._changed = threading.Condition(self._lock)

    def call(self, handler: Handler, delivery: BaseDelivery) -> None:
        """Call the handler, and keep account of a delivery that it does not finish."""
        handler(delivery)
        if not delivery.finished:
            with self._lock:
                if not delivery.finished:
                    self._detached.add(delivery)

    def done(self, delivery: BaseDelivery) -> bool:
        """It was finished. Whether there was no room before that."""
        with self._lock:
            if delivery not in self._detached:  # nor will it be: `call` looks once more
                return False
            was_full = len(self._detached) >= self._most
            self._detached.discard(delivery)
            if not self._detached:
                self._changed.notify_all()
            return was_full

    @property
    def room(self) -> int:
        """How many coroutines more there may be."""
        return self._most - len(self._detached)

    def in_hand(self) -> list[BaseDelivery]:
        """What the handler has returned from and not finished."""
        with self._lock:
            return list(self._detached)

    def wait(self) -> None:
        """Until nothing is left."""
        with self._lock:
            self._changed.wait_for(lambda: not self._detached)


class Connections:
    """Tells of the connection, once for each change. Any thread."""

    def __init__(self, on_change: OnChange) -> None:
        self._on_change, self._lock, self._connected = on_change, threading.Lock(), False
        self.count = 0
        """How often there was one."""
        self._tried = -math.inf

    def notify(self, connected: bool) -> None:
        if connected == self._connected:
            return
        with self._lock:
            changed, self._connected = connected != self._connected, connected
            if changed:
                self.count += connected
                self._on_change(connected)

    def lost(self, error: BackendUnavailable) -> None:
        """There is none, for this reason. It is raised if it is a refusal, and there never was one."""
        self.check(error)
        self.notify(False)

    def check(self, error: BackendUnavailable) -> None:
        """Raise a refusal, if there never was a connection: to try again would mend nothing."""
        self._tried = time.perf_counter()
        if not self.count and isinstance(error, BackendRefused):
            raise error

    def untried(self) -> float:
        """Seconds since one could not be had; inf if that was never so."""
        return time.perf_counter() - self._tried


class Turns(Generic[T]):
    """Threads that take turns at fetching: leader and followers (D. Schmidt et al., Pattern-Oriented Software
    Architecture 2). Whoever fetched something handles it. While handlers are fast, the leader stays the
    leader; else, or if one takes long all the same, a follower becomes it."""

    def __init__(
        self, fetch: Callable[[], T | None], handle: Callable[[T], object], stopped: Callable[[], bool]
    ) -> None:
        """`fetch` returns None when nothing came for a while, or it was woken up. What it raises ends the
        thread that called it; `handle` does not raise."""
        self._fetch, self._handle, self._stopped = fetch, handle, stopped
        self._lock = threading.RLock()
        self._turn = threading.Condition(self._lock)
        self._fetching = threading.Lock()
        """Held to fetch: whoever lost the turn just then may be at it."""
        self._leader: int | None = None
        """A thread."""
        self._followers = 0
        self._average = 2 * FAST
        """Seconds that handlers take."""
        self._since: float | None = None
        """When the leader called its handler; None: it fetches."""
        self._watched = False
        """Whether a follower looks after the leader now and then."""
        self._in_handlers: set[int] = set()
        """Threads."""
        self._came_round = time.perf_counter()
        """When one of them had found nothing, or had handled something."""

    def leads_here(self) -> bool:
        """Whether this thread is the leader, which fetches next."""
        return self._leader == threading.get_ident()

    def in_turn(self, action: Callable[[], object]) -> bool:
        """Do this here and now, if this thread is the leader and handles something: nobody fetches meanwhile.
        Whether it was done."""
        if self._leader != threading.get_ident() or not self._fetching.acquire(blocking=False):
            return False
        try:
            action()
        finally:
            self._fetching.release()
        return True

    def are_fast(self) -> bool:
        """Whether handlers are, on the average."""
        return self._average <= FAST

    def is_fetching(self) -> bool:
        """Whether a thread waits for something, or is about to."""
        return self._fetching.locked()

    def stalled(self, threads: int, connections: Connections) -> float:
        """Seconds since one of so many threads came round last, or none of these connections could be had. 0
        while no thread can come round, as all of them handle something."""
        if len(self._in_handlers) >= threads:
            return 0.0
        return min(time.perf_counter() - self._came_round, connections.untried())

    def work(self) -> None:
        """Fetch and handle until stopped. Each thread runs this."""
        me = threading.get_ident()
        while self._wait_for_turn(me):
            try:
                while self._leader == me and not self._stopped():
                    with self._fetching:
                        fetched = self._fetch()
                    if fetched is None:
                        self._came_round = time.perf_counter()
                        continue
                    if self._followers and self._average > FAST:
                        self._hand_over(me)
                    self._call(me, fetched)
            finally:
                self._in_handlers.discard(me)
                self._hand_over(me)

    def _call(self, me: int, fetched: T) -> None:
        began = time.perf_counter()
        self._in_handlers.add(me)
        if self._leader == me:
            self._since = began
            # Only then: whoever comes to wait meanwhile sees that the handler runs, or is seen here.
            if self._followers and not self._watched:
                self._have_watched()
        self._handle(fetched)
        if self._leader == me:
            self._since = None
        self._came_round = now = time.perf_counter()
        self._in_handlers.discard(me)
        took = min(now - began, 4 * FAST)  # or one that was kept from its processor would count for many
        self._average += (took - self._average) / 8

    def _hand_over(self, me: int) -> None:
        with self._lock:
            if self._leader == me:
                self._leader = self._since = None
                self._turn.notify()

    def _have_watched(self) -> None:
        with self._lock:
            self._watched = True
            self._turn.notify()

    def _wait_for_turn(self, me: int) -> bool:
        """True with the turn, False once stopped."""
        with self._lock:
            idle, self._followers = 0, self._followers + 1
            try:
                while not self._stopped():
                    since = self._since
                    if self._leader is None or (since and time.perf_counter() - since > STUCK):
                        self._leader, self._since = me, None
                        return True
                    idle = idle + 1 if since is None else 0
                    if idle > 4:
                        self._watched, idle = False, 0
                    self._turn.wait(STUCK if self._watched or self._since is not None else None)
                self._turn.notify_all()
                return False
            finally:
                self._followers -= 1
