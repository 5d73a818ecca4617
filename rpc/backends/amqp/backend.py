"""RabbitMQ natively, over AMQP 0-9-1: one write and one read for a call.

Each waiting caller, and each event loop, has a reply queue that goes with its connection. What must not be
lost is durable, confirmed and acknowledged by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ...deadlines import in_time
from ...durations import seconds, seconds_or_none
from ...inspection import DeadLetter, QueueInfo
from ...loops import Alarm
from ...transport import IDEMPOTENCY_KEY, Address, Handler, Message
from ...transport import queue as queue_address
from .._idle import Idle
from .._prefix import PREFIX
from .._retry import RETRY_FOR
from .._serving import OnChange, Plan
from ..features import FEATURES, unsupported
from .aio import AsyncAmqp
from .callers import BlockingReplies, CallerConnection, Senders, perform
from .connection import Connection, Heartbeats
from .dead_letters import DeadLetterStore
from .locks import Locks
from .messages import Probe
from .names import Names
from .order import all_of, waiting_in_partitions
from .requests import PROBE, SEND
from .server import AmqpServer
from .servers import Servers
from .wire import Broken, Queue


class AmqpBackend:
    """RabbitMQ ≥ 3.10.

    `url` is `amqp://[user:password@]host[:port][,host[:port]…][/vhost]`, or `amqps:` with TLS. A message is
    delivered at most `max_deliveries` times; then it is a dead letter. `heartbeat` is the seconds without a
    sign of life after which either side takes the connection for lost (0: none). Queues are of `queue_type`
    "classic" or "quorum". A queue with `max_length` messages refuses more from this sender with QueueFull (0:
    it does not). The names of all queues and exchanges begin with `prefix`, by which applications are told
    apart that share a vhost. Connects at first use.
    """

    features = FEATURES["amqp"]
    max_message: int | None = 16 * 1024 * 1024

    def __init__(
        self,
        url: str = "amqp://127.0.0.1",
        *,
        heartbeat: float = 30.0,
        max_deliveries: int = 3,
        max_length: int = 0,
        queue_type: Literal["classic", "quorum"] = "classic",
        lease: float | None = None,
        prefix: str = PREFIX,
    ) -> None:
        """`lease`, which is RPC_LEASE, is that of singleton timers, which name it with each lock. Jobs need
        none: a worker has them for as long as its connection."""
        seconds_or_none(lease, "lease", above=True)
        heartbeat = seconds(heartbeat, "heartbeat")
        if max_deliveries < 1 or max_length < 0 or 0 < heartbeat < 2:
            raise ValueError("max_deliveries is at least 1, max_length at least 0, heartbeat at least 2 or 0")
        self.servers = Servers(url, heartbeat, queue_type, Names(prefix))
        self._max_length, self._max_deliveries = max_length, max_deliveries
        self._heartbeats = Heartbeats()
        self._callers = Idle[CallerConnection](lambda caller: caller.connection.close())
        """Those that nobody waits on."""
        self.senders = Senders(self.servers, self.connect, max_length)
        self._dead_letters = DeadLetterStore(self.senders)
        self._locks = Locks(self.connect, self.servers.names)

    def connect(self, wakeup: Alarm | None = None) -> Connection:
        """A connection, which `wakeup` wakes up. Raises Broken."""
        try:
            return in_time(
                lambda: Connection(self.servers, self._heartbeats, wakeup),
                undo=lambda made: made.drop(Broken("nobody waits for it any more")),
            )
        except TimeoutError as error:
            raise Broken(f"{self.servers.places}: no answer in time") from error

    def send(self, to: Address, message: Message) -> None:
        _check(message)
        self.senders.send(to, message)

    def request(self, to: Address, message: Message) -> BlockingReplies:
        _check(message)
        replies = BlockingReplies(self.senders, self._callers, to, message)
        try:
            replies.send()
        except BaseException:
            replies.close()
            raise
        return replies

    def asynchronous(self) -> AsyncAmqp:
        """What callers in event loops use."""
        return AsyncAmqp(self.servers, self._max_length, self.features, self.max_message)

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: OnChange = lambda connected: None,
    ) -> AmqpServer:
        return AmqpServer(
            self.servers,
            self.connect,
            Plan(addresses),
            handler,
            threads=threads,
            coroutines=coroutines,
            max_deliveries=self._max_deliveries,
            on_change=on_change,
        )

    def close(self) -> None:
        self._callers.close()
        self.senders.close()
        self._locks.close()

    # Queues.

    def is_served(self, queue: str) -> bool:
        return self.senders.is_served(queue_address(queue))

    def queue_info(self, queue: str) -> QueueInfo:
        """What runs and what was delayed is not known, nor how old what waits is; workers that have no room
        count as one."""

        names = self.servers.names

        def look(connection: Connection) -> tuple[int, int, int]:
            waiting, workers = connection.size_of(PROBE, Probe(names.queue(queue_address(queue))))
            expiring, _ = connection.size_of(PROBE, Probe(names.expiring(queue)))
            dead, _ = connection.size_of(PROBE, Probe(names.dead(queue)))
            ordered = perform(waiting_in_partitions(names, queue, PROBE), connection)
            return waiting + expiring + ordered, dead, workers

        waiting, dead, workers = self.senders.do(look)
        return QueueInfo(queue, waiting, None, None, dead, workers or int(self.is_served(queue)), None)

    def declare(self, *addresses: Address) -> None:
        """Make these queues, so that messages to them are taken before anybody serves them."""
        for to in addresses:
            self._ask(self.servers.queue(self.servers.names.queue(to)), Queue.DeclareOk)

    def delete(self, *addresses: Address) -> None:
        """Delete these queues, with what is in them and their dead letters."""
        names = self.servers.names
        for to in addresses:
            self.servers.forget(to.name)
            for name in (
                names.queue(to),
                names.expiring(to.name),
                names.dead(to.name),
                *all_of(names, to.name),
            ):
                self._ask(Queue.Delete(queue=name), Queue.DeleteOk)

    def unsubscribe(self, to: Address, *, unused: bool = False) -> bool:
        name = self.servers.names.queue(to.subscription_queue)
        if unused:
            info = self.queue_info(to.subscription_queue.name)
            if info.workers or info.waiting:
                return False
        checks = unused and self.servers.queue_type == "classic"  # a quorum queue refuses to be asked that
        delete = Queue.Delete(queue=name, if_unused=checks, if_empty=checks)
        return self.senders.do(
            lambda connection: connection.succeeds(PROBE, delete, Queue.DeleteOk, 406), RETRY_FOR
        )

    def _ask(self, method: Any, expected: type[Any]) -> None:
        self.senders.do(lambda connection: connection.ask(SEND, method, expected), RETRY_FOR)

    # Locks, dead letters.

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return self._locks.acquire(name, owner, lease)

    def release(self, name: str, owner: str) -> None:
        self._locks.release(name, owner)

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        return self._dead_letters.letters(queue)

    def revive(self, letter: DeadLetter) -> bool:
        return self._dead_letters.revive(letter)

    def drop(self, letter: DeadLetter) -> bool:
        return self._dead_letters.drop(letter)


def _check(message: Message) -> None:
    if IDEMPOTENCY_KEY in message.headers:
        raise unsupported("idempotency")
