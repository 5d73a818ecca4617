"""The receiver's shell: it serves a backend, and runs the loop of coroutine handlers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from types import ModuleType
from typing import Any, TypeVar
from uuid import uuid4

from .backends import backend_of_receiver, queue_addresses
from .backends.features import unsupported
from .codecs import accepted, reply_limits
from .contract.compare import must_keep
from .contract.offered import Offered
from .core.codecs import ACCEPTED, Accepted
from .core.dispatch import Dispatcher
from .core.jobs import Jobs, jobs_from
from .core.middleware import ContextFactory, Hooks, Middleware, checked
from .core.registry import SIGN
from .core.tokens import Tokens
from .coroutines import Coroutines
from .describe import ALL_WORKERS, ANSWERS_ALL, DESCRIBE, DISCOVER, ONLY, WorkerInfo, offered, worker_info
from .durations import Duration, seconds_or_none
from .embedding import Embedding
from .errors import SettingsError
from .events import Events, listeners_in
from .http import offer, route
from .identity import Identity
from .job_info import Store, keeping
from .limits import Limits
from .loops import DelayQueue, in_contexts, to_its_end
from .nested import NestedCalls
from .prefork import Plan, Prefork, plan_of
from .registry.announcing import Announcer, instance_address
from .services import gathered, health_check, service
from .serving import Serving
from .settings import Settings, load_settings, slots
from .signals import stopped_by_signals
from .signing.backend import signing
from .streams.limit import StreamLimit
from .streams.producing import OpenStreams
from .ticker import Ticker
from .timers import timers_in
from .transport import Address, Backend, Delivery, Handler, inbox

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class RpcReceiver:
    """Maps names to handlers, and serves a backend.

    What is not given comes from the settings module (see `rpc.settings`), which is read if there is no
    `backend`, or neither `jobs` nor `services`, or if `settings` names it. `jobs` maps names to callables,
    `services` are objects, classes and modules whose methods are exposed, listen or tick (see `expose`, `on`,
    `every`), `hooks` maps names to callables and `middleware` wraps handlers from the outside in (see
    `rpc.core.middleware`); `context` makes what all of these run in. `backend` is a backend or its URL,
    `queues` are served in this order of priority, after those of the service that this is by its `identity`;
    `concurrency` is how many plain functions run at a time and `coroutines` how many coroutines, `grace` the
    seconds that a stop gives to those that run, and `max_jobs_per_child` after how many jobs a process of
    those with `fork=True` is replaced. `run()` serves until a signal; `async with` serves in the
    application's own event loop, in which coroutines then run. Raises SettingsError, and Unsupported if
    something needs what the backend cannot do.
    """

    def __init__(
        self,
        *,
        jobs: Mapping[str, Callable[..., Any]] | None = None,
        services: Sequence[Any] | None = None,
        backend: Backend | str | None = None,
        settings: str | ModuleType | Settings | None = None,
        queues: Sequence[str] | None = None,
        identity: Identity | None = None,
        concurrency: int | None = None,
        coroutines: int | None = None,
        grace: Duration | None = None,
        max_jobs_per_child: int | None = None,
        hooks: Mapping[str, Any] | None = None,
        middleware: Sequence[Middleware] | None = None,
        context: ContextFactory = nullcontext,
    ) -> None:
        if not isinstance(settings, Settings):
            wanted = settings is not None or backend is None or (jobs is None and services is None)
            settings = load_settings(settings) if wanted else Settings()
        own = {"grace": seconds_or_none(grace, "grace"), "max_jobs_per_child": max_jobs_per_child}
        slotted = {"concurrency": concurrency, "coroutines": coroutines}
        self.settings = settings = settings.of(identity, queues=queues, **slotted, **own)
        self._store, self._context = Store(settings), context
        self.backend: Backend = signing(settings, backend_of_receiver(settings, backend))
        self._detaches = "detached" in self.backend.features
        self.concurrency = slots("RPC_CONCURRENCY", settings.concurrency)
        self.coroutines = slots("RPC_COROUTINES", settings.coroutines)
        self.identity, self.queues, self.grace = settings.identity, settings.served, settings.grace
        self.id = uuid4().hex
        self._instance = instance_address(self.id)
        self._serving = Serving(self.backend, self.concurrency, self.coroutines)
        self._embedding = Embedding(self._serve, self._abandon)
        self._begun = self._is_connected = False
        self._on_arrival: Callable[[], object] = lambda: None
        """Called when there is a connection, the first time."""
        self._coroutines = Coroutines(context, self._handed_back)
        self._later, self._flushes = DelayQueue("rpc-retries"), DelayQueue("rpc-streams")
        self._limits, self._accept = Limits(), accepted(settings.accept, settings.max_message_bytes)
        self.hooks = Hooks(self._coroutines.run)
        self.hooks.add_all(settings.loaded_hooks() if hooks is None else hooks)
        given = self._gather(jobs, services)
        self._equip(plan_of(self.jobs, settings, given, backend, context), middleware)

    def _equip(self, plan: Plan | None, middleware: Sequence[Middleware] | None) -> None:
        """Make what serves its jobs, and what tells of them."""
        settings, most = self.settings, self.settings.max_jobs_per_child
        self._children = Prefork(plan, self._limits, most, self._serving.is_handed_back)
        self.stream_limit = StreamLimit(settings.streams_per_client)
        self._streams = self._conversations()
        self._addresses(may_have_more=hasattr(self.backend, "front"))  # what cannot be is said here
        self._calls = NestedCalls(settings, self.backend, self.jobs, self._slots)
        self.tokens = Tokens(settings.tokens, f"{settings.module}: RPC_TOKENS")
        self._dispatcher = self._doing(settings.loaded_middleware() if middleware is None else middleware)
        self._set_hooks()
        offer(self.backend, self)
        self._offered = Offered(self.jobs, self._events.listeners, self.identity)
        if settings.contract is not None:
            must_keep(settings.contract, self.discover())
        self._announcer, self._asked = self._telling()

    def _gather(
        self, jobs: Mapping[str, Callable[..., Any]] | None, services: Sequence[Any] | None
    ) -> set[str]:
        """Find what there is to do: jobs, what listens, and what ticks. The names of the jobs that are not
        from the settings."""
        settings = self.settings
        found = [service(each) for each in (settings.loaded_services() if services is None else services)]
        together = gathered(found, dict(settings.jobs() if jobs is None else jobs))
        if self.identity.type:
            together.setdefault(health_check.__name__, health_check)
        self.jobs = jobs_from(together, [name for each in found for name in each.hidden])
        members = [member for each in found for member in each.members]
        common: dict[str, Any] = {"run": self._coroutines.run, "context": self._context}
        listeners, timers = listeners_in(members, settings.domain), timers_in(members)
        self._events = Events(listeners, accept=self._accept, later=self._later, **common)
        common |= {"lease": settings.lease, "stopped": lambda: self._serving.is_stopping}
        self._ticker = Ticker(timers, self.backend, **common)
        return {*(jobs or ()), *(name for each in found for name in each.jobs if services is not None)}

    def _conversations(self) -> OpenStreams:
        """The streams of its jobs."""
        some: dict[str, Any] = {"idle": self.settings.stream_idle, "detaches": self._detaches}
        some |= {"threads": self.concurrency, "limit": self.stream_limit, "accept": self._accept}
        return OpenStreams(self.id, spawn=self._coroutines.spawn, later=self._flushes, **some)

    def _doing(self, middleware: Sequence[Middleware]) -> Dispatcher:
        """What does its jobs."""
        settings = self.settings
        return self._dispatching(
            self.jobs,
            self._accept,
            delivery=settings.delivery,
            version=self.identity.version,
            send_tracebacks=settings.send_tracebacks,
            spawn=self._coroutines.spawn if self._detaches else None,
            aside=to_its_end,
            handed_back=self._handed_back,
            calls=self._calls,
            tokens=self.tokens,
            **keeping(settings, self._store.backend, self.backend, self.jobs, self.id, self._later),
            limits=self._limits,
            time_limit=settings.time_limit,
            fork=self._children.run,
            streams=self._streams,
            context=self._context,
            middleware=checked(middleware),
        )

    def _telling(self) -> tuple[Announcer, Dispatcher]:
        """What tells of itself: unasked, and asked."""
        announcer = Announcer(
            self.backend,
            self.identity,
            self.id,
            self.settings.keep_alive,
            schema=lambda: self._offered.schema_hash,
            slots=self._slots,
            stopped=lambda: self._serving.is_stopping,
        )
        asked = {DESCRIBE: self.describe, DISCOVER: self.discover}
        if self.identity.type:
            asked[SIGN] = announcer.sign
        return announcer, self._dispatching(jobs_from(asked), ACCEPTED)

    def _dispatching(self, jobs: Jobs, accept: Accepted, **options: Any) -> Dispatcher:
        return Dispatcher(
            jobs,
            accept=accept,
            **reply_limits(self.settings, self.backend),
            await_=self._coroutines.await_,
            clock=time.monotonic,
            dice=random.random,
            **options,
        )

    def hook(self, name: str) -> Callable[[F], F]:
        """A decorator that adds a hook. Raises SettingsError for a name that is none."""

        def add(function: F) -> F:
            self.hooks.add(name, function)
            self._set_hooks()
            return function

        return add

    def route(
        self, path: str, *, methods: Sequence[str] = ("POST",), name: str | None = None, token: Any = None
    ) -> Callable[[F], F]:
        """A decorator: the function is a job of this `name` (by default its own), and is called by requests
        for this path with one of these methods of HTTP, too, if the backend is `http:`; see `rpc.http.route`.
        Whichever way it is called, a caller must have this `token`, or one of several, if one is given, as
        for `RPC_TOKENS`. Raises SettingsError."""

        def add(function: F) -> F:
            own = name or function.__name__
            job = jobs_from({own: route(path, methods=methods)(function)})
            if token is not None:
                self.tokens.require(own, token, f"route({path!r})")
            self.jobs.update(job)
            return function

        return add

    def describe(self) -> WorkerInfo:
        """What this worker offers."""
        about = (self._events.listeners, self._ticker.ticking)
        most = self.concurrency, self.coroutines
        running = sum(used for used, _ in self._slots().values())
        schema = self._offered.schema_hash
        return worker_info(self.id, self.jobs, self.queues, *most, *about, self.identity, running, schema)

    def discover(self) -> dict[str, Any]:
        """The OpenRPC document of what this worker offers, with what its listeners hear."""
        document: dict[str, Any] = self._offered.document
        return document

    def _addresses(self, *, may_have_more: bool = False) -> list[Address]:
        """Where messages come to; it `may_have_more` to do later. Raises SettingsError if there is nothing to
        do, or to serve, and Unsupported."""
        where, features = self.settings.module, self.backend.features
        queues = queue_addresses(where, self.queues)
        if not (self.jobs or self._events.listeners or self._ticker.ticking or may_have_more):
            raise SettingsError(f"{where}: RPC_JOB_MAPPING and RPC_SERVICES have no job: nothing to do")
        self._events.check(features)
        retried = [name for name, each in self.jobs.items() if each.options.retries]
        if retried and "delay" not in features:
            have = f"{', '.join(retried)} {'has' if len(retried) == 1 else 'have'}"
            raise unsupported("delay", f"{have} retries=, but this backend")
        channels = [ALL_WORKERS] if features & ANSWERS_ALL else []
        if "topics" in features and self.identity.type:
            channels.append(self._instance)
        if self.jobs:
            channels.append(inbox(self.id))
        return (queues if self.jobs else []) + self._events.addresses + channels

    def _set_hooks(self) -> None:
        self._dispatcher.hooks = self.hooks if self.hooks.are_for_calls else None

    def _handle(self, delivery: Delivery) -> None:
        if delivery.to.kind == "queue" or delivery.to == self._instance:
            self._announcer.took = time.monotonic()
            self._dispatcher(delivery)
        elif delivery.to == ALL_WORKERS:
            if delivery.message.headers.get(ONLY, self.id) == self.id:
                self._asked(delivery)
            else:
                delivery.finish(None)
        elif delivery.to.kind == "inbox":
            self._streams.hear(delivery)
        else:
            self._events(delivery)

    def run(self, *, wait: bool = False, arrived: Callable[[], object] = lambda: None) -> None:
        """Serve until stopped; blocks. In the main thread, SIGTERM and SIGINT stop it: no new job is taken,
        those that run may finish within `grace` seconds, what is left then goes back to the queue and the
        process exits with 0. A second signal ends the process at once.

        A broker that is away is waited for. One that refuses the first connection (a wrong password, no such
        vhost, no permission) is BackendRefused, or waited for, too, with `wait`. `arrived` is called, from
        any thread, when there is a connection for the first time."""
        self._on_arrival = arrived
        try:
            with stopped_by_signals(self.stop, self._hand_back, self.grace):
                self._serve(wait)
        finally:
            self._close()
            self._serving.is_stopping = False
        logger.info("stopped")

    start = run

    async def __aenter__(self) -> RpcReceiver:
        """Serve, in threads, until the end of the block: coroutine handlers, hooks and listeners run in this
        event loop. Returns once there is a connection. At the end no new job is taken, and those that run may
        finish within `grace` seconds; what is left then goes back to the queue, and its coroutines are
        cancelled."""
        if self._embedding.thread and not self._serving.is_stopping:
            raise RuntimeError("this receiver serves already: make another one")
        if self._embedding.thread:  # it may have been left in a hurry
            await asyncio.to_thread(self._embedding.thread.join)
            self._serving.is_stopping = False
        self._coroutines.enter_running_loop()
        self._on_arrival = lambda: self._embedding.arrived()
        try:
            await self._embedding.begin()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await self._embedding.end(self.grace)
        await self._calls.aclose()
        await asyncio.to_thread(self._close)
        self._embedding.thread, self._serving.is_stopping = None, False

    def _serve(self, wait: bool = False) -> None:
        self._begun = False
        handler: Handler = in_contexts(self._handle)
        addresses = self._addresses()
        self._children.start()
        self._announcer.start()
        try:
            self._ticker.start()
            self._serving.run(addresses, handler, self._changed, wait=wait)
        finally:
            self._serving.is_stopping = True
            self._announcer.end(is_heard=self._is_connected)
            for each in (self._ticker, self._later, self._flushes, self._limits, self._children):
                each.end()

    def _close(self) -> None:
        self._calls.close(None if self._embedding.thread else self._coroutines.loop)
        self._coroutines.close()
        self._store.close()
        self.backend.close()

    def _slots(self) -> dict[str, tuple[int, int]]:
        """How many are used, of how many."""
        running = self._dispatcher.running
        return {
            "concurrency": (running(threads=True), self.concurrency),
            "coroutines": (running(threads=False), self.coroutines),
        }

    def stop(self) -> None:
        """Make `run` return as soon as what runs is finished. Any thread, signal-safe."""
        self._serving.stop()

    def stalled(self) -> float:
        """Seconds since the loop that takes jobs came round last: less than ten if all is well, or the broker
        is away. 0 while all slots are busy, and before it serves and while it stops. Raises Unsupported."""
        return self._serving.stalled()

    def _changed(self, connected: bool) -> None:
        if connected or not self._serving.is_stopping:  # else it is given back, and was not lost
            self._is_connected = connected
        if connected:
            self._announcer.begin()
        if connected and not self._begun:
            self._begun = True
            logger.info("serving %s", offered(self.describe()))
            if not self._detaches and any(job.is_coroutine for job in self.jobs.values()):
                logger.info("on this backend a coroutine holds a thread: %d run at a time", self.concurrency)
            self._on_arrival()
        name = "on_connect" if connected else "on_disconnect"
        try:
            with self._context():
                copy_context().run(self.hooks.tell, name)
        except Exception:  # the context is the user's
            logger.exception("hooks %s failed", name)

    def _hand_back(self) -> None:
        self._serving.hand_back(self._children.kill)

    def _abandon(self) -> None:
        self._hand_back()
        self._coroutines.close()

    def _handed_back(self, delivery: Delivery) -> bool:
        """Of a coroutine in somebody else's event loop, which ends before what runs in it has."""
        if delivery.cancelled:
            return False
        if self._embedding.thread and self._serving.is_stopping:
            self._hand_back()
        return self._serving.has_handed_back
