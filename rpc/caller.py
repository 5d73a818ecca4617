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
from typing import Any, Final, Literal, NoReturn, cast
from uuid import UUID
from weakref import WeakSet

from .backends import backend_from_url
from .backends.features import unsupported
from .codecs import accepted, codec_named
from .core.bodies import Writing
from .core.codecs import JSON, SAFE, Codec
from .core.compression import compression
from .core.conversation import call_message
from .core.events import event_message, header_parts
from .core.filters import Scalar
from .core.headers import wrong_in
from .core.jobs import current_request
from .core.patterns import first_for, matcher
from .core.registry import Wanted, quiet
from .core.tokens import sent
from .describe import ALL_WORKERS, ANSWERS_ALL, DESCRIBE, DISCOVER, ONLY, Gathering, Quiet
from .durations import Duration, seconds, seconds_or_none
from .errors import QueueFull, RpcError, SettingsError
from .events import event_address
from .inspection import Results
from .job_info import Inspector, Store, cannot_keep
from .loops import started
from .registry.lookup import Lookup
from .registry.watching import AsyncWatch, Watch
from .settings import Settings, load_settings
from .signing.backend import signing
from .transport import (
    DELAY,
    IDEMPOTENCY_KEY,
    KEEP,
    ORDER_KEY,
    OWN,
    TOKEN,
    TRACE,
    Address,
    Backend,
    Message,
    Presence,
    check_headers,
)
from .transport import queue as queue_address

logger = logging.getLogger(__name__)

AS_SET: Final[Any] = object()
NESTED_MARGIN = 0.95
"""Share of the time left that a call made by a handler may take: the rest is for telling the handler's own
caller what went wrong."""
LEAST = 0.05
"""Seconds that must be left for another look whether there is room in a queue."""
GRACE = 0.25
"""Seconds that a call may take longer than its timeout: to withdraw what it asked for, and to learn why
nobody answered."""

_FEATURES = {DELAY: "delay", IDEMPOTENCY_KEY: "idempotency", ORDER_KEY: "order"}

Key = str | int | UUID
"""What an idempotency key, or an order key, may be."""
LONGEST_KEY = 1024
"""Bytes in UTF-8."""

Pause = Callable[[int, QueueFull], float]
"""Seconds to wait after so many attempts, the last of which was refused; raises that, if it is to be."""


def routed(settings: Settings) -> list[tuple[Callable[[str], object], Address]]:
    """What fits the names of jobs, and where those go: the first that fits counts. Raises SettingsError."""
    found = []
    for pattern, name in settings.routes.items():
        try:
            found.append((matcher(pattern), queue_address(name)))
        except ValueError as error:
            raise SettingsError(f"{settings.module}: RPC_ROUTES[{pattern!r}]: {error}") from None
    return found


