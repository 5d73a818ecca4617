"""rq's records: their keys, and a message as an rq job, there and back."""

from __future__ import annotations

import base64
import os
import re
import socket
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
from rq import Queue, SimpleWorker, executions, worker_registration
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now

from ...errors import SerializationError
from ...transport import NAME, DeadLetter, Message, packed
from . import scripts

PERFORM = "rpc.backends.rq.perform"
LARGEST_JOB = 128 * 1024 * 1024
"""Bytes of a job's data once decompressed: a small one can hide gigabytes."""
BEATS_PER_LEASE = 3
LONGEST = 2000
"""Bytes of a reason that are shown."""
_TIME, _ID = re.compile(rb"[0-9]{1,16}"), re.compile(rb"[A-Za-z0-9_-]{1,128}")
KEEP_DEAD = 365 * 86400
"""Seconds that a dead letter is kept: as long as rq keeps its own failed jobs."""


JOBS = Job.redis_job_namespace_prefix
"""What the keys of jobs start with. rq 3 lets the environment decide, by RQ_KEY_PREFIX."""
_SINCE_3 = hasattr(executions, "WORKER_EXECUTIONS_KEY_TEMPLATE")
EXECUTIONS = JOBS.removesuffix("job:") + "execution:" if _SINCE_3 else ""
"""What the keys of executions start with: there rq 3 looks for what a worker is doing. rq 2 looks into the
worker's record, and this is empty."""


def job_key(id: str) -> str:
    """rq's own `Job.key_for` refuses ids that it would not have given; here any may be found in a queue."""
    return f"{JOBS}{id}"


def worker_key(name: str) -> str:
    return f"{SimpleWorker.redis_worker_namespace_prefix}{name}"


def text(id: bytes) -> str:
    """An id as it was found in a queue: any bytes. `raw` gives them back."""
    return id.decode("utf-8", "surrogateescape")


