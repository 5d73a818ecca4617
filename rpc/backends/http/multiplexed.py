"""Our callers' WebSockets: the requests that share one connection are put to the same ASGI application as
those that have each their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from ...errors import SerializationError, shown
from ...transport import Message
from .asgi import App, Receive, Scope, Send, one_by_one, serve_socket
from .wire import FULL, LEFT, METHOD, MORE, ROOT, STATUS, TARGET, WHY, numbered, numbered_of

logger = logging.getLogger(__name__)

MOST_OPEN = 10_000
"""Requests of one connection that are not answered; more are refused."""
NONSENSE = 1003
"""Why a connection ends: it is nothing that our callers say."""


class Multiplexed:
    """One connection."""

    def __init__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, one_by_one(send)
        self._open: dict[int, asyncio.Task[None]] = {}
        """What is done for each request that is not answered, by its number."""

    async def serve(self) -> None:
        """Until the other end leaves, or says what makes no sense: then what it asked for is as if each
        request had had a connection, which is lost."""
        await serve_socket(self._receive, self._send, self._hear, self._cancel)

    def _cancel(self) -> None:
        for task in self._open.values():
            task.cancel()

    async def _hear(self, event: MutableMapping[str, Any]) -> tuple[int, str] | None:
        try:
            number, message = numbered_of(event.get("bytes") or b"")
        except SerializationError as error:
            return NONSENSE, shown(error)[:100]
        headers = message.headers
        if LEFT in headers:
            if task := self._open.get(number):
                task.cancel()
        elif METHOD not in headers or not headers.get(TARGET, "").startswith(ROOT) or number in self._open:
            return NONSENSE, "no request"
        elif len(self._open) >= MOST_OPEN:
            await self._send(_message(number, b"", {STATUS: "503", WHY: FULL}))
        else:
            task = asyncio.get_running_loop().create_task(self._answer(number, message))
            self._open[number] = task
            task.add_done_callback(lambda _: self._open.pop(number))
        return None

    async def _answer(self, number: int, message: Message) -> None:
        answer = _Answer(number, self._send)
        root = self._scope.get("root_path", "")
        headers = [
            (name.encode(), value.encode())
            for name, value in message.headers.items()
            if not name.startswith(":")
        ]
        about = {
            "type": "http",
            "method": message.headers[METHOD],
            "path": root + message.headers[TARGET],
            "query_string": b"",
            "headers": headers,
        }
        try:
            await self._app({**self._scope, **about}, _Body(message.body), answer)
            await answer.end()
        except OSError:  # nobody is there any more, which `serve` hears, too
            pass
        except Exception:
            logger.exception("a request on a WebSocket failed")
            with suppress(OSError):
                await answer.end()


class _Body:
    """`receive` of a request whose body is there; whoever leaves has its task cancelled."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> MutableMapping[str, Any]:
        body, self._body = self._body, None
        if body is None:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": body, "more_body": False}


class _Answer:
    """`send` of a request."""

    def __init__(self, number: int, send: Send) -> None:
        self._number, self._send = number, send
        self._headers: dict[str, str] = {}
        self._is_complete = False

    async def __call__(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            pairs = {name.decode("latin-1"): value.decode("latin-1") for name, value in event["headers"]}
            self._headers = {STATUS: str(event["status"]), **pairs}
            return
        self._is_complete = not event.get("more_body")
        more = {} if self._is_complete else {MORE: "1"}
        headers, self._headers = {**self._headers, **more}, {}
        await self._send(_message(self._number, event.get("body", b""), headers))

    async def end(self) -> None:
        """Nothing more is said: the caller is told if that was not all."""
        if not self._is_complete:
            await self._send(_message(self._number, b"", {LEFT: "1"}))


def _message(number: int, body: bytes, headers: dict[str, str]) -> MutableMapping[str, Any]:
    return {"type": "websocket.send", "bytes": numbered(number, body, headers)}
