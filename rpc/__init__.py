"""Backend-agnostic job-queue RPC: names of jobs in a settings module, handlers that get a request and
respond, a client that calls and waits, over any queue, through one small backend interface."""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    BackendRefused,
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RateLimited,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    SettingsError,
    StreamBroken,
    SubscriberLagged,
    TimeLimitExceeded,
    Unauthorized,
    Unsupported,
    VersionMismatch,
    WorkerLost,
)

if TYPE_CHECKING:
    from . import codecs as codecs
    from .aio import AsyncRpcClient
    from .backends.amqp import AmqpBackend as AmqpBackend  # not in __all__: `*` must not need its driver
    from .backends.http import HttpBackend as HttpBackend
    from .backends.http.websocket import WebSocketBackend as WebSocketBackend
    from .backends.memory import MemoryBackend
    from .backends.redis import RedisBackend
    from .backends.rq import PythonRqBackend
    from .backends.zeromq import ZeromqBackend as ZeromqBackend
    from .client import RpcClient
    from .core.events import Event
    from .core.jobs import AsyncRequest, Request, Response, job
    from .core.log_entries import LogEntry
    from .core.registry import ServiceChange, ServiceInfo
    from .events import on
    from .identity import Identity
    from .receiver import RpcReceiver
    from .services import expose, service
    from .streams.iterators import AsyncStream, Stream
    from .streams.records import AsyncLogStream, LogStream
    from .streams.subscribing import AsyncEventStream, EventStream
    from .timers import cron, every

__all__ = [
    "AsyncEventStream",
    "AsyncLogStream",
    "AsyncRequest",
    "AsyncRpcClient",
    "AsyncStream",
    "BackendRefused",
    "BackendUnavailable",
    "Cancelled",
    "Event",
    "EventStream",
    "Identity",
    "InvalidParams",
    "LogEntry",
    "LogStream",
    "MemoryBackend",
    "MethodNotExposed",
    "MethodNotFound",
    "NoReceivers",
    "PythonRqBackend",
    "QueueFull",
    "RateLimited",
    "RedisBackend",
    "RemoteError",
    "Request",
    "Response",
    "RpcClient",
    "RpcError",
    "RpcReceiver",
    "RpcTimeout",
    "SerializationError",
    "ServiceChange",
    "ServiceInfo",
    "ServiceNotFound",
    "SettingsError",
    "Stream",
    "StreamBroken",
    "SubscriberLagged",
    "TimeLimitExceeded",
    "Unauthorized",
    "Unsupported",
    "VersionMismatch",
    "WorkerLost",
    "cron",
    "every",
    "expose",
    "job",
    "on",
    "service",
]

_MODULES = {
    "aio": ("AsyncRpcClient",),
    "client": ("RpcClient",),
    "core.events": ("Event",),
    "core.jobs": ("AsyncRequest", "Request", "Response", "job"),
    "core.log_entries": ("LogEntry",),
    "core.registry": ("ServiceChange", "ServiceInfo"),
    "events": ("on",),
    "identity": ("Identity",),
    "receiver": ("RpcReceiver",),
    "services": ("expose", "service"),
    "streams.iterators": ("AsyncStream", "Stream"),
    "streams.records": ("AsyncLogStream", "LogStream"),
    "streams.subscribing": ("AsyncEventStream", "EventStream"),
    "timers": ("cron", "every"),
}
"""Imported when a name of theirs is asked for: who starts a command, or marks a job, waits for no client."""
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Of a module, or a backend, that is not imported yet."""
    if name == "codecs":
        return importlib.import_module(".codecs", __name__)
    if name in _HOMES:
        found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    else:
        found = _backend(name)
    globals()[name] = found  # the next time it is there
    return found


def _backend(name: str) -> Any:
    from .backends import BACKENDS, loaded

    for scheme, (path, _) in BACKENDS.items():
        if path.endswith(f":{name}"):
            return loaded(scheme)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
