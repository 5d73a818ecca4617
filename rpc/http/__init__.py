"""What a worker of `http://` offers to others than our clients: JSON-RPC 2.0 at `POST /rpc`, rules of one's
own, and an ASGI application of it all."""

from __future__ import annotations

from typing import Any

from .routes import Route as Route
from .routes import route as route

__all__ = ["Route", "asgi_app", "offer", "route"]


def asgi_app(receiver: Any) -> Any:
    """The ASGI application of a receiver on `http:`, to be served by any ASGI server, or mounted in FastAPI,
    Starlette, or beside Django's. The receiver runs from the first request, or the application's start, to
    its end; coroutine handlers run in the application's event loop. Raises SettingsError for a receiver on
    another backend."""
    from .mounting import Mounted

    return Mounted(receiver)


def offer(backend: Any, receiver: Any) -> None:
    """Have a backend that is reached by others, too, offer them what the receiver has. Others are left
    alone."""
    if hasattr(backend, "front"):
        from .app import Front

        backend.front(lambda server: Front(server, receiver))
