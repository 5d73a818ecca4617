"""The names of queues and exchanges. RabbitMQ itself names those that nobody else looks for (`amq.gen-…`)."""

from __future__ import annotations

from hashlib import blake2b, sha256

from ...transport import Address
from .._prefix import PREFIX, checked_prefix
from .wire import Exchange


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

    def dead(self, queue: str) -> str:
        """The queue of the dead letters of a queue."""
        return f"{self._prefix}:dead:{queue}"

    def group(self, to: Address) -> str:
        """The queue of a group. RabbitMQ does not take names of more than 255 bytes."""
        start = f"{self._prefix}:topic:"
        name = f"{start}{to.name}:{to.group}"
        return name if len(name) < 255 else start + blake2b(name.encode(), digest_size=16).hexdigest()

    def level(self, number: int) -> str:
        """An exchange and a queue of the same name: a level of delays."""
        return f"{self._prefix}:delay:{number}"

    def lock(self, name: str) -> str:
        return f"{self._prefix}:lock:{name}"

    def mark(self, kind: str, of: str) -> str:
        """A queue whose presence says something of the message that is known by the text `of`."""
        return f"{self._prefix}:{kind}:{sha256(of.encode('utf-8', 'surrogatepass')).hexdigest()}"
