"""JSON-RPC 2.0 on a WebSocket: each text is a request, a notification or a batch, and responses come when
they are there. Streams, and what is said beside a call, are methods whose names begin with `rpc.`, which the
specification keeps for such."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from ..backends.http.asgi import Receive, Scope, Send, one_by_one, serve_socket
from ..backends.http.server import HttpServer
from ..core import jsonrpc
from ..errors import Cancelled, InvalidParams, QueueFull, RpcError
from ..streams.limit import StreamLimit
from ..transport import Address
from .opened import Opened, Started, Told

MOST_OPEN = 4096
"""Requests of one connection that are not answered; more are refused."""
LONGEST_TOKEN = 4096
NOT_TEXT, TOO_LARGE = (1003, "what is sent is text"), (1009, "the message is too large")
"""Why a connection ends: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1."""
Asked = jsonrpc.Asked | jsonrpc.Refused


class Respond(Protocol):
    """Answers one request as it came: NONE if nothing is to be said."""

    def __call__(
        self, asked: Asked, timeout: float | None, headers: dict[str, str]
    ) -> Coroutine[Any, Any, bytes]: ...


class Texts:
    """One connection."""

    def __init__(
        self,
        server: HttpServer,
        queue: Address,
        respond: Respond,
        limit: StreamLimit,
        *,
        most: int,
        timeout: float | None,
        headers: dict[str, str],
    ) -> None:
        """`most` bytes of a text are taken; a call may take `timeout` seconds; each has these `headers`."""
        self._server, self._queue, self._respond, self._limit = server, queue, respond, limit
        self._most, self._timeout, self._headers = most, timeout, headers
        self._send: Send = _nothing
        self._caller = ""
        """Its IP address."""
        self._answers: set[asyncio.Task[bytes]] = set()
        """Of what is not answered."""
        self._saying: set[asyncio.Task[None]] = set()
        self._calls: dict[bytes, asyncio.Task[bytes]] = {}
        """Those that have an id, and are not answered."""
        self._streams: dict[bytes, Opened] = {}
        self._is_over = False

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the other end leaves: then what it asked for is cancelled."""
        self._send, self._caller = one_by_one(send), (scope.get("client") or ("",))[0]
        await serve_socket(receive, send, self._hear, self._end)

    def _end(self) -> None:
        self._is_over = True
        for task in (*self._answers, *self._saying):
            # Not at once: what is cancelled before its first step does not even know of itself.
            asyncio.get_running_loop().call_soon(task.cancel)

    async def _hear(self, event: MutableMapping[str, Any]) -> tuple[int, str] | None:
        text = event.get("text")
        if text is None:
            return NOT_TEXT
        body = text.encode("utf-8", "surrogatepass")
        if len(body) > self._most:
            return TOO_LARGE
        asked, is_batch = jsonrpc.requests(body)
        if len(self._answers) + len(asked) > MOST_OPEN:
            full = QueueFull(f"at most {MOST_OPEN} requests of a connection are open")
            ids = [each.id for each in asked if isinstance(each, jsonrpc.Asked) and each.id]
            refused = [jsonrpc.response_of_error(full, id) for id in ids]
            await self._say(jsonrpc.batch(refused) if is_batch else b"".join(refused))
            return None
        # They begin in this order, also those of a batch.
        _spawn(self._said([self._begin(each) for each in asked], is_batch), self._saying)
        return None

    def _begin(self, asked: Asked) -> asyncio.Task[bytes]:
        task = _spawn(self._answered(asked, self._begun(asked)), self._answers)
        if isinstance(asked, jsonrpc.Asked) and asked.id:
            self._calls[asked.id] = task
            task.add_done_callback(partial(self._forget, asked.id))
        return task

    def _forget(self, id: bytes, done: asyncio.Task[bytes]) -> None:
        if self._calls.get(id) is done:
            del self._calls[id]

    async def _said(self, answers: list[asyncio.Task[bytes]], is_batch: bool) -> None:
        found = await asyncio.gather(*answers)
        with suppress(OSError):  # nobody is there any more
            await self._say(jsonrpc.batch(found) if is_batch else found[0])

    async def _say(self, answer: bytes) -> None:
        if answer and not self._is_over:
            await self._send({"type": "websocket.send", "text": answer.decode()})

    async def _answered(self, asked: Asked, answer: Awaitable[bytes]) -> bytes:
        """The response, whatever happens."""
        try:
            return await answer
        except asyncio.CancelledError:
            if self._is_over or not isinstance(asked, jsonrpc.Asked):
                raise
            task = asyncio.current_task()
            if task and hasattr(task, "uncancel"):
                task.uncancel()
            error: RpcError = Cancelled("it was withdrawn by rpc.cancel")
        except RpcError as raised:
            error = raised
        except OSError:  # nobody is there any more
            return jsonrpc.NONE
        id = asked.id if isinstance(asked, jsonrpc.Asked) else jsonrpc.NULL
        return jsonrpc.response_of_error(error, id) if id else jsonrpc.NONE

    def _begun(self, asked: Asked) -> Awaitable[bytes]:
        """What answers it. What is said of a stream is done now: what comes next counts on it."""
        if isinstance(asked, jsonrpc.Asked) and asked.method.startswith("rpc."):
            if control := CONTROLS.get(asked.method):
                return self._controlled(asked, control)
            if asked.method == "rpc.stream":
                return self._opened(asked)
        return self._respond(asked, self._timeout, dict(self._headers))

    # Streams

    def _opened(self, asked: jsonrpc.Asked) -> Awaitable[bytes]:
        try:
            wanted = _params(asked, Started)
            if not asked.id or asked.id in self._streams or asked.id in self._calls:
                raise InvalidParams("a stream has an id that nothing else has which is open")
            stream = Opened(asked.id, wanted, self._say)
        except RpcError as error:
            return _raised(error)
        self._streams[asked.id] = stream
        return self._streamed(asked.id, stream)

    async def _streamed(self, id: bytes, stream: Opened) -> bytes:
        try:
            with self._limit.one_more(self._caller):
                return await stream.run(self._server, self._queue, self._timeout, self._headers)
        finally:
            del self._streams[id]

    # What is said beside

    def _controlled(
        self, asked: jsonrpc.Asked, control: Callable[[Texts, jsonrpc.Asked], bool]
    ) -> Awaitable[bytes]:
        try:
            is_done = control(self, asked)
        except RpcError as error:
            return _raised(error)
        result = b"true" if is_done else b"false"
        response = b'{"jsonrpc":"2.0","result":%s,"id":%s}' % (result, asked.id)
        return _value(response if asked.id else jsonrpc.NONE)

    def _cancel(self, asked: jsonrpc.Asked) -> bool:
        task = self._calls.get(bytes(_params(asked, _Withdrawn).id))
        if task:
            asyncio.get_running_loop().call_soon(task.cancel)
        return task is not None

    def _tell(self, asked: jsonrpc.Asked) -> bool:
        """What is for a stream."""
        found = _params(asked, Told)
        stream = self._streams.get(bytes(found.id))
        if stream:
            stream.hear(asked.method, found)
        return stream is not None

    def _take_token(self, asked: jsonrpc.Asked) -> bool:
        self._headers = {**self._headers, "token": _params(asked, _Token).token}
        return True


