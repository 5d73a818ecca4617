"""What a server knows of requests: which it has in hand, which it has done, which nobody wants any more. A
message that comes again, and what is said about one, finds it here."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from ...transport import Message

MOST = 4096
"""Requests, of each sort."""
MOST_BYTES = 16 * 1024 * 1024
"""Of all replies together."""


D = TypeVar("D")


class RecentRequests(Generic[D]):
    """For any thread. A key tells a message, and its deliveries, from others."""

    def __init__(self, join: Callable[[D, D], object]) -> None:
        """`join` lets another delivery of a message that is in hand end with that one."""
        self._join, self._lock = join, threading.Lock()
        self._in_hand: dict[str, D] = {}
        self._done: OrderedDict[str, Message | None] = OrderedDict()
        self._unwanted: OrderedDict[str, None] = OrderedDict()
        self._next: OrderedDict[str, tuple[int, str | None]] = OrderedDict()
        self._size = 0

    def joins(self, key: str, delivery: D) -> bool:
        """Whether the same message is in hand already. If so, the delivery joins that one."""
        with self._lock:
            before = self._in_hand.get(key, delivery)
            if before is not delivery:
                self._join(before, delivery)
            return before is not delivery

    def begin(self, key: str, delivery: D) -> bool:
        """Whether it may be begun: it joins no other one."""
        with self._lock:
            before = self._in_hand.setdefault(key, delivery)
            if before is not delivery:
                self._join(before, delivery)
            return before is delivery

    def end(self, key: str, last: Message | None) -> None:
        """A message was done, with this as the last reply."""
        with self._lock:
            self._in_hand.pop(key, None)
            self._size -= _size(self._done.pop(key, None))
            self._done[key] = last
            self._size += _size(last)
            while len(self._done) > MOST or (self._size > MOST_BYTES and self._done):
                self._size -= _size(self._done.popitem(last=False)[1])

    def postponed(self, key: str, delivery: D, attempt: int, way: str | None) -> None:
        """A message with this way back will be tried again; this will be the next attempt."""
        with self._lock:
            if self._in_hand.get(key) is delivery:
                del self._in_hand[key]
            self._next[key] = attempt, way
            self._next.move_to_end(key)
            while len(self._next) > MOST:
                self._next.popitem(last=False)

    def forget(self, key: str, delivery: D) -> None:
        """A message was not done after all."""
        with self._lock:
            if self._in_hand.get(key) is delivery:
                del self._in_hand[key]

    def is_done(self, key: str) -> bool:
        return key in self._done

    def reply(self, key: str) -> Message | None:
        """The last reply to what is done; None if there was none, or nothing is known of it."""
        return self._done.get(key)

    def in_hand(self, key: str) -> D | None:
        return self._in_hand.get(key)

    def all_in_hand(self) -> list[D]:
        with self._lock:
            return list(self._in_hand.values())

    def withdraw(self, id: str) -> None:
        """Nobody wants this request any more."""
        with self._lock:
            self._unwanted[id] = None
            while len(self._unwanted) > MOST:
                self._unwanted.popitem(last=False)

    def is_unwanted(self, key: str, message: Message, way: str | None) -> bool:
        """As far as is known here: its caller has left, or this attempt failed, and another one will follow.
        A caller who had to send it again has another way back, to which nobody replies then."""
        coming, same = self._next.get(key, (0, None))
        has_left = way is not None and message.id in self._unwanted
        return has_left or (message.attempt < coming and way == same)


def _size(reply: Message | None) -> int:
    return len(reply.body) if reply else 0