class Caller:
    """The base of RpcClient and AsyncRpcClient."""

    def __init__(
        self,
        *unnamed: NoReturn,
        settings: str | ModuleType | Settings | None = None,
        backend: Backend | str | None = None,
        timeout: Duration | None = AS_SET,
        queue: str = "default",
        codec: str | Codec | None = None,
        compress: str | None = None,
        max_message_bytes: int | None = None,
        when_full: Literal["raise", "wait"] = "raise",
        token: Mapping[str, str] | None = None,
    ) -> None:
        if unnamed:
            raise TypeError(f"the arguments of {type(self).__name__} have names, as in backend='redis://…'")
        Address("queue", queue)  # ValueError
        if not isinstance(settings, Settings):
            settings = load_settings(settings) if backend is None or settings is not None else Settings()
        chosen = settings.for_clients if backend is None else backend
        made = backend_from_url(chosen) if isinstance(chosen, str) else chosen
        self.backend: Backend = signing(settings, made)
        self._owns_backend = isinstance(chosen, str)
        self.timeout = settings.timeout if timeout is AS_SET else seconds_or_none(timeout, "timeout")
        if when_full not in ("raise", "wait"):
            raise SettingsError(f"when_full is 'raise' or 'wait', not {when_full!r}")
        self._waits_for_room = when_full == "wait"
        chosen_codec = codec_named(codec or settings.codec)
        limit = max_message_bytes or settings.max_message_bytes
        squeezing = compression(compress or settings.compress)
        self.identity = settings.identity
        """Who publishes."""
        self._queue = queue
        self.writing = Writing(chosen_codec, limit, self.backend.max_message, squeezing)
        self.accepted = accepted([*SAFE, chosen_codec], limit, "RPC_CODEC of this client")
        """What can be read of replies: never what may run code, unless the client itself writes so."""
        self._routes = routed(settings)
        self._tokens = sent(settings.token if token is None else token)
        self._store = Store(settings)
        store = self._store.backend
        keeps = self.backend if store is None and "results" in self.backend.features else store
        where = (*settings.named_queues, queue)
        self._inspector = Inspector(
            self.backend, where, cast("Results | None", keeps), self.accepted, settings.keep_results
        )
        self.lookup = Lookup(self.backend)
        self._watches: WeakSet[Watch | AsyncWatch] = WeakSet()
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
        order_key: Key | None,
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
        headers = {**ordered(headers, order_key), **more}
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
        to_job: bool = True,
    ) -> Message:
        if to_job and (token := first_for(name, self._tokens)):
            headers = {**headers, TOKEN: token}
        if idempotency_key is not None:
            headers = {**headers, IDEMPOTENCY_KEY: f"{name}:{_text_of(idempotency_key, 'idempotency')}"}
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

    def _event(self, event: str, data: Any, headers: Mapping[str, Scalar] | None) -> tuple[Address, Message]:
        """Where an event is published, and its message."""
        to = event_address(event, self.identity.domain)
        self._need_topics()
        texts, others = header_parts({**(headers or {}), **self.identity.headers})
        return to, event_message(_ids.new(), event, data, {**own_headers(texts), **others}, self.writing)

    def _describing(self, wait: float) -> tuple[Address, Message]:
        """What all workers are asked for."""
        if not self.backend.features & ANSWERS_ALL:
            raise unsupported("topics")
        return ALL_WORKERS, self._asking(DESCRIBE, wait, {})

    def _quiet(self, gathered: Gathering, settled: Duration | None) -> Quiet:
        """How long it is waited for the next answer. Raises ValueError, BackendUnavailable."""
        if settled is None:
            return lambda: math.inf
        usual, expected = seconds(settled, "settled"), self.lookup.expected()
        return lambda: quiet(expected, [*gathered], usual)

    def _discovering(self, worker: str, wait: float) -> tuple[Address, Message]:
        """What the worker with this id is asked for."""
        return ALL_WORKERS, self._asking(DISCOVER, wait, {ONLY: worker})

    def _asking(self, method: str, wait: float, headers: Mapping[str, str]) -> Message:
        about: dict[str, Any] = {"replies": True, "writing": Writing(JSON), "to_job": False}
        return self._message(method, None, wait, None, headers, **about)

    def _need_topics(self) -> None:
        if "topics" not in self.backend.features:
            raise unsupported("topics")

    def to(self, name: str, queue: str | Address | None) -> Address:
        """The queue, or the address, that was asked for, else that of the first route which the job's name
        fits."""
        if isinstance(queue, Address):
            return queue
        if queue is None and (route := first_for(name, self._routes)):
            return route
        if queue is not None and not isinstance(queue, str):
            return Address("queue", queue)  # ValueError
        return queue_address(queue or self._queue)

    def looking_for(
        self, domain: str | None, type: str | None, id: str | None, version: str | None, instance: str | None
    ) -> Wanted:
        """What a client's `service` looks for; ValueError if that is none."""
        if type is None and instance is None:
            raise ValueError(
                "say which service: its type (an id tells those of one type apart), or the instance"
            )
        domain = self.identity.domain if domain is None and instance is None else domain
        wanted = Wanted(domain, type, id, version, instance)
        wanted.check()
        return wanted

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
    without asking the kernel, which would let other threads run first."""

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


def propagated(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that calls made for a request inherit from it: of the trace, and the application's own."""
    return {name: value for name, value in headers.items() if name in TRACE or name.startswith(OWN)}


def own_headers(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """The headers of a call, with those of the request that is being handled here; ValueError for others,
    SerializationError if there are too many."""
    request = current_request.get()
    inherited = propagated(request.headers) if request else {}
    if not headers:
        return inherited
    if why := wrong_in(headers):
        raise ValueError(why)
    own = dict(headers)
    check_headers({**inherited, **own})
    return {**inherited, **own}


def ordered(headers: Mapping[str, str] | None, order_key: Key | None) -> Mapping[str, str]:
    """`own_headers`, with the one for an order key, if there is one."""
    own = own_headers(headers)
    return own if order_key is None else {**own, ORDER_KEY: _text_of(order_key, "order")}


def _text_of(key: Key, kind: str) -> str:
    """The key as text. ValueError for what is no key, which says what `kind` of key it should be."""
    try:
        text = key if isinstance(key, str) else str(key if isinstance(key, UUID) else operator.index(key))
        if not isinstance(key, bool) and len(text.encode()) <= LONGEST_KEY:
            return str.__str__(text)  # of an enum, what it is, and not how it is shown
    except (TypeError, ValueError):  # nothing of the three, half of a character, a number without end
        pass
    kinds = f"a str of at most {LONGEST_KEY} bytes in UTF-8, an int or a UUID"
    raise ValueError(f"an {kind} key is {kinds}, not this {type(key).__name__}")


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
