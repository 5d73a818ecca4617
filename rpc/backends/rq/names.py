"""The names of what is ours on rq: keys beside rq's own, our queues and workers in rq's records."""

from __future__ import annotations

import re

from .._prefix import PREFIX
from ..redis.keys import Names, digest

OF_ONE = re.compile(rb"_[0-9]{1,6}$")
"""What the names of the workers of one server differ in."""
_QUEUE_PREFIX = re.compile(r"[A-Za-z0-9_.\-]{0,64}")


class RqNames(Names):
    """All begin with a prefix: behind what rq's own keys begin with, if it is rq that looks there. To rq, our
    queues are called `queue_prefix` and their names (None: the prefix and a dot). Raises ValueError."""

    def __init__(self, prefix: str = PREFIX, queue_prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.queues = f"{prefix}." if queue_prefix is None else queue_prefix
        if not _QUEUE_PREFIX.fullmatch(self.queues):
            raise ValueError("queue_prefix has letters, digits, '_', '.' and '-', at most 64")
        self.workers = f"{prefix}-"
        """What the names of our workers begin with."""
        self.bells, self.laters, self.cancels = f"{prefix}:bell:", f"{prefix}:later:", f"{prefix}:cancel:"

    def worker(self, server: str, number: int) -> str:
        """What rq knows one of the workers of a server by."""
        return f"{self.workers}{server}_{number}"

    def bell(self, queue: str) -> str:
        """Where a sender rings, and idle workers wait: a list whose loss, or whose surplus, does no
        harm. That of a worker has its name."""
        return self.bells + queue

    def order(self, queue: str) -> str:
        """A hash: the first job of each order key, the order key of each job, and how many wait behind."""
        return f"{self.prefix}:order:{queue}"

    def line(self, queue: str, key: str) -> str:
        """Where those wait that come after the first of an order key."""
        return f"{self.prefix}:line:{queue}:{key}"

    def later(self, queue: str) -> str:
        """The same for those who look when scheduled jobs are due."""
        return self.laters + queue

    def cancel(self, worker: str) -> str:
        """Where a worker is told which requests nobody waits for any more."""
        return self.cancels + worker

    def once(self, queue: str, key: str) -> str:
        """What became of the first message with this idempotency key."""
        return f"{self.prefix}:once:{queue}:{digest(key)}"

    def result(self, queue: str, id: str) -> str:
        """Where the last reply to a message lies, if it is kept."""
        return f"{self.prefix}:result:{queue}:{id}"
