"""rq on Redis: a message is an rq job, visible to `rq info` and to rq's dashboards under its name.

rq keeps the records (jobs, queues, registries, workers); the moves between them are ours (in `lua`), so
that several queues can be served in order of priority without losing the job of a worker that dies. The
worker runs one function, and refuses whatever else it finds in the queue without importing it. Topics,
inboxes and the way back are those of every backend on Redis.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import ceil, inf
from typing import Any

import redis
from rq import Queue
from rq.job import JobStatus

from ...durations import seconds, seconds_or_none
from ...errors import Unsupported
from ...inspection import DeadLetter, Entry, QueueInfo
from ...transport import (
    ATTEMPT,
    DELAY,
    IDEMPOTENCY_KEY,
    ORDER_KEY,
    UNKNOWN,
    Address,
    Handler,
    Message,
    packed,
    unpacked,
)
from .._prefix import PREFIX
from .._retry import patience
from .._serving import DIED, OnChange
from ..features import FEATURES
from ..redis.base import RedisBase
from ..redis.connection import CLOCK_IS_GOOD, milliseconds, persistent, translated, translated_or_logged
from ..redis.keys import digest
from ..redis.servers import servers_of
from ..redis.topics import KEEP_REPLY, RedisReplies, Topics
from . import scripts
from .names import RqNames
from .records import Records, RqOptions, fields_of, job_for, job_key, raw, results_key, text
from .server import RqServer

NO_ANSWER_FROM = {
    JobStatus.FAILED.value: DIED,
    JobStatus.STOPPED.value: "it was stopped",
    JobStatus.CANCELED.value: "it was cancelled",
}

_SPECIAL = {DELAY, IDEMPOTENCY_KEY, ORDER_KEY}
"""Headers of what SEND does not send."""


def perform(*_: Any) -> None:
    """What every job of ours names as its function; `rpc worker` knows what to do instead of calling it."""
    raise RuntimeError("this job is for `rpc worker`, not for a plain `rq worker`")


class PythonRqBackend(RedisBase):
    """rq 2 (from 2.9 on) or 3, on Redis.

    `source` is a `redis.Redis`, of which only the address and the credentials are used, or a URL:
    `rq+redis://`, `rq+rediss://` (TLS), `rq+unix://`. A worker that gives no sign of life for `lease` seconds
    has lost its job, and the job is delivered again, at most `max_deliveries` times. `job_timeout` (seconds)
    ends a handler that runs longer with RpcTimeout: in the worker's main thread, as only there it can be
    interrupted (`@job(time_limit=)` is for any). rq's records of finished and failed jobs are kept for
    `result_ttl` and `failure_ttl` seconds, those of dead letters for a year. What was sent with an
    idempotency key is remembered for `idempotency_window` seconds. Our own keys, and the names of our
    workers, begin with `prefix`, by which applications are told apart that share a server. To rq, our queues
    are called `queue_prefix` (None: the prefix and a dot) and their names, so that a team's own rq workers
    and ours do not meet. Connects at first use.
    """

    features = FEATURES["rq+redis"]
    max_message = 64 * 1024 * 1024

    def __init__(
        self,
        source: redis.Redis | str,
        *,
        lease: float = 10.0,
        max_deliveries: int = 3,
        job_timeout: float | None = None,
        result_ttl: int = 30,
        failure_ttl: int = 60,
        idempotency_window: float = 86400.0,
        prefix: str = PREFIX,
        queue_prefix: str | None = None,
    ) -> None:
        lease, job_timeout = (
            seconds(lease, "lease", least=1),
            seconds_or_none(job_timeout, "job_timeout", above=True),
        )
        result_ttl = ceil(seconds(result_ttl, "result_ttl"))
        failure_ttl = ceil(seconds(failure_ttl, "failure_ttl", least=1))
        if max_deliveries < 1:
            raise ValueError("max_deliveries is at least 1")
        self.names = RqNames(prefix, queue_prefix)
        here = servers_of(source.removeprefix("rq+") if isinstance(source, str) else source)
        if isinstance(source, redis.RedisCluster):
            raise Unsupported("rq needs a single Redis server, not a cluster")
        self.servers, self._client = here, here.client("")
        self._options = RqOptions(lease, max_deliveries, job_timeout, result_ttl, failure_ttl)
        self._window = seconds(idempotency_window, "idempotency_window", above=True)
        self.topics = Topics(here, self.names)
        self._records = Records(here, self.names)
        self._read: deque[str] = deque()
        self._clock = 0.0, -inf
        """What to add to `time.monotonic()` for the clock, or a bit more, in seconds; when it was heard."""

    def __repr__(self) -> str:
        where = self._client.connection_pool.connection_kwargs
        server = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
        return f"<PythonRqBackend {server}/{where.get('db', 0)}>"

    def send(self, to: Address, message: Message) -> None:
        if to.kind != "queue":
            return self._publish(to, message)
        self._enqueue(to, message)

    def request(self, to: Address, message: Message) -> RedisReplies:
        if to.kind != "queue":
            return self.topics.request(to, message)
        self._enqueue(to, message)
        is_kept = IDEMPOTENCY_KEY in message.headers  # others may wait for the same
        return RedisReplies(
            self._client,
            self.names.way_back(message.reply_to or ""),
            id="" if is_kept else message.id,
            lost=partial(self._lost_first, to.name, message) if is_kept else partial(self._lost, message.id),
            withdraw=(lambda: None) if is_kept else partial(self._withdraw, to.name, message.id),
            finished=self._read.append,
        )

    def close(self) -> None:
        if self._read:
            with translated_or_logged():
                self._client.unlink(*self._read)
            self._read.clear()
        self.servers.close()

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> RqServer:
        return RqServer(
            self.servers,
            self._records,
            addresses,
            handler,
            self._options,
            threads=threads,
            on_change=on_change,
            discard=self.discard,
        )

    def queue_info(self, queue: str) -> QueueInfo:
        """How many messages a queue (str) has. Raises BackendUnavailable."""
        return self._records.queue_info(queue)

    def entries(self, queue: str, id: str | None = None) -> Iterator[Entry]:
        """What is scheduled, what waits and what runs in a queue (str); only the one with this id (str), if
        given. Raises BackendUnavailable."""
        return self._records.entries(queue, id)

    def withdraw(self, entry: Entry) -> bool:
        """Take it out of its queue; whoever runs it is told. Raises BackendUnavailable."""
        with translated():
            self._withdraw(entry.queue, entry.id)
        return True

    def keep(self, queue: str, id: str, last: Message, seconds: float) -> None:
        """Keep the last reply to a message that another backend carried. Raises BackendUnavailable."""
        with translated():
            self._client.set(self.names.result(queue, id), packed(last), px=milliseconds(seconds))

    def result(self, queue: str, id: str) -> Message | None:
        """The last reply to a message, if it is kept. Raises BackendUnavailable."""
        with translated():
            frame = self._client.get(self.names.result(queue, id))
            return unpacked(frame) if frame else None

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        """What was given up in this queue (str), the last one first. Raises BackendUnavailable."""
        with translated():
            return self._records.dead_letters(queue)

    def revive(self, letter: DeadLetter) -> bool:
        """Put it back into its queue; a caller that still waits does not get the reply. False if it is not
        there any more. Raises BackendUnavailable."""
        message = unpacked(letter.frame).replace(
            id=letter.id, **dict.fromkeys(("reply-to", "ttl", ATTEMPT, DELAY, IDEMPOTENCY_KEY, UNKNOWN))
        )
        queue = self._records.queue(letter.queue)
        places = (queue.key, Queue.redis_queues_keys, self.names.bell(letter.queue))
        return self._settle(letter, *places, fields=fields_of(job_for(message, queue, self._options)))

    def drop(self, letter: DeadLetter) -> bool:
        """Forget it. False if it is not there any more. Raises BackendUnavailable."""
        return self._settle(letter)

    def _settle(self, letter: DeadLetter, *places: str, fields: Sequence[Any] = ()) -> bool:
        keys = [self._records.failed(letter.queue), job_key(letter.id), results_key(letter.id), *places]
        with translated():
            return bool(self._records.run(scripts.REVIVE, keys, [letter.id, letter.raw, *fields]))

    def _keep(self, subscription: Address, message: Message) -> None:
        """With an id of its own: rq's jobs are known by it, whatever queue they are in."""
        own = digest(f"{message.id} {subscription.group}")[:32]
        self._enqueue(subscription.subscription_queue, message.replace(id=own))

    def discard(self, queue: str, *, only_empty: bool = False) -> None:
        """Delete a queue, with what is in it; or only if that is nothing."""
        self._records.discard(queue, only_empty)

    def _enqueue(self, to: Address, message: Message) -> None:
        queue = self._records.queue(to.name)
        ttl = message.ttl
        fields = fields_of(job_for(message, queue, self._options))
        way_back = []
        if message.reply_to:
            fields += ("rpc_reply_to", message.reply_to)
            way_back = [self.names.way_back(message.reply_to)]
        keys = [job_key(message.id), queue.key, Queue.redis_queues_keys, self.names.bell(to.name)]
        # A queued job outlives its ttl by the 5 s that CLAIM takes off again: else a caller could find it
        # gone before its own time is up.
        arguments = [
            message.id,
            0 if ttl is None else milliseconds(max(ttl, 0) + 5),
            milliseconds((ttl or 0) + KEEP_REPLY),
            self._latest(message),
        ]
        script = scripts.SEND
        if not _SPECIAL.isdisjoint(message.headers):
            script = scripts.SEND_SPECIALLY
            keys += (
                self._records.scheduled(to.name),
                self.names.later(to.name),
                self._once(to.name, message),
            )
            arguments += (*self._special(message), message.reply_to or "")

        def send() -> None:
            began = time.monotonic()
            answered = self._records.run(script, keys + way_back, arguments + fields)
            self._clock = answered / 1000 - began, time.monotonic()

        persistent(send, patience(ttl))
        self._sweep()

    def _latest(self, message: Message) -> int:
        """When its caller will have stopped waiting, though it be still on its way, in milliseconds of Redis'
        clock; 0 if that is not known: then its time begins when it arrives."""
        (ahead, heard), now = self._clock, time.monotonic()
        if not message.reply_to or message.ttl is None or DELAY in message.headers:
            return 0
        if now - heard > CLOCK_IS_GOOD:
            return 0
        return milliseconds(ahead + now + message.ttl)

    def _special(self, message: Message) -> tuple[int, int]:
        """Milliseconds: that it is delayed (-1: it is not), that its key is remembered (0: it has none)."""
        delay = float(message.headers.get(DELAY, 0))
        window = milliseconds(self._window + delay) if IDEMPOTENCY_KEY in message.headers else 0
        return milliseconds(delay) if DELAY in message.headers else -1, window

    def _sweep(self) -> None:
        """Remove ways back that were read to their end. They would expire, but only after a minute."""
        if len(self._read) < 32:
            return
        keys: list[str] = []
        with suppress(IndexError):  # another thread may be faster
            while len(keys) < 32:
                keys.append(self._read.popleft())
        with translated_or_logged():
            if keys:
                self._client.unlink(*keys)

    def _lost(self, id: str) -> str | None:
        status = self._client.hget(raw(job_key(id)), "status")
        if status is None:
            return "Redis no longer has it"
        return NO_ANSWER_FROM.get(status.decode("utf-8", "replace"))

    def _once(self, queue: str, message: Message) -> str:
        return self.names.once(queue, message.headers.get(IDEMPOTENCY_KEY, ""))

    def _lost_first(self, queue: str, message: Message) -> str | None:
        """Why the first message with this key will not be answered; None if it may be."""
        state = self._client.get(self._once(queue, message)) or b""
        return None if state[:1] == b"d" else self._lost(text(state[1:]))

    def is_served(self, queue: str) -> bool:
        """Whether rq knows a worker of this queue (str). Raises BackendUnavailable."""
        with translated():
            return self._records.has_workers(queue)

    def _withdraw(self, queue: str, id: str) -> None:
        keys = [self._records.queue(queue).key, job_key(id), self._records.scheduled(queue)]
        keys.append(self.names.bell(queue))
        self._records.run(scripts.WITHDRAW, keys, [id, self.names.cancels])
