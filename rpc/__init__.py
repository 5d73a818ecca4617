"""Backend-agnostic job-queue RPC: names of jobs in a settings module, handlers that get a request and
respond, a client that calls and waits, over any queue, through one small backend interface."""

from typing import TYPE_CHECKING, Any

from .aio import AsyncRpcClient
from .client import RpcClient
from .core.jobs import AsyncRequest, Request, Response, job
from .errors import (
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
    TimeLimitExceeded,
    Unauthorized,
    Unsupported,
    WorkerLost,
)
from .events import Event, on
from .receiver import RpcReceiver
from .services import expose, service
from .timers import cron, every

if TYPE_CHECKING:
    from .backends.rq.backend import PythonRqBackend

__all__ = [
    "AsyncRequest",
    "AsyncRpcClient",
    "BackendUnavailable",
    "Cancelled",
    "Event",
    "InvalidParams",
    "MethodNotExposed",
    "MethodNotFound",
    "NoReceivers",
    "PythonRqBackend",
    "QueueFull",
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
    if name == "PythonRqBackend":  # brings redis and rq along: only for those who ask
        from .backends.rq.backend import PythonRqBackend

        return PythonRqBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
