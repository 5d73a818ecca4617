"""The ASGI application for whoever is none of our clients: what is at which path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.routing import Match, Router
from starlette.routing import Route as Rule

from ..backends.http.app import TooLarge, body_of, while_there
from ..backends.http.asgi import Receive, Scope, Send, header, is_cross_site
from ..backends.http.server import HttpServer
from ..core import jsonrpc
from ..durations import seconds
from ..errors import RpcError, RpcTimeout, SerializationError, SettingsError
from ..transport import STREAM, queue
from .calls import Call, message_of, new_id
from .page import page_of
from .responses import Response, error_response, json_response, status_of
from .routes import routes_of
from .simple import Simple
from .texts import Texts

logger = logging.getLogger(__name__)

TIMEOUT = "x-rpc-timeout"
"""Header: seconds that whoever calls waits."""
STALLED = 10.0
MAX_BODY = 16 * 1024 * 1024
LONGEST_TRACE = 512
"""Characters, of which https://www.w3.org/TR/trace-context/ asks that they are passed on."""
JSON_TYPES = ("application/json", "application/json-rpc", "application/jsonrequest")


class Front:
    """Of one server, and the receiver whose jobs it has."""

    def __init__(self, server: HttpServer, receiver: Any) -> None:
        self._server, self._receiver = server, receiver
        settings = receiver.settings
        self._most = min(settings.max_message_bytes or MAX_BODY, MAX_BODY)
        self._timeout = settings.timeout
        self._queue = queue(receiver.queues[-1] if "default" not in receiver.queues else "default")
        self._simple = Simple(server, receiver, self._queue, receiver.stream_limit)
        self._router = Router(self._rules())

    def _rules(self) -> list[Rule]:
        rules = []
        for name, job in self._receiver.jobs.items():
            for each in routes_of(job.handler):
                try:
                    rules.append(Rule(each.path, _named(name), methods=[*each.methods], name=name))
                except (AssertionError, KeyError, ValueError) as error:
                    raise SettingsError(f"route({each.path!r}) of {name!r}: {error}") from error
        return rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] == "websocket":
            return await self._socket(scope, receive, send)
        response = None
        try:
            if scope["method"] not in ("GET", "HEAD", "OPTIONS") and is_cross_site(scope):
                response = error_response(403, -32600, "a page of another site may not call this")
            else:
                response = await self._answer(scope, receive, send)
        except TooLarge:
            response = error_response(413, -32600, f"at most {self._most} bytes are taken")
        except RpcError as error:
            response = error_response(status_of(error), error)
        if response is not None:
            await response.send(send, scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """The response; None if it was sent already, or nobody is there."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        method = scope["method"]
        if found := self._own(path):
            methods, answer = found
            if method not in methods:
                return error_response(405, -32600, f"{path} takes {' and '.join(methods)}", allow=methods)
            return await answer(scope, receive)
        matched, headers = self._match({**scope, "path": path, "root_path": ""}), forwarded(scope)
        # Before anything tells whether there is such a job.
        self._receiver.tokens.opens(matched[0] if matched else path[1:], headers.get("token"))
        if matched is None:
            return error_response(404, -32601, f"nothing is at {path[:200]}")
        name, variables, methods = matched
        if method not in methods:
            return error_response(405, -32600, f"{path[:200]} takes {', '.join(methods)}", allow=methods)
        body = await body_of(scope, receive, self._most)
        if body is None:
            return None
        timeout = self._allowed(scope)
        return await self._simple.answer(name, variables, body, timeout, headers, scope, receive, send)

    def _own(self, path: str) -> tuple[tuple[str, ...], Callable[..., Awaitable[Response | None]]] | None:
        match path:
            case "/rpc":
                return ("POST",), self._jsonrpc
            case "/health":
                return ("GET", "HEAD"), self._health
            case "/openrpc.json":
                return ("GET", "HEAD"), self._openrpc
            case "/":
                return ("GET", "HEAD"), self._page
        return None

    def _match(self, scope: Scope) -> tuple[str, dict[str, Any], tuple[str, ...]] | None:
        """The job at a path, what is said in the path, and the methods that are taken there."""
        partial = None
        for rule in self._router.routes:
            kind, more = rule.matches(scope)
            if kind is not Match.NONE:
                methods = tuple(sorted((rule.methods or set()) - {"HEAD"}))  # type: ignore[attr-defined]
                found = rule.name, more.get("path_params", {}), methods  # type: ignore[attr-defined]
                if kind is Match.FULL:
                    return found
                partial = partial or found
        name = scope["path"][1:]
        return partial or ((name, {}, ("POST",)) if name in self._receiver.jobs else None)

    def _allowed(self, scope: Scope) -> float | None:
        """Seconds that a call may take. Raises SerializationError."""
        text = header(scope, TIMEOUT)
        if text is None:
            return float(self._timeout) if self._timeout is not None else None
        try:
            return seconds(float(text), TIMEOUT, above=True)
        except ValueError as error:
            raise SerializationError(f"the header {TIMEOUT} is a number of seconds: {error}") from None

    # POST /rpc

    async def _jsonrpc(self, scope: Scope, receive: Receive) -> Response | None:
        kind = (header(scope, "content-type") or JSON_TYPES[0]).partition(";")[0].strip().lower()
        if kind not in JSON_TYPES and not kind.endswith("+json"):
            return error_response(415, -32600, "the content-type must be application/json")
        body = await body_of(scope, receive, self._most)
        if body is None:
            return None
        timeout, headers = self._allowed(scope), forwarded(scope)
        asked, is_batch = jsonrpc.requests(body)
        if not is_batch:
            found = await while_there(receive, self._respond(asked[0], timeout, headers))
            answer = found if found is None else found or jsonrpc.NONE
        else:
            answers = asyncio.gather(*(self._respond(each, timeout, headers) for each in asked))
            several = await while_there(receive, answers)
            answer = several if several is None else jsonrpc.batch(several)
        if answer is None:  # whoever asked has left
            return None
        return Response(200 if answer else 204, answer)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same on a WebSocket, which a page of another site may not open: browsers would let it."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        refusal = {"type": "websocket.close", "code": 1008}
        if path != "/rpc" or is_cross_site(scope):
            return await send(refusal)
        try:
            timeout = self._allowed(scope)
        except SerializationError:
            return await send(refusal)
        bounds: dict[str, Any] = {"most": self._most, "timeout": timeout, "headers": forwarded(scope)}
        texts = Texts(self._server, self._queue, self._respond, self._receiver.stream_limit, **bounds)
        await texts.serve(scope, receive, send)

    async def _respond(
        self, asked: jsonrpc.Asked | jsonrpc.Refused, timeout: float | None, headers: dict[str, str]
    ) -> bytes:
        if isinstance(asked, jsonrpc.Refused):
            return asked.response
        id = new_id()
        if asked.method == "rpc.discover":
            return self._discovered(asked)
        to, has_id = self._queue, bool(asked.id)
        message = message_of(asked.body(id), asked.method, id, timeout, replies=has_id, headers=headers)
        try:
            if not has_id:
                self._server.take(to, message, None)
                return jsonrpc.NONE
            call = Call(self._server, to, message)
            try:
                while STREAM in (reply := await call.receive(timeout)).headers:
                    pass
            finally:
                call.close()
            return jsonrpc.response(reply, asked.id)
        except RpcTimeout:
            late = RpcTimeout(f"{asked.method!r} was not answered within {timeout:g} s")
            return jsonrpc.response_of_error(late, asked.id)
        except RpcError as error:
            return jsonrpc.response_of_error(error, asked.id)

    def _discovered(self, asked: jsonrpc.Asked) -> bytes:
        result = msgspec.json.encode(self._receiver.discover())
        return b'{"jsonrpc":"2.0","result":%s,"id":%s}' % (result, asked.id) if asked.id else jsonrpc.NONE

    # What is at other paths.

    async def _health(self, scope: Scope, receive: Receive) -> Response:
        stalled = self._server.stalled()
        is_well = stalled < STALLED and not self._server.is_stopping
        text = "ok" if is_well else "stopping" if self._server.is_stopping else "stalled"
        return json_response(200 if is_well else 503, {"status": text, "stalled": round(stalled, 3)})

    async def _openrpc(self, scope: Scope, receive: Receive) -> Response:
        return json_response(200, self._receiver.discover())

    async def _page(self, scope: Scope, receive: Receive) -> Response:
        return page_of(self._receiver)


def _named(name: str) -> Callable[..., Any]:
    async def endpoint(request: Any) -> Any:
        """Rules are only matched here."""

    return endpoint


def forwarded(scope: Scope) -> dict[str, str]:
    """The headers of a message that those of a request become: the token, and the trace."""
    found = {}
    for name in "traceparent", "tracestate":
        text = header(scope, name)
        if text is not None and len(text) <= LONGEST_TRACE:
            found[name] = text
    kind, _, token = (header(scope, "authorization") or "").partition(" ")
    if kind.lower() == "bearer" and token:
        found["token"] = token.strip()
    return found


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
