"""Takes what callers send, until stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from ...errors import SerializationError, shown
from ...loops import Alarm
from ...transport import Address, Handler
from .._retry import run_together
from .._serially import Serially
from .._serving import Connections, OnChange, Plan, Slots, Turns, guarded
from .deliveries import ZeromqDelivery
from .peers import TICK, Peers
from .session import BACK, CANCEL, END, LAST, MESSAGE, RECALL, STOPPING, Session
from .sockets import Sockets
from .wire import NUMBER, About, encode_about, message_in, number_in, text_of
from .workers import FULL, HANDED

logger = logging.getLogger(__name__)

Do = Callable[[Callable[[], object]], None]
"""Has something done by whoever has the turn. Any thread."""
LOOK_FOR_MORE = 8
"""Fetches after which it is looked whether more than one message has come."""
TOGETHER = 16
"""What is said, in this many messages at most, is sent at once if handlers are fast and more is waiting."""
MOST_WAITING = 10_000
"""Messages that wait for a listener who is too slow; more are dropped."""
FAREWELL = 1.0
"""Seconds in which what was said last may still arrive."""


class ZeromqServer:
    """Whoever has the turn owns the sockets, and handles what it has fetched; one thread more than handlers
    need looks after them meanwhile."""

    def __init__(
        self,
        sockets: Callable[[], Sockets],
        listen: Callable[[Peers, Do], threading.Event],
        plan: Plan,
        handler: Handler,
        *,
        threads: int,
        coroutines: int,
        on_change: OnChange,
        lease: float,
        high_water: int,
        is_bound: bool,
    ) -> None:
        """`listen` binds, or connects until the event is set that it returns."""
        self._make_sockets, self._listen, self._plan, self._handler = sockets, listen, plan, guarded(handler)
        self._threads, self._high_water, self.lease = threads, high_water, lease
        self._is_bound = is_bound
        self._slots, self._connections = Slots(coroutines), Connections(on_change)
        self._serially = Serially(len(plan.channels))
        self._waiting: dict[Address, deque[ZeromqDelivery]] = {to: deque() for to in plan.queues}
        """What is not begun, in order of priority."""
        self._deliveries: set[ZeromqDelivery] = set()
        """Those of queues that are not finished."""
        self._said: deque[Callable[[], object]] = deque()
        """What is to be done by whoever has the turn."""
        self._running, self._counting = 0, threading.Lock()
        self._stopped = self._has_said_so = False
        self._turns = Turns(self._fetch, self._handle, self._is_over)
        self._alarm: Alarm | None = None
        self._came_round = time.monotonic()
        self._reads = self._taken = 0
        self._is_busy = self._drains = False
        """Whether there was more than one message at a time; whether all there are are taken now."""
        self._fetched: ZeromqDelivery | None = None
        self._riding: ZeromqDelivery | None = None
        """What is being handled by the leader, and has given its last reply."""

    def run(self) -> None:
        self._alarm = Alarm()
        self._peers = Peers(self._make_sockets(), self, self.lease)
        listening = threading.Event()
        try:
            if self._stopped:
                return
            listening = self._listen(self._peers, self._do)
            if self._is_bound:
                self._connections.notify(True)
            run_together([self._turns.work] * (self._threads + 1), self.stop)
            self._serially.end()
            self._take_leave()
        finally:
            listening.set()
            self._peers.close()
            self._alarm.close()
            self._connections.notify(False)

    def stop(self) -> None:
        self._stopped = True
        if self._alarm:
            self._alarm.ring()

    def stalled(self) -> float:
        """As `transport.Liveness` has it."""
        if not self._plan.queues or self._running >= self._threads:
            return 0.0
        return time.monotonic() - self._came_round

    def hand_back(self) -> None:
        """Returns once callers have it."""
        known = threading.Event()

        def give_back() -> None:
            sessions = self._sessions()
            missing = [*sessions]
            for session in sessions:
                for delivery in [*session.owner.values()]:
                    self._back(session, delivery, HANDED if delivery.is_begun else b"")
                session.send(STOPPING, b"", partial(gone, missing, session))
            if not sessions:
                known.set()

        def gone(missing: list[Session], session: Session) -> None:
            missing.remove(session)
            if not missing:
                known.set()

        self._do(give_back)
        known.wait(FAREWELL)

    def _take_leave(self) -> None:
        for session in self._sessions():
            session.send(END)
        assert self._alarm  # noqa: S101
        self._peers.flush(FAREWELL, self._alarm)

    # What deliveries need.

    @property
    def load(self) -> int:
        """How many messages are here."""
        return len(self._deliveries)

    def say(
        self, session: Session, kind: bytes, data: bytes, confirmed: Callable[[], object] | None = None
    ) -> None:
        """Any thread."""
        self._do(lambda: session.send(kind, data, confirmed))

    def finished(self, delivery: ZeromqDelivery, last: bytes) -> None:
        """Say so, with the last reply. Any thread. The leader does it when its handler has returned, which is
        soon: a handler that sends seems to be slow, and another thread would become the leader."""
        self._said.append(partial(delivery.session.send, LAST, last))
        if not self._turns.leads_here():
            self._ring()
        self._deliveries.discard(delivery)
        if owner := delivery.session.owner:
            owner.pop(delivery.number, None)
        if self._slots.done(delivery):
            self._ring()

    def is_riding(self, delivery: ZeromqDelivery) -> bool:
        """Whether its end will be said soon, by this thread. If another one gets the turn first, it says what
        waits."""
        if self._turns.leads_here():
            self._riding = delivery
            return True
        return False

    def _do(self, action: Callable[[], object]) -> None:
        self._said.append(action)
        if self._gathers() and self._turns.leads_here():
            return
        if not (self._turns.in_turn(self._work_off) or self._turns.leads_here()):
            self._ring()

    def _gathers(self) -> bool:
        """Whether there is more to handle, each in no time: what is said of these is sent together."""
        return self._turns.are_fast() and any(self._waiting.values())

    def _ring(self) -> None:
        if self._alarm:
            self._alarm.ring()

    # Whoever has the turn.

    def _fetch(self) -> ZeromqDelivery | None:
        self._came_round = time.monotonic()
        if len(self._said) >= TOGETHER or not self._gathers():
            self._work_off()
        if (delivery := self._next()) is not None:
            return delivery
        self._work_off()
        assert self._alarm  # noqa: S101
        self._peers.wait(TICK, self._alarm, look=self._taken == 1)
        self._fetched, self._reads, self._taken = None, self._reads + 1, 0
        self._drains = self._is_busy or self._reads % LOOK_FOR_MORE == 0
        self._peers.receive(self._take_safely)
        if self._drains:
            self._is_busy = self._taken > 1
        if self._fetched is not None:
            return self._fetched
        self._work_off()
        return self._next()

    def _take_safely(self, session: Session, kind: bytes, data: bytes) -> bool:
        try:
            self._take(session, kind, data)
        except SerializationError as error:
            logger.warning("refused what a caller said: %s", shown(error))
        self._taken += 1
        if kind == MESSAGE and not self._drains and not self._said:
            self._fetched = self._next()
        return self._fetched is not None

    def _work_off(self) -> None:
        if self._riding is not None:
            riding, self._riding = self._riding, None
            riding.say()
        while self._said:
            self._said.popleft()()
        if self._stopped and not self._has_said_so:
            self._has_said_so = True
            for session in self._sessions():
                session.send(STOPPING)
            for deliveries in self._waiting.values():
                while deliveries:
                    delivery = deliveries.popleft()
                    self._back(delivery.session, delivery, b"")

    def _is_over(self) -> bool:
        return (
            self._stopped and self._has_said_so and not (self._running or self._slots.in_hand() or self._said)
        )

    def _next(self) -> ZeromqDelivery | None:
        if self._running < self._threads and self._slots.room > 0 and not self._stopped:
            for deliveries in self._waiting.values():
                while deliveries:
                    delivery = deliveries.popleft()
                    if not delivery.finished:
                        with self._counting:
                            self._running += 1
                        delivery.begin()
                        return delivery
        return None

    def _handle(self, delivery: ZeromqDelivery) -> None:
        try:
            self._slots.call(self._handler, delivery)
        finally:
            with self._counting:
                self._running -= 1
            if not self._turns.leads_here() and (self._stopped or any(self._waiting.values())):
                self._ring()

    def _sessions(self) -> list[Session]:
        """Those with callers."""
        return [each for each in [*self._peers.sessions.values()] if each.owner is not None]

    def _take(self, session: Session, kind: bytes, data: bytes) -> None:
        deliveries: dict[int, ZeromqDelivery] = session.owner
        if kind == MESSAGE:
            self._came(session, data)
        elif kind == CANCEL:
            if delivery := deliveries.pop(number_in(data), None):
                self._withdrawn(delivery)
        elif kind == RECALL:
            waiting = [each for each in deliveries.values() if not each.is_begun and each.to.kind == "queue"]
            for delivery in waiting[: -number_in(data) - 1 : -1]:
                self._back(session, delivery, b"")
        elif kind == END:
            session.confirm()
            self._peers.drop(session)
            self.lost(session)

    def _came(self, session: Session, data: bytes) -> None:
        number, to, message = message_in(data)
        delivery = ZeromqDelivery(self, session, number, to, message)
        if to in self._waiting:
            if self._stopped or self.load >= self._high_water:
                return self._back(session, delivery, b"" if self._stopped else FULL)
            session.owner[number] = delivery
            self._deliveries.add(delivery)
            self._waiting[to].append(delivery)
        elif to in self._channels() and self._serially.waiting(to) < MOST_WAITING:
            session.owner[number] = delivery
            self._serially.run(to, partial(self._heard, delivery))
        else:
            self._back(session, delivery, b"")
        if message.reply_to is None:
            session.confirm()

    def _channels(self) -> list[Address]:
        """Those that are heard now: to the end, what is said to those handlers that still run."""
        return [to for to in self._plan.channels if to.kind == "inbox" or not self._stopped]

    def _heard(self, delivery: ZeromqDelivery) -> None:
        delivery.begin()
        if not delivery.finished:
            self._handler(delivery)

    def _back(self, session: Session, delivery: ZeromqDelivery, why: bytes) -> None:
        """Its caller gets it back."""
        session.owner.pop(delivery.number, None)
        if not delivery.finished:
            delivery.finished = True
            self._deliveries.discard(delivery)
            session.send(BACK, NUMBER.pack(delivery.number) + why)
            self._slots.done(delivery)

    def _withdrawn(self, delivery: ZeromqDelivery) -> None:
        if delivery.is_begun:
            delivery.cancel()
        else:
            delivery.finished = True
            self._deliveries.discard(delivery)

    # Sessions, for Peers.

    def info(self) -> bytes:
        addresses = ([] if self._stopped else self._plan.queues) + self._channels()
        return encode_about(About([text_of(to) for to in addresses], self._threads, self.load))

    def met(self, session: Session) -> None:
        if session.owner is None:
            session.owner = {}
            self._connections.notify(True)

    def lost(self, session: Session) -> None:
        deliveries, session.owner = session.owner or {}, None
        for delivery in deliveries.values():
            if delivery.message.reply_to is not None:
                self._withdrawn(delivery)
        if not self._is_bound and not self._sessions():
            self._connections.notify(False)
