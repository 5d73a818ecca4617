"""Locks. Each is a queue that one connection has for itself: RabbitMQ lets it go if that breaks, or if it was
not asked for again in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ...loops import process
from .connection import BLOCK, Connection, persistently
from .names import Names
from .servers import LONGEST_TTL
from .wire import Broken, Queue

CHANNEL = 1


class Locks:
    """Those of one backend, on one connection. For any thread."""

    def __init__(self, connect: Callable[[], Connection], names: Names) -> None:
        self._connect, self._names = connect, names
        self._connection: Connection | None = None
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
            connection, now = self._connected(), time.monotonic()
            holder, before, until = self._held.get(name, (owner, lease, 0.0))
            if holder != owner and until > now:
                return False
            if holder != owner or before != lease:
                self._let_go(connection, name)
            expires: Any = {"x-expires": min(LONGEST_TTL, max(1, round(lease * 1000)))}
            queue = Queue.Declare(queue=self._names.lock(name), exclusive=True, arguments=expires)
            is_mine = connection.succeeds(CHANNEL, queue, Queue.DeclareOk, 405)
            if is_mine:
                self._held[name] = owner, lease, now + lease
            else:
                self._held.pop(name, None)
            return is_mine

    def release(self, name: str, owner: str) -> None:
        with self._lock:
            if self._pid == process.id and self._held.get(name, ("", 0.0, 0.0))[0] == owner:
                try:
                    self._let_go(self._connected(), name)
                except Broken:  # then it is gone already
                    self._held.clear()

    def close(self) -> None:
        if self._pid == process.id:
            with self._lock:
                self._held.clear()
                if self._connection:
                    self._connection.close()

    def _connected(self) -> Connection:
        connection = self._connection
        if connection and connection.is_open:
            connection.look()
        else:
            self._held.clear()
            connection = self._connection = self._connect()
        return connection

    def _let_go(self, connection: Connection, name: str) -> None:
        self._held.pop(name, None)
        connection.ask(CHANNEL, Queue.Delete(queue=self._names.lock(name)), Queue.DeleteOk)
