"""One running serve of the rq backend: a worker of rq's for each thread, and what hears topics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from uuid import uuid4

from ...errors import BackendUnavailable
from ...loops import Alarm, started
from ...transport import Address, Handler
from .._retry import Backoff, beside, lasting, run_together
from .._serving import Connections, OnChange, Plan, Turns, arriving, guarded
from ..redis.connection import translated, translated_or_logged
from ..redis.servers import Servers
from ..redis.subscriber import Subscriber
from ..redis.topics import run_on_client
from .delivery import RqDelivery
from .records import Records, RqOptions
from .recovery import lease_keeper
from .worker import RqWorker

logger = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0
"""Seconds."""


class _WorkedOff:
    """A durable subscription: its queue has a worker of its own."""

    def has_some(self) -> bool:
        return False

    def work_off(self) -> None:
        """Nothing to do."""


class RqServer:
    """Made by `PythonRqBackend.server`. A coroutine holds a thread here, as a plain function does."""

    def __init__(
        self,
        servers: Servers,
        records: Records,
        addresses: Sequence[Address],
        handler: Handler,
        options: RqOptions,
        *,
        threads: int,
        on_change: OnChange,
        discard: Callable[[str], object],
    ) -> None:
        plan, connections = Plan(addresses), Connections(on_change)
        self._connections = connections
        self._stopped = self._ended = False
        self._alarm: Alarm | None = None
        """Rung by a signal handler, too."""
        self._client = records.client
        worker = partial(RqWorker, records, options=options, stopped=self.is_stopped, connections=connections)
        names = map(partial(records.names.worker, uuid4().hex), count())
        queues = [each.name for each in plan.queues]
        self._of_queues = [worker(queues, handler, name=next(names)) for _ in range(threads if queues else 0)]
        heard = [([to.subscription_queue.name], arriving(to, handler)) for to in plan.durable]
        of_each = [worker(*each, name=next(names)) for each in heard]
        self._workers = [*self._of_queues, *of_each]
        self._here, self._backoff = threading.local(), Backoff()
        self._turns = Turns(self._claim, self._perform, self.is_stopped)
        self._lease = lease_keeper(records, options, {each.name: each.queues for each in self._workers})
        self._subscriber = Subscriber(
            servers,
            records.names,
            channels=plan.channels,
            durable=dict.fromkeys(plan.durable, _WorkedOff()),
            watched={},
            handler=guarded(handler),
            run=partial(run_on_client, servers),
            discard=discard,
            stopped=self.is_stopped,
            ended=lambda: self._ended,
            check=connections.check,
            on_change=connections.notify if not self._workers else lambda connected: None,
        )

    def run(self) -> None:
        """Serve until stopped; what was begun is waited for."""
        many = len(self._of_queues)
        loops: list[Callable[[], None]] = [partial(self._take_turns, worker) for worker in self._of_queues]
        loops += [worker.work for worker in self._workers[many:]]
        loops += [partial(RqWorker.keep_alive, self._workers, self._beaten)] * bool(self._workers)
        threads = beside(self._subscriber.loops(), "rpc-topics")
        alarm = self._alarm = Alarm()
        waker = threading.Thread(target=self._wake_up, args=[alarm], name="rpc-stop", daemon=True)
        try:
            started(waker)
            if self._workers:
                self._lease.start()
                self._beaten()
            self._subscriber.begin()
            for thread in threads:
                started(thread)
            run_together(loops or [self._subscriber.wait], self.stop)
            self._subscriber.end()
        finally:
            self._stopped = self._ended = True
            self._lease.end()
            self._connections.notify(False)
            alarm.ring()
            for thread in [each for each in (waker, *threads) if each.ident]:
                while thread.is_alive():
                    self._end_waits()
                    thread.join(0.05)
            self._alarm = None
            alarm.close()
            self._subscriber.drop()

    def _take_turns(self, worker: RqWorker) -> None:
        """One thread at a time waits for jobs, as the worker that it is to rq."""
        self._here.worker = worker
        try:
            lasting(self._turns.work)()
        finally:
            worker.leave()

    def _claim(self) -> RqDelivery | None:
        worker: RqWorker = self._here.worker
        try:
            with translated():
                delivery = worker.claim()
        except BackendUnavailable as error:
            self._connections.lost(error)
            self._backoff.wait("%s; trying again", error)
            return None
        self._backoff.reset()
        return delivery

    def _perform(self, delivery: RqDelivery) -> None:
        worker: RqWorker = self._here.worker
        worker.perform(delivery)

    def _wake_up(self, alarm: Alarm) -> None:
        """Wake those who wait for jobs, once they need not any more."""
        while not self._stopped:
            alarm.wait(LONGEST_WAIT)
        with translated_or_logged():
            for worker in self._workers if self._connections.count else ():
                worker.wake_up()

    def _end_waits(self) -> None:
        with translated_or_logged():
            for number in self._subscriber.connections():
                self._client.client_unblock(number)

    def stop(self) -> None:
        self._stopped = True
        if alarm := self._alarm:
            alarm.ring()
        self._subscriber.stop_waiting()

    def hand_back(self) -> None:
        try:
            for worker in self._workers:
                worker.hand_back()
        except BackendUnavailable as error:  # nor could the others: the process is to end now
            logger.warning("%s; what is in hand is delivered again after the lease", error)

    def stalled(self) -> float:
        return self._turns.stalled(len(self._of_queues), self._connections)

    def _beaten(self) -> None:
        """The workers have given signs of life, or are about to."""
        how = self._client.connection_pool.connection_kwargs
        self._lease.beat([worker.key for worker in self._workers], how)

    def is_stopped(self) -> bool:
        """Whether nothing new is to be taken."""
        return self._stopped
