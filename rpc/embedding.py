"""A receiver within an application: it serves in a thread, for as long as the event loop wants."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from .loops import in_contexts, started

logger = logging.getLogger(__name__)


class Embedding:
    """The thread, and its beginning and its end as the event loop sees them."""

    def __init__(self, serve: Callable[[], None], abandon: Callable[[], None]) -> None:
        """`serve` blocks until it is stopped; `abandon` has it end without what still runs."""
        self._serve, self._abandon = serve, abandon
        self.thread: threading.Thread | None = None
        self.arrived: Callable[[], object] = lambda: None
        """To be called, from any thread, when there is a connection for the first time."""

    async def begin(self) -> None:
        """Returns once there is a connection. Raises what `serve` raises instead."""
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                self._serve()
            except BaseException as error:  # raised again below, in the application
                failures.append(error)
            finally:
                arrive()

        def arrive() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(begun.set)

        self.arrived = arrive
        self.thread = started(threading.Thread(target=in_contexts(serve), name="rpc-receiver", daemon=True))
        await begun.wait()
        if failures:
            raise failures[0]

    async def end(self, grace: float) -> None:
        """It was stopped: returns when it has ended, within `grace` seconds and a moment."""
        if self.thread is None:
            return
        await asyncio.to_thread(self.thread.join, grace)
        if self.thread.is_alive():
            logger.warning("handing back what did not finish within %g s", grace)
            await asyncio.to_thread(self._abandon)
            await asyncio.to_thread(self.thread.join, 1.0)  # a plain function cannot be ended
