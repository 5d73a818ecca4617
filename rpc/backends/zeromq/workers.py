"""The workers that a caller knows, and what it has asked of them.

Not for several threads at a time, and without a wait: a thread (`blocking`) or an event loop (`aio`) drives
it. A message goes to the worker with the least to do. It is kept until it is done: if its worker dies,
another one gets it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import msgspec

from ...errors import QueueFull, SerializationError, shown
from ...transport import DELAY, HANDED_BACK, IDEMPOTENCY_KEY, Address, Message, unpacked
from .._serving import DIED, STOPPED, lost
from ..features import unsupported
from .peers import TICK, Peers
from .session import BACK, CANCEL, END, LAST, MESSAGE, ONCE, RECALL, REPLY, STOPPING, Session
from .sockets import Sockets
from .wire import (
    NUMBER,
    About,
    address_of,
    decode_about,
    encode_about,
    last_in,
    message_data,
    number_in,
)

logger = logging.getLogger(__name__)

GREETING = 1.0
"""Seconds that endpoints have to answer at first, before it is said that nobody serves something."""
HANDED, FULL = b"h", b"f"
"""Why a worker gives something back: it had begun, and was stopped; it has no room. Else it had not begun."""
RECALL_EVERY = 0.05
"""Seconds."""


class Pending:
    """A message until it is done."""

    __slots__ = (
        *("to", "message", "put", "number", "accepted", "worker", "since", "until"),
        *("deliveries", "handed_back", "is_once", "is_over"),
    )

    def __init__(self, to: Address, message: Message, put: Callable[[Message | Exception], object]) -> None:
        headers = message.headers
        if DELAY in headers or IDEMPOTENCY_KEY in headers:
            raise unsupported("delay" if DELAY in headers else "idempotency")
        self.to, self.message, self.put = to, message, put
        """`put` is told each reply, or why there will be none. Raises Unsupported."""
        self.number = 0
        self.accepted: Callable[[], object] | None = None
        """Called once a worker has it."""
        self.deliveries, self.handed_back, self.is_once, self.is_over = 1, False, False, False
        self.worker: Worker | None = None
        self.since, ttl = time.monotonic(), message.ttl
        self.until = None if ttl is None else self.since + ttl

    def as_sent(self, now: float) -> Message:
        """The message with what is to be known of it by now."""
        if self.deliveries == 1 and not self.handed_back and (self.until is None or now - self.since < 0.001):
            return self.message
        headers: dict[str, str | float | None] = {}
        if self.until is not None:
            headers["ttl"] = f"{self.until - now:.3f}"
        if self.deliveries > 1:
            headers["deliveries"] = self.deliveries
        return self.message.replace(**headers, **({HANDED_BACK: "1"} if self.handed_back else {}))


class Worker:
    """What is known of one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.addresses: frozenset[Address] = frozenset()
        self.threads, self.others = 1, 0
        """How much others have asked of it."""
        self.latency = 0.0
        """Seconds in which it answers, on the average; what was long ago counts less."""
        self.outstanding: dict[int, Pending] = {}
        self.is_stopping = False
        self.full_until = self.recalled = 0.0

    def cost(self) -> tuple[float, float]:
        """Of giving it something to do."""
        return (len(self.outstanding) + self.others) / self.threads, self.latency