def raw(value: Any) -> Any:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class RqOptions:
    """What PythonRqBackend was told. Times are in seconds."""

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
        return registered([raw(key) for key in keys], [raw(each) for each in arguments])

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

    def scheduled(self, queue: str) -> str:
        registry: Any = ScheduledJobRegistry
        return str(registry(queue, connection=self.client).key)

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        """Of the failed jobs those that were given up, the last one first."""
        ids = self.client.zrevrange(self.failed(queue), 0, -1)
        pipe = self.client.pipeline(transaction=False)
        for id in ids:
            pipe.hgetall(raw(job_key(text(id))))
        found = []
        for id, fields in zip(ids, pipe.execute(raise_on_error=False), strict=True):
            if not isinstance(fields, dict) or not _TIME.fullmatch(fields.get(b"rpc_dead", b"")):
                continue
            if not _ID.fullmatch(id):
                continue  # rq would refuse it
            with suppress(SerializationError):  # it is not one of ours
                frame = packed(message_in(fields).replace(deliveries=None))
                why = _decompressed(fields.get(b"exc_info", b""))[:LONGEST].decode(errors="replace")
                found.append(DeadLetter(text(id), queue, int(fields[b"rpc_dead"]) / 1e6, why, frame, id))
        return sorted(found, key=lambda letter: letter.at, reverse=True)

    def bell(self, queue: str) -> str:
        """Where a sender rings, and idle workers wait: a list whose loss, or whose surplus, does no harm."""
        return f"rpc:bell:{queue}"

    def later(self, queue: str) -> str:
        """The same for those who look when scheduled jobs are due."""
        return f"rpc:later:{queue}"

    def has_workers(self, queue: str) -> bool:
        return any(self.client.exists(key) for key in worker_registration.get_keys(self.queue(queue)))

    def promote(self, queue: str) -> float:
        """Put what is due into its queue; seconds until more is, less than 0 if nothing is scheduled."""
        keys = [self.scheduled(queue), self.queue(queue).key, Queue.redis_queues_keys, self.bell(queue)]
        return float(self.run(scripts.PROMOTE, keys, [JOBS])) / 1000

    def discard(self, queue: str) -> None:
        """Delete a queue, with what is in it and what is scheduled for it."""
        self.queue(queue).delete(delete_jobs=True)
        ids = self.client.zrange(self.scheduled(queue), 0, -1)
        self.client.delete(self.scheduled(queue), *(raw(job_key(text(id))) for id in ids))

    def sign_on(self, worker: str, queues: Sequence[str], lease: int, held: str | None) -> None:
        """Enter a worker, with the id of the job that it has, for so many seconds."""
        entry = SimpleWorker(
            [self.queue(name) for name in queues],
            name=worker,
            connection=redis.Redis(),  # never connected: rq changes the time limits of what it is given
            serializer=JSONSerializer,
            prepare_for_work=False,
        )
        entry.hostname, entry.pid = socket.gethostname(), os.getpid()
        entry.birth_date = entry.last_heartbeat = now()
        pipe = self.client.pipeline(transaction=True)
        pipe.hset(entry.key, mapping={**entry.serialize(), "state": "idle"})
        if held is not None:
            pipe.hset(entry.key, mapping={"state": "busy", "current_job": raw(held)})
        worker_registration.register(entry, pipe)
        pipe.expire(entry.key, lease)
        pipe.execute()

    def sign_off(self, worker: str, queues: Sequence[str]) -> None:
        """Forget a worker."""
        key = worker_key(worker)
        pipe = self.client.pipeline(transaction=True)
        pipe.srem(SimpleWorker.redis_workers_keys, key)
        for name in queues:
            pipe.srem(worker_registration.WORKERS_BY_QUEUE_KEY % name, key)
        pipe.delete(key, f"{key}:executions")
        pipe.execute()

    def tidy(self, queue: str) -> None:
        """Drop what rq's registries no longer need to know."""
        FinishedJobRegistry(queue, connection=self.client).cleanup()
        FailedJobRegistry(queue, connection=self.client).cleanup()
        worker_registration.clean_worker_registry(self.queue(queue))


def fields_of(job: Job) -> list[Any]:
    """Names and values, as they are in its hash."""
    return [part for field in job.to_dict().items() for part in field]


def job_for(message: Message, queue: Queue, options: RqOptions) -> Job:
    """The rq job that carries a message."""
    try:
        body, encoding = message.body.decode(), "utf-8"
    except UnicodeDecodeError:
        body, encoding = base64.b64encode(message.body).decode(), "base64"
    job = Job.create(
        PERFORM,
        args=[dict(message.headers), body, encoding],
        id=message.id,
        origin=queue.name,
        description=message.headers.get(NAME, message.id),
        connection=queue.connection,
        serializer=JSONSerializer,
        timeout=-1 if options.job_timeout is None else max(1, round(options.job_timeout)),
        result_ttl=options.result_ttl,
        failure_ttl=options.failure_ttl,
        status=JobStatus.QUEUED,
    )
    job.enqueued_at = now()
    job.retries_left = options.max_deliveries - 1 or None  # for rq's own tools, if one finds it abandoned
    return job


def _decompressed(data: bytes) -> bytes:
    with suppress(zlib.error):  # rq itself takes what it cannot decompress as it is
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(data, LARGEST_JOB)
        if decompressor.unconsumed_tail:
            raise SerializationError(f"its data has more than {LARGEST_JOB} bytes")
    return data


_decode_data = msgspec.json.Decoder(tuple[str, None, tuple[dict[str, str], str, str], dict[str, None]]).decode


def message_in(fields: dict[bytes, bytes]) -> Message:
    """The message in a job's hash. SerializationError for any other job: nothing but the name of its
    function is looked at, and nothing is imported."""
    try:
        function, _, (headers, body, encoding), _ = _decode_data(_decompressed(fields.get(b"data", b"")))
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
