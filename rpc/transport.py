"""The waist: what a backend carries, and what it must offer.

Where a message goes is an `Address`: a queue, a topic or an inbox. What travels is a `Message`: a flat map of
short strings, and a body that is opaque to whoever carries it. A backend acts on the headers `id`, `ttl` and
`reply-to`, sets `deliveries` and the `ttl` that is left, and carries the others as they are. Transports with
headers of their own use them; for the rest there is one compact frame: `packed()` and `unpacked()`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol

import msgspec

from .errors import SerializationError, shown

ADDRESS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
Needs = tuple[tuple[tuple[str, str], ...], ...]
"""Sets of headers, with their values."""


@dataclass(frozen=True, slots=True)
class Address:
    """One of the three kinds of address; make it with `queue()`, `topic()` or `inbox()`."""

    kind: Literal["queue", "topic", "inbox"]
    name: str
    group: str | None = None
    durable: bool = False
    needs: Needs | None = field(default=None, compare=False, repr=False)
    """Of a topic that is served: a message that has all headers of none of these sets is not wanted, and the
    backend may leave it out. None: all are wanted."""

    def __post_init__(self) -> None:
        for part in self.name, self.group:
            if part is not None and not (isinstance(part, str) and ADDRESS_NAME.fullmatch(part)):
                raise ValueError(
                    f"{part!r:.200} is no {self.kind} name: letters, digits, '_', '.', '-', at most 128"
                )
        if self.durable and (self.kind != "topic" or self.group is None):
            raise ValueError("what is durable is a topic with a group, by which it is remembered")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" (group {self.group})" if self.group else "")

    @property
    def subscription_queue(self) -> Address:
        """The queue in which a durable subscription keeps its copies, where a backend has no better way."""
        return queue(f"_{self.name}.{self.group}")


@lru_cache(1024)
def queue(name: str) -> Address:
    """Exactly one of the receivers that serve it gets each message."""
    return Address("queue", name)


def topic(name: str, group: str | None = None, *, durable: bool = False) -> Address:
    """Every receiver that serves it gets each message; those that name one `group` share a copy. If that is
    `durable`, once it was served what comes is kept while nobody serves it, and handled as in a queue."""
    return Address("topic", name, group, durable)


def inbox(name: str) -> Address:
    """Its single owner gets each message."""
    return Address("inbox", name)


LOST = "lost"
"""Header of a reply that a backend writes in place of a handler that died; its text says what happened."""
FAILED = "error"
"""Header of a reply that carries an error: the name of its type. For logs, dashboards, dead letters."""
ENCODING = "content-encoding"
"""Header: how the body was made smaller."""
ACCEPTS = "accept-encoding"
"""Header of a request: how the bodies of its replies may be made smaller, the best first."""
STREAM = "stream"
"""Header of a reply after which more will come. One without it ends the conversation."""
NAME = "name"
"""Header that tells people what a message asks for. A label: nothing is ever looked up by it."""
DELAY = "delay"
"""Header: seconds, from the sending, before which nobody is given the message (feature `delay`)."""
IDEMPOTENCY_KEY = "idempotency-key"
"""Header: of the messages with the same one, in one queue, only the first is handled, and its last reply goes
to all (feature `idempotency`). Callers begin it with the name of the job, and a colon."""
ORDER_KEY = "order-key"
"""Header: messages with the same one, in one queue, are handled one after the other, in the order in which
they were sent (feature `order`)."""
KEEP = "keep"
"""Header: seconds for which the last reply is kept, for anybody who knows the id (feature `results`)."""
UNKNOWN = "unknown-for"
"""Header: seconds that workers have passed it on which did not know the job."""
VERSION = "version"
"""Header: the versions of a service that the caller wants (see `rpc.identity.wanted`)."""
ATTEMPT = "attempt"
"""Header: how often the job has been tried, if it failed before."""
HANDED_BACK = "handed-back"
"""Header: a worker had begun with it, and gave it back because it was stopped. That is no death."""
SIGNATURE = "signature"
"""Header: who vouches for the message, as `rpc.core.signing` has it."""
EXPIRES = "expires"
"""Header of a signed message: when it is too late, in seconds of the Unix epoch by its sender's clock."""
TOKEN = "token"  # noqa: S105
"""Header of a request: what shows that its caller may ask for this job."""
TRACE = ("traceparent", "tracestate", "baggage")
"""Headers of a trace (https://www.w3.org/TR/trace-context/)."""
OWN = "x-"
"""What headers begin with that belong to the application."""
MAX_HEADERS = 64
MAX_HEADER_BYTES = 8192


