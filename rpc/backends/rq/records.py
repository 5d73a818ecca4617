"""rq's records: their keys, and a message as an rq job, there and back."""

from __future__ import annotations

import base64
import logging
import os
import re
import socket
import time
import traceback
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import msgspec
import redis
from rq import Queue, SimpleWorker, executions, worker_registration
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcparse

from ...errors import SerializationError
from ...inspection import DeadLetter, Entry, QueueInfo
from ...transport import NAME, ORDER_KEY, Message, packed
from ..redis.connection import translated
from ..redis.evaluation import Scripts
from ..redis.inspection import count_of
from ..redis.keys import digest
from ..redis.servers import Servers
from ..redis.topics import mend
from . import scripts
from .names import OF_ONE, RqNames

logger = logging.getLogger(__name__)

PERFORM = "rpc.backends.rq.perform"
LARGEST_JOB = 128 * 1024 * 1024
"""Bytes of a job's data once decompressed: a small one can hide gigabytes."""
BEATS_PER_LEASE = 3
AT_A_TIME = 1000
"""Jobs that are looked at with one round trip."""
LONGEST_TRACE = 64 * 1024
"""Characters of a traceback that are kept, its last ones."""
KEEP_WORKERS = 86400
"""Seconds that it is remembered which workers a queue had, after the last sign of one."""
LONGEST = 10_000
"""Bytes of a reason that are shown."""
_TIME, _ID = re.compile(rb"[0-9]{1,16}"), re.compile(rb"[A-Za-z0-9_-]{1,128}")
KEEP_DEAD = 365 * 86400
"""Seconds that a dead letter is kept: as long as rq keeps its own failed jobs."""


JOBS = Job.redis_job_namespace_prefix
"""What the keys of jobs start with. rq 3 lets the environment decide, by RQ_KEY_PREFIX."""
_SCHEDULED: Any = ScheduledJobRegistry  # which has no types
_SINCE_3 = hasattr(executions, "WORKER_EXECUTIONS_KEY_TEMPLATE")
EXECUTIONS = JOBS.removesuffix("job:") + "execution:" if _SINCE_3 else ""
"""What the keys of executions start with: there rq 3 looks for what a worker is doing. rq 2 looks into the
worker's record, and this is empty."""


def job_key(id: str) -> str:
    """rq's own `Job.key_for` refuses ids that it would not have given; here any may be found in a queue."""
    return f"{JOBS}{id}"


def results_key(id: str) -> str:
    """Where rq looks for how a job ended."""
    return f"{JOBS.removesuffix('job:')}results:{id}"


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
    job_timeout: float | None
    result_ttl: int
    failure_ttl: int

    @property
    def beat(self) -> float:
        return self.lease / BEATS_PER_LEASE


