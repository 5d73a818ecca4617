"""The names of all keys, and what is in a record. `scripts` says what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from hashlib import sha256

import msgspec

from ...errors import SerializationError
from ...transport import Address
from ...transport import queue as address
from .._prefix import PREFIX, checked_prefix

PRIORITIES = ("high", "default", "low")
LARGE = 64 * 1024
"""Bytes; a frame of more stays out of the lists that messages move through."""


class Names:
    """The keys that both backends on Redis have; all begin with a prefix. Raises ValueError if that cannot be
    one."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = checked_prefix(prefix)
        self.inboxes = f"{prefix}:in:"
        """What the keys of inboxes with a name begin with."""
        self.subscriptions = f"{prefix}:subscriptions"
        """All of them, of all topics: for whoever looks after them."""

    def channel(self, to: Address) -> str:
        """The key of a topic, or of an inbox."""
        return f"{self.inboxes}{to.name}" if to.kind == "inbox" else f"{self.prefix}:topic:{{{to.name}}}"

    def subscriptions_to(self, topic: Address) -> str:
        """The groups that have what comes to a topic kept, by the time at which they are forgotten."""
        return f"{self.subscriptions}:{{{topic.name}}}"

    def members(self, to: Address) -> str:
        """Its presence says that somebody is in the group."""
        return f"{self.prefix}:members:{{{to.name}}}:{to.group}"

    def way_back(self, reply_to: str) -> str:
        """Where replies go to what was sent to a topic."""
        return f"{self.prefix}:re:{reply_to}"

    def lock(self, name: str) -> str:
        return f"{self.prefix}:lock:{name}"


class QueueNames(Names):
    """And those of queues."""

    def __init__(self, prefix: str = PREFIX) -> None:
        super().__init__(prefix)
        self.queue: Callable[[str], Keys] = lru_cache(1024)(partial(Keys, prefix))
        """The keys of the queue of this name."""


class Keys:
    """The keys of a queue. They share one hash tag, so that one worker can serve `shop.high` and `shop.low`
    on a cluster, too: the part of the name before the first dot; of `high`, `default` and `low`: default."""

    def __init__(self, prefix: str, queue: str) -> None:
        self.name, self.address = queue, address(queue)
        self.tag = "default" if queue in PRIORITIES else queue.partition(".")[0]
        start = f"{prefix}:{{{self.tag}}}:"
        self.queue = f"{start}{queue}"
        self.wakeup = f"{self.queue}:wakeup"
        """Where those wait that wait for several queues: a sorted set with one member, or none."""
        self.delayed = f"{self.queue}:delayed"
        self.dead = f"{self.queue}:dead"
        self.workers = f"{self.queue}:workers"
        """A hash: how many pages each worker has."""
        self.control = f"{self.queue}:control"
        """A stream: what those who serve the queue are told, such as which callers have left."""
        self.order = f"{self.queue}:order"
        """A hash: the id of the first of each order key, which alone is in the queue, or held, or delayed;
        and under "" how many wait behind."""
        self.inboxes = f"{start}in:"
        """What the keys of callers' inboxes begin with."""
        self._token, self._body, self._alive = f"{self.queue}:t:", f"{self.queue}:b:", f"{start}alive:"

    def token(self, id: str) -> str:
        """By which a repeated sending is known."""
        return self._token + id

    def body(self, id: str) -> str:
        """The frame of a message that is large."""
        return self._body + id

    def once(self, digest: str) -> str:
        """What became of the message with this idempotency key."""
        return f"{self.queue}:o:{digest}"

    def line(self, order: str) -> str:
        """Where those wait that come after the first of an order key."""
        return f"{self.queue}:k:{order}"

    def result(self, id: str) -> str:
        """The last reply to a message, if it is kept."""
        return f"{self.queue}:r:{id}"

    def cancelled(self, id: str) -> str:
        """Its presence says that a message was cancelled while somebody held it, who may not know yet."""
        return f"{self.queue}:c:{id}"

    def page(self, worker: str, number: int) -> str:
        """A part of what this worker has taken and not acknowledged: its processing list."""
        return f"{self.queue}:taken:{worker}:{number}"

    def alive(self, worker: str) -> str:
        """Its presence says that the worker lives; Redis counts its time."""
        return self._alive + worker

    def inbox(self, caller: str) -> str:
        """Where replies to a caller go."""
        return self.inboxes + caller


