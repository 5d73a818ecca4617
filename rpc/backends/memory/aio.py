"""Callers in event loops."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ...errors import RpcTimeout, client_closed
from ...transport import Message
from .hub import Hub, MemoryReplies


class AsyncMemoryReplies:
    """The way back of a request of an event loop: whoever replies wakes the task that waits."""

    def __init__(self, hub: Hub) -> None:
        self._loop = asyncio.get_running_loop()
        self._come = asyncio.Event()
        self.replies = MemoryReplies(hub, self._wake)
        self._is_over = self._is_closed = False

    async def receive(self, timeout: float | None) -> Message:
        end = None if timeout is None else self._loop.time() + timeout
        while True:
            self._come.clear()
            with suppress(RpcTimeout):
                return self.replies.receive(0)
            if self._is_over:
                raise client_closed()
            if self._is_closed:
                raise RpcTimeout
            left = None if end is None else end - self._loop.time()
            try:
                await asyncio.wait_for(self._come.wait(), left)
            except asyncio.TimeoutError:
                raise RpcTimeout from None

    def close(self) -> None:
        self._is_closed = True
        self.replies.close()
        self._wake()

    def end(self) -> None:
        """Nothing will come any more."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._come.set)
