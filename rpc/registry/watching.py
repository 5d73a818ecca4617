"""Watching services: who comes, who goes, who changes."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from ..backends.features import unsupported
from ..core.registry import ServiceChange, ServiceInfo, Wanted
from ..errors import BackendUnavailable, Cancelled, RpcError, shown
from ..loops import process, started
from ..transport import Backend, Delivery
from .announcing import SIGNS
from .lookup import ASKED_FOR, Lookup

logger = logging.getLogger(__name__)


class _Watch:
    """It hears signs of life in a thread of its own, and calls back in another one, where it also sees who is
    silent."""

    def __init__(
        self,
        backend: Backend,
        wanted: Wanted,
        callback: Callable[[ServiceChange], object],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`loop` is the event loop in which it calls back, if it does so in one. Raises ValueError,
        Unsupported."""
        wanted.check()
        if "topics" not in backend.features:
            raise unsupported("topics")
        self._news: deque[ServiceChange] = deque()
        self._wanted, self._callback, self.loop = wanted, callback, loop
        self._lookup = Lookup(backend, self._news.extend)
        self._lock, self._pid = threading.RLock(), process.id
        self._changed = threading.Condition(self._lock)
        self._closed = self._asks = self._is_new = False
        self._is_away = True
        """Whether nothing can be heard now."""
        self._failure: BaseException | None = None
        self._server = backend.server([SIGNS], self._told, on_change=self._reached)
        self._threads = [
            threading.Thread(target=each, name="rpc-watch", daemon=True)
            for each in (self._serve, self._watch)
        ]

    def begin(self, timeout: float | None) -> None:
        """Returns once it hears. Raises what hinders that, BackendUnavailable after so many seconds."""
        try:
            started(self._threads[0])
            self._wait(timeout)
            started(self._threads[1])
        except BaseException:
            self.leave()
            raise

    def _wait(self, timeout: float | None) -> None:
        with self._lock:
            self._changed.wait_for(lambda: not self._is_away or self._failure or self._closed, timeout)
        if self._failure:
            raise self._failure
        if self._closed:
            raise Cancelled("the watch was closed")
        if self._is_away:
            raise BackendUnavailable(f"services could not be watched within {timeout:g} s")

    def services(self) -> list[ServiceInfo]:
        """Those that run now and fit, with what they said last; while the broker is away, those of before."""
        return self._lookup.services(self._wanted, also_silent=self._is_away and not self._closed)

    def join(self) -> None:
        """Close it, and wait until all is given back, unless it is the callback that asks for that. A forked
        child has nothing to close."""
        self.leave()
        for thread in self._threads if self._pid == process.id else ():
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def leave(self) -> None:
        """Close it, and do not wait for that."""
        if self._pid != process.id:
            return
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._server.stop()

    def _serve(self) -> None:
        try:
            self._server.run()
        except BaseException as error:  # raised where it was made, or logged
            self._failure = error
            logger.error("services are not watched: %s", shown(error))
        finally:
            with self._lock:
                self._changed.notify_all()

    def _reached(self, connected: bool) -> None:
        if connected and self._is_away:
            self._lookup.forgive()
        with self._lock:
            if connected and self._is_away:
                self._asks = self._is_new = True
            self._is_away = not connected
            self._changed.notify_all()

    def _told(self, delivery: Delivery) -> None:
        self._lookup.told(delivery.message)
        delivery.finish(None)
        if self._news:
            with self._lock:
                self._changed.notify_all()

    def _watch(self) -> None:
        while not self._closed:
            try:
                if self._asks and not self._is_away:
                    self._asks = False
                    self._lookup.ask()
            except RpcError as error:
                self._asks = True
                logger.debug("services could not be asked: %s", error)
            if not self._is_away:
                self._lookup.expire()
            self._tell()
            with self._lock:
                if not self._news and not self._closed and not self._is_new:
                    self._rest(None if self._is_away else self._pause())
                self._is_new = False

    def _pause(self) -> float | None:
        """Seconds until there is something to do that is not told."""
        return ASKED_FOR if self._asks else self._lookup.next_look()

    def _rest(self, pause: float | None) -> None:
        """Until there is something to do. If that took much longer, this process was stopped, and what it was
        told meanwhile is still to be read."""
        began = time.monotonic()
        self._changed.wait(pause)
        if pause is not None and self._lookup.forgive(time.monotonic() - began - pause):
            self._asks = True

    def _tell(self) -> None:
        while self._news and not self._closed:
            if self.loop is not None and self.loop.is_closed():
                return self.leave()
            change = self._news.popleft()
            if not self._wanted.fits(change.service):
                continue
            try:
                self._callback(change)
            except BaseException:  # as listeners, it may raise anything, and the next change is told
                logger.exception("%r failed", self._callback)


class Watch(_Watch):
    """What `RpcClient.watch_services` returns."""

    def close(self) -> None:
        """Tell nothing more. Returns once its connection is given back, unless it is the callback that asks
        for that. Idempotent; any thread."""
        self.join()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncWatch(_Watch):
    """What `AsyncRpcClient.watch_services` returns: as `Watch`, for an event loop."""

    async def close(self) -> None:
        """As `Watch.close`, awaited."""
        self.leave()
        await asyncio.to_thread(self.join)

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
