"""What is the same for every client, whether it blocks or not: its settings, and the messages it sends."""

from __future__ import annotations

import logging
import math
import operator
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from itertools import count
from os import register_at_fork, urandom
from threading import Thread
from types import ModuleType
from typing import Any, Final, Literal, cast
from uuid import UUID

from .backends import backend_from_url
from .backends.features import unsupported
from .codecs import accepted, codec_named
from .core.bodies import Writing
from .core.codecs import JSON, SAFE, Codec
from .core.compression import compression
from .core.conversation import call_message
from .core.jobs import current_request
from .core.patterns import matcher
from .describe import ALL_WORKERS, DESCRIBE
from .durations import Duration, seconds, seconds_or_none
from .errors import QueueFull, RpcError, SettingsError
from .events import event_address
from .inspection import Results
from .job_info import Inspector, Store, cannot_keep
from .loops import started
from .settings import Settings, load_settings
from .transport import (
    DELAY,
    IDEMPOTENCY_KEY,
    KEEP,
    OWN,
    TRACE,
    Address,
    Backend,
    Message,
    Presence,
    propagated,
)
from .transport import queue as queue_address

logger = logging.getLogger(__name__)

AS_SET: Final[Any] = object()
NESTED_MARGIN = 0.95
"""Share of the time left that a call made by a handler may take: the rest is for telling the handler's own
caller what went wrong."""
LEAST = 0.05
"""Seconds that must be left for another look whether there is room in a queue."""
REASON = 0.5
"""Seconds that an error which is due waits for the reason, at most."""

_FEATURES = {DELAY: "delay", IDEMPOTENCY_KEY: "idempotency"}

Key = str | int | UUID
"""What an idempotency key may be."""
LONGEST_KEY = 1024
"""Bytes in UTF-8."""

Pause = Callable[[int, QueueFull], float]
"""Seconds to wait after so many attempts, the last of which was refused; raises that, if it is to be."""


class Caller:
    """The base of RpcClient and AsyncRpcClient."""

    def __init__(
        self,
        *,
        settings: str | ModuleType | Settings | None = None,
        backend: Backend | str | None = None,
        timeout: Duration | None = AS_SET,
        queue: str = "default",
        codec: str | Codec | None = None,
        compress: str | None = None,
        max_message_bytes: int | None = None,
        when_full: Literal["raise", "wait"] = "raise",
    ) -> None:
        if not isinstance(settings, Settings):
            settings = load_settings(settings) if backend is None or settings is not None else Settings()
        chosen = settings.for_clients if backend is None else backend
        self.backend: Backend = backend_from_url(chosen) if isinstance(chosen, str) else chosen
        self._owns_backend = isinstance(chosen, str)
        self.timeout = settings.timeout if timeout is AS_SET else seconds_or_none(timeout, "timeout")
        if when_full not in ("raise", "wait"):
            raise SettingsError(f"when_full is 'raise' or 'wait', not {when_full!r}")
        self._waits_for_room = when_full == "wait"
        chosen_codec = codec_named(codec or settings.codec)
        limit = max_message_bytes or settings.max_message_bytes
        squeezing = compression(compress or settings.compress)
        self._queue = queue
        self.writing = Writing(chosen_codec, limit, self.backend.max_message, squeezing)
        self.accepted = accepted([*SAFE, chosen_codec], limit, "RPC_CODEC of this client")
        """What can be read of replies: never what may run code, unless the client itself writes so."""
        self._routes = [(matcher(pattern), each) for pattern, each in settings.routes.items()]
        self._store = Store(settings)
        store = self._store.backend
        keeps = self.backend if store is None and "results" in self.backend.features else store
        where = (*settings.queues, *settings.routes.values(), queue)
        self._inspector = Inspector(self.backend, where, cast("Results | None", keeps), self.accepted)
        self._reasons: dict[Address, tuple[float, Future[str]]] = {}
        self._begin()

    def _begin(self) -> None:
        """What else a client needs."""

    def _job(
        self,
        name: str,
        data: Any,
        ttl: Duration | None,
        delay: Duration | None,
        at: datetime | None,
        idempotency_key: Key | None,
        keep: Duration | None,
        headers: Mapping[str, str] | None,
        id: str | None = None,
    ) -> Message:
        """The message of a job that nobody waits for; with this id, if it has one already."""
        if at is not None and delay is not None:
            raise ValueError("give delay or at, not both")
        ttl, wait = seconds_or_none(ttl, "ttl"), seconds_or_none(delay, "delay")
        if at is not None:
            wait = _until(at)
        more = {} if wait is None else {DELAY: _delay(wait, ttl)}
        if keep is not None:
            more[KEEP] = self._kept(keep)
        headers = {**own_headers(headers), **more}
        return self._message(name, data, ttl, idempotency_key, headers, replies=False, id=id)

    def _kept(self, keep: Duration) -> str:
        kept_for = seconds(keep, "keep")
        if not self._inspector.keeps:
            raise cannot_keep()
        return f"{kept_for:.3f}"

    def _message(
        self,
        name: str,
        data: Any,
        ttl: float | None,
        idempotency_key: Key | None,
        headers: Mapping[str, str],
        *,
        replies: bool,
        id: str | None = None,
        writing: Writing | None = None,
    ) -> Message:
        if idempotency_key is not None:
            headers = {**headers, IDEMPOTENCY_KEY: _key(name, idempotency_key)}
        for header in headers:
            if (feature := _FEATURES.get(header, "")) and feature not in self.backend.features:
                raise unsupported(feature)
        return call_message(
            id or _ids.new(),
            name,
            data,
            writing or self.writing,
            ttl=ttl,
            replies=replies,
            headers=headers,
        )

    def _event(self, event: str, data: Any, headers: Mapping[str, str] | None) -> tuple[Address, Message]:
        """Where an event is published, and its message."""
        to = event_address(event)
        self._need_topics()
        named = {f"{OWN}{name}": text for name, text in (headers or {}).items()}
        return to, self._message(event, data, None, None, own_headers(named), replies=False)

    def _describing(self, wait: float) -> tuple[Address, Message]:
        """What all workers are asked for."""
        self._need_topics()
        return ALL_WORKERS, self._message(DESCRIBE, None, wait, None, {}, replies=True, writing=Writing(JSON))

    def _need_topics(self) -> None:
        if "topics" not in self.backend.features:
            raise unsupported("topics")

    def to(self, name: str, queue: str | None) -> Address:
        """The queue that was asked for, else that of the first route which the job's name fits."""
        if queue is None and self._routes:
            queue = next((each for fits, each in self._routes if fits(name)), None)
        return queue_address(queue or self._queue)

    def allowed(self, timeout: Duration | None) -> float | None:
        """The timeout, within the time that is left to the request that is being handled here, if one is."""
        timeout = self.timeout if timeout is AS_SET else seconds_or_none(timeout, "timeout")
        request = current_request.get()
        if request is None or request.deadline is None:
            return timeout
        left = (request.deadline - time.monotonic()) * NESTED_MARGIN
        return max(left, 0.0) if timeout is None else min(timeout, max(left, 0.0))

    def reason(self, to: Address) -> Future[str]:
        """Why nobody answers there, if the broker knows: it is asked once a second, however many call."""
        asked, found = self._reasons.get(to, (-math.inf, None))
        if found is None or time.monotonic() - asked > 1.0:
            found = Future()
            self._reasons[to] = time.monotonic(), found
            looked_for = (self.backend, to, found)
            try:
                started(Thread(target=_find_reason, args=looked_for, name="rpc-reason", daemon=True))
            except RpcError:
                found.set_result("")
        return found

    def _pausing(self, timeout: float | None) -> Pause:
        """How long to wait for room in a queue, until so many seconds from now."""
        return partial(self._pause, _end(time.monotonic(), timeout))

    def _pause(self, end: float, attempt: int, refused: QueueFull) -> float:
        left = end - time.monotonic()
        if not self._waits_for_room or left < LEAST:
            raise refused
        return min(random.uniform(0, min(1.0, 0.01 * 2.0 ** min(attempt, 10))), left / 2)