class Workers:
    """Those at the endpoints of a backend."""

    def __init__(self, sockets: Sockets, lease: float, max_deliveries: int, high_water: int) -> None:
        self._max_deliveries, self._high_water = max_deliveries, high_water
        self.peers = Peers(sockets, self, lease)
        self.began = time.monotonic()
        self._numbers = count(1)
        self._workers: list[Worker] = []
        self._waiting: dict[int, Pending] = {}
        """What no worker can be given yet, by number."""
        self._at: dict[Address, list[Worker]] = {}
        """Who serves what; for topics, too, by name alone."""
        self._ticked = 0.0
        self._is_enough: Callable[[], object] = bool

    # What callers want.

    def submit(self, pending: Pending) -> None:
        """Give it to a worker, now or as soon as there is one. Raises SerializationError."""
        pending.number = next(self._numbers)
        if not self._assign(pending):
            self._waiting[pending.number] = pending

    def publish(self, to: Address, make: Callable[[Address], Pending]) -> list[Pending]:
        """Give one to each worker that serves the topic, and one to each group."""
        sent = []
        for at, workers in self._at.items():
            if at.kind == "topic" and at.name == to.name:
                able = [worker for worker in workers if self._has_room(worker, at)]
                for worker in able if at.group is None else sorted(able, key=Worker.cost)[:1]:
                    pending = make(at)
                    pending.number = next(self._numbers)
                    self._give(worker, pending)
                    sent.append(pending)
        return sent

    def withdraw(self, pendings: Sequence[Pending]) -> None:
        """Nobody waits for them any more."""
        for pending in pendings:
            pending.is_over = True
            self._waiting.pop(pending.number, None)
            if (worker := pending.worker) and worker.outstanding.pop(pending.number, None):
                worker.session.send(CANCEL, NUMBER.pack(pending.number))

    def is_served(self, to: Address) -> bool:
        return any(not worker.is_stopping for worker in self._at.get(to, ()))

    def is_greeted(self) -> bool:
        """Whether all endpoints have answered, or had the time to."""
        if time.monotonic() - self.began > GREETING:
            return True
        return bool(self.peers.links) and len(self._workers) >= len(self.peers.links)

    # What workers say.

    def work(self, is_enough: Callable[[], object] = lambda: False) -> None:
        """Take what has come, until it is enough, and do what is due. Does not block."""
        self._is_enough = is_enough
        self.peers.receive(self._take_safely)
        now = time.monotonic()
        if now - self._ticked > TICK:
            self._tick(now)

    def _tick(self, now: float) -> None:
        self._ticked = now
        for worker in self._workers:
            worker.latency *= 0.9
        for pending in [each for each in self._waiting.values() if each.until and each.until < now]:
            del self._waiting[pending.number]
        self._assign_waiting()
        for worker in self._workers:
            self._help(worker)

    def _take_safely(self, session: Session, kind: bytes, data: bytes) -> bool:
        try:
            self._take(session.owner, kind, data)
        except SerializationError as error:
            logger.warning("a worker said what makes no sense: %s", shown(error))
        return bool(self._is_enough())

    def _take(self, worker: Worker | None, kind: bytes, data: bytes) -> None:
        if worker is None:
            return
        if kind == LAST:
            number, load, last = last_in(data)
            if pending := worker.outstanding.pop(number, None):
                pending.is_over = True
                worker.latency += (time.monotonic() - pending.since - worker.latency) / 8
                if last is not None:
                    pending.put(last)
            others = load - len(worker.outstanding)
            worker.others = others if others > 0 else 0
            if self._waiting:
                self._assign_waiting()
            elif not worker.outstanding and len(self._workers) > 1:
                self._help(worker)
        elif kind == REPLY:
            if pending := worker.outstanding.get(number_in(data)):
                pending.put(unpacked(data[NUMBER.size :]))
        elif kind == BACK:
            if pending := worker.outstanding.pop(number_in(data), None):
                self._back(worker, pending, data[NUMBER.size :])
        elif kind == ONCE:
            if pending := worker.outstanding.get(number_in(data)):
                pending.is_once = True
            worker.session.confirm()
        elif kind == STOPPING:
            worker.is_stopping = True
            worker.session.confirm()
        elif kind == END:
            worker.session.confirm()
            self.peers.drop(worker.session)
            self._gone(worker, died=False)

    def _back(self, worker: Worker, pending: Pending, why: bytes) -> None:
        if why == HANDED and pending.is_once:
            pending.is_over = True
            pending.put(lost(pending.message, STOPPED))
            return
        pending.worker, pending.handed_back = None, pending.handed_back or why == HANDED
        if why == FULL:
            worker.full_until = time.monotonic() + TICK
            if pending.accepted:
                pending.put(QueueFull(f"the worker of {pending.to} has no room: start more"))
                return
        if pending.to.kind != "topic" and not self._assign(pending):
            self._waiting[pending.number] = pending

    # Sessions, for Peers.

    def info(self) -> bytes:
        return encode_about(About())

    def met(self, session: Session) -> None:
        try:
            about = decode_about(session.info)
            addresses = frozenset(map(address_of, about.addresses))
        except (msgspec.MsgspecError, ValueError, UnicodeDecodeError) as error:
            logger.warning("what a worker says of itself makes no sense: %s", shown(error))
            return
        if not addresses:
            return  # a caller: no worker
        if session.owner is None:
            session.owner = Worker(session)
            self._workers.append(session.owner)
        worker: Worker = session.owner
        worker.threads = max(1, about.threads)
        worker.others = max(0, about.load - len(worker.outstanding))
        if worker.addresses != addresses:
            worker.addresses = addresses
            self._index()
            self._help(worker)
        self._assign_waiting()

    def lost(self, session: Session) -> None:
        if session.owner is not None:
            self._gone(session.owner, died=True)

    def _gone(self, worker: Worker, died: bool) -> None:
        self._workers = [each for each in self._workers if each is not worker]
        self._index()
        outstanding, worker.outstanding = worker.outstanding, {}
        for pending in outstanding.values():
            pending.worker = None
            if died and not self._may_try_again(pending):
                pending.is_over = True
                pending.put(lost(pending.message, DIED))
            elif pending.to.kind == "topic":
                pending.put(lost(pending.message, DIED))
            else:
                self._waiting[pending.number] = pending
        self._assign_waiting()

    def _may_try_again(self, pending: Pending) -> bool:
        if pending.is_once or pending.deliveries >= self._max_deliveries:
            return False
        pending.deliveries += 1
        return True

    def _index(self) -> None:
        self._at = {}
        for worker in self._workers:
            for to in worker.addresses:
                self._at.setdefault(to, []).append(worker)

    # Who gets what.

    def _assign_waiting(self) -> None:
        if self._waiting:
            for number in sorted(self._waiting):
                pending = self._waiting[number]
                try:
                    is_given = self._assign(pending)
                except SerializationError as error:
                    pending.put(error)
                    is_given = True
                if is_given:
                    del self._waiting[number]

    def _assign(self, pending: Pending) -> bool:
        able = [each for each in self._at.get(pending.to, ()) if self._has_room(each, pending.to)]
        if not able:
            return False
        self._give(able[0] if len(able) == 1 else min(able, key=Worker.cost), pending)
        return True

    def _has_room(self, worker: Worker, to: Address) -> bool:
        if worker.is_stopping and to.kind != "inbox":  # until its end it hears what is said to what runs
            return False
        if len(worker.session.unconfirmed) >= self._high_water:
            return False
        return not worker.full_until or worker.full_until < time.monotonic()

    def _give(self, worker: Worker, pending: Pending) -> None:
        now = time.monotonic()
        data = message_data(pending.number, pending.to, pending.as_sent(now))
        pending.worker, worker.outstanding[pending.number] = worker, pending
        accepted = partial(_accepted, worker, pending) if pending.accepted else None
        worker.session.send(MESSAGE, data, accepted)

    def _help(self, idle: Worker) -> None:
        """Have the busiest give back some of what it has not begun, for one that has nothing to do."""
        if len(self._workers) < 2 or idle.outstanding or idle.others or idle.is_stopping:
            return
        busiest = max(self._workers, key=lambda worker: len(worker.outstanding))
        now, most = time.monotonic(), len(busiest.outstanding)
        share = min(most, (most + busiest.others) // 2)
        if share and now - busiest.recalled > RECALL_EVERY and _common(busiest, idle):
            busiest.recalled = now
            busiest.session.send(RECALL, NUMBER.pack(share))


def _accepted(worker: Worker, pending: Pending) -> None:
    if pending.accepted and pending.worker is worker:  # it was not given back
        pending.accepted()


def _common(one: Worker, other: Worker) -> bool:
    return any(to.kind == "queue" for to in one.addresses & other.addresses)
