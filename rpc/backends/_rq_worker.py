"""An rq worker whose loop is ours: it claims, performs and finishes, and minds those that died.

A process has one `RqWorker` for each job that it may run at a time; each is a worker of its own to rq.
Liveness is the TTL of the worker's record, which Redis counts: no clock of a worker is ever compared.
"""

from __future__ import annotations

import base64
import logging
import math
import os
import select
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec
from rq import Queue, SimpleWorker, worker_registration
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from ..errors import BackendUnavailable, RpcTimeout, SerializationError
from ..message import FAILED, LOST, Handler, Message, packed
from . import _rq_scripts as scripts
from .redis import BLOCK, KEEP_REPLY, milliseconds, persistent, reply_key, steadily, translated

logger = logging.getLogger(__name__)

PERFORM = "rpc.backends._rq_worker.perform"
WORKER_PREFIX = "rpc-"
HORIZON = 3600
"""Seconds from the last sign of life after which rq itself takes a job for abandoned. Ours does much sooner,
by the lease; rq compares wall clocks, so this is also how wrong a clock may be."""
LARGEST_JOB = 128 * 1024 * 1024
"""Bytes of a job's data once decompressed: a small one can hide gigabytes."""
BEATS_PER_LEASE = 3
TIDY_EVERY = 30.0


def perform(*_: Any) -> None:
    """What every job of ours names as its function. It is performed by `rpc worker` alone."""
    raise RuntimeError("this job is for `rpc worker`, not for a plain `rq worker`")


@dataclass(frozen=True, slots=True)
class RqWorkerOptions:
    lease: float
    max_deliveries: int
    fork: bool
    job_timeout: float | None
    result_ttl: int
    failure_ttl: int

    @property
    def beat(self) -> float:
        return self.lease / BEATS_PER_LEASE


class Records:
    """rq's records, by name, and scripts by their text."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._scripts: dict[str, Any] = {}
        self._queues: dict[str, Queue] = {}

    def run(self, script: str, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self.client.register_script(script)
        return registered(keys, arguments)

    def queue(self, name: str) -> Queue:
        if name not in self._queues:
            self._queues[name] = Queue(name, connection=self.client, serializer=JSONSerializer)
        return self._queues[name]

    def started(self, queue: str) -> str:
        return StartedJobRegistry(queue, connection=self.client).key

    def finished(self, queue: str) -> str:
        return FinishedJobRegistry(queue, connection=self.client).key

    def failed(self, queue: str) -> str:
        return FailedJobRegistry(queue, connection=self.client).key

    def bell(self, queue: str) -> str:
        """Where a sender rings, and idle workers wait: a list whose loss, or whose surplus, does no harm."""
        return f"rpc:bell:{queue}"

    def has_workers(self, queue: str) -> bool:
        return any(self.client.exists(key) for key in worker_registration.get_keys(self.queue(queue)))

    def tidy(self, queue: str) -> None:
        """Drop what rq's registries no longer need to know."""
        FinishedJobRegistry(queue, connection=self.client).cleanup()
        FailedJobRegistry(queue, connection=self.client).cleanup()
        worker_registration.clean_worker_registry(self.queue(queue))


@dataclass(slots=True)
class Claimed:
    """A job in a worker's hands."""

    queue: str
    id: str
    reply_to: str | None = None


class RqDelivery:
    def __init__(self, worker: RqWorker, claimed: Claimed, message: Message) -> None:
        self._worker, self.claimed, self.message = worker, claimed, message
        self.cancelled = False
        self.on_cancel: Callable[[], object] | None = None
        self.number = 1
        """Of the next reply: a reply that is there already, from an earlier delivery, is not sent again."""

    def reply(self, message: Message) -> bool:
        if self.claimed.reply_to is None:
            return False
        sent = self._worker.send_reply(self.claimed, message, self.number)
        self.number += 1
        return sent

    def forbid_redelivery(self) -> None:
        self._worker.forbid_redelivery(self.claimed)

    def cancel(self) -> None:
        self.cancelled = True
        if self.on_cancel:
            self.on_cancel()


