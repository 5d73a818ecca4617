"""One running serve of the rq backend: a worker of rq's for each thread, and what hears topics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...errors import BackendUnavailable
from ...loops import run_together
from ...transport import Address, Handler
from .._lease import LeaseKeeper
from .._retry import Backoff
from .._serving import Connections, OnChange, Plan, Turns, arriving, guarded
from ..redis.connection import translated
from ..redis.servers import Servers
from ..redis.subscriber import Subscriber
from ..redis.topics import run_on_client
from .delivery import RqDelivery
from .records import Records, RqOptions
from .worker import RqWorker


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
        plan, self._connections = Plan(addresses), Connections(on_change)
        self._stopped = self._ended = False
        common: dict[str, Any] = {"stopped": self.is_stopped, "notify": self._connections.notify}
        queues = [each.name for each in plan.queues]
        of_queues = [
            RqWorker(records, queues, handler, options, **common) for _ in range(threads if queues else 0)
        ]
        of_each = [
            RqWorker(records, [to.subscription_queue.name], arriving(to, handler), options, **common)
            for to in plan.durable
        ]
        self._workers, self._of_queues = [*of_queues, *of_each], of_queues
        self._here, self._backoff = threading.local(), Backoff()
        self._turns = Turns(self._claim, self._perform, self.is_stopped)
        self._lease = LeaseKeeper(options.lease)
        self._how = records.client.connection_pool.connection_kwargs
        self._subscriber = Subscriber(
            servers,
            channels=plan.channels,
            durable=dict.fromkeys(plan.durable, _WorkedOff()),
            watched={},
            handler=guarded(handler),
            run=partial(run_on_client, servers),
            discard=discard,
            stopped=self.is_stopped,
            ended=lambda: self._ended,
            on_change=self._connections.notify if not self._workers else lambda connected: None,
        )

    def run(self) -> None:
        """Serve until stopped; what was begun is waited for."""
        many = len(self._of_queues)
        loops: list[Callable[[], None]] = [partial(self._take_turns, worker) for worker in self._of_queues]
        loops += [worker.work for worker in self._workers[many:]]
        loops += [partial(RqWorker.keep_alive, self._workers, self._beaten)] * bool(self._workers)
        beside = [
            threading.Thread(target=loop, name="rpc-topics", daemon=True) for loop in self._subscriber.loops()
        ]
        try:
            if self._workers:
                self._lease.start()
            self._subscriber.begin()
            for thread in beside:
                thread.start()
            run_together(loops or [self._subscriber.wait], self.stop)
            self._subscriber.end()
        finally:
            self._stopped = self._ended = True
            self._lease.end()
            self._connections.notify(False)
            for thread in beside:
                if thread.ident:
                    thread.join()
            self._subscriber.drop()

    def _take_turns(self, worker: RqWorker) -> None:
        """One thread at a time waits for jobs, as the worker that it is to rq."""
        self._here.worker = worker
        try:
            self._turns.work()
        finally:
            worker.leave()

    def _claim(self) -> RqDelivery | None:
        worker: RqWorker = self._here.worker
        try:
            with translated():
                delivery = worker.claim()
        except BackendUnavailable as error:
            self._connections.notify(False)
            self._backoff.wait("%s; trying again", error)
            return None
        self._backoff.reset()
        return delivery

    def _perform(self, delivery: RqDelivery) -> None:
        worker: RqWorker = self._here.worker
        worker.perform(delivery)

    def stop(self) -> None:
        self._stopped = True

    def hand_back(self) -> None:
        for worker in self._workers:
            worker.hand_back()

    def _beaten(self) -> None:
        """The workers have given signs of life."""
        self._lease.beat([worker.key for worker in self._workers], self._how)

    def is_stopped(self) -> bool:
        """Whether nothing new is to be taken."""
        return self._stopped
