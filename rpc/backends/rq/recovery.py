"""What becomes of jobs whose worker died, or gives them back: they are put into their queue, or given up."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ...errors import shown
from ...transport import Message, packed
from .._lease import LeaseKeeper
from .._serving import DIED, STOPPED, lost
from ..redis.connection import persistent
from ..redis.maintenance import Absences
from ..redis.servers import servers_of
from . import scripts
from .names import RqNames
from .records import (
    EXECUTIONS,
    KEEP_DEAD,
    Records,
    RqOptions,
    exc_string,
    job_key,
    raw,
    results_key,
    text,
    worker_key,
)

logger = logging.getLogger(__name__)

TIDY_EVERY = 30.0
"""Seconds between two looks at what rq's registries no longer need."""


class Recovery:
    """Of the jobs of these queues."""

    def __init__(self, records: Records, queues: Sequence[str], options: RqOptions) -> None:
        self._records, self._queues, self._options = records, queues, options
        self._last_tidy = 0.0
        self._absences: Absences[tuple[str, str, str]] = Absences(options.beat)

    def mind_others(self) -> None:
        """Recover the jobs of workers that died, and tidy up after all, if that is due."""
        if not self._absences.look_is_due():
            return
        for (queue, id, worker), _ in self._absences.lasting(self._absent()):
            self.recover(queue, id, worker, force=False, died=True)
        if time.monotonic() - self._last_tidy > TIDY_EVERY:
            self._last_tidy = time.monotonic()
            for queue in self._queues:
                self._records.tidy(queue)

    def _absent(self) -> Iterator[tuple[str, str, str]]:
        """Queue, id and worker of each started job whose worker's record is not there."""
        ours = self._records.names.workers
        for queue, id, worker in self.started():
            if worker.startswith(ours) and not self._records.client.exists(raw(worker_key(worker))):
                yield queue, id, worker

    def recover(
        self, queue: str, id: str, worker: str, *, force: bool, died: bool, patience: float | None = None
    ) -> bool:
        """Put a job back, or give it up. False if there is nothing to do: it was finished. Redis is tried for
        `patience` seconds (None: the lease); then raises BackendUnavailable."""
        records, options = self._records, self._options
        why = DIED if died else STOPPED
        keys = [
            records.started(queue),
            worker_key(worker),
            job_key(id),
            records.queue(queue).key,
            records.names.bell(queue),
            records.failed(queue),
            results_key(id),
        ]
        arguments = [
            id,
            worker,
            int(force),
            int(died),
            options.max_deliveries,
            KEEP_DEAD,
            zlib.compress(why.encode()),
            packed(lost(Message(headers={"id": shown(id, 128)}), why)),
            EXECUTIONS,
            exc_string(why),
        ]
        seconds = options.lease if patience is None else patience
        outcome = persistent(lambda: records.run(scripts.RECOVER, keys, arguments), seconds)
        if outcome:
            what = "died with" if died else "gives back"
            then = "is delivered again" if outcome == 1 else "is given up"
            logger.warning("worker %s %s job %r, which %s", worker, what, id, then)
        return bool(outcome)

    def started(self) -> Iterator[tuple[str, str, str]]:
        """Queue, id and worker of each started job, and of whatever else others put there."""
        for queue in self._queues:
            registry = self._records.started(queue)
            with self._records.mending(registry):
                members = self._records.client.zrange(registry, 0, -1)
            for member in members:
                id, _, worker = text(member).rpartition(":")
                yield queue, id, worker


def lease_keeper(records: Records, options: RqOptions, workers: Mapping[str, Sequence[str]]) -> LeaseKeeper:
    """Of a server that has these workers, each of which serves these queues."""
    return LeaseKeeper(
        options.lease,
        recover_dead,
        prefix=records.names.prefix,
        queue_prefix=records.names.queues,
        workers=workers,
        lease=options.lease,
        max_deliveries=options.max_deliveries,
    )


def recover_dead(
    client: Any,
    prefix: str,
    queue_prefix: str,
    workers: Mapping[str, Sequence[str]],
    lease: float,
    max_deliveries: int,
) -> None:
    """The process of these workers is known to be dead: bring back what they had, and sign them off. Raises
    BackendUnavailable and redis.RedisError."""
    names = RqNames(prefix, queue_prefix)
    records = Records(servers_of(client), names)
    queues = [*dict.fromkeys(chain.from_iterable(workers.values()))]
    recovery = Recovery(records, queues, RqOptions(lease, max_deliveries, None, 0, 0))
    for queue, id, worker in recovery.started():
        if worker in workers:
            recovery.recover(queue, id, worker, force=True, died=True)
    for worker, served in workers.items():
        records.sign_off(worker, served, names.bell(worker), names.cancel(worker))