class RqWorker:
    """Claims jobs of its queues one at a time, until stopped."""

    def __init__(
        self,
        records: Records,
        queues: Sequence[str],
        handler: Handler,
        options: RqWorkerOptions,
        stopped: Callable[[], bool],
    ) -> None:
        self._records, self._queues, self._handler = records, queues, handler
        self._options, self._stopped = options, stopped
        self._client = records.client
        self.name = WORKER_PREFIX + uuid4().hex
        self._owner = self.name
        self._claimed: Claimed | None = None
        self._delivery: RqDelivery | None = None
        self._done = False
        self._last_beat = self._last_tidy = 0.0
        self._absent: dict[tuple[str, str], float] = {}
        self._keys = [f"rq:worker:{self.name}"]
        for name in queues:
            self._keys += (records.queue(name).key, records.started(name), records.bell(name))

    def work(self) -> None:
        """Claim and perform until stopped, through whatever happens to Redis meanwhile."""
        try:
            steadily(self._step, self._stopped)
        finally:
            self._done = True
            self._leave()

    def _step(self) -> None:
        if self._options.fork or not self._last_beat:
            self.beat_if_due()
        claim = self._records.run(
            scripts.CLAIM, self._keys, [self.name, self._owner, HORIZON, utcformat(now())]
        )
        if claim == 0:
            self._register()
        elif claim is None:
            if self._client.blpop(self._keys[3::3], timeout=BLOCK) and self._stopped():
                self._client.lpush(self._keys[3], 1)  # it was meant for a worker that goes on
        else:
            self._take(*claim)

    def _take(self, number: int, id: bytes, left: int, hash: list[bytes]) -> None:
        fields = dict(zip(hash[::2], hash[1::2], strict=True))
        claimed = self._claimed = Claimed(self._queues[number], id.decode("utf-8", "replace"))
        try:
            message = _message(fields)
            claimed.reply_to = message.reply_to
            if left >= 0:
                message = message.but(ttl=left / 1000)
        except SerializationError as error:
            if hash:
                logger.error("refused rq job %r in queue %r: %s", claimed.id, claimed.queue, error)
            self._finish(claimed, None, 1, failed=f"refused: {error}")
            return
        delivery = self._delivery = RqDelivery(self, claimed, message)
        if self._options.fork:
            self._perform_in_child(delivery)
        else:
            self._perform(delivery)

    def _perform(self, delivery: RqDelivery) -> None:
        try:
            with _interrupted_after(self._options.job_timeout):
                last = self._handler(delivery)
        except Exception:
            logger.exception("a handler raised: %r", delivery.message)
            last = Message(
                headers={"id": delivery.message.id, LOST: "its handler failed", FAILED: "Exception"}
            )
        failed = "" if last is None else last.headers.get(FAILED, "")
        self._finish(delivery.claimed, last, delivery.number, failed)

    def _finish(self, claimed: Claimed, last: Message | None, number: int, failed: str) -> None:
        options, records = self._options, self._records
        registry = records.failed(claimed.queue) if failed else records.finished(claimed.queue)
        keys = [
            records.started(claimed.queue),
            self._keys[0],
            Job.key_for(claimed.id) if claimed.id else "rq:job:",
            registry,
            reply_key(claimed.reply_to or ""),
        ]
        arguments = [
            claimed.id,
            self.name,
            (JobStatus.FAILED if failed else JobStatus.FINISHED).value,
            utcformat(now()),
            options.failure_ttl if failed else options.result_ttl,
            zlib.compress(failed.encode()) if failed else b"",
            packed(last) if last is not None and claimed.reply_to else b"",
            number,
            milliseconds(KEEP_REPLY),
        ]
        done = persistent(lambda: records.run(scripts.FINISH, keys, arguments), math.inf)
        self._claimed = self._delivery = None
        if not done:
            logger.warning("%r was given to another worker before it was finished", claimed.id)

    def send_reply(self, claimed: Claimed, message: Message, number: int) -> bool:
        keys = [self._records.started(claimed.queue), reply_key(claimed.reply_to or "")]
        arguments = [claimed.id, self.name, packed(message), number, milliseconds(KEEP_REPLY)]
        return bool(
            persistent(lambda: self._records.run(scripts.REPLY, keys, arguments), self._options.lease)
        )

    def forbid_redelivery(self, claimed: Claimed) -> None:
        def forbid() -> None:
            pipe = self._client.pipeline(transaction=True)
            pipe.hset(Job.key_for(claimed.id), "rpc_once", 1)
            pipe.hdel(Job.key_for(claimed.id), "retries_left")
            pipe.execute()

        persistent(forbid, self._options.lease)

    # A child for each job.

    def _perform_in_child(self, delivery: RqDelivery) -> None:
        """The child holds the writing end of a pipe, and says nothing: its end is the news."""
        alive, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(alive)
            os._exit(self._child(delivery))
        os.close(held)
        deadline = time.monotonic() + (self._options.job_timeout or math.inf) + self._options.lease
        status = None
        while status is None:
            with translated_or_logged():
                self.beat_if_due()
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)  # it does not even let go of the interpreter
            select.select([alive], [], [], min(self._options.beat, BLOCK))
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
        os.close(alive)
        if status != 0:
            logger.error("the process of %r ended with status %d", delivery.claimed.id, status)
            self._recover(delivery.claimed.queue, delivery.claimed.id, self.name, force=True, died=True)
        self._claimed = self._delivery = None

    def _child(self, delivery: RqDelivery) -> int:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent decides; the group may get it too
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._owner = f"{self.name}-{os.getpid()}"
            self._client.hset(Job.key_for(delivery.claimed.id), "rpc_owner", self._owner)
            threading.Thread(target=RqWorker.keep_alive, args=[[self]], daemon=True).start()
            self._perform(delivery)
        except Exception:
            logger.exception("the process of %r failed", delivery.claimed.id)
            return 1
        return 0

    # Signs of life.

    @staticmethod
    def keep_alive(workers: Sequence[RqWorker]) -> None:
        """Beat for all workers of this process, and pass on cancellations, until all of them are done."""
        options, client = workers[0]._options, workers[0]._client
        inboxes = [f"rpc:cancel:{worker._owner}" for worker in workers]

        def step() -> None:
            for worker in workers:
                worker.beat_if_due()
            cancelled = client.blpop(inboxes, timeout=min(options.beat, BLOCK))
            for worker in workers:
                delivery = worker._delivery
                if cancelled and delivery and delivery.claimed.id == cancelled[1].decode("utf-8", "replace"):
                    delivery.cancel()

        steadily(step, lambda: all(worker._done for worker in workers))

    def beat_if_due(self) -> None:
        if self._done or time.monotonic() - self._last_beat < self._options.beat:
            return
        claimed, keys = self._claimed, self._keys[:1]
        arguments = [math.ceil(self._options.lease), utcformat(now()), HORIZON]
        if claimed:
            keys += (self._records.started(claimed.queue), Job.key_for(claimed.id))
            arguments += [claimed.id, self.name]
        if not self._records.run(scripts.BEAT, keys, arguments):
            self._register()
        self._last_beat = time.monotonic()
        self._mind_others()

    def _register(self) -> None:
        """Enter this worker into rq's records, for the first time or after they expired."""
        entry = SimpleWorker(
            [self._records.queue(name) for name in self._queues],
            name=self.name,
            connection=self._client,
            serializer=JSONSerializer,
            prepare_for_work=False,
        )
        entry.hostname, entry.pid = socket.gethostname(), os.getpid()
        entry.birth_date = entry.last_heartbeat = now()
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(entry.key, mapping={**entry.serialize(), "state": "idle"})
        if claimed := self._claimed:
            pipe.hset(entry.key, mapping={"state": "busy", "current_job": claimed.id})
        worker_registration.register(entry, pipe)
        pipe.expire(entry.key, math.ceil(self._options.lease))
        pipe.execute()

    def _leave(self) -> None:
        try:
            with translated():
                pipe = self._client.pipeline(transaction=True)
                pipe.srem(SimpleWorker.redis_workers_keys, self._keys[0])
                for name in self._queues:
                    pipe.srem(worker_registration.WORKERS_BY_QUEUE_KEY % name, self._keys[0])
                pipe.delete(self._keys[0])
                pipe.execute()
        except BackendUnavailable as error:
            logger.warning("worker %s could not sign off: %s", self.name, error)

    # Those that died.

    def _mind_others(self) -> None:
        """Recover the jobs of workers that were absent at two looks, a beat or more apart. What happens in
        between (Redis away, this process stopped) makes a look worthless: it starts anew."""
        now_ = time.monotonic()
        absent = {}
        for queue in self._queues:
            for member in self._client.zrange(self._records.started(queue), 0, -1):
                id, _, worker = member.decode("utf-8", "replace").rpartition(":")
                if not worker.startswith(WORKER_PREFIX) or self._client.exists(f"rq:worker:{worker}"):
                    continue
                first = absent[queue, member] = self._absent.get((queue, member), now_)
                if now_ - first >= self._options.beat:
                    self._recover(queue, id, worker, force=False, died=True)
        self._absent = absent
        if now_ - self._last_tidy > TIDY_EVERY:
            self._last_tidy = now_
            for queue in self._queues:
                self._records.tidy(queue)

    def _recover(self, queue: str, id: str, worker: str, *, force: bool, died: bool) -> None:
        records, options = self._records, self._options
        why = "its worker died; it is not delivered again" if died else "its worker was stopped"
        keys = [
            records.started(queue),
            f"rq:worker:{worker}",
            Job.key_for(id),
            records.queue(queue).key,
            records.bell(queue),
            records.failed(queue),
        ]
        arguments = [
            id,
            worker,
            int(force),
            int(died),
            options.max_deliveries,
            options.failure_ttl,
            zlib.compress(why.encode()),
            packed(Message(headers={"id": id, LOST: why, FAILED: "WorkerLost"})),
            milliseconds(KEEP_REPLY),
        ]
        outcome = persistent(lambda: records.run(scripts.RECOVER, keys, arguments), options.lease)
        if outcome:
            what = "is delivered again" if outcome == 1 else "is given up"
            logger.warning(
                "worker %s %s job %r, which %s", worker, "died with" if died else "gives back", id, what
            )

    def hand_back(self) -> None:
        """Give back the job that is still running here, at once."""
        if claimed := self._claimed:
            with translated_or_logged():
                self._recover(claimed.queue, claimed.id, self.name, force=True, died=False)
            self._claimed = None
            self._leave()