class Message(msgspec.Struct, frozen=True):
    """Headers (short strings) and a body (bytes). Changed by making another one: see `replace()`."""

    body: bytes = b""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        # Bodies and tokens stay out of logs.
        return f"<Message {shown(self.id) or '-'}, {len(self.body)} bytes>"

    @property
    def id(self) -> str:
        """The request's id, which its replies carry too; "" if it has none."""
        return self.headers.get("id", "")

    @property
    def reply_to(self) -> str | None:
        """The name of the caller's inbox; None if nobody waits for a reply."""
        return self.headers.get("reply-to")

    @property
    def ttl(self) -> float | None:
        """Seconds left until nobody wants it any more; None if it does not expire."""
        return self._seconds("ttl")

    @property
    def keep(self) -> float | None:
        """Seconds for which its last reply is to be kept; None if that is not said."""
        return self._seconds(KEEP)

    def _seconds(self, header: str) -> float | None:
        if header not in self.headers:
            return None
        try:
            seconds = float(self.headers[header])
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise SerializationError(f"the {header} header is not a number of seconds")
        return seconds

    @property
    def deliveries(self) -> int:
        """How often it was handed to a receiver, this time included."""
        return self._count("deliveries")

    @property
    def attempt(self) -> int:
        """How often the job has been tried, this time included."""
        return self._count(ATTEMPT)

    def _count(self, header: str) -> int:
        count = self.headers.get(header)
        return int(count) if count and count.isdecimal() and len(count) < 10 else 1

    def replace(self, **headers: str | float | None) -> Message:
        """The same message with other headers; None removes one. `reply_to` stands for `reply-to`."""
        merged = dict(self.headers)
        for name, value in headers.items():
            if value is None:
                merged.pop(name.replace("_", "-"), None)
            else:
                merged[name.replace("_", "-")] = str(value)
        return Message(self.body, merged)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises SerializationError if they are more than any message has: a backend that has no frames would
    carry them."""
    if len(headers) > MAX_HEADERS or sum(map(len, [*headers, *headers.values()])) > MAX_HEADER_BYTES:
        raise SerializationError(f"at most {MAX_HEADERS} headers, of {MAX_HEADER_BYTES} bytes, are carried")


_encode_headers = msgspec.msgpack.Encoder().encode
_decode_headers = msgspec.msgpack.Decoder(dict[str, str]).decode


def packed(message: Message) -> bytes:
    """The compact frame: two bytes, big-endian, the length of the headers; the headers as a MessagePack map
    of strings; the body."""
    try:
        headers = _encode_headers(message.headers)
    except UnicodeEncodeError as error:
        raise SerializationError(f"a header is no text: {error}") from error
    if len(headers) > MAX_HEADER_BYTES or len(message.headers) > MAX_HEADERS:
        raise SerializationError(f"at most {MAX_HEADERS} headers, of {MAX_HEADER_BYTES} bytes, are carried")
    return len(headers).to_bytes(2, "big") + headers + message.body


def unpacked(frame: bytes) -> Message:
    """The message in a compact frame; SerializationError if it is none."""
    end = 2 + int.from_bytes(frame[:2], "big")
    if not 2 < end <= len(frame) or end > MAX_HEADER_BYTES + 2:
        raise SerializationError("not a frame: its length does not fit")
    try:
        headers = _decode_headers(frame[2:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"not a frame: {error}") from error
    if len(headers) > MAX_HEADERS:
        raise SerializationError(f"not a frame: it has more than {MAX_HEADERS} headers")
    return Message(frame[end:], headers)


class Delivery(Protocol):
    """One message in the hands of a handler, until it is finished, postponed or buried.

    What could not be postponed or buried (BackendUnavailable) is not acknowledged: it is delivered again.
    But if a caller waits for it, and the handler finishes it with his last reply, that was it.
    """

    message: Message
    to: Address
    """Which of the addresses that are served it came to."""
    cancelled: bool
    """True as soon as nobody listens for the reply any more. May change at any time."""
    caller: str | None
    """Who has sent it, as far as the backend can tell, whatever the message says; "" if it cannot. None:
    where it comes from, somebody counts the streams of callers."""
    on_cancel: Callable[[], object] | None
    """Called, from any thread, when `cancelled` becomes true. Does not block."""

    error: BaseException | None
    """What its handler raised, with the traceback of the handler alone; set before the end. For backends that
    show it to people."""

    def reply(self, message: Message) -> bool:
        """Send a reply before the end. False if nobody listens."""

    def finish(self, last: Message | None) -> None:
        """The end: acknowledge the message, and send the last reply (None: there is none, or it was sent)
        along. Any thread; does not wait for the broker. Only the first time counts."""

    def forbid_redelivery(self) -> None:
        """If this process dies now, nobody gets this message again: its caller is told instead."""

    def postpone(self, seconds: float, message: Message) -> None:
        """Instead of finishing it: somebody gets this message, in place of the one that was delivered, after
        so many seconds. Feature `delay`. Raises Cancelled if it was withdrawn: then it is not over."""

    def bury(self, why: str, last: Message | None) -> None:
        """Instead of finishing it: send the last reply, and keep the message as a dead letter, which nobody
        gets unless people say so. The first line of `why` is the reason, a traceback may follow. Feature
        `dead-letters`."""


Handler = Callable[[Delivery], None]
"""Takes a delivery. It may return before that is finished, where the backend has the feature `detached`. A
handler does not raise; if it does, its caller is told. If the process dies first, the message is delivered
again (feature `redelivers`)."""


class Replies(Protocol):
    """What comes back for one request, in the order in which it was sent."""

    def receive(self, timeout: float | None) -> Message:
        """The next reply. Raises RpcTimeout after `timeout` seconds without one, and stays usable."""

    def close(self) -> None:
        """Nobody listens any more: what was not started is not done, what runs is told. Idempotent."""


class Server(Protocol):
    """One running serve of a backend. Several on one backend do not know of each other."""

    def run(self) -> None:
        """Feed the handler what arrives, until `stop()`; then wait for what was handed out, and give back
        connections."""

    def stop(self) -> None:
        """Take nothing new. Only sets a flag: any thread, signal-safe, also before `run()`."""

    def hand_back(self) -> None:
        """What is not finished goes back to its queue now: the process is about to end. Any thread."""


class Backend(Protocol):
    """What a broker, or a network, must offer. Only RpcTimeout, BackendUnavailable, QueueFull, NoReceivers
    and Unsupported leave these methods."""

    features: frozenset[str]
    """Of: store-and-forward, durable, redelivers, topics, groups, subscriptions, locks, priorities,
    processes, liveness, presence, delay, idempotency, order, dead-letters, detached, counts, inspection,
    results, replay, describes (without topics, but for `topic("rpc")`)."""
    max_message: int | None
    """The largest body, in bytes; None if the transport sets no limit."""

    def send(self, to: Address, message: Message) -> None:
        """Hand the message over. Returns once the broker has it, not once it is handled. Without the feature
        `store-and-forward` a receiver must have it; if there is none, that is BackendUnavailable."""

    def request(self, to: Address, message: Message) -> Replies:
        """The same, with a way back that is open before the message leaves. The message has `reply-to`."""

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: Callable[[bool], object] = lambda connected: None,
    ) -> Server:
        """What serves these addresses: queues in order of priority, of which the handler has at most
        `threads` messages at a time that it has not returned from, and `coroutines` that it has returned
        from and not finished; and one message at a time of each topic and inbox. `on_change` is called, from
        any thread, with True when there is a connection to serve on, and with False when it is lost. Does no
        I/O."""

    def close(self) -> None:
        """Give back the connections of callers. Idempotent."""


class Subscriptions(Protocol):
    """A backend with the feature `subscriptions`: durable topics. What nobody serves for KEEP_SUBSCRIPTION
    seconds is forgotten. One that can tell which there are has `subscribed()`, too."""

    def unsubscribe(self, to: Address, *, unused: bool = False) -> bool:
        """Forget one, with what waits for it; `unused`: unless it is served or has that. Whether it is so."""


class Replay(Protocol):
    """A backend with the feature `replay`: its topics remember for a while what was published."""

    def replay(self, to: Address, seconds: float | None) -> Iterator[Message]:
        """What was sent to a topic in the last so many seconds (None: all that is remembered), the oldest
        first."""


class Locks(Protocol):
    """A backend with the feature `locks`."""

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        """Get a lock, or keep it, for so many seconds. False if another owner has it. One that dies loses it
        within the lease."""

    def release(self, name: str, owner: str) -> None:
        """Give a lock back, if this owner has it."""


class Liveness(Protocol):
    """A server of a backend with the feature `liveness`."""

    def stalled(self) -> float:
        """Seconds since the loop that takes from queues came round last, with something or in vain; an
        attempt to get a connection counts. 0 while it need not: all threads are in handlers, or no queue is
        served. Any thread."""


class Presence(Protocol):
    """A backend with the feature `presence`."""

    def is_served(self, queue: str) -> bool:
        """Whether there is a worker for this queue now."""


class AsyncReplies(Protocol):
    """`Replies` for one task of an event loop."""

    async def receive(self, timeout: float | None) -> Message:
        """As `Replies.receive`. If the task is cancelled, nothing is lost."""

    def close(self) -> None:
        """As `Replies.close`; what there is to say is said soon."""


class AsyncBackend(Protocol):
    """What `Backend.asynchronous` returns: the same for callers in event loops, any number of them, one after
    the other or at a time."""

    features: frozenset[str]
    max_message: int | None

    async def send(self, to: Address, message: Message) -> None:
        """As `Backend.send`."""

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        """As `Backend.request`."""

    async def close(self) -> None:
        """Give back the connections of this event loop; whoever waits gets Cancelled. Idempotent."""


KEEP_SUBSCRIPTION = 30 * 86400.0