class _Withdrawn(msgspec.Struct):
    id: msgspec.Raw


class _Token(msgspec.Struct):
    token: Annotated[str, msgspec.Meta(max_length=LONGEST_TOKEN)]


class _Params(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw(b"{}")


CONTROLS: dict[str, Callable[[Texts, jsonrpc.Asked], bool]] = {
    "rpc.cancel": Texts._cancel,
    "rpc.token": Texts._take_token,
    **dict.fromkeys(("rpc.credit", "rpc.send", "rpc.throw", "rpc.upload"), Texts._tell),
}
"""Methods that answer whether what they are about is open."""

P = TypeVar("P")


def _params(asked: jsonrpc.Asked, kind: type[P]) -> P:
    """Raises InvalidParams."""
    try:
        raw = msgspec.json.decode(b"{%s}" % asked.members, type=_Params)
        return msgspec.json.decode(raw.params, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidParams(f"{asked.method}: {error}") from None


def _spawn(what: Coroutine[Any, Any, P], into: set[asyncio.Task[P]]) -> asyncio.Task[P]:
    task = asyncio.get_running_loop().create_task(what)
    into.add(task)
    task.add_done_callback(into.discard)
    return task


async def _nothing(event: Any) -> None:
    """Nobody is there yet."""


async def _raised(error: RpcError) -> bytes:
    raise error


async def _value(response: bytes) -> bytes:
    return response
