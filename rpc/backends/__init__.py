"""What a backend does: carry one message there, and a stream of messages back.

A backend knows nothing of jobs, errors or services: a message's body is opaque to it. The loop that feeds
the handler may be its own (Redis) or a framework's (rq, a web server): whoever calls `serve` cannot tell.
Nothing here may import the core, and no backend may import another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import Any, Protocol, get_type_hints
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from ..addresses import Address
from ..errors import SettingsError, Unsupported
from ..message import Handler, Message


class Replies(Protocol):
    """What comes back for one request, in the order in which it was sent."""

    def receive(self, timeout: float | None) -> Message:
        """The next reply. Raises RpcTimeout after `timeout` seconds without one, and stays usable."""

    def close(self) -> None:
        """Nobody listens any more: what was not started is not done, what runs is told. Idempotent."""


class Backend(Protocol):
    """What a broker, or a network, must offer. Only RpcTimeout, BackendUnavailable, QueueFull, NoReceivers
    and Unsupported leave these methods."""

    features: frozenset[str]
    """Of: durable, redelivers, topics, groups, subscriptions, locks, priorities, processes, presence, delay,
    idempotency, dead-letters."""
    max_message: int | None
    """The largest body, in bytes; None if the transport sets no limit."""
    on_change: Callable[[bool], object] | None
    """Called by `serve`, from any thread: True when there is a connection to serve on, False when it is
    lost."""

    def send(self, to: Address, message: Message) -> None:
        """Hand the message over. Returns once the broker has it, not once it is handled."""

    def request(self, to: Address, message: Message) -> Replies:
        """The same, with a way back that is open before the message leaves. The message has `reply-to`."""

    def serve(self, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        """Feed the handler what arrives, queues in order of priority, at most `concurrency` messages of
        theirs at a time, and one of each topic and inbox. Blocks until `stop()`, then finishes what it
        started."""

    def stop(self) -> None:
        """Make `serve` take nothing new and return. Only sets a flag: any thread, signal-safe."""

    def close(self) -> None:
        """Hand back what `serve` still holds, then give back connections. Idempotent."""


class Subscriptions(Protocol):
    """A backend with the feature `subscriptions`: it serves durable topics. What nobody serves for
    KEEP_SUBSCRIPTION seconds is forgotten. One that can tell which there are has `subscribed()`, too."""

    def unsubscribe(self, to: Address) -> None:
        """Forget a durable topic of a group, with what waits for it."""


class Locks(Protocol):
    """A backend with the feature `locks`."""

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        """Get a lock, or keep it, for so many seconds. False if another owner has it. One that dies loses it
        within the lease."""

    def release(self, name: str, owner: str) -> None:
        """Give a lock back, if this owner has it."""


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


def asynchronous(backend: Backend) -> AsyncBackend:
    """The backend for callers in event loops: as it has it itself, else in threads."""
    make = getattr(backend, "asynchronous", None)
    if make is None:
        from ._in_threads import InThreads

        return InThreads(backend)
    own: AsyncBackend = make()
    return own


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up."""

    id: str
    queue: str
    at: float
    """When, in seconds of the Unix epoch, by the broker's clock."""
    why: str
    frame: bytes
    raw: Any
    """What the backend finds it by."""


class DeadLetters(Protocol):
    """A backend with the feature `dead-letters`."""

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        """What was given up, the last one first."""

    def revive(self, letter: DeadLetter) -> bool:
        """Put it back into its queue, as if it had just been sent. False if it is no longer there."""

    def drop(self, letter: DeadLetter) -> bool:
        """Forget it. False if it is no longer there."""


KEEP_SUBSCRIPTION = 30 * 86400.0

BACKENDS = {
    "memory": ("rpc.backends.memory:MemoryBackend", None),
    "amqp": ("rpc.backends.amqp:AmqpBackend", "amqp"),
    "amqps": ("rpc.backends.amqp:AmqpBackend", "amqp"),
    "redis": ("rpc.backends.redis:RedisBackend", None),
    "rediss": ("rpc.backends.redis:RedisBackend", None),
    "redis+unix": ("rpc.backends.redis:RedisBackend", None),
    "redis+sentinel": ("rpc.backends.redis:RedisBackend", None),
    "redis+cluster": ("rpc.backends.redis:RedisBackend", None),
    "rq+redis": ("rpc.backends.rq:PythonRqBackend", None),
    "rq+rediss": ("rpc.backends.rq:PythonRqBackend", None),
    "rq+unix": ("rpc.backends.rq:PythonRqBackend", None),
}
"""URL scheme -> the backend's class, and the extra that brings its driver. Others come from the entry
points of the group `rpc.backends`."""


def backend_from_url(url: str, **options: Any) -> Backend:
    """The backend that a URL names, such as "rq+redis://127.0.0.1:6379/0?lease=5" or "memory://".

    `options`, and those of the URL's query that the backend knows, are the keyword arguments of its
    constructor; the rest of the query is the driver's. Raises SettingsError for a URL or an option that
    makes no sense, Unsupported if the driver is not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        # Its text may show a part of the password.
        raise SettingsError(f"a backend's URL cannot be read: {type(error).__name__}") from None
    factory = _load(parts.scheme, url)
    known = {
        name: parameter
        for name, parameter in signature(factory).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY
    }
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = {name: value for name, value in query if name in known}
    for name in options:
        if name not in known:
            raise SettingsError(
                f"{parts.scheme}: has no option {name!r}; it has {', '.join(known) or 'none'}"
            )
    rest = urlencode([(name, value) for name, value in query if name not in known])
    hints = get_type_hints(factory.__init__)
    try:
        converted = {name: msgspec.convert(value, hints[name], strict=False) for name, value in given.items()}
        stem = url.partition("?")[0] + (f"?{rest}" if rest else "")
        backend: Backend = factory(stem, **options, **converted)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise SettingsError(f"{redacted(url)}: {error}") from error
    return backend


_SECRET = re.compile(r"(//[^:/?#@]*:).*(?=@)|(password=)[^&]+")


def redacted(url: str) -> str:
    """The URL without its passwords, for logs and errors."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2]}***", url)


def _load(scheme: str, url: str) -> Any:
    if scheme in BACKENDS:
        path, extra = BACKENDS[scheme]
    else:
        found = {entry.name: entry.value for entry in entry_points(group="rpc.backends")}
        if scheme not in found:
            known = ", ".join(f"{name}:" for name in sorted({*BACKENDS, *found}))
            raise SettingsError(f"{redacted(url)!r} names no backend; known are {known}")
        path, extra = found[scheme], None
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        raise Unsupported(f"{scheme}: needs `pip install python-rpc[{extra}]`") from error
