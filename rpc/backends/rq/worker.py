"""An rq worker whose loop is ours: it claims, performs and finishes, and minds those that died.

A process has one `RqWorker` for each job that it may run at a time; each is a worker of its own to rq.
Liveness is the TTL of the worker's record, which Redis counts: no clock of a worker is ever compared.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from rq.job import JobStatus
from rq.utils import now, utcformat

from ...errors import Cancelled, Interrupted, SerializationError, WorkerLost, shown
from ...transport import FAILED, STREAM, Handler, Message, packed
from .._serving import WITHDRAWN, Connections, lost
from ..redis.connection import (
    BLOCK,
    milliseconds,
    persistent,
    run_with_reconnect,
    translated_or_logged,
)
from ..redis.delivery import CANCELLED
from . import scripts
from .alarm import interrupted_after
from .delivery import Claimed, RqDelivery
from .records import (
    EXECUTIONS,
    JOBS,
    KEEP_DEAD,
    Records,
    RqOptions,
    exc_string,
    fields_of,
    job_for,
    job_key,
    message_in,
    results_key,
    text,
    worker_key,
)
from .recovery import Recovery

logger = logging.getLogger(__name__)

HORIZON = 3600
"""Seconds from the last sign of life after which rq itself takes a job for abandoned. Ours does much sooner,
by the lease; rq compares wall clocks, so this is also how wrong a clock may be."""


class RqWorker:
    """Claims jobs of its queues one at a time, until stopped."""

    def __init__(
        self,
        records: Records,
        queues: Sequence[str],
        handler: Handler,
        options: RqOptions,
        stopped: Callable[[], bool],
        connections: Connections,
        name: str = "",
    ) -> None:
        """`name` is what rq knows it by."""
        self._records, self.queues, self._handler = records, queues, handler
        self._options, self._stopped, self._connections = options, stopped, connections
        self._client = records.client
        self.name = name or records.names.worker(uuid4().hex, 0)
        self._claimed: Claimed | None = None
        self._delivery: RqDelivery | None = None
        self._done = False
        self._signing = threading.Lock()
        """Held to sign on, and to sign off for good: who has left does not sign on again."""
        self._last_beat = 0.0
        self._recovery = Recovery(records, queues, options)
        self._forgot = False
        """Whether this worker's record expired while it may have held a job that it does not know of."""
        self._later = [records.names.later(name) for name in queues]
        self._keys = [worker_key(self.name)]
        for name in queues:
            self._keys += (records.queue(name).key, records.started(name), records.names.bell(name))
        self._own_bell, self._inbox = records.names.bell(self.name), records.names.cancel(self.name)
        self._bells = [*self._keys[3::3], self._own_bell]

    def work(self) -> None:
        """Claim and perform until stopped, through whatever happens to Redis meanwhile. For a worker that
        has its thread to itself."""

        def step() -> None:
            if delivery := self.claim():
                self.perform(delivery)

        try:
            run_with_reconnect(step, self._stopped, lost=self._connections.lost)
        finally:
            self.leave()

    def leave(self) -> None:
        """It claims nothing any more."""
        with self._signing:
            self._done = True
            if self._last_beat:
                self._leave()

    def claim(self) -> RqDelivery | None:
        """The next job; None if there was none for a second. Raises redis.RedisError."""
        if not self._last_beat:
            self.beat_if_due()
        if self._forgot:
            self._remember()
        arguments = [self.name, HORIZON, utcformat(now()), JOBS, EXECUTIONS]
        claim = self._records.run(scripts.CLAIM, self._keys, arguments)
        self._connections.notify(True)
        if claim == 0:
            self._register()
        elif len(claim) == 1:
            self._records.pass_over(claim[0], self.queues[0])
            with self._records.mending(*self._bells):
                rung = self._client.blpop(self._bells, timeout=BLOCK)
            if rung and self._stopped() and text(rung[0]) != self._own_bell:  # it was for one that goes on
                self._ring(rung[0])
        else:
            return self._claimed_as(*claim)
        return None

    def wake_up(self) -> None:
        """Let it see at once that it is stopped. Any thread. Raises redis.RedisError."""
        self._ring(self._own_bell)

    def _ring(self, bell: Any) -> None:
        self._client.pipeline().lpush(bell, 1).pexpire(bell, 60_000).execute()

    def _claimed_as(
        self, number: int, id: bytes, left: int, hash: list[bytes], passed_over: bytes
    ) -> RqDelivery | None:
        self._records.pass_over(passed_over, self.queues[number])
        fields = dict(zip(hash[::2], hash[1::2], strict=True))
        claimed = self._claimed = Claimed(self.queues[number], text(id))
        try:
            message = message_in(fields)
            claimed.reply_to = message.reply_to
            claimed.once = text(fields.get(b"rpc_key", b""))
            if left >= 0:
                message = message.replace(ttl=left / 1000)
        except SerializationError as error:
            if hash:
                logger.error("refused rq job %r in queue %r: %s", claimed.id, claimed.queue, shown(error))
            self._finish(claimed, None, f"refused: {shown(error)}")
            return None
        if left == 0 and claimed.once:  # it is not begun: its key is free again
            self._finish(claimed, None, "it has expired", RqDelivery(self, claimed, message))
            return None
        self._delivery = RqDelivery(self, claimed, message)
        return self._delivery

    def perform(self, delivery: RqDelivery) -> None:
        """Have it handled, and finish it."""
        try:
            with interrupted_after(self._options.job_timeout):
                self._handler(delivery)
            if delivery.last is not None:
                packed(delivery.last)
        except (Exception, Interrupted) as fault:
            logger.exception("a handler raised: %r", delivery.message)
            delivery.error = fault
            delivery.last = lost(delivery.message, "its handler failed")
        if not delivery.is_settled:
            self.settle(delivery)

    def settle(self, delivery: RqDelivery) -> None:
        """Write down what it came to."""
        delivery.is_settled, last = True, delivery.last
        failed = delivery.buried or ("" if last is None else last.headers.get(FAILED, ""))
        self._finish(delivery.claimed, last, failed, delivery)

    def _finish(
        self, claimed: Claimed, last: Message | None, failed: str, delivery: RqDelivery | None = None
    ) -> None:
        options, records = self._options, self._records
        dead, error = (bool(delivery.buried), delivery.error) if delivery else (True, None)  # refused
        number = delivery.number if delivery else 1
        registry = records.failed(claimed.queue) if failed else records.finished(claimed.queue)
        keys = [
            records.started(claimed.queue),
            self._keys[0],
            job_key(claimed.id),
            registry,
            records.names.way_back(claimed.reply_to or ""),
            records.names.result(claimed.queue, claimed.id),
            records.queue(claimed.queue).key,
            records.names.bell(claimed.queue),
        ]
        keep = 0.0 if last is None else last.keep or 0.0
        arguments = [
            claimed.id,
            self.name,
            (JobStatus.FAILED if failed else JobStatus.FINISHED).value,
            utcformat(now()),
            KEEP_DEAD if dead else options.failure_ttl if failed else options.result_ttl,
            zlib.compress(failed.encode()) if failed else b"",
            packed(last) if last is not None and (claimed.reply_to or claimed.once) else b"",
            number,
            EXECUTIONS,
            int(dead),
            packed(last) if last is not None and keep else b"",
            milliseconds(keep),
            claimed.once,
        ]
        if failed:
            keys.append(results_key(claimed.id))
            arguments.append(exc_string(failed, error))
        self._end(claimed, scripts.FINISH, keys, arguments)

    def postpone(self, claimed: Claimed, seconds: float, message: Message) -> None:
        records, queue = self._records, claimed.queue
        keys = [records.started(queue), self._keys[0], job_key(claimed.id)]
        keys += (records.scheduled(queue), records.names.later(queue))
        keys += (records.queue(queue).key, records.names.bell(queue))
        job = job_for(message.replace(deliveries=None), records.queue(queue), self._options)
        unused = [""] * 5
        arguments = [claimed.id, self.name, milliseconds(seconds), *unused, EXECUTIONS, *fields_of(job)]
        self._end(claimed, scripts.POSTPONE, keys, arguments)

    def _end(self, claimed: Claimed, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> None:
        done = persistent(lambda: self._records.run(script, keys, arguments), math.inf)
        if done == CANCELLED:
            raise Cancelled(WITHDRAWN)
        self._claimed = self._delivery = None
        if not done:
            logger.warning("%r was given to another worker before it was finished", claimed.id)

    def send_reply(self, claimed: Claimed, message: Message, number: int) -> bool:
        way_back = self._records.names.way_back(claimed.reply_to or "")
        keys = [self._records.started(claimed.queue), way_back]
        arguments = [claimed.id, self.name, packed(message), number, int(STREAM not in message.headers)]
        return bool(
            persistent(lambda: self._records.run(scripts.REPLY, keys, arguments), self._options.lease)
        )

    def forbid_redelivery(self, claimed: Claimed) -> None:
        keys = [self._records.started(claimed.queue), job_key(claimed.id)]
        arguments = [claimed.id, self.name]
        if not persistent(lambda: self._records.run(scripts.FORBID, keys, arguments), self._options.lease):
            raise WorkerLost("it was given to another worker meanwhile")

    # Signs of life.

    def _promote(self) -> float:
        """Put what is due into its queue; seconds until more is."""
        left = [each for each in map(self._records.promote, self.queues) if each >= 0]
        return min(left, default=math.inf)

    @property
    def key(self) -> str:
        """Of its record, whose presence says that it lives."""
        return self._keys[0]

    @staticmethod
    def keep_alive(workers: Sequence[RqWorker], beaten: Callable[[], object] = lambda: None) -> None:
        """Beat for all these workers, look after others who serve the same queues, put what is due into them,
        and pass on cancellations, until all of them are done; `beaten` hears of each beat."""
        options, client = workers[0]._options, workers[0]._client
        of_different_queues = {tuple(worker.queues): worker for worker in workers}.values()
        inboxes = [worker._inbox for worker in workers]
        waited = [*inboxes, *(each for worker in of_different_queues for each in worker._later)]

        def step() -> None:
            for worker in workers:
                worker.beat_if_due()
            beaten()
            seconds = min(options.beat, BLOCK)
            for worker in of_different_queues:
                worker._recovery.mind_others()
                seconds = min(seconds, worker._promote())
            with workers[0]._records.mending(*waited):
                rung = client.blpop(waited, timeout=max(0.001, seconds))  # 0 means for ever
            for worker in workers:
                delivery = worker._delivery
                if rung and text(rung[0]) in inboxes and delivery and delivery.claimed.id == text(rung[1]):
                    delivery.cancel()

        check = workers[0]._connections.check
        run_with_reconnect(step, lambda: all(worker._done for worker in workers), lost=check)

    def beat_if_due(self) -> None:
        if time.monotonic() - self._last_beat < self._options.beat:
            return
        with self._signing:
            if not self._done:
                self._beat()

    def _beat(self) -> None:
        claimed, keys = self._claimed, self._keys[:1]
        arguments = [math.ceil(self._options.lease), utcformat(now()), HORIZON]
        if claimed:
            keys += (self._records.started(claimed.queue), job_key(claimed.id))
            arguments += [claimed.id, self.name, EXECUTIONS]
        if not self._records.run(scripts.BEAT, keys, arguments):
            self._register()
        self._last_beat = time.monotonic()

    def _register(self) -> None:
        """Enter this worker into rq's records, for the first time or after they expired."""
        held = self._claimed.id if self._claimed else None
        try:
            self._records.sign_on(self.name, self.queues, math.ceil(self._options.lease), held)
        finally:  # it may have been entered, though its answer was lost
            self._forgot = True

    def _remember(self) -> None:
        """Put back what was claimed for this worker with an answer that never arrived."""
        self._forgot = False
        try:
            for queue, id, worker in self._recovery.started():
                if worker == self.name:
                    self._recovery.recover(queue, id, worker, force=True, died=False)
        except BaseException:
            self._forgot = True
            raise

    def _leave(self) -> None:
        with translated_or_logged():
            self._records.sign_off(self.name, self.queues, self._own_bell, self._inbox)

    def hand_back(self) -> None:
        """Give back the job that is still running here, at once. Raises BackendUnavailable."""
        if claimed := self._claimed:
            name = self.name
            self._recovery.recover(claimed.queue, claimed.id, name, force=True, died=False, patience=BLOCK)
            self._claimed = None
            self._leave()
