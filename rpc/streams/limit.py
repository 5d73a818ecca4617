"""How many streams one client may have open at a worker."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import QueueFull
from ..transport import Delivery

OWN = 16
"""Digits of an id that are those of the process which made it: see `rpc.caller`."""


def client_of(delivery: Delivery) -> str | None:
    """Who has sent this, as far as its backend can tell, else as the message says: it names one way back for
    all requests of a process, or an id that begins with what is the process' own. None: somebody else counts
    its streams."""
    message = delivery.message
    if delivery.caller != "":
        return delivery.caller
    if message.reply_to not in (None, message.id):
        return message.reply_to
    return message.id[:OWN] if len(message.id) == 2 * OWN else message.id


class StreamLimit:
    """How many streams are open, by the clients that have them. Any thread."""

    def __init__(self, most: int | None) -> None:
        """At most so many of one client; None: any number."""
        self.most = most
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, client: str) -> None:
        """One more is open. Raises QueueFull."""
        with self._lock:
            if self.most is not None and self._open[client] >= self.most:
                raise QueueFull(
                    f"at most {self.most} streams of one client are open at a time: close one first, or have "
                    f"the worker allow more (RPC_STREAMS_PER_CLIENT)"
                )
            self._open[client] += 1

    def end(self, client: str) -> None:
        """One of them has ended."""
        with self._lock:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    @contextmanager
    def one_more(self, client: str) -> Iterator[None]:
        """A block in which one is open. Raises QueueFull."""
        self.begin(client)
        try:
            yield
        finally:
            self.end(client)
