"""Backend-agnostic job-queue RPC: names of jobs in a settings module, handlers that get a request and
respond, a client that calls and waits, over any queue, through one small backend interface."""

from typing import TYPE_CHECKING, Any

from . import codecs as codecs
from .aio import AsyncRpcClient
from .client import RpcClient
from .core.events import Event
from .core.jobs import AsyncRequest, Request, Response, job
from .core.log_entries import LogEntry
from .core.registry import ServiceChange, ServiceInfo
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
from .events import on
from .identity import Identity
from .services import expose, service
from .streams.iterators import AsyncStream, Stream
from .streams.records import AsyncLogStream, LogStream
from .streams.subscribing import AsyncEventStream, EventStream
from .timers import cron, every

if TYPE_CHECKING:
    from .backends.amqp import AmqpBackend as AmqpBackend  # not in __all__: `*` must not need its driver
    from .backends.http import HttpBackend as HttpBackend
    from .backends.http.websocket import WebSocketBackend as WebSocketBackend
    from .backends.memory import MemoryBackend
    from .backends.redis import RedisBackend
    from .backends.rq import PythonRqBackend
    from .backends.zeromq import ZeromqBackend as ZeromqBackend
    from .receiver import RpcReceiver

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


def __getattr__(name: str) -> Any:
    """What brings much along, for those alone who ask."""
    if name == "RpcReceiver":
        from .receiver import RpcReceiver

        return RpcReceiver
    from .backends import BACKENDS, loaded

    for scheme, (path, _) in BACKENDS.items():
        if path.endswith(f":{name}"):
            return loaded(scheme)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
