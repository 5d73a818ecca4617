"""The caller's shell: it sends, and it waits. What is said and what it means is in `core`."""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any, Final, Literal, TypeVar
from weakref import WeakSet

from .addresses import queue as queue_address
from .backends import Backend, Replies, backend_from_url
from .core.codecs import Codec, codec_named
from .core.conversation import Conversation, Response, call_message
from .core.jobs import current_request
from .errors import BackendUnavailable, Cancelled, QueueFull, RpcTimeout, SettingsError, Unsupported
from .message import DELAY, IDEMPOTENCY_KEY, Message
from .settings import Settings, load_settings

T = TypeVar("T")
_AS_SET: Final[Any] = object()
NESTED_MARGIN = 0.95
"""Share of the time left that a call made by a handler may take: the rest is for telling the handler's own
caller what went wrong."""
MOST_SUBMITTED = 1024
"""Threads that wait for futures, at most: one for each call submitted and not yet answered."""
LEAST = 0.05
"""Seconds that must be left for another look whether there is room in a queue."""


class RpcClient:
    """Calls jobs by name. Safe to share between threads, and to use after a fork.

    Without `backend`, everything that is not given comes from the settings module (see `rpc.settings`);
    `settings` names another one, or is one. `backend` is a backend or its URL, `timeout` the seconds a call
    waits (None: without end), `queue` where calls go, `codec` "json" or "msgpack", `max_message_bytes` the
    largest request, `when_full` what to do when a bounded queue has no room: "raise" QueueFull, or "wait" for
    as long as the call may take (`call`: as `timeout` says). Raises SettingsError if there is no usable
    setting; connects at the first call.
    """

    def __init__(
        self,
        *,
        settings: str | ModuleType | Settings | None = None,
        backend: Backend | str | None = None,
        timeout: float | None = _AS_SET,
        queue: str = "default",
        codec: str | Codec | None = None,
        max_message_bytes: int | None = None,
        when_full: Literal["raise", "wait"] = "raise",
    ) -> None:
        if not isinstance(settings, Settings):
            settings = load_settings(settings) if backend is None or settings is not None else Settings()
        chosen = settings.for_clients if backend is None else backend
        self.backend: Backend = backend_from_url(chosen) if isinstance(chosen, str) else chosen
        self._owns_backend = isinstance(chosen, str)
        self.timeout = settings.timeout if timeout is _AS_SET else timeout
        if when_full not in ("raise", "wait"):
            raise SettingsError(f"when_full is 'raise' or 'wait', not {when_full!r}")
        self._waits_for_room = when_full == "wait"
        self._queue, self._codec = queue, codec_named(codec or settings.codec)
        limit = max_message_bytes or settings.max_message_bytes
        self._max_message = min(limit, self.backend.max_message or sys.maxsize)
        self._lock = Lock()
        self._waiters: ThreadPoolExecutor | None = None
        self._pid = 0
        self._submitted: WeakSet[Future[Response]] = WeakSet()

    def call(
        self,
        name: str,
        data: Any = None,
        *,
        queue: str | None = None,
        ttl: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Send a job and do not wait: the id of the request. Returns once the broker has it.

        `data` is a dict or a list; `ttl` is the seconds after which it is no longer wanted (None: it waits
        as long as it must). It is done after `delay` seconds, or `at` a time (one without a zone is local).
        Of the calls with one `idempotency_key`, only the first is done. Raises SerializationError before
        anything is sent, ValueError, BackendUnavailable, QueueFull, Unsupported by this backend.
        """
        if at is not None and delay is not None:
            raise ValueError("give delay or at, not both")

        def send() -> str:
            wait = delay if at is None else max(0.0, at.timestamp() - time.time())
            headers = {} if wait is None else {DELAY: _delay(wait, ttl, idempotency_key)}
            message = self._message(name, data, ttl, idempotency_key, headers, replies=False)
            self.backend.send(queue_address(queue or self._queue), message)
            return message.id

        return self._with_room(send, _end(self._allowed(self.timeout)))

    def call_and_wait(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: float | None = _AS_SET,
        queue: str | None = None,
        idempotency_key: str | None = None,
    ) -> Response:
        """Send a job and wait for its response.

        `data` is a dict or a list; `timeout` is in seconds (None: without end). Of the calls with one
        `idempotency_key`, only the first is done, and all get its response. Raises RemoteError if the
        handler raised, MethodNotFound, InvalidParams, WorkerLost, SerializationError, RpcTimeout when the
        time is up, BackendUnavailable, QueueFull, Unsupported by this backend. A caller that stops waiting,
        for whatever reason, withdraws a job that has no such key.
        """
        timeout = self._allowed(self.timeout if timeout is _AS_SET else timeout)
        ask = partial(self._ask, name, data, timeout, queue, idempotency_key, time.monotonic())
        return self._with_room(lambda: self._answer(*ask()), _end(timeout))

    def submit(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: float | None = _AS_SET,
        queue: str | None = None,
        idempotency_key: str | None = None,
    ) -> Future[Response]:
        """Send a job, and return a future of its response. Errors as in `call_and_wait`: those of the data,
        and of sending if they show at once, are raised here, the others by the future. `cancel()` withdraws
        the job until it is answered."""
        timeout = self._allowed(self.timeout if timeout is _AS_SET else timeout)
        end = _end(timeout)
        ask = partial(self._ask, name, data, timeout, queue, idempotency_key, time.monotonic())
        asked = self._with_room(ask, end)
        future: Future[Response] = Future()
        with self._lock:
            self._submitted.add(future)
        _close_if_cancelled(future, asked[1])
        self._pool().submit(self._resolve, future, asked, ask, end)
        return future

    def close(self) -> None:
        """Cancel the submitted calls that are not answered, and give back connections. Idempotent."""
        with self._lock:
            waiters, self._waiters = self._waiters, None
            submitted = list(self._submitted)
        for future in submitted:
            future.cancel()
        if waiters:
            waiters.shutdown()
        if self._owns_backend:
            self.backend.close()

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _message(
        self,
        name: str,
        data: Any,
        ttl: float | None,
        idempotency_key: str | None,
        headers: dict[str, str],
        *,
        replies: bool,
    ) -> Message:
        if idempotency_key is not None:
            headers[IDEMPOTENCY_KEY] = idempotency_key
        for header, feature in ((DELAY, "delay"), (IDEMPOTENCY_KEY, "idempotency")):
            if header in headers and feature not in self.backend.features:
                raise Unsupported(f"this backend has no feature {feature!r}; redis: and memory: have it")
        return call_message(
            name, data, self._codec, ttl=ttl, replies=replies, max_message=self._max_message, headers=headers
        )

    def _ask(
        self,
        name: str,
        data: Any,
        timeout: float | None,
        queue: str | None,
        idempotency_key: str | None,
        began: float,
    ) -> tuple[Conversation, Replies]:
        left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
        message = self._message(name, data, left, idempotency_key, {}, replies=True)
        replies = self.backend.request(queue_address(queue or self._queue), message)
        return Conversation(message, name, timeout, began), replies

    def _with_room(self, action: Callable[[], T], end: float | None) -> T:
        """What the action returns. While there is no room in the queue it is tried again, up to this time, if
        this client waits for that."""
        attempt = 0
        while True:
            try:
                return action()
            except QueueFull:
                left = math.inf if end is None else end - time.monotonic()
                if not self._waits_for_room or left < LEAST:
                    raise
                time.sleep(min(random.uniform(0, min(1.0, 0.01 * 2**attempt)), left / 2))
                attempt = min(attempt + 1, 10)

    def _allowed(self, timeout: float | None) -> float | None:
        """The timeout, within the time that is left to the request that is being handled here, if one is."""
        request = current_request.get()
        if request is None or request.deadline is None:
            return timeout
        left = (request.deadline - time.monotonic()) * NESTED_MARGIN
        return max(left, 0.0) if timeout is None else min(timeout, max(left, 0.0))

    def _answer(
        self, conversation: Conversation, replies: Replies, abandoned: Callable[[], bool] | None = None
    ) -> Response:
        """The response; `abandoned` is asked every second whether it is still wanted."""
        try:
            while True:
                left = conversation.remaining(time.monotonic())
                slice = left if abandoned is None else min(left or 1.0, 1.0)
                try:
                    reply = replies.receive(slice)
                except RpcTimeout as timeout:
                    if slice == left:
                        raise conversation.timed_out(str(timeout)) from None
                    if abandoned is not None and abandoned():
                        raise Cancelled("the call was cancelled") from None
                except BackendUnavailable:
                    if slice == left or (abandoned is not None and abandoned()):
                        raise
                    time.sleep(min(slice or 1.0, 0.1))  # some backends fail at once
                else:
                    return conversation.feed(reply)
        finally:
            replies.close()

    def _resolve(
        self,
        future: Future[Response],
        asked: tuple[Conversation, Replies] | None,
        ask: Callable[[], tuple[Conversation, Replies]],
        end: float | None,
    ) -> None:
        def answer() -> Response:
            nonlocal asked
            conversation, replies = asked or ask()  # some backends say only now that there is no room
            if not asked:
                _close_if_cancelled(future, replies)
            asked = None
            return self._answer(conversation, replies, future.cancelled)

        try:
            response = self._with_room(answer, end)
        except BaseException as error:  # the future raises it where it is waited for
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(response)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._waiters is None or self._pid != os.getpid():  # a fork copies no threads
                self._pid = os.getpid()
                self._waiters = ThreadPoolExecutor(MOST_SUBMITTED, thread_name_prefix="rpc-client")
            return self._waiters


def _end(seconds: float | None) -> float | None:
    """The time, on the monotonic clock, so many seconds from now."""
    return None if seconds is None else time.monotonic() + seconds


def _delay(seconds: float, ttl: float | None, idempotency_key: str | None) -> str:
    """The header; ValueError if it makes no sense."""
    if not 0 <= seconds < math.inf or (ttl is not None and ttl <= seconds) or idempotency_key is not None:
        raise ValueError("a delay is finite, not negative, less than ttl, and goes with no idempotency_key")
    return f"{seconds:.3f}"


def _close_if_cancelled(future: Future[Response], replies: Replies) -> None:
    future.add_done_callback(lambda done: replies.close() if done.cancelled() else None)
