"""The backend of `zmq+tcp://host:port` and `zmq+ipc:///path`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

from ...durations import seconds
from ...errors import BackendRefused
from ...loops import process
from ...transport import Address, Handler, Message, queue
from .._serving import OnChange, Plan
from ..features import FEATURES, unsupported
from .aio import AsyncZeromq
from .blocking import BlockingReplies, Caller, Watch
from .directory import Directory
from .endpoints import Endpoints, Source, bound
from .peers import Peers
from .server import Do, ZeromqServer
from .sockets import MAX_FRAME, Keys, Sockets
from .workers import Workers

ASK_EVERY = 1.0
"""Seconds after which workers are asked again where they are."""


class ZeromqBackend:
    """ZeroMQ ≥ 4.3, without a broker: callers are connected to each worker.

    `source` is a URL with one or more endpoints, `zmq+tcp://host:port[,host:port…]`,
    `zmq+ipc:///path[,/path…]`, a list of endpoints as ZeroMQ writes them, or a function that returns one and
    is asked again every few seconds. A name stands for all its addresses. A worker binds the first of them
    that is free, or all of them (`listen="all"`); with `workers="connect"` callers bind, and workers connect.
    A process to which there is no connection for `lease` seconds is dead: what it had is delivered to another
    one, at most `max_deliveries` times. A worker that has `high_water` messages refuses more. `certificate`,
    `server_key` and `authorized` are those of `rpc.backends.zeromq.sockets.Keys`. With `registry`, the URL of
    another backend, workers say there which endpoints they have, and callers ask for them there. Connects at
    first use.
    """

    features = FEATURES["zmq+tcp"]
    max_message: int | None = MAX_FRAME - 1024 * 1024

    def __init__(
        self,
        source: Source,
        *,
        lease: float = 5.0,
        max_deliveries: int = 3,
        listen: Literal["one", "all"] = "one",
        workers: Literal["bind", "connect"] = "bind",
        high_water: int = 10_000,
        certificate: str = "",
        server_key: str = "",
        authorized: str = "",
        registry: str = "",
    ) -> None:
        if registry and workers == "connect":
            raise ValueError("registry is for workers that bind")
        self._registry = Directory(registry) if registry else None
        self._endpoints, self._lease = Endpoints(source), seconds(lease, "lease", least=1)
        if max_deliveries < 1 or high_water < 1:
            raise ValueError("max_deliveries and high_water are at least 1")
        self._keys = Keys(certificate, server_key, authorized)
        self._max_deliveries, self._high_water = max_deliveries, high_water
        self._listens_to_all, self._workers_bind = listen == "all", workers == "bind"
        self._caller: Caller | None = None
        self._pid, self._making = process.id, threading.Lock()
        self._of_parents: list[Caller | None] = []
        """Sockets of a process that forked, which are not to be touched here, nor collected."""
        self.bound: list[str] = []
        """The endpoints that were bound last, with their real ports."""

    def send(self, to: Address, message: Message) -> None:
        if to.kind == "topic":
            self._calling().publish(to, message, lambda reply: None)
        else:
            self._calling().send(to, message)

    def request(self, to: Address, message: Message) -> BlockingReplies:
        return BlockingReplies(self._calling(), to, message)

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> ZeromqServer:
        plan = Plan(addresses)
        if plan.durable:
            raise unsupported("subscriptions")
        most: dict[str, Any] = {"threads": threads, "coroutines": coroutines, "high_water": self._high_water}
        most |= {"lease": self._lease, "is_bound": self._workers_bind}
        return ZeromqServer(self.sockets, self._listen, plan, handler, on_change=on_change, **most)

    def is_served(self, name: str) -> bool:
        """Whether there is a worker for this queue among those that have answered."""
        caller = self._calling()
        caller.until_greeted()
        return caller.workers.is_served(queue(name))

    def close(self) -> None:
        caller, self._caller = self._caller, None
        if caller and self._pid == process.id:
            caller.close()
        if self._registry:
            self._registry.close()

    def asynchronous(self) -> AsyncZeromq:
        """What callers in event loops use."""
        return AsyncZeromq(self.workers, self.features, self.max_message)

    def sockets(self) -> Sockets:
        return Sockets(self._keys, self._lease)

    def workers(self) -> tuple[Workers, Watch]:
        """Those that a thread, or a loop, is about to call, and what tells where they are. Raises
        BackendRefused if callers bind, and cannot."""
        workers = Workers(self.sockets(), self._lease, self._max_deliveries, self._high_water)
        if self._workers_bind:
            if self._registry:
                return workers, Endpoints(self._registry.look_up, ASK_EVERY).watch
            return workers, self._endpoints.watch
        self._bind(workers.peers)
        return workers, lambda found, ended: None

    def _calling(self) -> Caller:
        if self._pid != process.id:
            self._of_parents.append(self._caller)
            self._caller, self._pid, self._making = None, process.id, threading.Lock()
        if (caller := self._caller) is None:
            with self._making:
                caller = self._caller or Caller(*self.workers())
                self._caller = caller
        return caller

    def _bind(self, peers: Peers) -> None:
        try:
            self.bound = bound(self._endpoints.look_up(), self._listens_to_all, peers.bind)
        except BackendRefused:
            peers.close()
            raise
        except OSError as error:
            peers.close()
            raise BackendRefused(f"cannot listen: {error}") from error

    def _listen(self, peers: Peers, do: Do) -> threading.Event:
        ended = threading.Event()
        if self._workers_bind:
            self._bind(peers)
            if self._registry:
                self._registry.tell(self.bound, ended)
        else:
            self._endpoints.watch(lambda endpoints: do(lambda: peers.connect(endpoints)), ended)
        return ended
