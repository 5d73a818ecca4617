"""The receiver's shell: it serves a backend, and runs the loop of coroutine handlers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import copy_context
from types import ModuleType, TracebackType
from typing import Any, TypeVar, cast
from uuid import uuid4

from .backends import backend_of_receiver
from .backends._retry import Backoff
from .backends.features import unsupported
from .codecs import accepted, reply_limits
from .core.codecs import ACCEPTED, Accepted
from .core.dispatch import Dispatcher
from .core.handling import HandedBack, contained
from .core.jobs import Jobs, jobs_from
from .core.middleware import ContextFactory, Hooks, Middleware, checked
from .describe import ALL_WORKERS, DESCRIBE, WorkerInfo, offered, worker_info
from .durations import Duration, seconds
from .errors import BackendRefused, Cancelled, SettingsError, Unsupported
from .events import Events, listeners_in
from .job_info import Store, keeping
from .limits import Limits
from .loops import (
    DaemonThreads,
    DelayQueue,
    LoopThread,
    RunningLoop,
    in_contexts,
    started,
    to_its_end,
)
from .nested import NestedCalls
from .prefork import Prefork, plan_of
from .services import gathered, service
from .settings import Settings, load_settings, slots
from .signals import stopped_by_signals
from .streams.producing import OpenStreams
from .ticker import Ticker
from .timers import timers_in
from .transport import Address, Backend, Delivery, Handler, Liveness, Server, inbox, queue

logger = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds that a singleton's lock outlives its owner, if the settings do not say."""

ADVANCING = 4
"""Threads that advance plain generators, at most. They hold none while they wait for their callers."""

F = TypeVar("F", bound=Callable[..., Any])


