"""The names of queues and exchanges. RabbitMQ itself names those that nobody else looks for (`amq.gen-…`)."""

from __future__ import annotations

from hashlib import blake2b, sha256

from ...transport import Address
from .._prefix import PREFIX, checked_prefix
from .wire import Exchange

PARTITIONS = 16
"""Of the messages with order keys of one queue."""


class Names:
    """All begin with a prefix. Raises ValueError if that cannot be one."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self._prefix = checked_prefix(prefix)
        self.exchange = prefix
        """A direct exchange: the messages of topics, and what workers are told about requests."""
        self.own_exchange = Exchange.Declare(exchange=prefix, durable=True, nowait=True)
        """What declares it."""
        self.replies = f"{prefix}:reply:"
        """What the names of callers' reply queues begin with."""
        self.due, self.gone = f"{prefix}:delay:due", f"{prefix}:delay:gone"
        """Behind the last level of delays, and for what has no queue any more: both an exchange."""

    def queue(self, to: Address) -> str:
        """Of a queue or an inbox."""
        return f"{self._prefix}:{to.kind}:{to.name}"

    def target(self, to: Address, order_key: str | None) -> str:
        """Where a message to a queue or an inbox is put: if it has an order key, in a partition of the queue,
        which the key alone tells."""
        if to.kind != "queue" or order_key is None:
            return self.queue(to)
        digest = sha256(order_key.encode("utf-8", "surrogatepass")).digest()
        return self.partition(to.name, digest[0] % PARTITIONS)

    def dead(self, queue: str) -> str:
        """The queue of the dead letters of a queue."""
        return f"{self._prefix}:dead:{queue}"

    def expiring(self, queue: str) -> str:
        """The queue beside a queue, for jobs that expire and nobody waits for."""
        return f"{self._prefix}:expiring:{queue}"

    def partition(self, queue: str, number: int) -> str:
        """A part of the messages with order keys of a queue."""
        return f"{self._prefix}:order:{queue}:{number}"

    def servants(self, queue: str) -> str:
        """The queue whose consumers are the workers that serve the partitions of a queue."""
        return f"{self._prefix}:order:{queue}:workers"

    def done(self, queue: str) -> str:
        """The queue of ids of what was done last in the partitions of a queue."""
        return f"{self._prefix}:order:{queue}:done"

    def group(self, to: Address) -> str:
        """The queue of a group. RabbitMQ does not take names of more than 255 bytes."""
        start = f"{self._prefix}:topic:"
        name = f"{start}{to.name}:{to.group}"
        return name if len(name) < 255 else start + blake2b(name.encode(), digest_size=16).hexdigest()

    def by_headers(self, to: Address) -> str:
        """The headers exchange of a topic, of groups or of others: theirs need not outlive RabbitMQ."""
        return f"{self._prefix}:{'group' if to.group else 'topic'}:{to.name}"

    def level(self, number: int) -> str:
        """An exchange and a queue of the same name: a level of delays."""
        return f"{self._prefix}:delay:{number}"

    def lock(self, name: str) -> str:
        return f"{self._prefix}:lock:{name}"

    def mark(self, kind: str, of: str) -> str:
        """A queue whose presence says something of the message that is known by the text `of`."""
        return f"{self._prefix}:{kind}:{sha256(of.encode('utf-8', 'surrogatepass')).hexdigest()}"
