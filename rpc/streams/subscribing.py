"""Subscriptions of clients: each serves its topic in threads of its own, and is taken as an iterator, or
calls back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, cast
from weakref import WeakSet

from ..backends.features import unsupported
from ..caller import Caller
from ..core.events import Event
from ..core.filters import Match, Scalar
from ..core.handling import HandedBack
from ..core.jobs import JobOptions, current_request
from ..core.middleware import ContextFactory
from ..durations import Duration, seconds, seconds_or_none
from ..errors import BackendUnavailable, Cancelled, RpcError, RpcTimeout, SubscriberLagged, shown
from ..events import Events, Listener, Subscription, check_groups, subscribed
from ..loops import DelayQueue, in_contexts, process, started
from ..transport import Message, Replay
from .arrivals import Arrivals, running_here

logger = logging.getLogger(__name__)

BUFFER = 1000
"""Events that wait for a subscriber that is no group, if it does not say."""
Since = datetime | timedelta | str
"""From when on what was published is heard again: since that time, for so long, or after the event with this
id."""
RetryOn = type[BaseException] | tuple[type[BaseException], ...]
Callback = Callable[..., Any]

_inside: ContextVar[object] = ContextVar("rpc.subscription", default=None)
"""The subscription whose callback runs here."""


class Wanted(NamedTuple):
    """What a subscriber asks for."""

    subscription: Subscription
    callback: Callback | None
    buffer: int
    since: timedelta | str | None


def wanted(
    event: str,
    *,
    headers: Mapping[str, Scalar | None] | None,
    match: Match,
    group: str | None,
    durable: bool,
    callback: Callback | None,
    retries: int,
    backoff: Duration,
    retry_on: RetryOn,
    buffer: int,
    since: Since | None,
) -> Wanted:
    """What is asked for with these arguments of `RpcClient.subscribe`. Raises ValueError."""
    options = JobOptions.checked(None, retries, backoff, retry_on)
    subscription = subscribed(event, headers, match, group, durable, options)
    if retries and callback is None:
        raise ValueError("retries are for a callback: whoever iterates tries again himself")
    if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 1:
        raise ValueError(f"buffer is a number from 1 on, not {buffer!r:.80}")
    if since is not None and group is not None:
        raise ValueError("since is for a subscription of one's own: a group goes on where it was")
    return Wanted(subscription, callback, buffer, checked_since(since))


def checked_since(since: Since | None) -> timedelta | str | None:
    """From when on, if that makes sense. Raises ValueError."""
    if isinstance(since, datetime):
        try:
            since = timedelta(seconds=max(0.0, time.time() - since.timestamp()))
        except (OverflowError, OSError, ValueError):  # a year that the machine cannot count
            raise ValueError(f"since is a datetime that is not too far off, not {since!r:.80}") from None
    if isinstance(since, timedelta):
        seconds(since, "since")
    elif since is not None and (not isinstance(since, str) or not since):
        raise ValueError(f"since is a datetime, a timedelta or an event's id, not {since!r:.80}")
    return since


class Hearing:
    """One subscription. `run` runs a callback that is a coroutine; `changed` is called, from any thread, when
    there may be something to take, in the event loop `loop` if it is one that takes. Raises SettingsError,
    Unsupported."""

    def __init__(
        self,
        caller: Caller,
        wanted: Wanted,
        *,
        run: Callable[[Any], Any],
        changed: Callable[[], object] = lambda: None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        subscription, callback, buffer, self._since = wanted
        backend, self.loop = caller.backend, loop
        if self._since is not None and "replay" not in backend.features:
            raise unsupported("replay")
        self.arrivals = Arrivals(buffer, changed, has_past=self._since is not None)
        self._is_shared = subscription.group is not None
        self._what = _name_of(callback) if callback else f"subscription to {subscription.pattern}"
        listener = partial(Listener, self._what, subscription=subscription, domain=caller.identity.domain)
        arrive = self.arrivals.hold if self._is_shared else self.arrivals.put
        self.callback = listener(handler=callback) if callback else None
        direct = self.callback if self._is_shared else None
        self.listener = direct or listener(handler=lambda event: arrive(event))
        self._later = DelayQueue("rpc-retries")
        context = cast("ContextFactory", contextmanager(self._calling))
        self._events = Events(
            [self.listener], accept=caller.accepted, run=run, later=self._later, context=context
        )
        self._events.check(backend.features)
        self._backend = backend
        handler = in_contexts(self._events)
        self._server = backend.server(self._events.addresses, handler, on_change=self._changed)
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._pid, self.is_closed = process.id, False

    # Its beginning and its end.

    def begin(self, timeout: float | None) -> None:
        """Returns once what is published from now on is heard. Raises what hinders that, BackendUnavailable
        after so many seconds."""
        try:
            self._start(self._serve, "rpc-subscription")
            self._wait(timeout)
            if self._since is not None:
                self.arrivals.begin_with(self._past(self._since))
            if self.callback and not self._is_shared:
                self._start(self._call_back, "rpc-subscriber")
        except BaseException:
            self.leave()
            raise

    def _wait(self, timeout: float | None) -> None:
        if not self._begun.wait(timeout):
            raise BackendUnavailable(f"{self._what} did not begin within {timeout:g} s")
        if self._failure is not None:
            raise self._failure

    def leave(self, *, done: bool = False) -> None:
        """Close it, and do not wait for that. What was taken last is done, or goes back."""
        if self._pid == process.id:
            self.is_closed = True
            self._server.stop()
            self.arrivals.end(done=done)

    def close(self, *, done: bool) -> None:
        """Close it. Waits until the connection is given back, unless the callback asks for that."""
        self.leave(done=done)
        if self._pid == process.id and _inside.get() is not self:
            for thread in self._threads:
                thread.join()

    def _start(self, target: Callable[[], None], name: str) -> None:
        self._threads.append(started(threading.Thread(target=target, name=name, daemon=True)))

    def _serve(self) -> None:
        try:
            self._server.run()
        except BaseException as error:  # raised where somebody waits
            self._failure = error
            self.arrivals.end(error)
        finally:
            self._later.end()
            self._begun.set()

    def _changed(self, connected: bool) -> None:
        resumes = self._is_shared or "replay" in self._backend.features
        if connected and self._begun.is_set() and not resumes:
            self.arrivals.lose()
        if connected:
            self._begun.set()

    # What came.

    def check(self) -> None:
        """RuntimeError if nobody may take from it here."""
        if self._pid != process.id:
            raise RuntimeError("a subscription belongs to the process that made it, not to its forks")
        if self.callback:
            raise RuntimeError("what comes to this subscription goes to its callback")

    def _call_back(self) -> None:
        assert self.callback  # noqa: S101
        while True:
            try:
                event = self.arrivals.wait(None)
            except SubscriberLagged as lag:
                logger.warning("%s: %s", self._what, lag)
            except Cancelled:
                return
            except BaseException as error:  # that of the server
                logger.error("%s has ended: %s", self._what, shown(error))
                return
            else:
                if event:
                    self._events.hear(self.callback, event)

    def _calling(self) -> Iterator[None]:
        """What is heard belongs to no request that may be handled where somebody subscribed. If the event
        loop of who subscribed has ended, it is for others."""
        if self.loop is not None and self.loop.is_closed():
            self.leave()
            raise HandedBack
        inside, request = _inside.set(self), current_request.set(None)
        try:
            yield
        except HandedBack:
            self.leave()
            raise
        finally:
            current_request.reset(request)
            _inside.reset(inside)

    def _past(self, since: timedelta | str) -> Iterable[Event]:
        longest = None if isinstance(since, str) else since.total_seconds()
        replayed = cast("Replay", self._backend).replay(self.listener.address, longest)
        past = [*self._readable(replayed)]
        if isinstance(since, str):
            ids = [event.id for event in past]
            if since not in ids:
                self.arrivals.lose()
            else:
                past = past[ids.index(since) + 1 :]
        return filter(self.listener.wants, past)

    def _readable(self, messages: Iterable[Message]) -> Iterator[Event]:
        for message in messages:
            try:
                yield self._events.event(message)
            except RpcError as error:
                logger.warning("refused an event (%s): %s", shown(message.id), shown(error))


class Hearings(WeakSet[Hearing]):
    """Those of one client."""

    def join(self, hearing: Hearing) -> None:
        """Raises SettingsError if another member of its group wants other headers."""
        check_groups([*(each.listener for each in self if not each.is_closed), hearing.listener])
        self.add(hearing)


def _name_of(callback: Callback) -> str:
    return str(getattr(callback, "__qualname__", None) or type(callback).__qualname__)


class _EventStream:
    """What both kinds have."""

    def __init__(self, hearing: Hearing) -> None:
        self.hearing = hearing

    @property
    def missed(self) -> int:
        """How many events it has missed because it was too slow."""
        return self.hearing.arrivals.missed

    def __del__(self) -> None:
        hearing = self.__dict__.get("hearing")
        if hearing and not hearing.callback:  # a callback is not called for the sake of this object
            hearing.leave()


class EventStream(_EventStream, Iterator[Event]):
    """What `RpcClient.subscribe` returns: an iterator of events, and a context manager, which closes it. For
    any threads; but for one at a time if it is of a group, as whoever asks for the next event says that the
    one before is done."""

    def get(self, timeout: Duration | None = None) -> Event:
        """The next one. Raises RpcTimeout after so many seconds (None: waits without end), SubscriberLagged
        if some were missed before it, and Cancelled once it is closed."""
        hearing, allowed = self.hearing, seconds_or_none(timeout, "timeout")
        hearing.check()
        event = hearing.arrivals.wait(allowed)
        if event is None:
            raise _late(allowed)
        return event

    def __next__(self) -> Event:
        """The next one, however long that takes. Raises SubscriberLagged if some were missed before it; the
        next call goes on."""
        try:
            return self.get()
        except Cancelled:
            raise StopIteration from None

    def close(self) -> None:
        """Hear no more; what was taken last is done. Whoever waits gets StopIteration. Returns once the
        connection is given back, unless it is the callback that asks for that. Idempotent."""
        self.hearing.close(done=True)

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hearing.close(done=kind is None)


class AsyncEventStream(_EventStream, AsyncIterator[Event]):
    """What `AsyncRpcClient.subscribe` returns: as `EventStream`, but an async iterator: for one
    event loop."""

    def __init__(self, caller: Caller, wanted: Wanted) -> None:
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        self._come = come
        ring = partial(_ring, loop, come)
        super().__init__(Hearing(caller, wanted, run=running_here(), changed=ring, loop=loop))

    async def begin(self, timeout: float | None) -> None:
        """As `Hearing.begin`."""
        try:
            await asyncio.to_thread(self.hearing.begin, timeout)
        except BaseException:
            self.hearing.leave()
            raise

    async def get(self, timeout: Duration | None = None) -> Event:
        """As `EventStream.get`. If the task is cancelled, nothing is lost."""
        arrivals, allowed = self.hearing.arrivals, seconds_or_none(timeout, "timeout")
        self.hearing.check()
        end = None if allowed is None else time.monotonic() + allowed
        while True:
            self._come.clear()
            if (event := arrivals.take()) is not None:
                return event
            try:
                await asyncio.wait_for(self._come.wait(), None if end is None else end - time.monotonic())
            except asyncio.TimeoutError:
                raise _late(allowed) from None

    async def __anext__(self) -> Event:
        """As `EventStream.__next__`."""
        try:
            return await self.get()
        except Cancelled:
            raise StopAsyncIteration from None

    async def close(self) -> None:
        """As `EventStream.close`."""
        await self._close(done=True)

    async def _close(self, *, done: bool) -> None:
        await asyncio.to_thread(self.hearing.close, done=done)

    async def __aenter__(self) -> AsyncEventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(done=kind is None)


def _late(timeout: float | None) -> RpcTimeout:
    return RpcTimeout(f"no event came within {timeout:g} s")


def _ring(loop: asyncio.AbstractEventLoop, come: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop was closed
        loop.call_soon_threadsafe(come.set)
