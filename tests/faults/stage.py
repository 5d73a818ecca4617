"""Where a scenario is played: a broker, proxies, workers, callers, and the oracle that watches."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from rpc import RpcClient
from rpc.loops import locked_cached_property

from .broker import Broker, Fsync, Redis
from .fleet import Fleet
from .nursery import PATIENCE, Child, Nursery
from .oracle import WAITING, WRONG, Figures, Oracle, Run
from .proxy import Proxy

GIVEN_UP = re.compile("worker .* (was given up|died with job)")
"""In the log of a worker that noticed it."""


class Stage:
    """Everything on it is closed at its end."""

    def __init__(
        self,
        directory: Path,
        dice: random.Random,
        nursery: Nursery,
        scheme: str,
        shared_node: Callable[[], Any],
    ) -> None:
        """`shared_node` is the RabbitMQ of all scenarios that do not kill it."""
        self.directory, self.dice, self.nursery, self.scheme = directory, dice, nursery, scheme
        self._shared_node = shared_node
        self._stack = ExitStack()
        self.oracle = Oracle(directory / "ledger")
        self.numbers = count()
        """Of jobs: no two of a scenario have the same."""

    def close(self) -> None:
        self._stack.close()

    # The broker, and the ways to it.

    def open(self, fsync: Fsync | None = "everysec") -> Broker:
        """Start a broker that nobody else uses; `fsync` is about Redis."""
        if self.scheme == "amqp://":
            from tests.rabbit import Node

            from .rabbit import Rabbit

            (self.directory / "rabbit").mkdir()
            return self._opened(Rabbit.alone(Node(self.directory / "rabbit")))
        return self._opened(Redis(self.directory / "redis", fsync, self.scheme))

    def _opened(self, broker: Broker) -> Broker:
        self._stack.callback(broker.close)
        self.__dict__["broker"] = broker
        return broker

    @locked_cached_property
    def broker(self) -> Broker:
        """One that is not to be killed."""
        if self.scheme != "amqp://":
            return self.open()
        from .rabbit import QUEUES, Rabbit

        node = self._shared_node()
        return self._opened(Rabbit(node, node.vhost(*QUEUES)))

    @property
    def redis(self) -> Redis:
        """For scenarios of Redis alone."""
        assert isinstance(self.broker, Redis)
        return self.broker

    @locked_cached_property
    def front(self) -> Proxy:
        """Between callers and the broker."""
        return self.proxy()

    @locked_cached_property
    def back(self) -> Proxy:
        """Between workers and the broker."""
        return self.proxy()

    def proxy(self, *, counting: bool = False, **options: Any) -> Proxy:
        """One that is `counting` can lose what is said."""
        frame_end = self.broker.frame_end if counting else None
        proxy = Proxy(self.broker.port, self.dice, frame_end=frame_end, **options)
        self._stack.callback(proxy.close)
        return proxy

    def url(self, via: Proxy | None = None, host: str = "127.0.0.1", **options: Any) -> str:
        options = {"lease": self.broker.lease, "max_deliveries": 50, **options}
        return self.broker.url(host, (via or self.broker).port, **options)

    # Workers and callers.

    def spawn(self, program: str, nursery: Nursery | None = None, **arguments: Any) -> Child:
        """A process that ends with the scenario."""
        child = (nursery or self.nursery).spawn(program, self.directory / "log", **arguments)
        self._stack.callback(child.kill)
        return child

    def another_nursery(self, *before: str) -> Nursery:
        """One whose processes live elsewhere: `before` goes before its command."""
        nursery = Nursery(before)
        self._stack.callback(nursery.close)
        return nursery

    def worker(
        self, via: Proxy | None = None, url: str = "", nursery: Nursery | None = None, **options: Any
    ) -> Child:
        """A worker process; `options` are those of `programs.worker`."""
        url = url or self.url(via)
        return self.spawn("worker", nursery, url=url, ledger=str(self.oracle.path), **options)

    def fleet(self, size: int, via: Proxy | None = None, url: str = "", **options: Any) -> Fleet:
        return Fleet(lambda: self.worker(via, url, **options), size, self.dice)

    def client(self, via: Proxy | None = None, url: str = "", **options: Any) -> RpcClient:
        self.broker.declare(options.get("queue", "default"))
        return self._stack.enter_context(RpcClient(backend=url or self.url(via), **options))

    def job(self) -> str:
        """The name of a job that there was not yet."""
        return f"job-{next(self.numbers)}"

    def release(self) -> None:
        """Let those that hold go on."""
        self.oracle.path.with_suffix(".release").touch()

    # What came of it.

    def until(self, check: Callable[[], Any], what: str = "", within: float = PATIENCE) -> Any:
        """What `check` returns, as soon as it is true."""
        end = time.monotonic() + within
        while not (result := check()):
            assert time.monotonic() < end, what or "it never happened"
            time.sleep(0.005)
        return result

    def begun(self, job: str) -> int:
        """How often a job was begun."""
        return sum(line.startswith(f"{job} ") and " begin " in line for line in self.oracle.lines())

    def ended(self, job: str) -> int:
        """How often it was finished."""
        return sum(line.startswith(f"{job} ") and " end " in line for line in self.oracle.lines())

    def idle(self, workers: int = 1) -> None:
        """Wait until so many workers wait for work."""
        self.until(lambda: self.broker.waiting() >= workers, "no worker is idle")

    def done_once(self, figures: Figures) -> bool:
        """Whether nothing was done twice, where the broker promises that although connections of callers
        broke. On a machine so busy that a worker gave no sign of life for a second, it was given up."""
        was_given_up = GIVEN_UP.search(self.log()) is not None
        return figures.duplicated == 0 or was_given_up or not self.broker.remembers_calls

    def unexplained(self, fleet: Fleet) -> dict[str, list[Run]]:
        """Jobs that were executed again although their worker had not died, nor one that counted them."""
        return self.oracle.unexplained(fleet.deaths, copies=self.broker.counts_in_copies)

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def verdict(self, *, errors: Collection[str] = (), within: float = PATIENCE) -> Figures:
        """The figures, once what was accepted is done. Nothing is lost, wrong or left waiting, and nobody
        had an error of another kind than these."""
        end = time.monotonic() + within
        while self.oracle.lost() and time.monotonic() < end:
            time.sleep(0.05)
        figures = self.oracle.figures()
        amiss = [call for call in self.oracle.calls if call.outcome in {WRONG, WAITING}]
        amiss += self.oracle.lost()
        runs = {call.job: self.oracle.executions().get(call.job) for call in amiss}
        assert not amiss, f"{figures}\n{amiss}\n{runs}\n{self.log()[-4000:]}"
        assert set(figures.errors) <= set(errors), f"{figures}\n{self.log()[-4000:]}"
        return figures
