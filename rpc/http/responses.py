"""Responses of HTTP, and which status an error has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..backends.http.asgi import Send
from ..core.codecs import JSON
from ..core.protocol import encode_error
from ..errors import (
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RateLimited,
    RpcError,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    TimeLimitExceeded,
    Unauthorized,
    WorkerLost,
)

STATUS: Sequence[tuple[type[RpcError], int]] = (
    (MethodNotFound, 404),
    (NoReceivers, 404),
    (InvalidParams, 422),
    (SerializationError, 400),
    (Unauthorized, 401),
    (RateLimited, 429),
    (RpcTimeout, 504),
    (TimeLimitExceeded, 504),
    (WorkerLost, 502),
    (QueueFull, 503),
    (BackendUnavailable, 503),
    (Cancelled, 503),
)


HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"www-authenticate": "Bearer"},
    413: {"connection": "close"},  # the rest is not to be read
    429: {"retry-after": "1"},
}
"""What responses of a status have."""


class Response(msgspec.Struct):
    """What is sent at once."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}

    async def send(self, send: Send, without_body: bool = False) -> None:
        headers = {"content-type": self.content_type, **HEADERS.get(self.status, {}), **self.headers}
        if self.status != 204:
            headers["content-length"] = str(len(self.body))
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": pairs})
        await send({"type": "http.response.body", "body": b"" if without_body else self.body})


def status_of(error: RpcError) -> int:
    """500 for what has none of its own, as what a handler raised."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def status_of_code(code: int) -> int:
    """The same of the code that an error has on the wire."""
    if code in (ServiceNotFound.code, MethodNotExposed.code):
        return 404
    return next((status for kind, status in STATUS if kind.code == code), 500)


def json_response(status: int, value: Any) -> Response:
    """A value of the standard library's kinds."""
    return Response(status, msgspec.json.encode(value))


def error_response(
    status: int, error: RpcError | int, text: str = "", *, allow: Sequence[str] = ()
) -> Response:
    """`{"jsonrpc", "error", "id": null}`, as whoever speaks JSON-RPC expects it."""
    headers = {"allow": ", ".join(allow)} if allow else {}
    if isinstance(error, RpcError):
        found = msgspec.json.decode(encode_error("", error, JSON))["error"]
    else:
        found = {"code": error, "message": text}
    body = msgspec.json.encode({"jsonrpc": "2.0", "error": found, "id": None})
    return Response(status, body, headers=headers)
