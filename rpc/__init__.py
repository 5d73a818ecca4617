"""Backend-agnostic job-queue RPC: names of jobs in a settings module, handlers that get a request and
respond, a client that calls and waits, over any queue, through one small backend interface."""

from typing import TYPE_CHECKING, Any

from . import codecs as codecs
from .aio import AsyncRpcClient
from .client import RpcClient
from .core.jobs import AsyncRequest, Request, Response, job
from .errors import (
    BackendRefused,
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    SettingsError,
    StreamBroken,
    TimeLimitExceeded,
    Unauthorized,
    Unsupported,
    WorkerLost,
)
from .events import Event, on
from .receiver import RpcReceiver
from .services import expose, service
from .streams.iterators import AsyncStream, Stream
from .timers import cron, every

if TYPE_CHECKING:
    from .backends.amqp import AmqpBackend as AmqpBackend  # not in __all__: `*` must not need its driver
    from .backends.memory import MemoryBackend
    from .backends.redis import RedisBackend
    from .backends.rq import PythonRqBackend
    from .backends.zeromq import ZeromqBackend as ZeromqBackend

__all__ = [
    "AsyncRequest",
    "AsyncRpcClient",
    "AsyncStream",
    "BackendRefused",
    "BackendUnavailable",
    "Cancelled",
    "Event",
    "InvalidParams",
    "MemoryBackend",
    "MethodNotExposed",
    "MethodNotFound",
    "NoReceivers",
    "PythonRqBackend",
    "QueueFull",
    "RedisBackend",
    "RemoteError",
    "Request",
    "Response",
    "RpcClient",
    "RpcError",
    "RpcReceiver",
    "RpcTimeout",
    "SerializationError",
    "ServiceNotFound",
    "SettingsError",
    "Stream",
    "StreamBroken",
    "TimeLimitExceeded",
    "Unauthorized",
    "Unsupported",
    "WorkerLost",
    "cron",
    "every",
    "expose",
    "job",
    "on",
    "service",
]


def __getattr__(name: str) -> Any:
    from .backends import BACKENDS, loaded

    for scheme, (path, _) in BACKENDS.items():  # they bring drivers along: only for those who ask
        if path.endswith(f":{name}"):
            return loaded(scheme)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
