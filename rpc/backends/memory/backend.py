"""The backend of `memory://name`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

from ...inspection import DeadLetter, Entry, QueueInfo
from ...loops import PerLoop
from ...transport import ATTEMPT, DELAY, IDEMPOTENCY_KEY, UNKNOWN, Address, Handler, Message, unpacked
from ...transport import queue as queue_address
from .._prefix import PREFIX, checked_prefix
from .._serving import OnChange, Plan
from ..features import FEATURES
from .aio import AsyncMemoryReplies
from .hub import MemoryReplies
from .hubs import HUBS
from .server import MemoryServer


class MemoryBackend:
    """`memory://name`: every MemoryBackend of that name in this process is on the same hub."""

    features = FEATURES["memory"]
    max_message: int | None = None

    def __init__(self, url: str = "memory://", *, max_length: int = 0, prefix: str = PREFIX) -> None:
        """A queue with `max_length` messages refuses more with QueueFull (0: it does not). Another `prefix`
        is another hub, as it would be another application elsewhere."""
        if max_length < 0:
            raise ValueError("max_length is not negative")
        if unknown := dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)):
            raise ValueError(f"no options of this backend: {', '.join(sorted(unknown))}")
        self.hub, self._max_length = HUBS[url, checked_prefix(prefix)], max_length

    def send(self, to: Address, message: Message) -> None:
        self.put(to, message, None)

    def request(self, to: Address, message: Message) -> MemoryReplies:
        replies = MemoryReplies(self.hub)
        self.put(to, message, replies)
        return replies

    def put(self, to: Address, message: Message, replies: MemoryReplies | None) -> None:
        """Send it; what is replied goes there. Raises QueueFull."""
        self.hub.put(to, message, replies, self._max_length)

    def asynchronous(self) -> AsyncMemory:
        """What callers in event loops use."""
        return AsyncMemory(self)

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> MemoryServer:
        return MemoryServer(self.hub, Plan(addresses), handler, threads, coroutines, on_change)

    def close(self) -> None:
        """Nothing to give back."""

    def is_served(self, queue: str) -> bool:
        return self.hub.served[queue] > 0

    def unsubscribe(self, to: Address, *, unused: bool = False) -> bool:
        queue = to.subscription_queue
        with self.hub.lock:
            if unused and (self.hub.served[queue.name] or self.hub.entries(queue)):
                return False
            self.hub.kept[to.name].discard(to)
            self.hub.waiting.pop(queue, None)
            return True

    def subscribed(self) -> list[Address]:
        """The durable topics of groups that there are."""
        return [each for kept in list(self.hub.kept.values()) for each in list(kept)]

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        now = time.monotonic()
        with self.hub.lock:
            holder, until = self.hub.locks.get(name, (owner, 0.0))
            if holder != owner and until > now:
                return False
            self.hub.locks[name] = owner, now + lease
            return True

    def release(self, name: str, owner: str) -> None:
        with self.hub.lock:
            if self.hub.locks.get(name, ("", 0.0))[0] == owner:
                del self.hub.locks[name]

    def queue_info(self, queue: str) -> QueueInfo:
        entries = self.hub.entries(queue_address(queue))
        count = Counter(each.state for each in entries)
        ages = (time.time() - each.at for each in entries if each.at and each.state == "waiting")
        numbers = count["waiting"], count["running"], count["scheduled"], len(self.hub.dead[queue])
        return QueueInfo(queue, *numbers, self.hub.served[queue], next(ages, None))

    def entries(self, queue: str, id: str | None = None) -> Iterator[Entry]:
        return (each for each in self.hub.entries(queue_address(queue)) if id in (None, each.id))

    def withdraw(self, entry: Entry) -> bool:
        return self.hub.withdraw(entry.raw)

    def keep(self, queue: str, id: str, last: Message, seconds: float) -> None:
        self.hub.keep(queue, id, last, seconds)

    def result(self, queue: str, id: str) -> Message | None:
        return self.hub.result(queue, id)

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        return list(self.hub.dead[queue])

    def revive(self, letter: DeadLetter) -> bool:
        found = self.drop(letter)
        if found:
            again = dict.fromkeys(("ttl", "reply-to", "deliveries", ATTEMPT, DELAY, IDEMPOTENCY_KEY, UNKNOWN))
            message = unpacked(letter.frame).replace(**again)
            self.hub.put(queue_address(letter.queue), message, None)
        return found

    def drop(self, letter: DeadLetter) -> bool:
        with self.hub.lock:
            letters = self.hub.dead[letter.queue]
            found = next((n for n, each in enumerate(letters) if each.raw is letter.raw), None)
            if found is not None:
                del letters[found]
            return found is not None


class AsyncMemory:
    """A MemoryBackend for callers in event loops."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self.features, self.max_message = backend.features, backend.max_message
        self._open: PerLoop[WeakSet[AsyncMemoryReplies]] = PerLoop(WeakSet)

    async def send(self, to: Address, message: Message) -> None:
        self._backend.send(to, message)

    async def request(self, to: Address, message: Message) -> AsyncMemoryReplies:
        replies = AsyncMemoryReplies(self._backend.hub)
        self._open.here().add(replies)
        self._backend.put(to, message, replies.replies)
        return replies

    async def close(self) -> None:
        for replies in self._open.pop() or ():
            replies.end()
