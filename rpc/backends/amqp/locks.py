"""Locks. Each is a queue that one connection has for itself: RabbitMQ lets it go if that breaks, or if it was
not asked for again in time."""

from __future__ import annotations

import threading
import time

from ...loops import process
from .connection import BLOCK, Link, persistently
from .wire import Broken, Channel, Queue

DOUBTFUL = 2
"""The channel of questions whose answer may close it."""


class Locks:
    """Those of one backend, on one connection. For any thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._begin()

    def _begin(self) -> None:
        self._pid, self._lock = process.id, threading.Lock()
        self._held: dict[str, tuple[str, float, float]] = {}
        """Whose each is, for how long, and until when, in seconds of the monotonic clock."""

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return persistently(lambda: self._acquire(name, owner, lease), BLOCK)

    def _acquire(self, name: str, owner: str, lease: float) -> bool:
        if self._pid != process.id:  # a parent's locks are not its child's
            self._begin()
        with self._lock:
            self._connect()
            now = time.monotonic()
            holder, before, until = self._held.get(name, (owner, lease, 0.0))
            if holder != owner and until > now:
                return False
            if holder != owner or before != lease:
                self._let_go(name)
            queue = Queue.Declare(
                queue=_queue(name), exclusive=True, arguments={"x-expires": max(1, round(lease * 1000))}
            )
            mine = self._link.succeeds(queue, Queue.DeclareOk, channel=DOUBTFUL)
            if mine:
                self._held[name] = owner, lease, now + lease
            else:
                self._held.pop(name, None)
            return mine

    def release(self, name: str, owner: str) -> None:
        with self._lock:
            if self._pid == process.id and self._held.get(name, ("", 0.0, 0.0))[0] == owner:
                try:
                    self._let_go(name)
                except Broken:  # then it is gone already
                    self._held.clear()

    def close(self) -> None:
        if self._pid == process.id:
            with self._lock:
                self._held.clear()
                self._link.hang_up()

    def _connect(self) -> None:
        if self._link.connected:
            self._link.read(0)  # it may have broken meanwhile
        else:
            self._held.clear()
            self._link.open()
            self._link.ask(Channel.Open(), Channel.OpenOk, channel=DOUBTFUL)

    def _let_go(self, name: str) -> None:
        self._held.pop(name, None)
        self._link.ask(Queue.Delete(queue=_queue(name)), Queue.DeleteOk)


def _queue(name: str) -> str:
    return f"rpc:lock:{name}"
