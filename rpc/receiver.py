"""The receiver's shell: it serves a backend, runs the loop of coroutine handlers, and minds the signals."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from .addresses import queue
from .backends import Backend, backend_from_url
from .core.codecs import Accepted
from .core.dispatch import Dispatcher
from .core.jobs import jobs_from
from .errors import Cancelled, SettingsError, Unsupported
from .message import Delivery
from .settings import Settings, load_settings

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RpcReceiver:
    """Maps names to handlers, and serves a backend.

    What is not given comes from the settings module (see `rpc.settings`), which is read if `jobs` or
    `backend` is missing, or if `settings` names it. `jobs` maps names to callables, `backend` is a backend or
    its URL, `queues` are served in this order of priority, `concurrency` is how many jobs run at a time,
    `grace` the seconds that a stop gives to those that run. Raises SettingsError, and Unsupported if a job
    asks for retries that the backend cannot do.
    """

    def __init__(
        self,
        *,
        jobs: Mapping[str, Callable[..., Any]] | None = None,
        backend: Backend | str | None = None,
        settings: str | ModuleType | Settings | None = None,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
        grace: float | None = None,
    ) -> None:
        if not isinstance(settings, Settings):
            wanted = settings is not None or jobs is None or backend is None
            settings = load_settings(settings) if wanted else Settings()
        self.backend = _backend(settings, backend)
        self.concurrency = settings.concurrency if concurrency is None else concurrency
        if self.concurrency < 1:
            raise SettingsError(f"RPC_CONCURRENCY is {self.concurrency}: at least one job must run at a time")
        self.queues = tuple(settings.queues if queues is None else queues)
        try:
            self._addresses = [queue(name) for name in self.queues]
        except ValueError as error:
            raise SettingsError(f"{settings.module}: RPC_QUEUES: {error}") from None
        if not self._addresses:
            raise SettingsError(f"{settings.module}: RPC_QUEUES is empty: there is nothing to serve")
        self.grace = settings.grace if grace is None else grace
        self.jobs = jobs_from(settings.jobs() if jobs is None else jobs)
        if not self.jobs:
            raise SettingsError(f"{settings.module}: RPC_JOB_MAPPING maps no name: there is nothing to do")
        retried = [name for name, job in self.jobs.items() if job.options.retries]
        if retried and "delay" not in self.backend.features:
            raise Unsupported(f"retries of {', '.join(retried)} need a backend like redis: or memory:")
        self._loop = _CoroutineLoop()
        self._dispatcher = Dispatcher(
            self.jobs,
            accept=Accepted(settings.accept),
            max_message=min(settings.max_message_bytes, self.backend.max_message or sys.maxsize),
            delivery=settings.delivery,
            send_tracebacks=settings.send_tracebacks,
            await_=self._loop.run,
        )

    def start(self) -> None:
        """Serve until stopped; blocks. In the main thread, SIGTERM and SIGINT stop it: no new job is taken,
        those that run may finish within `grace` seconds, what is left then goes back to the queue and the
        process exits with 0. A second signal ends the process at once."""
        try:
            with self._signals():
                logger.info("serving %s: %s", ", ".join(self.queues), ", ".join(sorted(self.jobs)))
                self.backend.serve(self._addresses, self._dispatcher, self.concurrency)
        finally:
            self._loop.close()
            self.backend.close()
        logger.info("stopped")

    def stop(self) -> None:
        """Make `start` return as soon as what runs is finished. Any thread, signal-safe."""
        self.backend.stop()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        told, tell = os.pipe()  # a signal handler may not take a lock: it writes a byte
        threading.Thread(target=self._wait_for_the_end, args=[told], name="rpc-grace", daemon=True).start()

        def on_signal(number: int, frame: FrameType | None) -> None:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)  # the second one ends the process
            self.stop()
            os.write(tell, b"!")

        before = {number: signal.signal(number, on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(tell)

    def _wait_for_the_end(self, told: int) -> None:
        """Once a signal came: when the grace period is over, what still runs goes back to the queue, and the
        process ends under its feet. The pipe is closed as soon as nothing runs any more."""
        with open(told, "rb", buffering=0) as pipe:
            if not pipe.read(1):
                return
            logger.info("stopping within %g s; a second signal stops at once", self.grace)
            end = time.monotonic() + self.grace
            while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                if not pipe.read(1):
                    return
        logger.warning("handing back what did not finish within %g s", self.grace)
        try:
            self.backend.close()
        finally:
            logging.shutdown()
            os._exit(0)


class _CoroutineLoop:
    """One event loop in a thread of its own, started by the first coroutine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, coroutine: Coroutine[Any, Any, Any], delivery: Delivery) -> Any:
        """The coroutine's result; it is cancelled when the delivery is."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        delivery.on_cancel = future.cancel
        if delivery.cancelled:
            future.cancel()
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            raise Cancelled("the call was cancelled") from None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(target=self._serve, args=[self._loop], daemon=True)
                self._thread.start()
            return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=1))  # one may refuse to be cancelled
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def close(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None and self._pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()


def _backend(settings: Settings, given: Backend | str | None) -> Backend:
    chosen = settings.for_receivers if given is None else given
    options = {"lease": settings.lease, "max_deliveries": settings.max_deliveries}
    set_options = {name: value for name, value in options.items() if value is not None}
    if isinstance(chosen, str):
        return backend_from_url(chosen, **set_options)
    if set_options:
        names = " and ".join(f"RPC_{name.upper()}" for name in set_options)
        raise SettingsError(f"{settings.module}: {names} goes with a backend's URL; an instance has its own")
    return chosen
