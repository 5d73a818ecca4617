"""What a worker has to do: its jobs, listeners and timers, and what becomes of each message for them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .backends import queue_addresses
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
from .describe import ALL_WORKERS, ANSWERS_ALL, DESCRIBE, DISCOVER, ONLY, WorkerInfo, worker_info
from .errors import SettingsError
from .events import Events, listeners_in
from .job_info import Store, keeping
from .limits import Limits
from .loops import DelayQueue, to_its_end
from .nested import NestedCalls
from .prefork import Prefork, plan_of
from .registry.announcing import Announcer, instance_address
from .services import gathered, health_check, service
from .serving import Serving
from .settings import Settings
from .streams.limit import StreamLimit
from .streams.producing import OpenStreams
from .ticker import Ticker
from .timers import timers_in
from .transport import Address, Backend, Delivery, inbox


class Application:
    """The half of a receiver that knows what there is to do; the other one serves a backend."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        id: str,
        serving: Serving,
        coroutines: Coroutines,
        *,
        jobs: Mapping[str, Callable[..., Any]] | None,
        services: Sequence[Any] | None,
        hooks: Mapping[str, Any] | None,
        middleware: Sequence[Middleware] | None,
        context: ContextFactory,
        forked_with: Backend | str | None,
    ) -> None:
        """What it has to do is as RpcReceiver's arguments say. Processes of `fork=True` make a backend of
        their own as that was given, `forked_with`. Raises SettingsError and Unsupported."""
        self.id, self._settings, self._backend, self._context = id, settings, backend, context
        self._serving, self._coroutines = serving, coroutines
        self._instance, self._detaches = instance_address(id), "detached" in backend.features
        self._store, self._accept = Store(settings), accepted(settings.accept, settings.max_message_bytes)
        self._later, self._flushes = DelayQueue("rpc-retries"), DelayQueue("rpc-streams")
        self._limits, self.stream_limit = Limits(), StreamLimit(settings.streams_per_client)
        self.hooks = Hooks(coroutines.run)
        self.hooks.add_all(settings.loaded_hooks() if hooks is None else hooks)
        given = self._gather(jobs, services)
        plan = plan_of(self.jobs, settings, given, forked_with, context)
        self.children = Prefork(plan, self._limits, settings.max_jobs_per_child, serving.is_handed_back)
        self._streams = self._conversations()
        self.addresses(may_have_more=hasattr(backend, "front"))  # what cannot be is said here
        self.calls = NestedCalls(settings, backend, self.jobs, self.slots)
        self.tokens = Tokens(settings.tokens, f"{settings.module}: RPC_TOKENS")
        self._dispatcher = self._doing(settings.loaded_middleware() if middleware is None else middleware)
        self.set_hooks()
        self._offered = Offered(self.jobs, self._events.listeners, settings.identity)
        if settings.contract is not None:
            must_keep(settings.contract, self.discover())
        self.announcer, self._asked = self._telling()

    def _gather(
        self, jobs: Mapping[str, Callable[..., Any]] | None, services: Sequence[Any] | None
    ) -> set[str]:
        """Find what there is to do: jobs, what listens, and what ticks. The names of the jobs that are not
        from the settings."""
        settings = self._settings
        found = [service(each) for each in (settings.loaded_services() if services is None else services)]
        together = gathered(found, dict(settings.jobs() if jobs is None else jobs))
        if settings.identity.type:
            together.setdefault(health_check.__name__, health_check)
        self.jobs = jobs_from(together, [name for each in found for name in each.hidden])
        members = [member for each in found for member in each.members]
        listeners, timers = listeners_in(members, settings.domain), timers_in(members)
        common: dict[str, Any] = {"run": self._coroutines.run, "context": self._context}
        self._events = Events(listeners, accept=self._accept, later=self._later, **common)
        common |= {"lease": settings.lease, "stopped": lambda: self._serving.is_stopping}
        self._ticker = Ticker(timers, self._backend, **common)
        return {*(jobs or ()), *(name for each in found for name in each.jobs if services is not None)}

    def _conversations(self) -> OpenStreams:
        """The streams of its jobs."""
        return OpenStreams(
            self.id,
            idle=self._settings.stream_idle,
            detaches=self._detaches,
            threads=self._serving.threads,
            limit=self.stream_limit,
            spawn=self._coroutines.spawn,
            later=self._flushes,
            accept=self._accept,
        )

    def _doing(self, middleware: Sequence[Middleware]) -> Dispatcher:
        """What does its jobs."""
        settings = self._settings
        return self._dispatching(
            self.jobs,
            self._accept,
            delivery=settings.delivery,
            version=settings.identity.version,
            send_tracebacks=settings.send_tracebacks,
            spawn=self._coroutines.spawn if self._detaches else None,
            aside=to_its_end,
            handed_back=self._coroutines.handed_back,
            calls=self.calls,
            tokens=self.tokens,
            **keeping(settings, self._store.backend, self._backend, self.jobs, self.id, self._later),
            limits=self._limits,
            time_limit=settings.time_limit,
            fork=self.children.run,
            streams=self._streams,
            context=self._context,
            middleware=checked(middleware),
        )

    def _telling(self) -> tuple[Announcer, Dispatcher]:
        """What tells of itself: unasked, and asked."""
        announcer = Announcer(
            self._backend,
            self._settings.identity,
            self.id,
            self._settings.keep_alive,
            schema=lambda: self._offered.schema_hash,
            slots=self.slots,
            stopped=lambda: self._serving.is_stopping,
        )
        asked = {DESCRIBE: self.describe, DISCOVER: self.discover}
        if self._settings.identity.type:
            asked[SIGN] = announcer.sign
        return announcer, self._dispatching(jobs_from(asked), ACCEPTED)

    def _dispatching(self, jobs: Jobs, accept: Accepted, **options: Any) -> Dispatcher:
        return Dispatcher(
            jobs,
            accept=accept,
            **reply_limits(self._settings, self._backend),
            await_=self._coroutines.await_,
            clock=time.monotonic,
            dice=random.random,
            **options,
        )

    def set_hooks(self) -> None:
        """Have them called, if some have been added that are for calls."""
        self._dispatcher.hooks = self.hooks if self.hooks.are_for_calls else None

    def describe(self) -> WorkerInfo:
        """What this worker offers."""
        about = (self._events.listeners, self._ticker.ticking)
        most = self._serving.threads, self._serving.coroutines
        running = sum(used for used, _ in self.slots().values())
        who, queues = self._settings.identity, self._settings.served
        return worker_info(self.id, self.jobs, queues, *most, *about, who, running, self._offered.schema_hash)

    def discover(self) -> dict[str, Any]:
        """The OpenRPC document of what this worker offers, with what its listeners hear."""
        document: dict[str, Any] = self._offered.document
        return document

    def slots(self) -> dict[str, tuple[int, int]]:
        """How many are used, of how many."""
        running = self._dispatcher.running
        return {
            "concurrency": (running(threads=True), self._serving.threads),
            "coroutines": (running(threads=False), self._serving.coroutines),
        }

    def addresses(self, *, may_have_more: bool = False) -> list[Address]:
        """Where messages come to; it `may_have_more` to do later. Raises SettingsError if there is nothing to
        do, or to serve, and Unsupported."""
        where, features = self._settings.module, self._backend.features
        queues = queue_addresses(where, self._settings.served)
        if not (self.jobs or self._events.listeners or self._ticker.ticking or may_have_more):
            raise SettingsError(f"{where}: RPC_JOB_MAPPING and RPC_SERVICES have no job: nothing to do")
        self._events.check(features)
        retried = next((name for name, each in self.jobs.items() if each.options.retries), None)
        if retried and "delay" not in features:
            raise unsupported("delay", f"{retried} has retries=, but this backend")
        channels = [ALL_WORKERS] if features & ANSWERS_ALL else []
        if "topics" in features and self._settings.identity.type:
            channels.append(self._instance)
        if self.jobs:
            channels.append(inbox(self.id))
        return (queues if self.jobs else []) + self._events.addresses + channels

    def __call__(self, delivery: Delivery) -> None:
        """Do what a message asks for."""
        if delivery.to.kind == "queue" or delivery.to == self._instance:
            self.announcer.took = time.monotonic()
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

    def start(self) -> None:
        """Before the first message: raises SettingsError if there can be no children."""
        self.tokens.warn_of_unused(self.jobs)
        self.children.start()
        self.announcer.start()
        self._ticker.start()

    def end(self, *, is_heard: bool) -> None:
        """After the last one: the others are told, if what it says `is_heard`."""
        self.announcer.end(is_heard=is_heard)
        for each in (self._ticker, self._later, self._flushes, self._limits, self.children):
            each.end()

    def close(self) -> None:
        self._store.close()