class RpcReceiver:
    """Maps names to handlers, and serves a backend.

    What is not given comes from the settings module (see `rpc.settings`), which is read if there is no
    `backend`, or neither `jobs` nor `services`, or if `settings` names it. `jobs` maps names to callables,
    `services` are objects, classes and modules whose methods are exposed, listen or tick (see `expose`, `on`,
    `every`), `hooks` maps names to callables and `middleware` wraps handlers from the outside in (see
    `rpc.core.middleware`); `context` makes what all of these run in. `backend` is a backend or its URL,
    `queues` are served in this order of priority, `concurrency` is how many plain functions run at a time and
    `coroutines` how many coroutines, `grace` the seconds that a stop gives to those that run, and
    `max_jobs_per_child` after how many jobs a process of those with `fork=True` is replaced. `run()` serves
    until a signal; `async with` serves in the application's own event loop, in which coroutines then run.
    Raises SettingsError, and Unsupported if something needs what the backend cannot do.
    """

    def __init__(
        self,
        *,
        jobs: Mapping[str, Callable[..., Any]] | None = None,
        services: Sequence[Any] | None = None,
        backend: Backend | str | None = None,
        settings: str | ModuleType | Settings | None = None,
        queues: Sequence[str] | None = None,
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
        self._settings, self._store = settings, Store(settings)
        self.backend = backend_of_receiver(settings, backend)
        self.concurrency = slots("RPC_CONCURRENCY", concurrency, settings.concurrency)
        self.coroutines = slots("RPC_COROUTINES", coroutines, settings.coroutines)
        self.queues = tuple(settings.queues if queues is None else queues)
        self.grace = settings.grace if grace is None else seconds(grace, "grace")
        self.id = uuid4().hex
        self._context = context
        self._loop = LoopThread("rpc-coroutines")
        self._pool = DaemonThreads(min(self.concurrency, ADVANCING), "rpc-generators")
        self._stopping = self._begun = self._has_handed_back = False
        self._handing_back = threading.Lock()
        self._server: Server | None = None
        self._serving: threading.Thread | None = None
        self._on_arrival: Callable[[], object] = lambda: None
        """Called when there is a connection, the first time."""
        self._later, self._flushes = DelayQueue("rpc-retries"), DelayQueue("rpc-streams")
        self.hooks = Hooks(self._run)
        self.hooks.add_all(settings.loaded_hooks() if hooks is None else hooks)
        found = [service(each) for each in (settings.loaded_services() if services is None else services)]
        together = gathered(found, dict(settings.jobs() if jobs is None else jobs))
        self.jobs = jobs_from(together, [name for each in found for name in each.hidden])
        members = [member for each in found for member in each.members]
        common: dict[str, Any] = {"run": self._run, "context": context}
        self._ticker = Ticker(
            timers_in(members),
            self.backend,
            lease=settings.lease or LEASE,
            stopped=lambda: self._stopping,
            **common,
        )
        accept, self._limits = accepted(settings.accept, settings.max_message_bytes), Limits()
        given = {*(jobs or ()), *(name for each in found for name in each.jobs if services is not None)}
        plan = plan_of(self.jobs, settings, given, backend, context)
        most = settings.max_jobs_per_child if max_jobs_per_child is None else max_jobs_per_child
        self._children = Prefork(plan, self._limits, most, self._is_handed_back)
        self._events = Events(listeners_in(members), accept=accept, later=self._later, **common)
        self._streams = OpenStreams(
            self.id,
            idle=settings.stream_idle,
            detaches="detached" in self.backend.features,
            submit=self._submit,
            spawn=self._spawn,
            later=self._flushes,
        )
        self._addresses = self._served()
        self._calls = NestedCalls(settings, self.backend, self.jobs, self.queues, self._slots)
        self._dispatcher = self._dispatching(
            self.jobs,
            accept,
            delivery=settings.delivery,
            send_tracebacks=settings.send_tracebacks,
            spawn=self._spawn if "detached" in self.backend.features else None,
            aside=to_its_end,
            handed_back=self._handed_back,
            calls=self._calls,
            **keeping(settings, self._store.backend, self.backend, self.jobs, self.id, self._later),
            limits=self._limits,
            time_limit=settings.time_limit,
            fork=self._children.run,
            streams=self._streams,
            context=context,
            middleware=checked(settings.loaded_middleware() if middleware is None else middleware),
        )
        self._set_hooks()
        self._describer = self._dispatching(jobs_from({DESCRIBE: self.describe}), ACCEPTED)

    def _dispatching(self, jobs: Jobs, accept: Accepted, **options: Any) -> Dispatcher:
        return Dispatcher(
            jobs,
            accept=accept,
            **reply_limits(self._settings, self.backend),
            await_=self._await,
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

    def describe(self) -> WorkerInfo:
        """What this worker offers."""
        about = (self._events.listeners, self._ticker.ticking)
        most = self.concurrency, self.coroutines
        return worker_info(self.id, self.jobs, self.queues, *most, *about)

    def _served(self) -> list[Address]:
        """Where messages come to. Raises SettingsError if there is nothing to do, or to serve, and
        Unsupported."""
        where, features = self._settings.module, self.backend.features
        try:
            queues = [queue(name) for name in self.queues]
        except ValueError as error:
            raise SettingsError(f"{where}: RPC_QUEUES: {error}") from None
        if not queues:
            raise SettingsError(f"{where}: RPC_QUEUES is empty: there is nothing to serve")
        if not self.jobs and not self._events.listeners and not self._ticker.ticking:
            raise SettingsError(
                f"{where}: RPC_JOB_MAPPING and RPC_SERVICES have no job: there is nothing to do"
            )
        self._events.check(features)
        if "delay" not in features and any(each.options.retries for each in self.jobs.values()):
            raise Unsupported("retries need delay, which this backend does not have")
        channels = [ALL_WORKERS] if "topics" in features else []
        if self.jobs:
            channels.append(inbox(self.id))
        return (queues if self.jobs else []) + self._events.addresses + channels

    def _set_hooks(self) -> None:
        self._dispatcher.hooks = self.hooks if self.hooks.are_for_calls else None

    def _handle(self, delivery: Delivery) -> None:
        if delivery.to.kind == "queue":
            self._dispatcher(delivery)
        elif delivery.to == ALL_WORKERS:
            self._describer(delivery)
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
            self._stopping = False
        logger.info("stopped")

    start = run

    async def __aenter__(self) -> RpcReceiver:
        """Serve, in threads, until the end of the block: coroutine handlers, hooks and listeners run in this
        event loop. Returns once there is a connection. At the end no new job is taken, and those that run may
        finish within `grace` seconds; what is left then goes back to the queue, and its coroutines are
        cancelled."""
        if self._serving and not self._stopping:
            raise RuntimeError("this receiver serves already: make another one")
        if self._serving:  # it may have been left in a hurry
            await asyncio.to_thread(self._serving.join)
            self._stopping = False
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                self._serve()
            except BaseException as error:  # raised again below, in the application
                failures.append(error)
            finally:
                self._on_arrival()

        def arrive() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(begun.set)

        self._loop, self._on_arrival = RunningLoop(), arrive
        self._serving = started(threading.Thread(target=in_contexts(serve), name="rpc-receiver", daemon=True))
        try:
            await begun.wait()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        if failures:
            await self.__aexit__(None, None, None)
            raise failures[0]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._serving:
            await asyncio.to_thread(self._serving.join, self.grace)
            if self._serving.is_alive():
                logger.warning("handing back what did not finish within %g s", self.grace)
                await asyncio.to_thread(self._hand_back)
                self._loop.close()
                await asyncio.to_thread(self._serving.join, 1.0)  # a plain function cannot be ended
        await self._calls.aclose()
        await asyncio.to_thread(self._close)
        self._serving, self._stopping = None, False

    def _serve(self, wait: bool = False) -> None:
        self._begun = self._has_handed_back = False
        handler: Handler = in_contexts(self._handle)
        self._children.start()
        most: dict[str, Any] = {"threads": self.concurrency, "coroutines": self.coroutines}
        pauses = Backoff()
        try:
            self._ticker.start()
            while True:
                self._server = server = self.backend.server(
                    self._addresses, handler, on_change=self._changed, **most
                )
                if self._stopping:
                    server.stop()
                try:
                    return server.run()
                except BackendRefused as error:
                    if not wait:
                        raise
                    pauses.wait("%s; trying again", error)
        finally:
            self._server, self._stopping = None, True
            self._ticker.end()
            self._later.end()
            self._flushes.end()
            self._limits.end()
            self._children.end()

    def _close(self) -> None:
        self._calls.close(None if self._serving else self._loop)
        self._loop.close()
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
        self._stopping = True
        if server := self._server:
            server.stop()

    def stalled(self) -> float:
        """Seconds since the loop that takes jobs came round last: less than ten if all is well, or the broker
        is away. 0 while all slots are busy, and before it serves and while it stops. Raises Unsupported."""
        if "liveness" not in self.backend.features:
            raise unsupported("liveness")
        server = cast("Liveness | None", self._server)
        return 0.0 if server is None or self._stopping else server.stalled()

    def _changed(self, connected: bool) -> None:
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

    def _submit(self, action: Callable[[], None]) -> None:
        try:
            self._pool.submit(action)
        except RuntimeError:  # there can be no other thread
            action()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        def started(cancel: Callable[[], object]) -> None:
            delivery.on_cancel = cancel
            if delivery.cancelled:
                cancel()

        self._loop.spawn(coroutine, started)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run(contained(coroutine, self._context)).result()

    def _await(self, coroutine: Coroutine[Any, Any, Any], delivery: Delivery) -> Any:
        """The coroutine's result; it is cancelled when the delivery is."""
        future = self._loop.run(coroutine)
        delivery.on_cancel = future.cancel
        if delivery.cancelled:
            future.cancel()
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            if self._handed_back(delivery):
                raise HandedBack from None
            raise Cancelled("the call was cancelled") from None

    def _hand_back(self) -> None:
        with self._handing_back:
            if (server := self._server) and not self._has_handed_back:
                self._has_handed_back = True
                self._children.kill()
                server.hand_back()

    def _is_handed_back(self) -> bool:
        with self._handing_back:
            return self._has_handed_back

    def _handed_back(self, delivery: Delivery) -> bool:
        """Of a coroutine in somebody else's event loop, which ends before what runs in it has."""
        if delivery.cancelled:
            return False
        if self._serving and self._stopping:
            self._hand_back()
        return self._has_handed_back
