"""What the handlers of a receiver call others with, and what it knows of why such a call was not answered."""

from __future__ import annotations

from collections.abc import Callable

from .aio import AsyncRpcClient
from .caller import routed
from .client import RpcClient
from .codecs import codec_named
from .core.jobs import Jobs
from .core.tokens import sent
from .loops import LoopThread, locked_cached_property
from .settings import Settings
from .transport import Backend


class NestedCalls:
    """A `rpc.core.jobs.Calls`. Its clients are made when they are first needed."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        jobs: Jobs,
        slots: Callable[[], dict[str, tuple[int, int]]],
    ) -> None:
        """All of it is the receiver's; `slots` says how many of each kind are used, of how many. Raises
        SettingsError for what no client can use, also if no handler calls: the mistake is in all workers."""
        codec_named(settings.codec)
        routed(settings)
        sent(settings.token)
        self._settings, self._backend, self._jobs, self._slots = settings, backend, jobs, slots

    @locked_cached_property
    def client(self) -> RpcClient:
        """On the backend of clients, if there is one, else on that of the receiver."""
        return RpcClient(settings=self._settings, backend=self._settings.client_backend or self._backend)

    @locked_cached_property
    def async_client(self) -> AsyncRpcClient:
        """The same for coroutines."""
        return AsyncRpcClient(settings=self._settings, backend=self.client.backend)

    def why_late(self, name: str, queue: str) -> str:
        """What is known of why a call that a handler made was not answered; "" if nothing."""
        if name not in self._jobs:
            return ""
        if queue not in self._settings.served:
            return f"this worker has that job, but does not serve queue {queue!r}: see RPC_ROUTES"
        for what, (held, number) in self._slots().items():
            if held >= number:
                return (
                    f"this worker has that job, but no free slot for it ({what}={number}): raise "
                    f"RPC_{what.upper()}, or start more workers"
                )
        return ""

    async def aclose(self) -> None:
        """Give back the connections of this event loop."""
        if "async_client" in vars(self):
            await self.async_client.close()

    def close(self, loop: LoopThread | None) -> None:
        """Give back all connections: those of coroutines in the loop that these ran in, unless `aclose` has
        done it."""
        if loop and "async_client" in vars(self) and loop.is_running:
            loop.run(self.async_client.close()).result()
        if "client" in vars(self):
            self.client.close()
