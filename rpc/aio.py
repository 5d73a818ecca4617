"""The caller's shell in an event loop: the same as `client`, awaited."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from .backends import asynchronous
from .caller import AS_SET, Key
from .core.events import NOTHING
from .core.filters import Match, Scalar
from .core.jobs import Response, current_request
from .core.log_batches import wanted_entries
from .deadlines import within_async
from .describe import WorkerInfo
from .durations import Duration
from .errors import BackendUnavailable, QueueFull, RpcTimeout
from .http_peers import AsyncHttpPeer, HttpPeers, Style
from .overview import AsyncOverview
from .pending import OnProgress, PendingCall, Told
from .proxies import Services
from .streams.consuming import heard
from .streams.iterators import AsyncStream, Uploadable
from .streams.records import AsyncLogStream, of_logs
from .streams.subscribing import BUFFER, AsyncEventStream, Callback, Hearings, RetryOn, Since, wanted
from .transport import STREAM, Address, AsyncBackend, Message

T = TypeVar("T")


class AsyncRpcClient(AsyncOverview):
    """Calls jobs by name, from coroutines. Any number of calls may wait at a time, also in several event
    loops, which share nothing; safe to use after a fork.

    Arguments are as for RpcClient.
    """

    def _begin(self) -> None:
        self._async = asynchronous(self.backend)
        self._peers = HttpPeers[AsyncHttpPeer]()
        self._submitted: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._hearings = Hearings()

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
        order_key: Key | None = None,
        keep: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """As `RpcClient.call`."""
        allowed, attempt = self.allowed(AS_SET), 0
        pause = self._pausing(allowed)
        while True:
            message = self._job(name, data, ttl, delay, at, idempotency_key, order_key, keep, headers)
            try:
                await self._sent(allowed, self.to(name, queue), message)
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
        order_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Response:
        """As `RpcClient.call_and_wait`. A task that is cancelled withdraws what it waits for."""
        allowed = self.allowed(timeout)
        about = name, data, allowed, idempotency_key, headers, on_progress, returns, order_key
        pending = PendingCall(self, *about)
        return await answer(self._async, self.to(name, queue), pending)

    def submit(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        idempotency_key: Key | None = None,
        order_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> asyncio.Future[Response]:
        """As `RpcClient.submit`, but an asyncio.Future: for `gather`, `as_completed` and the like. Is not
        awaited itself."""
        told = Told(on_progress)
        options: dict[str, Any] = {"idempotency_key": idempotency_key, "order_key": order_key}
        options |= {"headers": headers, "returns": returns, "on_progress": told}
        future = self._submit(answer, name, data, timeout=timeout, queue=queue, **options)
        return told.by(future)

    async def invoke(self, name: str, data: Any, **options: Any) -> Any:
        """As `RpcClient.invoke`."""
        return (await self.call_and_wait(name, data, **options)).data

    def invoke_soon(self, name: str, data: Any, **options: Any) -> asyncio.Future[Any]:
        """As `RpcClient.invoke_soon`."""
        return self._submit(value, name, data, **options)

    def known(self) -> list[WorkerInfo]:
        """Those that the last `describe` was told of: whoever asks now cannot wait."""
        return [*self._described]

    def _submit(
        self,
        what: Callable[..., Coroutine[Any, Any, T]],
        name: str,
        data: Any,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | Address | None = None,
        idempotency_key: Key | None = None,
        order_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> asyncio.Future[T]:
        """A task of `what`: `answer`, or `value`."""
        allowed = self.allowed(timeout)
        about = name, data, allowed, idempotency_key, headers, on_progress, returns, order_key
        pending = PendingCall(self, *about)
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
        returns: Any = None,
    ) -> AsyncStream:
        """As `RpcClient.stream`, but an async generator. Is not awaited itself; `items` may be asynchronous,
        too."""
        options: dict[str, Any] = {"timeout": timeout, "queue": queue, "headers": headers, "items": items}
        return AsyncStream(
            self, self._async, name, data, window=window, resume=resume, returns=returns, **options
        )

    async def publish(
        self, event: str, data: Any = NOTHING, *, headers: Mapping[str, Scalar] | None = None
    ) -> str:
        """As `RpcClient.publish`."""
        to, message = self._event(event, data, headers)
        await self._sent(self.allowed(AS_SET), to, message)
        return message.id

    async def _sent(self, seconds: float | None, to: Address, message: Message) -> None:
        try:
            await within_async(seconds, partial(self._async.send, to, message))
        except RpcTimeout:
            raise BackendUnavailable(f"the broker did not take it within {seconds:g} s") from None

    async def subscribe(
        self,
        event: str,
        *,
        headers: Mapping[str, Scalar | None] | None = None,
        match: Match = "all",
        group: str | None = None,
        durable: bool = False,
        callback: Callback | None = None,
        retries: int = 0,
        backoff: Duration = 1.0,
        retry_on: RetryOn = (Exception,),
        buffer: int = BUFFER,
        since: Since | None = None,
    ) -> AsyncEventStream:
        """As `RpcClient.subscribe`, but an async iterator. A callback that is a coroutine function runs in
        this event loop."""
        asked = wanted(
            event,
            headers=headers,
            match=match,
            group=group,
            durable=durable,
            callback=callback,
            retries=retries,
            backoff=backoff,
            retry_on=retry_on,
            buffer=buffer,
            since=since,
        )
        return await self._subscribed(AsyncEventStream(self, asked))

    async def logs(
        self,
        *,
        level: str | int | None = None,
        service: str | None = None,
        logger: str | None = None,
        since: datetime | timedelta | None = None,
    ) -> AsyncLogStream:
        """As `RpcClient.logs`, but an async iterator."""
        wants, asked = wanted_entries(level, service, logger), of_logs(since)
        self._need_topics()
        return AsyncLogStream(await self._subscribed(AsyncEventStream(self, asked)), wants)

    async def _subscribed(self, stream: AsyncEventStream) -> AsyncEventStream:
        self._hearings.join(stream.hearing)
        await stream.begin(self.allowed(AS_SET))
        return stream

    def at(self, url: str, *, style: Style = "simple", token: str | None = None) -> AsyncHttpPeer:
        """As `RpcClient.at`; calls are awaited."""
        return self._peers.at(AsyncHttpPeer, url, style, token, timeout=self.timeout, most=self.writing.most)

    @property
    def services(self) -> Services:
        """As `RpcClient.services`; a call is awaited."""
        return Services(self)

    async def close(self) -> None:
        """Cancel what was submitted in this event loop and is not answered, end the subscriptions and
        watches that were made in it, and give back its connections; calls that wait in it raise Cancelled.
        Idempotent."""
        loop = asyncio.get_running_loop()
        for task in [task for task in self._submitted if task.get_loop() is loop]:
            task.cancel()
        hearings = [hearing for hearing in self._hearings if hearing.loop is loop]
        for each in hearings:  # all at once: each may take long while the broker hangs
            each.leave()
        for hearing in hearings:
            await asyncio.to_thread(hearing.close, done=False)
        for watch in [watch for watch in self._watches if watch.loop is loop]:
            await asyncio.to_thread(watch.join)
        await self._async.close()
        for peer in self._peers.all():
            await peer.close()
        self._store.close()
        if self._owns_backend:
            self.backend.close()

    async def __aenter__(self) -> AsyncRpcClient:
        return self

    async def __aexit__(self, *_: object) -> None:
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
            ask = partial(backend.request, to, pending.request)
            replies = await within_async(pending.remaining(time.monotonic()), ask)
            try:
                while STREAM in (reply := await replies.receive(pending.remaining(time.monotonic()))).headers:
                    pending.told(reply)
            finally:
                replies.close()
        except RpcTimeout as late:
            ended = time.monotonic()
            hint = str(late) or await heard(pending.caller.reason(to))
            raise pending.timed_out(ended, hint, current_request.get(), to.name) from None
        except QueueFull as full:
            await asyncio.sleep(pending.pause(attempt, full))
        else:
            return pending.feed(reply)
        attempt += 1


async def value(backend: AsyncBackend, to: Address, pending: PendingCall) -> Any:
    """What the `answer` carries."""
    return (await answer(backend, to, pending)).data
