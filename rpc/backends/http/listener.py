"""Listens, and runs an ASGI application, in a thread of its own: uvicorn."""

from __future__ import annotations

import logging
import socket
import threading
from functools import partial
from typing import Any

import uvicorn

from ...loops import started
from .protocol import BoundedProtocol, Bounds
from .wire import OVERHEAD

logger = logging.getLogger(__name__)

PING_EVERY = 20.0
"""Seconds after which whoever has a WebSocket is asked whether it is there, and in which it says so."""


class Listener:
    """Of one server of a backend."""

    def __init__(self, listening: socket.socket, app: Any, bounds: Bounds, max_body: int) -> None:
        """`max_body` bytes of a message of our callers are taken."""
        self._socket = listening
        host, port = listening.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        """With its real port."""
        protocol: Any = partial(BoundedProtocol, bounds)
        try:
            from .upgraded import BoundedSocket

            sockets: Any = partial(BoundedSocket, bounds)
        except ModuleNotFoundError:  # who wants them has `ws:` in its URL, or hears that it has the extra not
            sockets = "none"
        config = uvicorn.Config(
            app,
            http=protocol,
            ws=sockets,
            ws_max_size=max_body + OVERHEAD,
            ws_ping_interval=min(PING_EVERY, bounds.keep_alive or PING_EVERY),
            ws_ping_timeout=min(PING_EVERY, bounds.keep_alive or PING_EVERY),
            ws_per_message_deflate=False,  # a few bytes would become any number
            loop="asyncio" if bounds.context else "auto",  # uvloop reads on when it is told to pause at once
            lifespan="off",
            log_config=None,
            log_level="warning",  # that it has started is said here, once
            access_log=False,
            timeout_keep_alive=bounds.keep_alive,  # type: ignore[arg-type]  # it is a number of seconds
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="rpc-http", daemon=True)

    def start(self) -> None:
        """Raises RpcError if there can be no thread."""
        started(self._thread)
        logger.info("listening at %s", self.address)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def end(self, seconds: float) -> None:
        """What is being sent may take so many seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(seconds + 1.0)
        else:
            self._socket.close()
