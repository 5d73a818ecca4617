"""Everything that this library raises, and the JSON-RPC 2.0 code each error has on the wire.

RpcError
├── RemoteError           the handler raised: .type .message .data .traceback are the remote ones
├── MethodNotFound        no receiver maps this name
│   ├── ServiceNotFound   no receiver has this service
│   └── MethodNotExposed  the service has the method, but not for clients
├── InvalidParams         the handler's signature or annotations do not admit these arguments
├── RpcTimeout            no answer within the time allowed
├── TimeLimitExceeded     the job ran longer than its time limit
├── WorkerLost            the worker died, and the job will not be tried again
├── StreamBroken          items of a stream were lost on the way
├── VersionMismatch       the service has another version than is wanted
├── SubscriberLagged      a subscriber was too slow, or cut off: it has missed events
├── NoReceivers           nobody serves what was asked for
├── Cancelled             the caller withdrew the call
├── QueueFull             the queue is bounded and has no room
├── BackendUnavailable    the broker or the network failed
│   └── BackendRefused    the broker is there, and refuses us
├── SerializationError    a value, or a message, cannot be encoded or decoded
├── Unauthorized          the receiver does not accept this caller
├── RateLimited           more calls with this token than it allows
├── Unsupported           this backend cannot do that
└── SettingsError         a setting is missing, unknown or of the wrong type
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

DISTRIBUTION = "jobrpc"
"""The name under which this is installed, which is not that under which it is imported."""


class RpcError(Exception):
    """Base of every error raised by this library."""

    code = -32000


class RemoteError(RpcError):
    """The handler raised an exception, or the receiver failed in its place.

    `type` is the name of the remote exception's class, `message` its text (both str), `data` what
    else came with it (a dict or None), `traceback` the remote traceback as text if the receiver was
    set to send it (`RPC_SEND_TRACEBACKS`), else None.
    """

    code = -32000

    def __init__(self, type: str, message: str, data: Any = None, traceback: str | None = None) -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type, self.message, self.data, self.traceback = type, message, data, traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.type, self.message, self.data, self.traceback)


class MethodNotFound(RpcError):
    """No receiver maps this name to a handler."""

    code = -32601


class ServiceNotFound(MethodNotFound):
    """No receiver has a service of this name."""

    code = -32010


class MethodNotExposed(MethodNotFound):
    """The service has a method of this name, but not for clients."""

    code = -32011


class InvalidParams(RpcError):
    """The arguments do not fit the handler's signature or annotations; the text says which and why."""

    code = -32602


class RpcTimeout(RpcError, TimeoutError):
    """No answer came within the time allowed."""

    code = -32001


class Interrupted(BaseException):
    """Raised in a handler that ran too long; its caller gets RpcTimeout. No Exception, and no OSError: those
    are swallowed, by handlers and by drivers that wait on a socket."""


class TimeLimitExceeded(RpcError):
    """The job ran longer than its time limit (`@job(time_limit=)`, `RPC_TIME_LIMIT`)."""

    code = -32013


class WorkerLost(RpcError):
    """The worker, or the process of its own in which the job ran, died while it held the job, and the job
    will not be tried again."""

    code = -32002


class StreamBroken(RpcError):
    """Items of a stream were lost on the way, or one of its ends heard nothing of the other for too long."""

    code = -32014


class VersionMismatch(RpcError):
    """The service that has this job is of another version than the caller wants."""

    code = -32015


class SubscriberLagged(RpcError):
    """A subscriber was too slow, or cut off, and has missed events: `missed` of them (int), or None if nobody
    knows how many. It goes on with the next one."""

    code = -32016

    def __init__(self, message: str = "", missed: int | None = None) -> None:
        how_many = "nobody knows how many" if missed is None else f"{missed}, as it was too slow"
        super().__init__(message or f"the subscriber has missed events: {how_many}")
        self.missed = missed


class Unauthorized(RpcError):
    """The receiver does not accept this caller."""

    code = -32003


class RateLimited(RpcError):
    """There were more calls with this token than it allows."""

    code = -32017


class Cancelled(RpcError):
    """The call was withdrawn before it was answered."""

    code = -32004


class QueueFull(RpcError):
    """The queue is bounded and has no room."""

    code = -32005


class SerializationError(RpcError):
    """A value or a message cannot be encoded or decoded, or is too large."""

    code = -32006


class NoReceivers(RpcError):
    """Nobody serves what was asked for."""

    code = -32007


class Unsupported(RpcError):
    """This backend cannot do that; the text names those that can, or what to install."""

    code = -32008


class BackendUnavailable(RpcError, ConnectionError):
    """The broker, or the network on the way to it, failed."""

    code = -32009


class BackendRefused(BackendUnavailable):
    """The broker is there, and refuses us: a wrong password, no such vhost or database, no permission."""

    code = -32012


class SettingsError(RpcError):
    """A setting is missing, unknown or of the wrong type; the text names the key and the module."""


def nearest(wrong: str, known: Collection[str]) -> str:
    """A question for the one that was meant instead; if none is like it, those that there are."""
    from difflib import get_close_matches  # for errors alone

    found = get_close_matches(wrong.upper(), known, n=1, cutoff=0.8)
    return f"did you mean {found[0]}?" if found else f"known are {', '.join(known)}"


def shown(foreign: object, most: int = 500) -> str:
    """What somebody else wrote, for a log: it stays in its line, whatever is in it, so that nobody forges
    lines."""
    text = str(foreign)[:most]
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def not_installed(what: str, extra: str) -> Unsupported:
    """The error of something that needs an extra."""
    return Unsupported(f"{what} needs `pip install '{DISTRIBUTION}[{extra}]'`")


def client_closed() -> Cancelled:
    """The error of what waited when its client was closed."""
    return Cancelled("the client was closed")
