"""Backend-agnostic job-queue RPC: names of jobs in a settings module, handlers that get a request and
respond, a client that calls and waits, over any queue, through one small backend interface."""

from typing import TYPE_CHECKING, Any

from .client import RpcClient
from .core.conversation import Response
from .core.jobs import Request, job
from .errors import (
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    SettingsError,
    Unauthorized,
    Unsupported,
    WorkerLost,
)
from .receiver import RpcReceiver

if TYPE_CHECKING:
    from .backends.rq import PythonRqBackend

__all__ = [
    "BackendUnavailable",
    "Cancelled",
    "InvalidParams",
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
    "SettingsError",
    "Unauthorized",
    "Unsupported",
    "WorkerLost",
    "job",
]


def __getattr__(name: str) -> Any:
    if name == "PythonRqBackend":  # brings redis and rq along: only for those who ask
        from .backends.rq import PythonRqBackend

        return PythonRqBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