_PLAIN = re.compile(r"[!-~]{1,128}")


def plain(id: str) -> str:
    """An id that can be part of a record."""
    if len(id) <= 128 and id.isascii() and id.isalnum():  # as ours are
        return id
    return id if _PLAIN.fullmatch(id) else digest(id)


def digest(text: str) -> str:
    """What stands for any text in a key."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_RECORD = re.compile(
    rb"(\d{1,16}) ([kwaKWA])(\d{0,9})(\+?)\n([!-~]{1,128})\n([!-~]{0,512})\n"
    rb"([0-9a-f]{0,64})(?:\.([0-9a-f]{1,64}))?\n(\d{0,16})\n"
).match


class Record(msgspec.Struct, frozen=True):
    """A message as it lies in a list."""

    kind: str
    """"k": it is kept until it is done; "w": it expires; "a": it is attended, and wanted only while its token
    exists; in capitals if the frame lies elsewhere."""
    id: str
    inbox: str
    """Of the caller that waits; "" if nobody does."""
    once: str
    """The digest of its idempotency key; "" if it has none."""
    ttl: int
    """Milliseconds, from the sending, after which nobody wants it; 0 if it does not expire."""
    frame: bytes
    sent: int = 0
    """When, in milliseconds of the server's clock."""
    deaths: int = 0
    """How many workers died that had it."""
    handed_back: bool = False
    """Whether a worker gave it back that had begun it."""
    order: str = ""
    """The digest of its order key; "" if it has none."""

    def unsent(self) -> bytes:
        """Without the time, which the script that sends it adds."""
        mark = "+" if self.handed_back else ""
        head = f"{self.kind}{self.deaths or ''}{mark}"
        keys = f"{self.once}.{self.order}" if self.order else self.once
        return f"{head}\n{self.id}\n{self.inbox}\n{keys}\n{self.ttl or ''}\n".encode() + self.frame

    def packed(self) -> bytes:
        """As it lies in a list."""
        return b"%d %s" % (self.sent, self.unsent())

    @classmethod
    def unpacked(cls, record: bytes, inboxes: str = "") -> Record:
        """Raises SerializationError if it is none, anybody may have written it, or if its inbox has a key
        that does not begin with `inboxes`."""
        if (found := _RECORD(record)) is None:
            raise SerializationError("it is no record of ours")
        sent, kind, deaths, mark, id, to, once, order, ttl = found.groups()
        if (inbox := to.decode()) and not inbox.startswith(inboxes):
            raise SerializationError("what it wants to be replied to is no inbox")
        return cls(
            kind.decode(),
            id.decode(),
            inbox,
            once.decode(),
            int(ttl or 0),
            record[found.end() :],
            int(sent),
            int(deaths or 0),
            bool(mark),
            (order or b"").decode(),
        )

    @property
    def is_large(self) -> bool:
        """Whether the frame lies elsewhere."""
        return self.kind.isupper()

    @property
    def is_settled_apart(self) -> bool:
        """Whether more is to be done at its end than to acknowledge and to answer it."""
        return bool(self.once or self.order) or self.is_large

    @property
    def is_attended(self) -> bool:
        """Whether it is wanted only while its token exists."""
        return self.kind in "aA"


def is_ordered(record: bytes) -> bool:
    """Whether a record of ours has an order key."""
    return b"." in record.split(b"\n", 4)[3]


def entry(number: int, id: str, frame: bytes) -> bytes:
    """A reply as it lies in an inbox; `number` counts those of one worker to one message."""
    return b"%d\n%s\n%s" % (number, id.encode(), frame)
