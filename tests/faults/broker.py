"""A broker of one's own that crashes, pauses and cuts connections when it is told to: Redis here, RabbitMQ
beside."""

from __future__ import annotations

import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rpc.testing import start_redis

from .wire import FrameEnd, of_redis

Fsync = Literal["everysec", "always"]
Faults = dict[str, Callable[[], object]]
LEASE = 1.0
"""Seconds, the shortest that there is: what a death costs."""


class Broker(ABC):
    """What each kind of it can be told."""

    name: str
    port: int
    lease: float
    """The shortest time, in seconds, in which it can notice that a worker is gone."""
    remembers_calls: bool
    """Whether a call that is sent again, because its caller's connection broke, is done once, whichever
    worker gets it."""
    keeps_topics: bool
    """Whether who listens for himself hears, too, what was published while his connection was broken."""
    outlasts_pauses: bool
    """Whether workers keep what they have while it gives no sign of life for longer than their lease."""
    counts_in_copies: bool
    """Whether what is delivered again is replaced by a copy, which says so: there are two of them if a worker
    dies between the two."""
    frame_end: FrameEnd
    """Of what is said to it, and what it says."""

    @abstractmethod
    def url(self, host: str, port: int, **options: Any) -> str:
        """Where it is; `lease` among the options is in seconds, whatever it is called there."""

    @abstractmethod
    def declare(self, *names: str) -> None:
        """Make these queues, where they have to be made."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def crash(self, pause: float = 0.0) -> None:
        """SIGKILL, and a restart after some seconds."""

    @abstractmethod
    def send_signal(self, number: int) -> None:
        """To all its processes."""

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds: its clock goes on, and what expires has expired when
        it wakes."""
        self.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.send_signal(signal.SIGCONT)

    @abstractmethod
    def cut(self) -> None:
        """End every connection but ours."""

    @abstractmethod
    def fill(self, *, full: bool = True) -> None:
        """Its memory is full; or is so no longer."""

    @abstractmethod
    def waiting(self) -> int:
        """How many workers of "default" wait for work."""

    @abstractmethod
    def connections(self) -> int:
        """How many this process has with it."""

    @abstractmethod
    def keys(self) -> dict[str, int]:
        """What is ours in it, and for how many ms each is kept (-1: without end)."""

    @abstractmethod
    def size(self) -> int:
        """The bytes that this takes."""

    def faults(self, dice: random.Random) -> Faults:
        """What can be done to it at any time."""
        return {
            f"SIGKILL to {self.name}": lambda: self.crash(dice.uniform(0, 0.5)),
            f"SIGSTOP to {self.name}": lambda: self.freeze(dice.uniform(0.5, 2) * self.lease),
            "connections ended": self.cut,
        }


class Redis(Broker):
    """`scheme` is that of its URLs. `fsync` says how the append-only file is written; None: nothing is kept
    on disk."""

    name, lease, remembers_calls, counts_in_copies = "Redis", LEASE, True, False
    keeps_topics, outlasts_pauses, frame_end = True, True, staticmethod(of_redis)

    def __init__(self, directory: Path, fsync: Fsync | None = "everysec", scheme: str = "redis://") -> None:
        self.directory, self._scheme = directory, scheme
        options = {"appendfsync": fsync} if fsync else {}
        self.server = start_redis(directory=directory, durable=fsync is not None, options=options)
        self.port = self.server.port
        self.admin: Any = redis.Redis(port=self.port, socket_timeout=15, retry=Retry(NoBackoff(), 0))

    def url(self, host: str, port: int, **options: Any) -> str:
        return f"{self._scheme}{host}:{port}/0?{urlencode(options)}"

    def declare(self, *names: str) -> None:
        """A list is there as soon as something is in it."""

    def close(self) -> None:
        self.admin.close()
        self.server.close()

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def crash(self, pause: float = 0.0) -> None:
        self.server.kill()
        time.sleep(pause)
        self.server.restart()

    def sleep(self, seconds: float) -> None:
        """Redis answers nobody for so many seconds, and then everybody."""
        self.admin.execute_command("DEBUG", "SLEEP", seconds)

    def send_signal(self, number: int) -> None:
        os.kill(self.server.pid, number)

    def cut(self) -> None:
        """CLIENT KILL."""
        for kind in "normal", "pubsub":
            self.admin.client_kill_filter(_type=kind, skipme=True)

    def fill(self, *, full: bool = True) -> None:
        self.admin.config_set("maxmemory", int(full))

    def waiting(self) -> int:
        each = 3 if self._scheme.startswith("rq") else 2  # one of them for its topics
        return int(self.admin.info("clients")["blocked_clients"] // each)

    def connections(self) -> int:
        return sum(each["name"].endswith(f":{os.getpid()}") for each in self.admin.client_list())

    def keys(self) -> dict[str, int]:
        names = list(self.admin.scan_iter("rpc:*", count=1000))
        kept = {name.decode(errors="replace"): self.admin.pttl(name) for name in names}
        return {name: ttl for name, ttl in kept.items() if ttl != -2}  # some end meanwhile

    def size(self) -> int:
        return sum(self.admin.memory_usage(name, samples=0) or 0 for name in self.admin.scan_iter("rpc:*"))

    def faults(self, dice: random.Random) -> Faults:
        return {
            **super().faults(dice),
            "DEBUG SLEEP": lambda: self.sleep(1),
            "SCRIPT FLUSH": lambda: self.admin.script_flush(),
        }
