"""What both backends on Redis do besides queues: they publish, keep durable subscriptions, and lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ...inspection import QueueInfo
from ...transport import Address, Message
from .connection import BLOCK, milliseconds, persistent, translated
from .evaluation import evaluated
from .scripts import LOCK, UNLOCK
from .servers import Servers
from .topics import Topics


class RedisBase:
    """The base of both. A lock is safe as long as Redis is: one that fails over may forget who had it."""

    servers: Servers
    topics: Topics
    queue_info: Callable[[str], QueueInfo]
    """That of the backend."""

    def unsubscribe(self, to: Address, *, unused: bool = False) -> bool:
        queue = to.subscription_queue.name
        with translated():
            if unused:
                return self._unsubscribe_unused(to, queue)
            self.topics.forget(to)
            self.discard(queue)
            return True

    def _unsubscribe_unused(self, to: Address, queue: str) -> bool:
        """The places lie on several servers of a cluster, so no script does it all. Whoever begins to serve
        says so first, which ends this; what was published before that is looked for when no more can come;
        and what is in the queue then is left there."""
        until = self.topics.kept_until(to)
        if self._is_used(queue):
            return False
        if not self.topics.forget_unless_served(to, until) or self._is_used(queue):
            self.topics.keep(to)
            return False
        self.discard(queue, only_empty=True)
        return True

    def _is_used(self, queue: str) -> bool:
        info = self.queue_info(queue)
        return bool(info.workers or info.waiting or info.running or info.scheduled)

    def subscribed(self) -> list[Address]:
        with translated():
            return self.topics.subscribed()

    def replay(self, to: Address, seconds: float | None) -> Iterator[Message]:
        return self.topics.replay(to, seconds)

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return bool(self._of_lock(LOCK, name, owner, milliseconds(lease)))

    def release(self, name: str, owner: str) -> None:
        self._of_lock(UNLOCK, name, owner)

    def _of_lock(self, script: str, name: str, *arguments: Any) -> Any:
        key = self.topics.names.lock(name)
        client = self.servers.client(key)
        return persistent(lambda: evaluated(client, script, [key], *arguments), BLOCK)

    def _publish(self, to: Address, message: Message) -> None:
        """Send to a topic or an inbox; what subscriptions keep, goes to their queues. If that fails, nobody
        else has heard of it: who publishes it again, tells only them twice."""
        if to.kind == "inbox":
            return self.topics.send(to, message)
        kept, gone = self.topics.publish(to, message)
        if not kept and not gone:
            return
        with translated():
            for each in gone:
                self.discard(each.subscription_queue.name)
        for each in kept:
            self._keep(each, message)
        self.topics.publish(to, message, is_kept=True)

    def _keep(self, subscription: Address, message: Message) -> None:
        """Put it into the queue of a durable subscription, however much is there."""
        raise NotImplementedError

    def discard(self, queue: str, *, only_empty: bool = False) -> None:
        """Delete a queue, with what is in it; or only if that is nothing."""
        raise NotImplementedError
