"""A receiver's run on its backend: from its beginning until what was begun is finished, or given back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import cast

from .backends._retry import Backoff
from .backends._serving import OnChange
from .backends.features import unsupported
from .errors import BackendRefused
from .transport import Address, Backend, Handler, Liveness, Server

logger = logging.getLogger(__name__)


class Serving:
    """Runs the servers of one receiver, one after the other."""

    def __init__(self, backend: Backend, threads: int, coroutines: int) -> None:
        """So many plain functions and so many coroutines run at a time."""
        self._backend, self.threads, self.coroutines = backend, threads, coroutines
        self._server: Server | None = None
        self._handing_back = threading.Lock()
        self.has_handed_back = False
        """Whether what runs is somebody else's by now."""
        self.is_stopping = False
        """Whether nothing new is to be taken. Who has waited for the end sets it back."""

    def run(self, addresses: Sequence[Address], handler: Handler, on_change: OnChange, *, wait: bool) -> None:
        """Serve until stopped; blocks. Raises BackendRefused if the first connection is refused, unless the
        next one is to be waited for."""
        self.has_handed_back, pauses = False, Backoff()
        most = {"threads": self.threads, "coroutines": self.coroutines}
        try:
            while True:
                self._server = server = self._backend.server(addresses, handler, on_change=on_change, **most)
                if self.is_stopping:
                    server.stop()
                try:
                    return server.run()
                except BackendRefused as error:
                    if not wait:
                        raise
                    pauses.wait("%s; trying again", error)
        finally:
            self._server, self.is_stopping = None, True

    def stop(self) -> None:
        """Make `run` return as soon as what runs is finished. Any thread, signal-safe."""
        self.is_stopping = True
        if server := self._server:
            server.stop()

    def hand_back(self, first: Callable[[], object]) -> None:
        """Give back what runs, once, after `first` was called."""
        with self._handing_back:
            if (server := self._server) and not self.has_handed_back:
                self.has_handed_back = True
                first()
                server.hand_back()

    def is_handed_back(self) -> bool:
        """The same, after a `hand_back` that is under way."""
        with self._handing_back:
            return self.has_handed_back

    def stalled(self) -> float:
        """As `RpcReceiver.stalled`."""
        if "liveness" not in self._backend.features:
            raise unsupported("liveness")
        server = cast("Liveness | None", self._server)
        return 0.0 if server is None or self.is_stopping else server.stalled()
