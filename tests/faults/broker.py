"""A Redis of one's own that crashes, pauses and cuts connections when it is told to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rpc.testing import start_redis

Fsync = Literal["everysec", "always"]


class Broker:
    """`fsync` says how the append-only file is written; None: nothing is kept on disk."""

    def __init__(self, directory: Path, fsync: Fsync | None = "everysec") -> None:
        self.directory = directory
        options = {"appendfsync": fsync} if fsync else {}
        self.server = start_redis(directory=directory, durable=fsync is not None, options=options)
        self.port = self.server.port
        self.admin: Any = redis.Redis(port=self.port, socket_timeout=15, retry=Retry(NoBackoff(), 0))

    def close(self) -> None:
        self.admin.close()
        self.server.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def crash(self, pause: float = 0.0) -> None:
        """SIGKILL, and a restart after some seconds."""
        self.server.kill()
        time.sleep(pause)
        self.server.restart()

    def sleep(self, seconds: float) -> None:
        """Redis answers nobody for so many seconds, and then everybody."""
        self.admin.execute_command("DEBUG", "SLEEP", seconds)

    def freeze(self, seconds: float) -> None:
        """The same by SIGSTOP: its clock goes on, and what expires has expired when it wakes."""
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.server.pid, signal.SIGCONT)

    def cut(self) -> None:
        """CLIENT KILL for every connection but this one."""
        for kind in "normal", "pubsub":
            self.admin.client_kill_filter(_type=kind, skipme=True)

    def keys(self) -> dict[str, int]:
        """Our keys, and for how many ms each is kept (-1: without end)."""
        names = list(self.admin.scan_iter("rpc:*", count=1000))
        kept = {name.decode(errors="replace"): self.admin.pttl(name) for name in names}
        return {name: ttl for name, ttl in kept.items() if ttl != -2}  # some end meanwhile

    def size(self) -> int:
        """The bytes that our keys take."""
        return sum(self.admin.memory_usage(name, samples=0) or 0 for name in self.admin.scan_iter("rpc:*"))
