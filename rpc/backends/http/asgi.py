"""The types of ASGI (https://asgi.readthedocs.io/), and what the headers of a request say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def one_by_one(send: Send) -> Send:
    """The same for several tasks: else all that wait for room go on at once when there is some."""
    turn = asyncio.Lock()

    async def sent(event: MutableMapping[str, Any]) -> None:
        async with turn:
            await send(event)

    return sent


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
