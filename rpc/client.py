"""The caller's shell: it sends, and it waits. What is said and what it means is in `core`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from .aio import answer, value
from .backends import asynchronous
from .backends._retry import sent_within
from .caller import AS_SET, REASON, Caller, Key, Pause
from .core.jobs import Response, current_request
from .describe import Gathering, WorkerInfo
from .durations import Duration, seconds
from .errors import NoReceivers, QueueFull, RpcTimeout
from .inspection import QueueInfo
from .job_info import JobInfo, ListedState
from .loops import LoopThread
from .pending import OnProgress, PendingCall, Told
from .proxies import Services
from .streams.iterators import Stream, Uploadable
from .transport import STREAM, Address, Backend, Message

T = TypeVar("T")


class RpcClient(Caller):
    """Calls jobs by name. Safe to share between threads, and to use after a fork.

    Without `backend`, everything that is not given comes from the settings module (see `rpc.settings`);
    `settings` names another one, or is one. `backend` is a backend or its URL, `timeout` the seconds a call
    waits (None: without end), `queue` where calls go, `codec` the name of one ("json", "msgpack",
    "json+types"; see `rpc.codecs`), `compress` how large bodies are made smaller ("gzip", "zstd", with a size
    from which on they are: "gzip:16kB"), `max_message_bytes` the largest request, and reply, `when_full` what
    to do when a bounded queue has no room: "raise" QueueFull, or "wait" for as long as the call may take
    (`call`: as `timeout` says). Raises SettingsError if there is no usable setting; connects at the first
    call.
    """

    def _begin(self) -> None:
        self._submits = Submits(self.backend)

    def call(
        self,
        name: str,
        data: Any = None,
        *,
        queue: str | None = None,
        ttl: Duration | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        idempotency_key: Key | None = None,
        keep: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send a job and do not wait: the id of the request. Returns once the broker has it.

        `data` is a dict or a list; `ttl` is the seconds after which it is no longer wanted (None: it waits
        as long as it must). It is done after `delay` seconds, or `at` a time (one without a zone is local).
        Of the calls of this job with one `idempotency_key` (a str, an int or a UUID), only the first is done.
        Its outcome is kept for `keep` seconds after its end, for `job()`. Raises SerializationError before
        anything is sent, ValueError, QueueFull, Unsupported by this backend, and BackendUnavailable when the
        broker cannot be had for 5 seconds, or the client's `timeout` if that is less.
        """

        about = name, data, ttl, delay, at, idempotency_key, keep, headers
        return self._send(lambda: self._job(*about), self.to(name, queue))

    def call_and_wait(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        idempotency_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Response:
        """Send a job and wait for its response.

        `data` is a dict or a list; `timeout` is in seconds (None: without end); `headers` are texts, of the
        trace (`traceparent`, `tracestate`, `baggage`) or the application's own (`x-…`). Of calls of this job
        with one `idempotency_key` (a str, an int or a UUID), only the first is done, and all get its
        response. Called by a handler, it is a part of that request: within its time, and with those headers
        of it. Raises ValueError for wrong arguments, RemoteError if the handler raised, MethodNotFound,
        InvalidParams, WorkerLost, SerializationError, RpcTimeout when the time is up, BackendUnavailable,
        QueueFull, Unsupported by this backend. A caller that stops waiting, for whatever reason, withdraws a
        job that has no such key. `on_progress` is called with each `Progress` that the handler tells.
        """
        allowed = self.allowed(timeout)
        pending = PendingCall(self, name, data, allowed, idempotency_key, headers, on_progress, returns)
        return self._with_room(lambda: self._answer(pending, queue), pending.pause)

    def submit(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        idempotency_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Future[Response]:
        """Send a job, and return a future of its response. Errors as in `call_and_wait`: those of the data
        are raised here, the others by the future. `cancel()` withdraws the job until it is answered. However
        many wait, one thread minds them; it is that which calls `on_progress`. The future's attribute
        `progress` is the last `Progress` that the handler has told (None: none yet)."""
        told = Told(on_progress)
        options: dict[str, Any] = {"idempotency_key": idempotency_key, "headers": headers, "returns": returns}
        future = self._submit(answer, name, data, timeout=timeout, queue=queue, on_progress=told, **options)
        return told.by(future)

    def invoke(self, name: str, data: Any, **options: Any) -> Any:
        """The value that `call_and_wait` responds with: for proxies."""
        return self.call_and_wait(name, data, **options).data

    def invoke_soon(self, name: str, data: Any, **options: Any) -> Future[Any]:
        """A future of it."""
        return self._submit(value, name, data, **options)

    def known(self) -> list[WorkerInfo]:
        """What can be said at once of the workers that run now."""
        return self.describe()

    def map(
        self,
        name: str,
        iterable: Iterable[Any],
        *,
        window: int = 100,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        returns: Any = None,
    ) -> Iterator[Response]:
        """The responses to a job called with each item as its data, in order. At most `window` of them are
        under way, and no more are taken from the iterable. `timeout`, in seconds, is for each, as
        `returns` is. Errors are as
        in `call_and_wait`: the first one ends it, and what is under way is withdrawn."""
        under_way: deque[Future[Response]] = deque()
        try:
            for item in iterable:
                under_way.append(self.submit(name, item, timeout=timeout, queue=queue, returns=returns))
                if len(under_way) >= window:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def stream(
        self,
        name: str,
        data: Any = None,
        *,
        window: int = 1,
        items: Uploadable | None = None,
        resume: bool = False,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Stream:
        """The items that a generator handler yields, one after the other, as a generator.

        Its body begins at the first `next()`. With `window=1` it never runs ahead, and takes part in `send()`
        and `throw()`; with more, so many items are on their way, which is many times faster. `items` are
        uploaded: the handler finds them in `request.items`. Of a handler that returns, `value` (that of
        StopIteration) is what it returned. `close()`, `with`, or to forget it, closes the generator there.
        A worker must begin it within `timeout` seconds (None: at any time); after that it goes on for as long
        as both sides live. If the worker dies, WorkerLost is raised; with `resume`, another one goes on,
        whose handler finds in `request.resume_from` how many items there were. Raises ValueError and
        SerializationError at once, the other errors of `call_and_wait` and StreamBroken as it goes on.
        """
        options: dict[str, Any] = {"timeout": timeout, "queue": queue, "headers": headers, "items": items}
        where = self._submits.run, self, self._submits.backend
        return Stream(*where, name, data, window=window, resume=resume, **options)

    def publish(self, event: str, data: Any = None, *, headers: Mapping[str, str] | None = None) -> str:
        """Tell all who listen to an event (see `on`); the id of the event. Returns once the broker has it:
        that nobody listens is no error.

        `data` is a dict or a list, `headers` are texts, by names that the listeners know. Raises ValueError,
        SerializationError before anything is sent, BackendUnavailable, Unsupported by this backend.
        """
        to, message = self._event(event, data, headers)
        sent_within(self.allowed(AS_SET), lambda: self.backend.send(to, message))
        return message.id

    def job(self, id: str, *, queue: str | None = None) -> JobInfo:
        """What is known of a job by its id: `state`, `result`, why it failed; see `JobInfo`. It is looked for
        in `queue`, else in all that this client knows. Raises BackendUnavailable, Unsupported."""
        return self._inspector.job(id, queue)

    def jobs(
        self, *, queue: str | None = None, state: ListedState | None = None, name: str | None = None
    ) -> list[JobInfo]:
        """The jobs that are scheduled, wait, run or are dead letters: of one queue, in one state, of one
        name. Raises ValueError, BackendUnavailable, Unsupported."""
        return [*self._inspector.jobs(queue, state, name)]

    def queues(self) -> list[QueueInfo]:
        """How many jobs wait, run, are scheduled and dead in each queue that this client knows: those of the
        settings, and its own. Raises BackendUnavailable, Unsupported."""
        return self._inspector.queues()

    def cancel(self, id: str, *, queue: str | None = None) -> bool:
        """`JobInfo.cancel` of the job with this id, wherever it was sent from."""
        return self._inspector.job(id, queue).cancel()

    def retry(self, id: str, *, queue: str | None = None) -> bool:
        """`JobInfo.retry` of the job with this id."""
        return self._inspector.job(id, queue).retry()

    @property
    def services(self) -> Services:
        """What services expose, to be called like functions: `client.services.example.foo(1, key=2)`."""
        return Services(self)

    def describe(self, *, wait: Duration = 0.5) -> list[WorkerInfo]:
        """What the workers that run now offer, as told by those that answer within `wait` seconds. Raises
        BackendUnavailable, Unsupported by this backend."""
        wait = seconds(wait, "wait")
        gathered, end = Gathering(), time.monotonic() + wait
        asked = self._describing(wait)
        with suppress(RpcTimeout, NoReceivers), closing(self.backend.request(*asked)) as replies:
            while True:
                gathered.add(replies.receive(max(0.0, end - time.monotonic())))
        return gathered.workers

    def close(self) -> None:
        """Cancel the submitted calls that are not answered, and give back connections. Idempotent."""
        self._submits.close()
        self._store.close()
        if self._owns_backend:
            self.backend.close()

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self,
        what: Callable[..., Coroutine[Any, Any, T]],
        name: str,
        data: Any,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        idempotency_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Future[T]:
        """A future of `what`: `answer`, or `value`."""
        allowed = self.allowed(timeout)
        pending = PendingCall(self, name, data, allowed, idempotency_key, headers, on_progress, returns)
        where = self._submits.backend, self.to(name, queue)
        return self._submits.run(what(*where, pending))

    def _send(self, make: Callable[[], Message], to: Address) -> str:
        """Send the message that is made when there may be room for it; its id."""

        def send() -> str:
            message = make()
            self.backend.send(to, message)
            return message.id

        allowed = self.allowed(AS_SET)
        return self._with_room(lambda: sent_within(allowed, send), self._pausing(allowed))

    def _with_room(self, action: Callable[[], T], pause: Pause) -> T:
        """What the action returns. While there is no room in the queue it is tried again, if this client
        waits for that."""
        attempt = 0
        while True:
            try:
                return action()
            except QueueFull as full:
                time.sleep(pause(attempt, full))
                attempt += 1

    def _answer(self, pending: PendingCall, queue: str | None) -> Response:
        to = self.to(pending.name, queue)
        replies = self.backend.request(to, pending.request)
        try:
            while STREAM in (reply := replies.receive(pending.remaining(time.monotonic()))).headers:
                pending.told(reply)
        except RpcTimeout as late:
            hint = str(late) or _heard(self.reason(to))
            raise pending.timed_out(hint, current_request.get(), to.name) from None
        finally:
            replies.close()
        return pending.feed(reply)


def _heard(reason: Future[str]) -> str:
    wait([reason], REASON)
    return reason.result() if reason.done() else ""


class Submits:
    """The calls that were submitted: they wait in an event loop, in a thread of its own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = asynchronous(backend)
        self._loop = LoopThread("rpc-client")
        self._open: WeakSet[Future[Any]] = WeakSet()

    def run(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._loop.is_running:  # a parent's futures are not for its child: their locks may be held
            self._open = WeakSet()
        future = self._loop.run(call)
        self._open.add(future)
        return future

    def close(self) -> None:
        if not self._loop.is_running:
            return
        for future in list(self._open):
            future.cancel()
        self._loop.run(self.backend.close()).result()
        self._loop.close()