class _Ids:
    """Ids of 32 hexadecimal digits: half of them are this process' own, at random, half of them count. Made
    without pending the kernel, which would let other threads run first."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._own, self._count = urandom(8).hex(), count()

    def new(self) -> str:
        return f"{self._own}{next(self._count):016x}"


_ids = _Ids()
register_at_fork(after_in_child=_ids.begin)


def _find_reason(backend: Backend, to: Address, found: Future[str]) -> None:
    is_served = True
    try:
        if "presence" in backend.features and to.kind == "queue":
            is_served = cast("Presence", backend).is_served(to.name)
    except RpcError as error:
        logger.debug("whether %s is served: %s", to, error)
    finally:
        found.set_result("" if is_served else f"no worker serves queue {to.name!r}")


def _end(began: float, timeout: float | None) -> float:
    return math.inf if timeout is None else began + timeout


def own_headers(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """The headers of a call, with those of the request that is being handled here; ValueError for others."""
    request = current_request.get()
    inherited = propagated(request.headers) if request else {}
    if not headers:
        return inherited
    own = propagated(headers)
    if len(own) < len(headers) or not all(isinstance(value, str) for value in own.values()):
        raise ValueError(
            f"headers are texts, named {OWN}... or {', '.join(TRACE)}, not {dict(headers)!r:.200}"
        )
    return {**inherited, **own}


def _key(name: str, key: Key) -> str:
    """The header: the key of another job is another one. ValueError for what is no key."""
    try:
        text = key if isinstance(key, str) else str(key if isinstance(key, UUID) else operator.index(key))
        if not isinstance(key, bool) and len(text.encode()) <= LONGEST_KEY:
            return f"{name}:" + text
    except (TypeError, ValueError):  # nothing of the three, half of a character, a number without end
        pass
    kinds = f"a str of at most {LONGEST_KEY} bytes in UTF-8, an int or a UUID"
    raise ValueError(f"an idempotency key is {kinds}, not this {type(key).__name__}")


def _until(at: datetime) -> float:
    """Seconds from now until then, 0 if it is past; ValueError if it is no time, or too far off."""
    try:
        left = at.timestamp() - time.time()
    except (AttributeError, OverflowError, OSError, ValueError):  # a year that the machine cannot count
        raise ValueError(f"at is a datetime that is not too far off, not {at!r:.80}") from None
    return seconds(max(0.0, left), "the delay until `at`")


def _delay(wait: float, ttl: float | None) -> str:
    """The header; ValueError if it makes no sense."""
    if ttl is not None and ttl <= wait:
        raise ValueError("a delay is less than ttl")
    return f"{wait:.3f}"
