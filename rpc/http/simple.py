"""The simple style: a path, arguments in JSON, and the result as JSON; streams as lines or as events."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints
from urllib.parse import parse_qsl

import msgspec

from ..aio import AsyncRpcClient
from ..backends.http.app import while_there
from ..backends.http.asgi import Receive, Scope, Send, header
from ..backends.http.server import HttpServer
from ..core.codecs import JSON
from ..core.parameters import function_of
from ..core.protocol import Arguments, call_of, encode_call
from ..errors import InvalidParams, QueueFull, RpcError, RpcTimeout, SerializationError, WorkerLost
from ..streams.limit import StreamLimit
from ..transport import LOST, STREAM, Address
from .calls import Call, Local, message_of, new_id
from .responses import Response, error_response, status_of, status_of_code

NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"
WINDOW = 64
"""Items of a stream that are on their way at a time."""


class _Reply(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"")
    error: dict[str, Any] | None = None


_reply = msgspec.json.Decoder(_Reply).decode


class Simple:
    """Answers what was asked for by a path."""

    def __init__(self, server: HttpServer, receiver: Any, queue: Address, limit: StreamLimit) -> None:
        self._server, self._receiver, self._queue, self._limit = server, receiver, queue, limit

    async def answer(
        self,
        name: str,
        variables: dict[str, Any],
        body: bytes,
        timeout: float | None,
        headers: dict[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> Response | None:
        """The response; None if it was sent already. Raises SerializationError, InvalidParams."""
        job = self._receiver.jobs.find(name)
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        data = arguments(body, {**_converted(job.handler, query), **variables})
        kind = self._streams_as(job.handler, header(scope, "accept") or "")
        if kind:
            caller = (scope.get("client") or ("",))[0]
            try:
                with self._limit.one_more(caller):
                    await while_there(receive, self._stream(name, data, timeout, headers, kind, send))
            except QueueFull as error:
                return error_response(429, error)
            return None
        id = new_id()
        asked = encode_call(call_of(name, data), id, JSON)
        message = message_of(asked, name, id, timeout, replies=True, headers=headers)
        call = Call(self._server, self._queue, message)
        try:
            return await while_there(receive, self._answered(call, name, timeout))
        finally:
            call.close()

    async def _answered(self, call: Call, name: str, timeout: float | None) -> Response:
        try:
            while STREAM in (reply := await call.receive(timeout)).headers:
                pass
        except RpcTimeout:
            raise RpcTimeout(f"{name!r} was not answered within {timeout:g} s") from None
        if LOST in reply.headers:
            raise WorkerLost(f"{name!r}: {reply.headers[LOST]}")
        found = _reply(reply.body)
        if found.error:
            code = int(found.error["code"])
            body = msgspec.json.encode({"jsonrpc": "2.0", "error": found.error, "id": None})
            return Response(status_of_code(code), body)
        return Response(200, bytes(found.result))

    def _streams_as(self, handler: Any, accept: str) -> str:
        """The content type of a stream; "" for what is none."""
        if EVENTS in accept:
            return EVENTS
        function = function_of(handler)
        is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        return NDJSON if is_generator or NDJSON in accept else ""

    async def _stream(
        self, name: str, data: Any, timeout: float | None, headers: dict[str, str], kind: str, send: Send
    ) -> None:
        local: Any = Local(self._server, headers)
        client = AsyncRpcClient(backend=local, queue=self._queue.name)
        stream = client.stream(name, data, window=WINDOW, timeout=timeout)
        is_begun = False
        try:
            async for item in stream:
                if not is_begun:
                    is_begun = True
                    await _begin(send, kind)
                await _say(send, kind, "", item)
        except RpcError as error:
            if not is_begun:
                await error_response(status_of(error), error).send(send)
                return
            what = msgspec.json.decode(error_response(500, error).body)["error"]
            await _say(send, kind, "error", what if kind == EVENTS else {"error": what})
        finally:
            await stream.aclose()
        if not is_begun:
            await _begin(send, kind)
        await send({"type": "http.response.body", "body": b""})


async def _begin(send: Send, kind: str) -> None:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _say(send: Send, kind: str, event: str, item: Any) -> None:
    data = JSON.encode(item)
    if kind == EVENTS:
        data = (f"event: {event}\n".encode() if event else b"") + b"data: " + data + b"\n\n"
    else:
        data += b"\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


def arguments(body: bytes, named: dict[str, Any]) -> Any:
    """What is sent as data: of a body `{"args": […], "kwargs": {…}}`, of an object of named arguments, or of
    an array of positional ones; `named` ones are added. Raises SerializationError, InvalidParams."""
    sent = JSON.decode(body) if body.strip() else {}
    args: list[Any] = []
    if isinstance(sent, list):
        args, sent = sent, {}
    elif not isinstance(sent, dict):
        raise SerializationError("the body is an object of named arguments, or an array of positional ones")
    elif sent and sent.keys() <= {"args", "kwargs"}:
        args, sent = sent.get("args") or [], sent.get("kwargs") or {}
        if not isinstance(args, list) or not isinstance(sent, dict):
            raise SerializationError("`args` is an array, and `kwargs` an object")
    if twice := sent.keys() & named.keys():
        raise InvalidParams(f"{', '.join(sorted(twice))}: given in the URL already")
    return Arguments(tuple(args), {**sent, **named})


def _converted(handler: Any, query: list[tuple[str, str]]) -> dict[str, Any]:
    """The query of a URL, whose numbers and booleans are made such where the handler says so."""
    try:
        hints = get_type_hints(function_of(handler)) if query else {}
    except Exception:  # the annotations are the user's: the core has logged that
        hints = {}
    found: dict[str, Any] = {}
    for name, text in query:
        kind = hints.get(name)
        try:
            found[name] = msgspec.convert(text, kind, strict=False) if kind in (int, float, bool) else text
        except msgspec.ValidationError as error:
            raise InvalidParams(f"{name}: {error}") from None
    return found