class Records:
    """rq's records, by the names of our queues, and scripts. What others have in rq is left alone: `names`
    says what is ours."""

    def __init__(self, servers: Servers, names: RqNames) -> None:
        self._servers, self._prefix, self.names = servers, names.queues, names
        self.client = servers.client("")
        self._scripts = Scripts()
        self._queues: dict[str, Queue] = {}
        self._kinds = {
            Queue.redis_queue_namespace_prefix: "list",
            StartedJobRegistry("", connection=self.client).key: "zset",
            FinishedJobRegistry("", connection=self.client).key: "zset",
            FailedJobRegistry("", connection=self.client).key: "zset",
            _SCHEDULED("", connection=self.client).key: "zset",
            worker_registration.WORKERS_BY_QUEUE_KEY % names.queues: "set",
            worker_key(names.workers): "hash",
            names.bells: "list",
            names.cancels: "list",
            names.laters: "list",
        }
        """What the keys begin with that nobody else should write to, and their types."""
        self._warned = False

    def run(self, script: str, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        with self.mending(*keys):
            return self._scripts.run(
                self.client, script, [raw(key) for key in keys], [raw(each) for each in arguments]
            )

    @contextmanager
    def mending(self, *keys: str) -> Iterator[None]:
        """If one of these keys of ours is something else, have that make room; the error is raised."""
        try:
            yield
        except redis.ResponseError as error:
            self.mend(error, *keys)
            raise

    def mend(self, error: Exception, *keys: str) -> None:
        """If it says that one of these keys of ours is something else, have that make room."""
        known = self._kinds.items()
        mend(
            self._servers,
            error,
            {key: kind for key in keys for start, kind in known if key.startswith(start)},
        )

    def pass_over(self, id: bytes, queue: str) -> None:
        """Say once that a queue has jobs of others; `id` is that of one, empty if there is none."""
        if id and not self._warned:
            self._warned = True
            logger.warning(
                "rq's queue %s has jobs that are not ours, such as %r: they are left there; give our queues "
                "names of their own (queue_prefix)",
                self.queue(queue).name,
                text(id),
            )

    def queue(self, name: str) -> Queue:
        if name not in self._queues:
            self._queues[name] = Queue(self._prefix + name, connection=self.client, serializer=JSONSerializer)
        return self._queues[name]

    def started(self, queue: str) -> str:
        return StartedJobRegistry(self._prefix + queue, connection=self.client).key

    def finished(self, queue: str) -> str:
        return FinishedJobRegistry(self._prefix + queue, connection=self.client).key

    def failed(self, queue: str) -> str:
        return FailedJobRegistry(self._prefix + queue, connection=self.client).key

    def workers(self, queue: str) -> str:
        """A set: the keys of the records of the workers of this queue."""
        return str(worker_registration.WORKERS_BY_QUEUE_KEY % (self._prefix + queue))

    def scheduled(self, queue: str) -> str:
        return str(_SCHEDULED(self._prefix + queue, connection=self.client).key)

    def _hashes(self, jobs: Iterable[str]) -> Iterator[dict[bytes, bytes]]:
        """What is known of each of these jobs, by its id: {} if it is gone, or something else."""
        left = iter(jobs)
        while some := [*islice(left, AT_A_TIME)]:
            pipe = self.client.pipeline(transaction=False)
            for id in some:
                pipe.hgetall(raw(job_key(id)))
            yield from (each if isinstance(each, dict) else {} for each in pipe.execute(raise_on_error=False))

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        """Of the failed jobs those that were given up, the last one first."""
        ids = self.client.zrevrange(self.failed(queue), 0, -1)
        found = []
        for id, fields in zip(ids, self._hashes(map(text, ids)), strict=True):
            if not _TIME.fullmatch(fields.get(b"rpc_dead", b"")):
                continue
            if not _ID.fullmatch(id):
                continue  # rq would refuse it
            try:
                frame = packed(message_in(fields).replace(deliveries=None))
            except SerializationError:  # it was given up for that
                frame = fields.get(b"data", b"")
            with suppress(SerializationError):
                told = _decompressed(fields.get(b"exc_info", b""))[:LONGEST].decode(errors="replace")
                (why, trace), death = DeadLetter.told(told), fields[b"rpc_dead"]
                found.append(DeadLetter(text(id), queue, int(death) / 1e6, why, frame, death, trace))
        return sorted(found, key=lambda letter: letter.at, reverse=True)

    @translated()
    def entries(self, queue: str, id: str | None) -> Iterator[Entry]:
        """What is scheduled for a queue, what waits in it, and what runs."""
        return iter([*self._entries(queue, id)])

    def _entries(self, queue: str, id: str | None) -> Iterator[Entry]:
        pipe = self.client.pipeline().zrange(self.scheduled(queue), 0, -1, withscores=True)
        pipe.lrange(self.queue(queue).key, 0, -1).zrange(self.started(queue), 0, -1)
        scheduled, waiting, started = pipe.execute()
        firsts = self.client.hgetall(self.names.order(queue))
        pipe = self.client.pipeline(transaction=False)
        for key in firsts:
            if b"" in firsts and key and not key.startswith(b":"):
                pipe.lrange(self.names.line(queue, text(key)), 0, -1)
        waiting += [each for line in pipe.execute() for each in line]
        places: list[tuple[Literal["scheduled", "waiting", "running"], str, str, float | None]]
        places = [("scheduled", text(each), "", due) for each, due in scheduled]
        places += [("waiting", text(each), "", None) for each in waiting]
        places += [("running", *text(each).rpartition(":")[::2], None) for each in started]
        places = [place for place in places if id in (None, place[1])]
        hashes = self._hashes(job for _, job, _, _ in places)
        for (state, job, worker, due), fields in zip(places, hashes, strict=True):
            with suppress(SerializationError):  # it is not one of ours, or has expired
                at = fields.get(b"enqueued_at", b"").decode("ascii", "replace")
                frame = packed(message_in(fields).replace(deliveries=None))
                yield Entry(job, queue, state, frame, due or _time(at), worker, raw(job))

    @translated()
    def queue_info(self, queue: str) -> QueueInfo:
        """How many messages a queue has."""
        key, started = self.queue(queue).key, self.started(queue)
        pipe = self.client.pipeline(transaction=False).llen(key).zcard(started).lindex(key, 0)
        waiting, running, first, scheduled = pipe.zcard(self.scheduled(queue)).execute()
        waiting += count_of(self.client.hget(self.names.order(queue), ""))
        at = self.client.hget(raw(job_key(text(first))), "enqueued_at") if first else None
        alive = filter(self.client.exists, self.client.smembers(self.workers(queue)))
        workers = len({OF_ONE.sub(b"", key) for key in alive})
        sent = _time(at.decode("ascii", "replace")) if at else None
        age = None if sent is None else max(0.0, time.time() - sent)
        return QueueInfo(queue, waiting, running, scheduled, len(self.dead_letters(queue)), workers, age)

    def has_workers(self, queue: str) -> bool:
        ours = worker_key(self.names.workers).encode()
        members = self.client.smembers(self.workers(queue))
        return any(key.startswith(ours) and self.client.exists(key) for key in members)

    def promote(self, queue: str) -> float:
        """Put what is due into its queue; seconds until more is, less than 0 if nothing is scheduled."""
        keys = [self.scheduled(queue), self.queue(queue).key, Queue.redis_queues_keys, self.names.bell(queue)]
        keys.append(self.started(queue))
        return float(self.run(scripts.PROMOTE, keys, [JOBS])) / 1000

    def discard(self, queue: str, only_empty: bool) -> None:
        """Delete a queue, with what is in it and what is scheduled for it; or only if that is nothing."""
        keys = [self.queue(queue).key, Queue.redis_queues_keys, self.scheduled(queue)]
        self.run(scripts.DISCARD, keys, [JOBS, int(only_empty)])

    def sign_on(self, worker: str, queues: Sequence[str], lease: int, held: str | None) -> None:
        """Enter a worker, with the id of the job that it has, for so many seconds: for the first time, or
        after its record expired."""
        entry = SimpleWorker(
            [self.queue(name) for name in queues],
            name=worker,
            connection=redis.Redis(),  # never connected: rq changes the time limits of what it is given
            serializer=JSONSerializer,
            prepare_for_work=False,
        )
        entry.hostname, entry.pid = socket.gethostname(), os.getpid()
        entry.birth_date = entry.last_heartbeat = now()
        fields = {**entry.serialize(), "state": "idle"}
        if held is not None:
            fields |= {"state": "busy", "current_job": held}
        places = [entry.key, SimpleWorker.redis_workers_keys, *map(self.workers, queues)]
        self.run(scripts.SIGN_ON, places, [lease, *(part for field in fields.items() for part in field)])

    def sign_off(self, worker: str, queues: Sequence[str], bell: str, inbox: str) -> None:
        """Forget a worker, and its bell; `keep_alive` waits at the inbox."""
        key = worker_key(worker)
        pipe = self.client.pipeline(transaction=True)
        pipe.srem(SimpleWorker.redis_workers_keys, key)
        for name in queues:
            pipe.srem(self.workers(name), key)
        pipe.delete(key, f"{key}:executions", bell)
        pipe.lpush(inbox, "").pexpire(inbox, 1000)
        pipe.execute()

    def tidy(self, queue: str) -> None:
        """Drop what rq's registries no longer need to know."""
        registry = self.workers(queue)
        with self.mending(registry, self.finished(queue), self.failed(queue)):
            FinishedJobRegistry(self._prefix + queue, connection=self.client).cleanup()
            FailedJobRegistry(self._prefix + queue, connection=self.client).cleanup()
            gone = [key for key in self.client.smembers(registry) if not self.client.exists(key)]
            if gone:
                self.client.srem(registry, *gone)
                self.client.srem(SimpleWorker.redis_workers_keys, *gone)
            self.client.expire(registry, KEEP_WORKERS)


def fields_of(job: Job) -> list[Any]:
    """Names and values, as they are in its hash."""
    fields = {**job.to_dict(), "rpc_queue": job.origin}
    key = job.args[0].get(ORDER_KEY)
    if key is not None:
        fields["rpc_order"] = digest(key)[:32]
    return [part for field in fields.items() for part in field]


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


def _time(stamp: str) -> float | None:
    try:
        return utcparse(stamp).timestamp()
    except ValueError:
        return None


def exc_string(why: str, error: BaseException | None = None) -> str:
    """What rq's dashboards show of a failed job, as the `exc_string` of an rq result."""
    text = "".join(traceback.format_exception(error)) if error else why
    return base64.b64encode(zlib.compress(text[-LONGEST_TRACE:].encode(errors="replace"))).decode()


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
        raise SerializationError(f"its body is not {encoding[:16]!r}: {error}") from None
    return Message(content, {**headers, "deliveries": deliveries})
