"""A server: threads that take turns at reading one connection, and handle what comes.

One more reads than may handle: while all handlers are busy, it goes on to hear of topics, of callers that
leave and of RabbitMQ itself, but asks for no jobs.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import get_ident

from ...errors import BackendUnavailable, shown
from ...loops import Alarm
from ...transport import Address, Handler, Message
from .._retry import Backoff, run_together
from .._serially import Serially
from .._serving import Connections, OnChange, Plan, Slots, Turns, guarded, lost
from .again import hand_back, may_not_start
from .connection import BLOCK, Connection
from .deliveries import ChannelDelivery, QueueDelivery, reply_bytes
from .messages import CANCEL
from .names import Names
from .once import claim
from .recent import RecentRequests
from .servers import Servers, unavailable
from .session import Session
from .wire import Arrival, Broken

logger = logging.getLogger(__name__)

LASTED = 0.2
"""Seconds after which a connection that broke had worked."""
RELIEF = 0.02
"""Seconds that a handler may keep others waiting, if they might run elsewhere."""
RETRY = 0.5
"""Seconds between two attempts to hear a topic whose queue somebody else has; and before a message comes
again that could be neither begun nor postponed nor buried."""


class AmqpServer:
    """Serves on one connection at a time, through whatever happens to RabbitMQ meanwhile."""

    def __init__(
        self,
        servers: Servers,
        connect: Callable[[Alarm], Connection],
        plan: Plan,
        handler: Handler,
        *,
        threads: int,
        coroutines: int,
        max_deliveries: int,
        on_change: OnChange,
    ) -> None:
        self._servers, self._connect, self._plan, self._handler = servers, connect, plan, guarded(handler)
        self.names: Names = servers.names
        self._threads, self._max_deliveries = threads if plan.queues else 0, max_deliveries
        self._slots, self._connections = Slots(coroutines), Connections(on_change)
        self._recent = RecentRequests(QueueDelivery.join)
        self._turns = Turns(self._fetch, self._handle, lambda: self._is_over)
        self._serially = Serially(len(plan.channels) + len(plan.durable))
        self._busy: set[QueueDelivery] = set()
        """What handlers have not returned from."""
        self._unsent: deque[tuple[str, Message]] = deque()
        """Replies, and where they go, that wait for a connection."""
        self._session: Session | None = None
        self._wakeup: Alarm | None = None
        self._backoff = Backoff()
        self._taken = self._retried = 0.0
        """When something was taken last, and when topics were tried again."""
        self._is_stopping = self._has_stopped = self._is_over = False
        """Asked to; nothing new comes; nothing is in hand."""

    def run(self) -> None:
        self._wakeup = Alarm()
        try:
            run_together([self._turns.work] * (self._threads + 1), self.stop)
            self._serially.end()
            if session := self._session:
                with suppress(Broken):
                    session.leave()
        finally:
            if session := self._session:
                session.connection.drop(Broken("the server has stopped"))
            self._session = None
            self._connections.notify(False)
            wakeup, self._wakeup = self._wakeup, None
            wakeup.close()

    def stop(self) -> None:
        self._is_stopping = True
        self._wake()

    def _wake(self) -> None:
        if wakeup := self._wakeup:
            wakeup.ring()

    def hand_back(self) -> None:
        self.stop()
        session = self._session
        if session is None:
            return
        try:
            session.stop()
            hand_back(session, self._recent.all_in_hand())
            session.leave()
        except Broken as error:
            # What is not acknowledged counts as delivered, then.
            logger.warning("RabbitMQ: %s", shown(error))
        finally:
            session.connection.drop(Broken("what was in hand was handed back"))
            for detached in self._slots.in_hand():
                self._slots.done(detached)
            self._wake()

    def stalled(self) -> float:
        return self._turns.stalled(self._threads + 1, self._connections)

    # Reading.

    def _fetch(self) -> QueueDelivery | None:
        try:
            session = self._session or self._begun()
            if session is None:
                return None
            if not (delivery := self._take(session)):
                self._read(session)
                delivery = self._take(session)
            return delivery
        except Broken as error:
            self._break(error)
        except Exception as error:
            logger.exception("the connection to RabbitMQ is given up")
            self._break(Broken(str(error)))
        return None

    def _take(self, session: Session) -> QueueDelivery | None:
        if not self._may_take(session):
            return None
        if (arrival := session.take(len(self._busy), self._slots.room)) is None:
            return None
        try:
            delivery = QueueDelivery(self, session.connection, arrival, *session.address_of(arrival))
        except Exception:  # whatever it is, it costs this message at most
            logger.exception("a message cannot be read")
            session.acknowledge(arrival)
            return None
        self._busy.add(delivery)
        self._taken = time.monotonic()
        return delivery

    def _may_take(self, session: Session) -> bool:
        return bool(
            session.has_ready
            and len(self._busy) < self._threads
            and self._slots.room > 0
            and not self._is_stopping
        )

    def _read(self, session: Session) -> None:
        now, seconds = time.monotonic(), BLOCK
        if self._is_stopping:
            self._wind_up(session)
        elif session.prefetch:
            is_late = now - self._taken > RELIEF
            if session.ready and is_late:
                self._share(session)
            busy, room = len(self._busy), self._slots.room
            if is_late and (busy >= self._threads or room <= 0):
                session.partitions.release()
            session.demand(busy, room)
            seconds = min(seconds, session.partitions.until_due())
            if session.has_ready or session.prefetch.is_wide or busy >= self._threads:
                seconds = min(seconds, RELIEF)
        if session.unheard and not self._is_stopping:
            seconds = min(seconds, RETRY)
            if now - self._retried > RETRY:
                self._retried = now
                session.hear_more()
                self._connections.notify(not session.unheard)
        if not self._is_over:
            session.connection.read(seconds, partial(self._may_take, session))

    def _wind_up(self, session: Session) -> None:
        if not self._has_stopped:
            self._has_stopped = True
            session.stop()
        session.partitions.close_unbegun()
        self._is_over = not self._busy and not self._slots.in_hand()

    def _begun(self) -> Session | None:
        """A session, if there can be one now."""
        wakeup = self._wakeup
        if self._is_stopping or wakeup is None:
            self._is_over = not self._busy and not self._slots.in_hand()
            if wakeup and not self._is_over:
                wakeup.wait(BLOCK)
            return None
        connection = self._connect(wakeup)
        session = self._session = Session(connection, self._servers, self._plan, self._threads, self._hear)
        session.begin()
        while self._unsent:
            connection.put(reply_bytes(connection, *self._unsent[0]))
            connection.flush()
            self._unsent.popleft()
        self._connections.notify(not session.unheard)
        return session

    def _break(self, error: Broken) -> None:
        session, self._session = self._session, None
        if session:
            session.connection.drop(error)
        self._connections.lost(unavailable(error))
        if session and time.monotonic() - session.began > LASTED:  # maybe for hours
            self._backoff.reset()
        if (wakeup := self._wakeup) and not self._is_stopping:
            self._backoff.wait("RabbitMQ: %s; trying again", error, wakeup.wait)

    def _hear(self, to: Address | None, arrival: Arrival) -> None:
        session = self._session
        if session is None:
            return
        if to is None:
            if arrival.properties.message_type == CANCEL and (id := arrival.properties.correlation_id):
                self._recent.withdraw(id)
                if delivery := self._recent.in_hand(id):
                    delivery.cancel()
        elif to.durable:
            queued = QueueDelivery(self, session.connection, arrival, *session.address_of(arrival))
            self._serially.run(to, partial(self._handle, queued))
        elif to.group is not None and arrival.method.redelivered:
            logger.warning("%s: a message whose receiver was lost is not handled again", to)
            session.acknowledge(arrival)
        else:
            heard = ChannelDelivery(session.connection, arrival, to, partial(self._end_of, session))
            self._serially.run(to, partial(self._handler, heard))

    def _end_of(self, session: Session, arrival: Arrival) -> None:
        session.acknowledge(arrival)
        session.connection.flush_soon()

    # Handling.

    def _handle(self, delivery: QueueDelivery) -> None:
        session, began = self._session, time.monotonic()
        try:
            if session and session.connection is delivery.connection:
                self._begin(session, delivery)
        except Broken as error:
            self._release(delivery, error)
        except Exception:  # whatever it is, it costs this message at most
            logger.exception("it cannot be handled: %r", delivery.message)
            delivery.finish(lost(delivery.message, "it cannot be handled"))
        finally:
            delivery.thread = 0
            is_job = delivery in self._busy
            self._busy.discard(delivery)
            if session:
                if session.prefetch and is_job:
                    session.prefetch.handled(began, not delivery.finished)
                self._flush(session, is_job)

    def _flush(self, session: Session, is_job: bool) -> None:
        """Others wait for what was said just now, unless this thread reads next."""
        if session.connection.is_waiting:
            is_short = session.prefetch and (session.ready or session.prefetch.is_used_up)
            if is_job and (self._is_stopping or is_short):
                self._wake()
            else:
                with suppress(Broken):
                    session.connection.flush()

    def _begin(self, session: Session, delivery: QueueDelivery) -> None:
        recent, key = self._recent, delivery.key
        if recent.joins(key, delivery):
            return
        if recent.is_done(key):
            self._dispose(session, delivery, recent.reply(key))
        elif recent.is_unwanted(key, delivery.message, delivery.way) or session.is_forsaken(delivery):
            self._dispose(session, delivery, None)
        elif may_not_start(session, delivery, self._max_deliveries):
            self._dispose(session, delivery, delivery.last)
        elif recent.begin(key, delivery):
            if delivery.message.deliveries > 1:  # it may kill this worker, and must not drag others along
                self._share(session)
                if not delivery.counts_itself:
                    session.mark(delivery)
            delivery.thread, delivery.was_begun = get_ident(), True
            self._slots.call(self._handler, delivery)

    def _dispose(self, session: Session, delivery: QueueDelivery, last: Message | None) -> None:
        """End a delivery that no handler gets."""
        delivery.finished = True
        self._end(session, delivery, last)

    def _share(self, session: Session) -> None:
        if session.prefetch:
            session.prefetch.narrow()
        left = []
        while session.ready:
            left.append(session.ready.popleft())
        session.put_back(left)

    # What deliveries need.

    def reply(self, delivery: QueueDelivery, way: str, message: Message) -> None:
        session = self._session
        if session is None or not session.connection.is_open:
            self._unsent.append((way, message))
            return
        session.connection.put(reply_bytes(session.connection, way, message))
        if delivery.is_foreign:
            session.connection.flush_soon()
        else:
            with suppress(Broken):
                session.connection.flush()

    def claim(self, delivery: QueueDelivery, seconds: float) -> None:
        def claimed(session: Session) -> None:
            try:
                claim(session, delivery, max(1.0, seconds) + 60)
            except Broken as error:
                delivery.is_unbegun, delivery.is_unsettled = not session.connection.is_open, not error.code
                raise

        self.safely(claimed)

    def safely(self, action: Callable[[Session], object]) -> None:
        session = self._session
        if session is None:
            raise BackendUnavailable("RabbitMQ: there is no connection at present")
        try:
            action(session)
        except Broken as error:
            raise unavailable(error) from error

    def settle(self, delivery: QueueDelivery, last: Message | None) -> None:
        session = self._session
        if delivery.is_unbegun or (delivery.is_unsettled and (last is None or delivery.way is None)):
            self._release(
                delivery, Broken(f"{delivery.message.id!r} could not be begun, postponed or buried")
            )
        else:
            if delivery.next_attempt:
                self._recent.postponed(delivery.key, delivery, delivery.next_attempt, delivery.way)
            else:
                self._recent.end(delivery.key, last or delivery.last)
            if delivery.is_kept:
                pass
            elif session and session.connection.is_open:
                self._end(session, delivery, last)
            elif last is not None and delivery.way is not None and not delivery.cancelled:
                self._unsent.append((delivery.way, last))
        self._slots.done(delivery)
        if session and delivery.is_foreign:
            session.connection.flush_soon()

    def _release(self, delivery: QueueDelivery, error: Broken) -> None:
        """Let a message come again: after a pause, if RabbitMQ has refused something."""
        self._recent.forget(delivery.key, delivery)
        session = self._session
        if session and session.connection.is_open:
            logger.warning("RabbitMQ: %s; it is tried again", shown(error))
            time.sleep(RETRY)
        for connection, arrival in delivery.arrivals:
            if session and connection is session.connection and connection.is_open:
                session.reject(arrival)
            else:
                connection.drop(error)

    def _end(self, session: Session, delivery: QueueDelivery, last: Message | None) -> None:
        ours = [arrival for connection, arrival in delivery.arrivals if connection is session.connection]
        for arrival in ours:
            session.done(arrival)
        session.connection.put(delivery.ending(session.connection, last))
        for arrival in ours:
            session.partitions.gone(arrival)
