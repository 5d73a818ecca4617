"""The types of ASGI (https://asgi.readthedocs.io/), how a WebSocket is served, and what the headers of a
request say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Hear = Callable[[MutableMapping[str, Any]], Awaitable[tuple[int, str] | None]]
"""Takes what came on a WebSocket. Returns with which code, and why, it is to end, if it is."""


def one_by_one(send: Send) -> Send:
    """The same for several tasks: else all that wait for room go on at once when there is some."""
    turn = asyncio.Lock()

    async def sent(event: MutableMapping[str, Any]) -> None:
        async with turn:
            await send(event)

    return sent


async def serve_socket(receive: Receive, send: Send, hear: Hear, ended: Callable[[], object]) -> None:
    """Accept a WebSocket, and hear what comes until the other end leaves, or it is to end. `ended` is called
    before that is said."""
    await receive()
    await send({"type": "websocket.accept"})
    end: tuple[int, str] | None = None
    try:
        while end is None and (event := await receive())["type"] == "websocket.receive":
            end = await hear(event)
    except OSError as error:  # it does not listen
        logger.debug("a WebSocket ends: %s", error)
    finally:
        ended()
    if end:
        with suppress(OSError):
            await send({"type": "websocket.close", "code": end[0], "reason": end[1]})


def header(scope: Scope, name: str) -> str | None:
    wanted = name.encode()
    for key, value in scope["headers"]:
        if key == wanted:
            return bytes(value).decode("latin-1")
    return None


def is_cross_site(scope: Scope) -> bool:
    """Whether a browser sends this for a page of another site: see the headers of
    https://www.w3.org/TR/fetch-metadata/, and, of older ones and for WebSockets, `Origin`."""
    site = header(scope, "sec-fetch-site")
    if site is not None and scope["type"] == "http":
        return site not in ("same-origin", "none")
    origin = header(scope, "origin")
    return origin is not None and origin.partition("://")[2] != header(scope, "host")
