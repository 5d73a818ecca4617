"""The receiver: it serves a backend until it is stopped, and has its application do what comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from types import ModuleType
from typing import Any, TypeVar
from uuid import uuid4

from .application import Application
from .backends import backend_of_receiver
from .core.jobs import jobs_from
from .core.middleware import ContextFactory, Middleware
from .coroutines import Coroutines
from .describe import WorkerInfo, offered
from .durations import Duration, seconds_or_none
from .embedding import Embedding
from .errors import SettingsError
from .http import offer, route
from .identity import Identity
from .loops import in_contexts
from .serving import Serving
from .settings import Settings, load_settings, slots
from .signals import stopped_by_signals
from .signing.backend import signing
from .transport import Backend, Delivery, Handler

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
        if jobs is not None and not isinstance(jobs, Mapping):
            raise SettingsError(
                f"jobs maps names to functions, as {{'add': add}}; it is a {type(jobs).__name__}"
            )
        if not isinstance(settings, Settings):
            wanted = settings is not None or backend is None or (jobs is None and services is None)
            settings = load_settings(settings) if wanted else Settings()
        own = {"grace": seconds_or_none(grace, "grace"), "max_jobs_per_child": max_jobs_per_child}
        slotted = {"concurrency": concurrency, "coroutines": coroutines}
        self.settings = settings = settings.of(identity, queues=queues, **slotted, **own)
        self.backend: Backend = signing(settings, backend_of_receiver(settings, backend))
        self.concurrency = slots("RPC_CONCURRENCY", settings.concurrency)
        self.coroutines = slots("RPC_COROUTINES", settings.coroutines)
        self.identity, self.queues, self.grace = settings.identity, settings.served, settings.grace
        self.id, self._context = uuid4().hex, context
        self._serving = Serving(self.backend, self.concurrency, self.coroutines)
        self._embedding = Embedding(self._serve, self._abandon)
        self._begun = self._is_connected = False
        self._on_arrival: Callable[[], object] = lambda: None
        """Called when there is a connection, the first time."""
        self._coroutines = Coroutines(context, self._handed_back)
        self._application = application = Application(
            settings,
            self.backend,
            self.id,
            self._serving,
            self._coroutines,
            jobs=jobs,
            services=services,
            hooks=hooks,
            middleware=middleware,
            context=context,
            forked_with=backend,
        )
        self.jobs, self.hooks = application.jobs, application.hooks
        self.tokens, self.stream_limit = application.tokens, application.stream_limit
        offer(self.backend, self)

    def hook(self, name: str) -> Callable[[F], F]:
        """A decorator that adds a hook. Raises SettingsError for a name that is none."""

        def add(function: F) -> F:
            self.hooks.add(name, function)
            self._application.set_hooks()
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
        return self._application.describe()

    def discover(self) -> dict[str, Any]:
        """The OpenRPC document of what this worker offers, with what its listeners hear."""
        return self._application.discover()

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
        await self._application.calls.aclose()
        await asyncio.to_thread(self._close)
        self._embedding.thread, self._serving.is_stopping = None, False

    def _serve(self, wait: bool = False) -> None:
        self._begun = False
        handler: Handler = in_contexts(self._application)
        addresses = self._application.addresses()
        try:
            self._application.start()
            self._serving.run(addresses, handler, self._changed, wait=wait)
        finally:
            self._serving.is_stopping = True
            self._application.end(is_heard=self._is_connected)

    def _close(self) -> None:
        self._application.calls.close(None if self._embedding.thread else self._coroutines.loop)
        self._coroutines.close()
        self._application.close()
        self.backend.close()

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
            self._application.announcer.begin()
        if connected and not self._begun:
            self._begun = True
            logger.info("serving %s", offered(self.describe()))
            if "detached" not in self.backend.features and any(
                job.is_coroutine for job in self.jobs.values()
            ):
                logger.info("on this backend a coroutine holds a thread: %d run at a time", self.concurrency)
            self._on_arrival()
        name = "on_connect" if connected else "on_disconnect"
        try:
            with self._context():
                copy_context().run(self.hooks.tell, name)
        except Exception:  # the context is the user's
            logger.exception("hooks %s failed", name)

    def _hand_back(self) -> None:
        self._serving.hand_back(self._application.children.kill)

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
