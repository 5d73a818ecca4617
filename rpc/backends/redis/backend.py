"""Redis natively: between a message and its worker is one list, and nothing is lost.

A caller's message and its wait for the reply leave in one write, on a connection that is its own for as long
as it waits. Its inbox is a list whose head is read before it is taken away, so that a reply whose receipt
broke off is read again.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis

from ...durations import seconds
from ...errors import SerializationError, Unsupported
from ...loops import process
from ...transport import (
    Address,
    AsyncBackend,
    Handler,
    Message,
    Replies,
    Server,
)
from .._idle import Idle
from .._in_threads import InThreads
from .._prefix import PREFIX
from .._retry import patience, run_together
from .._serving import OnChange
from ..features import FEATURES
from .base import RedisBase
from .calls import SCRIPTS, CallerConnections, CallReplies, full
from .connection import Connection, persistent
from .inspection import RedisInspection
from .keys import QueueNames, Record, plain
from .maintenance import Options
from .sending import Sender
from .server import RedisServer
from .servers import servers_of
from .topics import Topics, run_on_client


class RedisBackend(RedisInspection, RedisBase):
    """Redis ≥ 6.2 or Valkey: one server, the master that sentinels know, or a cluster.

    `source` is a URL (`redis://`, `rediss://`, `redis+unix://`, `redis+sentinel://host,host/master/0`,
    `redis+cluster://host,host`), or a `redis.Redis` or `redis.RedisCluster`, of which only the addresses and
    the credentials are used. A worker without a sign of life for `lease` seconds has lost its messages, and
    they are delivered again, at most `max_deliveries` times; then they are dead letters. A queue with
    `max_length` messages refuses more with QueueFull (0: it does not). What was sent with an idempotency key
    is remembered for `idempotency_window` seconds. All keys begin with `prefix`, by which applications are
    told apart that share a server. Connects at first use.
    """

    features = FEATURES["redis"]
    max_message: int | None = 64 * 1024 * 1024

    def __init__(
        self,
        source: redis.Redis | redis.RedisCluster | str,
        *,
        lease: float = 10.0,
        max_deliveries: int = 3,
        max_length: int = 0,
        idempotency_window: float = 86400.0,
        prefix: str = PREFIX,
    ) -> None:
        lease = seconds(lease, "lease", least=1)
        idempotency_window = seconds(idempotency_window, "idempotency_window", above=True)
        if max_deliveries < 1 or max_length < 0:
            raise ValueError("max_deliveries is at least 1, max_length at least 0")
        self.servers, self._options = servers_of(source), Options(lease, max_deliveries)
        self._sender = Sender(self.servers, max_length, idempotency_window)
        self.names = QueueNames(prefix)
        self.topics = Topics(self.servers, self.names, self._carry_out)
        self._serving: tuple[int, weakref.ref[RedisServer]] | None = None
        """The process and the server that was made last in it: while that runs, what is published goes on its
        connection."""
        self._callers: defaultdict[str, CallerConnections] = defaultdict(CallerConnections)
        """Those to the queues of one hash tag."""
        self._idle: defaultdict[str, Idle[Connection]] = defaultdict(lambda: Idle(Connection.drop))
        """Connections for what nobody waits for."""

    def send(self, to: Address, message: Message) -> None:
        if to.kind != "queue":
            return self._publish(to, message)
        self._send(to.name, message, None)

    def _keep(self, subscription: Address, message: Message) -> None:
        self._send(subscription.subscription_queue.name, message, 0)

    def _send(self, queue: str, message: Message, max_length: int | None) -> None:
        keys = self.names.queue(queue)
        idle = self._idle[keys.tag]
        connection = idle.take() or Connection(self.servers, keys.queue, SCRIPTS)

        def send() -> int:
            id, sent = plain(message.id), connection.server_ms()
            commands = self._sender.sending(keys, message, id, "", sent, max_length=max_length)
            return int(connection.ask(*commands))

        outcome = persistent(send, patience(message.ttl))
        idle.give_back(connection)
        if outcome < 0:
            raise full(keys)

    def request(self, to: Address, message: Message) -> Replies:
        if to.kind != "queue":
            return self.topics.request(to, message)
        keys = self.names.queue(to.name)
        replies = CallReplies(self._sender, self._callers[keys.tag], keys, message)
        try:
            replies.send()
        except BaseException:
            replies.close()
            raise
        return replies

    def asynchronous(self) -> AsyncBackend:
        """Itself for callers in event loops: native if hiredis is installed, else in threads."""
        others = InThreads(self)
        try:
            from .aio import AsyncRedis
        except ModuleNotFoundError:  # the extra `fast`
            return others
        return AsyncRedis(self._sender, self.names, self.topics, others)

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> Server:
        groups = self._by_tag(addresses)
        servers = [
            RedisServer(
                self.servers,
                self.names,
                group,
                handler,
                self._options,
                threads=threads,
                coroutines=coroutines,
                on_change=on_change if group is groups[0] else lambda connected: None,
                discard=self.discard,
            )
            for group in groups
        ]
        self._serving = process.id, weakref.ref(servers[0])
        return servers[0] if len(servers) == 1 else Together(servers)

    def _carry_out(self, key: str, *commands: Sequence[Any]) -> list[Any]:
        pid, find = self._serving or (0, None)
        server = find() if find and pid == process.id else None  # a fork may have been made while it was used
        if server is None or not server.is_running:
            return run_on_client(self.servers, key, *commands)
        return server.run_commands(key, *commands)

    def _by_tag(self, addresses: Sequence[Address]) -> list[list[Address]]:
        """On a cluster, durable subscriptions of other hash tags by themselves; all the rest is one group."""
        tags = {self.names.queue(each.name).tag for each in addresses if each.kind == "queue"}
        if not self.servers.is_cluster:
            return [[*addresses]]
        if len(tags) > 1:
            raise Unsupported(
                f"on a cluster, queues of one worker need one hash slot, not {', '.join(sorted(tags))}: give "
                "them names like shop.high and shop.low, or start a worker for each"
            )
        groups: dict[str | None, list[Address]] = {}
        for address in sorted(addresses, key=lambda each: each.durable):
            tag = self.names.queue(address.subscription_queue.name).tag if address.durable else None
            groups.setdefault(None if tag in tags else tag, []).append(address)
        return [*groups.values()] or [[]]

    def close(self) -> None:
        for idle in self._idle.values():
            idle.close()
        for callers in self._callers.values():
            callers.close()
        self.servers.close()

    def discard(self, queue: str, *, only_empty: bool = False) -> None:
        """Delete a queue, with what is in it; or only if that is nothing: then it is not there."""
        if only_empty:
            return
        keys = self.names.queue(queue)
        client = self.servers.client(keys.queue)
        while raw := client.lpop(keys.queue):
            with suppress(SerializationError):  # it is none of ours
                if (record := Record.unpacked(raw)).is_large:
                    client.unlink(keys.body(record.id))
        client.unlink(keys.delayed, keys.wakeup)


class Together:
    """Servers of different hash slots as one. Each has the coroutines of its own."""

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        self._servers = servers

    def run(self) -> None:
        run_together([server.run for server in self._servers], self.stop)

    def stop(self) -> None:
        for server in self._servers:
            server.stop()

    def hand_back(self) -> None:
        for server in self._servers:
            server.hand_back()

    def stalled(self) -> float:
        return max(server.stalled() for server in self._servers)
