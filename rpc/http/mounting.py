"""A receiver in an ASGI application of somebody else's: it is served in the event loop of that."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

from ..backends.http.asgi import Receive, Scope, Send
from ..errors import SettingsError

logger = logging.getLogger(__name__)


class Mounted:
    """An ASGI application."""

    def __init__(self, receiver: Any) -> None:
        backend = receiver.backend
        if not hasattr(backend, "mount"):
            raise SettingsError(
                'asgi_app is for a receiver with the backend "http:": others are not reached over HTTP'
            )
        backend.mount()
        self._receiver, self._backend = receiver, backend
        self._stack: AsyncExitStack | None = None
        self._starting: asyncio.Lock | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if self._stack is None:  # mounted applications are not told when they start
            await self.start()
        await self._backend.app(scope, receive, send)

    async def start(self) -> None:
        """Serve. For the start of an application; else the first request does it."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._stack is None:
                stack = AsyncExitStack()
                await stack.enter_async_context(self._receiver)
                self._stack = stack

    async def stop(self) -> None:
        """Serve no more: what runs may finish, within the receiver's `grace`."""
        stack, self._stack = self._stack, None
        if stack:
            await stack.aclose()

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            try:
                await self.start()
            except Exception as error:  # it is the server's to say so, and to end
                logger.exception("the receiver cannot be started")
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})
