"""Where a receiver's coroutines run: in a loop of its own, or in the application's."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any

from .core.handling import HandedBack, contained
from .core.middleware import ContextFactory
from .errors import Cancelled
from .loops import LoopThread, RunningLoop
from .transport import Delivery


class Coroutines:
    """Runs those of handlers, hooks, listeners and timers. `handed_back` says of a delivery whose coroutine
    was cancelled whether its message is somebody else's by now."""

    def __init__(self, context: ContextFactory, handed_back: Callable[[Delivery], bool]) -> None:
        self._context, self.handed_back = context, handed_back
        self.loop = LoopThread("rpc-coroutines")

    def enter_running_loop(self) -> None:
        """From now on they run in the event loop that runs here."""
        self.loop = RunningLoop()

    def spawn(self, coroutine: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        """Begin it; it is cancelled when the delivery is. Raises RpcError if there can be no thread."""

        def started(cancel: Callable[[], object]) -> None:
            delivery.on_cancel = cancel
            if delivery.cancelled:
                cancel()

        self.loop.spawn(coroutine, started)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The result of what is no job."""
        return self.loop.run(contained(coroutine, self._context)).result()

    def await_(self, coroutine: Coroutine[Any, Any, Any], delivery: Delivery) -> Any:
        """The coroutine's result; it is cancelled when the delivery is."""
        future = self.loop.run(coroutine)
        delivery.on_cancel = future.cancel
        if delivery.cancelled:
            future.cancel()
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            if self.handed_back(delivery):
                raise HandedBack from None
            raise Cancelled("the call was cancelled") from None

    def close(self) -> None:
        """Cancel what runs."""
        self.loop.close()
