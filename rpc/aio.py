"""The caller's shell in an event loop: the same as `client`, awaited."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from .backends import asynchronous
from .backends._retry import sent_within_async
from .caller import AS_SET, Caller, Key
from .core.jobs import Response, current_request
from .describe import Gathering, WorkerInfo
from .durations import Duration, seconds
from .errors import NoReceivers, QueueFull, RpcTimeout
from .inspection import QueueInfo
from .job_info import JobInfo, ListedState
from .pending import OnProgress, PendingCall, Told
from .proxies import Services
from .streams.consuming import heard
from .streams.iterators import AsyncStream, Uploadable
from .transport import STREAM, Address, AsyncBackend

T = TypeVar("T")


class AsyncRpcClient(Caller):
    """Calls jobs by name, from coroutines. Any number of calls may wait at a time, also in several event
    loops, which share nothing; safe to use after a fork.

    Arguments are as for RpcClient.
    """

    def _begin(self) -> None:
        self._async = asynchronous(self.backend)
        self._submitted: WeakSet[asyncio.Task[Any]] = WeakSet()

    async def call(
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
        """As `RpcClient.call`."""
        allowed, attempt = self.allowed(AS_SET), 0
        pause = self._pausing(allowed)
        while True:
            message = self._job(name, data, ttl, delay, at, idempotency_key, keep, headers)
            try:
                await sent_within_async(allowed, partial(self._async.send, self.to(name, queue), message))
                return message.id
            except QueueFull as full:
                await asyncio.sleep(pause(attempt, full))
            attempt += 1

    async def call_and_wait(
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
        """As `RpcClient.call_and_wait`. A task that is cancelled withdraws what it waits for."""
        allowed = self.allowed(timeout)
        pending = PendingCall(self, name, data, allowed, idempotency_key, headers, on_progress, returns)
        return await answer(self._async, self.to(name, queue), pending)

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
    ) -> asyncio.Future[Response]:
        """As `RpcClient.submit`, but an asyncio.Future: for `gather`, `as_completed` and the like. Is not
        awaited itself."""
        told = Told(on_progress)
        options: dict[str, Any] = {"idempotency_key": idempotency_key, "headers": headers, "returns": returns}
        future = self._submit(answer, name, data, timeout=timeout, queue=queue, on_progress=told, **options)
        return told.by(future)

    async def invoke(self, name: str, data: Any, **options: Any) -> Any:
        """As `RpcClient.invoke`."""
        return (await self.call_and_wait(name, data, **options)).data

    def invoke_soon(self, name: str, data: Any, **options: Any) -> asyncio.Future[Any]:
        """As `RpcClient.invoke_soon`."""
        return self._submit(value, name, data, **options)

    def known(self) -> list[WorkerInfo]:
        """Nothing: whoever asks cannot wait."""
        return []

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
    ) -> asyncio.Future[T]:
        """A task of `what`: `answer`, or `value`."""
        allowed = self.allowed(timeout)
        pending = PendingCall(self, name, data, allowed, idempotency_key, headers, on_progress, returns)
        task = asyncio.get_running_loop().create_task(what(self._async, self.to(name, queue), pending))
        self._submitted.add(task)
        return task

    async def map(
        self,
        name: str,
        iterable: Iterable[Any],
        *,
        window: int = 100,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        returns: Any = None,
    ) -> AsyncIterator[Response]:
        """As `RpcClient.map`."""
        under_way: deque[asyncio.Future[Response]] = deque()
        try:
            for item in iterable:
                under_way.append(self.submit(name, item, timeout=timeout, queue=queue, returns=returns))
                if len(under_way) >= window:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for future in under_way:
                future.cancel()
                future.add_done_callback(_forget)

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
    ) -> AsyncStream:
        """As `RpcClient.stream`, but an async generator. Is not awaited itself; `items` may be asynchronous,
        too."""
        options: dict[str, Any] = {"timeout": timeout, "queue": queue, "headers": headers, "items": items}
        return AsyncStream(self, self._async, name, data, window=window, resume=resume, **options)

    async def publish(self, event: str, data: Any = None, *, headers: Mapping[str, str] | None = None) -> str:
        """As `RpcClient.publish`."""
        to, message = self._event(event, data, headers)
        await sent_within_async(self.allowed(AS_SET), partial(self._async.send, to, message))
        return message.id

    async def job(self, id: str, *, queue: str | None = None) -> JobInfo:
        """As `RpcClient.job`."""
        return await asyncio.to_thread(lambda: self._inspector.job(id, queue))

    async def jobs(
        self, *, queue: str | None = None, state: ListedState | None = None, name: str | None = None
    ) -> list[JobInfo]:
        """As `RpcClient.jobs`."""
        return await asyncio.to_thread(lambda: [*self._inspector.jobs(queue, state, name)])

    async def queues(self) -> list[QueueInfo]:
        """As `RpcClient.queues`."""
        return await asyncio.to_thread(lambda: self._inspector.queues())

    async def cancel(self, id: str, *, queue: str | None = None) -> bool:
        """As `RpcClient.cancel`."""
        return await asyncio.to_thread(lambda: self._inspector.job(id, queue).cancel())

    async def retry(self, id: str, *, queue: str | None = None) -> bool:
        """As `RpcClient.retry`."""
        return await asyncio.to_thread(lambda: self._inspector.job(id, queue).retry())

    @property
    def services(self) -> Services:
        """As `RpcClient.services`; a call is awaited."""
        return Services(self)

    async def describe(self, *, wait: Duration = 0.5) -> list[WorkerInfo]:
        """As `RpcClient.describe`."""
        wait = seconds(wait, "wait")
        gathered, end = Gathering(), time.monotonic() + wait
        asked = self._describing(wait)
        with suppress(RpcTimeout, NoReceivers), closing(await self._async.request(*asked)) as replies:
            while True:
                gathered.add(await replies.receive(max(0.0, end - time.monotonic())))
        return gathered.workers

    async def close(self) -> None:
        """Cancel what was submitted in this event loop and is not answered, and give back its connections;
        calls that wait in it raise Cancelled. Idempotent."""
        loop = asyncio.get_running_loop()
        for task in [task for task in self._submitted if task.get_loop() is loop]:
            task.cancel()
        await self._async.close()
        self._store.close()
        if self._owns_backend:
            self.backend.close()

    async def __aenter__(self) -> AsyncRpcClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _forget(future: asyncio.Future[Any]) -> None:
    """Nobody asks how it ended: it may have failed before it was cancelled, or all the same."""
    if not future.cancelled():
        future.exception()


async def answer(backend: AsyncBackend, to: Address, pending: PendingCall) -> Response:
    """What a call comes to. While a bounded queue has no room for it, it is asked again."""
    attempt = 0
    while True:
        try:
            replies = await backend.request(to, pending.request)
            try:
                while STREAM in (reply := await replies.receive(pending.remaining(time.monotonic()))).headers:
                    pending.told(reply)
            finally:
                replies.close()
        except RpcTimeout as late:
            hint = str(late) or await heard(pending.reason(to))
            raise pending.timed_out(hint, current_request.get(), to.name) from None
        except QueueFull as full:
            await asyncio.sleep(pending.pause(attempt, full))
        else:
            return pending.feed(reply)
        attempt += 1


async def value(backend: AsyncBackend, to: Address, pending: PendingCall) -> Any:
    """What the `answer` carries."""
    return (await answer(backend, to, pending)).data
