"""The names of keys, and what is in a record. `_redis_scripts` says what they mean."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256

import msgspec

from ...transport import queue as address

PRIORITIES = ("high", "default", "low")
LARGE = 64 * 1024
"""Bytes; a frame of more stays out of the scripts that move messages."""


class Keys:
    """The keys of a queue. They share one hash tag, so that one worker can serve `shop.high` and `shop.low`
    on a cluster, too: the part of the name before the first dot; of `high`, `default` and `low`: default."""

    def __init__(self, queue: str) -> None:
        self.name, self.address = queue, address(queue)
        self.tag = "default" if queue in PRIORITIES else queue.partition(".")[0]
        self.queue = f"rpc:{{{self.tag}}}:{queue}"
        self.bell = f"{self.queue}:bell"
        self.delayed = f"{self.queue}:delayed"
        self.dead = f"{self.queue}:dead"
        self.workers = f"{self.queue}:workers"
        self.channel = f"{self.queue}:news"
        self._token, self._body = f"{self.queue}:t:", f"{self.queue}:b:"

    def token(self, id: str) -> str:
        """Lives as long as somebody wants the message, and a while after it was sent."""
        return self._token + id

    def body(self, id: str) -> str:
        """The frame of a message that is large."""
        return self._body + id

    def once(self, digest: str) -> str:
        """What became of the message with this idempotency key."""
        return f"{self.queue}:o:{digest}"

    def slot(self, worker: str) -> str:
        """What this worker has taken and not acknowledged."""
        return f"{self.queue}:slot:{worker}"

    def alive(self, worker: str) -> str:
        """Its presence says that the worker lives; Redis counts its time."""
        return f"rpc:{{{self.tag}}}:alive:{worker}"

    def inbox(self, lane: str) -> str:
        """Where replies to a caller go."""
        return f"rpc:{{{self.tag}}}:in:{lane}"


@lru_cache(1024)
def keys_of(queue: str) -> Keys:
    return Keys(queue)


_PLAIN = re.compile(r"[!-~]{1,128}")


def plain(id: str) -> str:
    """An id that can be part of a record."""
    if len(id) <= 128 and id.isascii() and id.isalnum():  # as ours are
        return id
    return id if _PLAIN.fullmatch(id) else digest(id)


def digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Record(msgspec.Struct, frozen=True):
    """A message as it lies in a list."""

    kind: str
    """"k": kept, "w": wanted while its token exists; in capitals if the frame lies elsewhere."""
    deaths: int
    id: str
    lane: str
    once: str
    frame: bytes

    def packed(self) -> bytes:
        head = f"{self.kind}{self.deaths or ''}\n{self.id}\n{self.lane}\n{self.once}\n"
        return head.encode() + self.frame

    @classmethod
    def unpacked(cls, record: bytes) -> Record:
        """Raises ValueError if it is none."""
        kind, id, lane, once, frame = record.split(b"\n", 4)
        head = kind.decode()
        return cls(head[:1], int(head[1:] or 0), id.decode(), lane.decode(), once.decode(), frame)

    @property
    def is_large(self) -> bool:
        return self.kind.isupper()


def entry(number: int, id: str, frame: bytes) -> bytes:
    """A reply as it lies in an inbox; `number` counts those of one worker to one message."""
    return b"%d\n%s\n%s" % (number, id.encode(), frame)
