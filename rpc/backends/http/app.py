"""The ASGI application of a server: what our callers post. All else goes to another application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from ...errors import SerializationError, shown
from ...transport import STREAM, Address, unpacked
from .asgi import App, Receive, Scope, Send, header
from .deliveries import Back, HttpDelivery, Way, readable
from .multiplexed import Multiplexed
from .server import HttpServer, Refused
from .wire import BOUNCED, CONTENT_TYPE, ONCE, ROOT, SOCKET, WHY, framed

logger = logging.getLogger(__name__)

T = TypeVar("T")
WATCH_AFTER = 0.02
"""Seconds after which it is minded whether a caller is still there: most have their answer before."""
PATIENCE = 0.1
"""Seconds that a caller waits here who knows other workers; twice as long after each that was busy."""
LONGEST = 3.2


class TooLarge(Exception):
    """A body has more bytes than are taken."""


class MessageApp:
    """Takes what is posted below `/_rpc/`."""

    def __init__(self, server: HttpServer, most: int, other: App) -> None:
        """`most` bytes of a body are taken."""
        self._server, self._most, self._other = server, most, other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] not in ("http", "websocket") or not path.startswith(ROOT):
            return await self._other(scope, receive, send)
        if scope["type"] == "http":
            return await self._answer(scope, receive, send)
        if path != SOCKET or header(scope, "origin") is not None:  # no browser speaks as our callers do
            return await send({"type": "websocket.close", "code": 1008})
        await Multiplexed(self._answer, scope, receive, send).serve()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, _, name = scope["path"].removeprefix(scope.get("root_path", ""))[len(ROOT) :].partition("/")
        self._server.loop = asyncio.get_running_loop()
        try:
            if kind == "cancel" and scope["method"] == "POST":
                return await answered(send, 204 if self._server.cancel(name) else 404)
            to = Address(kind, name)
            if kind not in ("queue", "inbox", "topic"):
                return await answered(send, 404)
            if scope["method"] != "POST":
                return await answered(send, 204 if self._server.serves(to) else 404)
            if header(scope, "content-type") != CONTENT_TYPE:  # a page of another site cannot send that
                return await answered(send, 415, text=f"the content-type is {CONTENT_TYPE}")
            await self._posted(to, scope, receive, send)
        except (SerializationError, ValueError) as error:
            await answered(send, 400, text=shown(error))
        except TooLarge:
            await answered(send, 413, text=f"at most {self._most} bytes are taken")
        except Refused as refused:
            await answered(send, 503 if refused.why else 404, why=refused.why)

    async def _posted(self, to: Address, scope: Scope, receive: Receive, send: Send) -> None:
        body = await body_of(scope, receive, self._most)
        if body is None:
            return
        message = unpacked(body)
        if message.reply_to is None:
            self._server.take(to, message, None)
            await answered(send, 202)
            return
        if not message.id:
            raise SerializationError("a request has an id")
        way = Way()
        delivery = self._server.take(to, message, way, caller=(scope.get("client") or ("",))[0])
        bounced = header(scope, BOUNCED)
        if bounced is not None and to.kind == "queue":
            hold = min(
                LONGEST, PATIENCE * 2.0 ** (int(bounced) if bounced.isdecimal() and len(bounced) < 3 else 0)
            )
            way.bouncing = asyncio.get_running_loop().call_later(hold, self._server.bounce, delivery)
        await responded(self._server, delivery, way, receive, partial(_frames, send))


async def _frames(send: Send, way: Way) -> None:
    """Send all that is put there, as frames."""
    is_begun = False
    while True:
        what = await way.take()
        if isinstance(what, Back):
            if not is_begun:
                await answered(send, 503, why=what.why)
            return  # a response that just ends is one that is not complete
        is_last = what is None or (STREAM not in what.headers and ONCE not in what.headers)
        data = b"" if what is None else readable(what, framed)
        if is_last and not is_begun:
            await begun(send, len(data))
        elif not is_begun:
            await begun(send, None)
        is_begun = True
        await send({"type": "http.response.body", "body": data, "more_body": not is_last})
        if is_last:
            return


async def responded(
    server: HttpServer,
    delivery: HttpDelivery,
    way: Way,
    receive: Receive,
    respond: Callable[[Way], Awaitable[None]],
) -> None:
    """Respond with what is put on the way, for as long as somebody waits."""
    try:
        await while_there(receive, respond(way), lambda: setattr(way, "is_cut", True))
        way.is_open = way.is_cut
    finally:
        if way.bouncing:
            way.bouncing.cancel()
        if way.is_open:
            way.is_open = False
            server.left(delivery, way, for_good=False)


async def while_there(
    receive: Receive, respond: Awaitable[T], left: Callable[[], object] = lambda: None
) -> T | None:
    """What that returns, which is cancelled if whoever waits for a response leaves: None, after `left`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101
    watching: list[asyncio.Task[None]] = []
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        task.cancel()

    timer = loop.call_later(WATCH_AFTER, lambda: watching.append(loop.create_task(watch())))
    try:
        return await respond
    except asyncio.CancelledError:
        if not has_left:  # the application ends
            raise
        if hasattr(task, "uncancel"):
            task.uncancel()
        left()
        return None
    finally:
        timer.cancel()
        for each in watching:
            each.cancel()


async def begun(send: Send, length: int | None, content_type: str = CONTENT_TYPE) -> None:
    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def answered(send: Send, status: int, *, why: str | None = None, text: str = "") -> None:
    """A response without a message."""
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status != 204:
        headers.append((b"content-length", b"%d" % len(body)))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest is not to be read
    if why:
        headers.append((WHY.encode(), why.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def body_of(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The whole of it; None if the caller has left. Raises TooLarge."""
    length = header(scope, "content-length")
    if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise TooLarge
    event = await receive()
    if event["type"] == "http.request" and not event.get("more_body"):
        body: bytes = event.get("body", b"")
        if len(body) > most:
            raise TooLarge
        return body
    parts, size = [], 0
    while event["type"] == "http.request":
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise TooLarge
        if not event.get("more_body"):
            return b"".join(parts)
        event = await receive()
    return None
