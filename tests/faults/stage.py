"""Where a scenario is played: a Redis, proxies, workers, callers, and the oracle that watches."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rpc import RpcClient
from rpc.loops import locked_cached_property

from .broker import Broker, Fsync
from .fleet import Fleet
from .nursery import PATIENCE, Child, Nursery
from .oracle import Figures, Oracle
from .proxy import Proxy

LEASE = 1.0
"""The shortest that there is: what a death costs."""


class Stage:
    """Everything on it is closed at its end."""

    def __init__(self, directory: Path, dice: random.Random, nursery: Nursery, scheme: str) -> None:
        self.directory, self.dice, self.nursery, self.scheme = directory, dice, nursery, scheme
        self._stack = ExitStack()
        self.oracle = Oracle(directory / "ledger")
        self.numbers = count()
        """Of jobs: no two of a scenario have the same."""

    def close(self) -> None:
        self._stack.close()

    # The broker, and the ways to it.

    def open(self, fsync: Fsync | None = "everysec") -> Broker:
        """Start Redis; for a scenario that wants another one than `broker`."""
        broker = Broker(self.directory / "redis", fsync)
        self._stack.callback(broker.close)
        self.__dict__["broker"] = broker
        return broker

    @locked_cached_property
    def broker(self) -> Broker:
        return self.open()

    @locked_cached_property
    def front(self) -> Proxy:
        """Between callers and Redis."""
        return self.proxy()

    @locked_cached_property
    def back(self) -> Proxy:
        """Between workers and Redis."""
        return self.proxy()

    def proxy(self, **options: Any) -> Proxy:
        proxy = Proxy(self.broker.port, self.dice, **options)
        self._stack.callback(proxy.close)
        return proxy

    def url(self, via: Proxy | None = None, host: str = "127.0.0.1", **options: Any) -> str:
        query = urlencode({"lease": LEASE, "max_deliveries": 50, **options})
        return f"{self.scheme}{host}:{(via or self.broker).port}/0?{query}"

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
        """Wait until so many workers wait for work: each then has connections that Redis keeps waiting."""
        each = 3 if self.scheme.startswith("rq") else 2  # one of them for its topics
        blocked = partial(self.broker.admin.info, "clients")
        self.until(lambda: blocked()["blocked_clients"] >= workers * each, "no worker is idle")

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
        assert figures.lost == figures.wrong == figures.hung == 0, f"{figures}\n{self.log()[-4000:]}"
        assert set(figures.errors) <= set(errors), f"{figures}\n{self.log()[-4000:]}"
        return figures