@contextmanager
def translated_or_logged() -> Iterator[None]:
    try:
        with translated():
            yield
    except BackendUnavailable as error:
        logger.warning("%s", error)


@contextmanager
def _interrupted_after(seconds: float | None) -> Iterator[None]:
    """Raise RpcTimeout in the body after so many seconds, where a signal can do that: in the main thread."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise RpcTimeout(f"the job ran longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_decode_data = msgspec.json.Decoder(tuple[str, None, tuple[dict[str, str], str, str], dict[str, None]]).decode


def _message(fields: dict[bytes, bytes]) -> Message:
    """The message in a job's hash. SerializationError for any other job: nothing but the name of its
    function is looked at, and nothing is imported."""
    data = fields.get(b"data", b"")
    with suppress(zlib.error):  # rq itself takes what it cannot decompress as it is
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(data, LARGEST_JOB)
        if decompressor.unconsumed_tail:
            raise SerializationError(f"its data has more than {LARGEST_JOB} bytes")
    try:
        function, _, (headers, body, encoding), _ = _decode_data(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SerializationError(f"not a job of ours: {error}") from None
    if function != PERFORM:
        raise SerializationError(f"it asks for {function[:128]!r}: only {PERFORM} is performed")
    deliveries = fields.get(b"rpc_deliveries", b"1").decode("ascii", "replace")
    try:
        content = base64.b64decode(body, validate=True) if encoding == "base64" else body.encode()
    except ValueError as error:
        raise SerializationError(f"its body is not {encoding[:16]}: {error}") from None
    return Message(content, {**headers, "deliveries": deliveries})
