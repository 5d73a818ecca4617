"""One stream that was asked for on a WebSocket: its items, and what its caller says, as notifications."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any

import msgspec

from ..aio import AsyncRpcClient
from ..backends.http.server import HttpServer
from ..core.codecs import JSON
from ..core.protocol import Arguments
from ..core.streams import to_throw
from ..errors import InvalidParams, QueueFull, RemoteError
from ..streams.iterators import AsyncStream
from ..transport import Address
from .calls import Local
from .simple import WINDOW

ROOM = 64
"""Items of an upload that may be on their way."""
MOST_SAID = 64
"""Things that are said to a stream and not done yet."""
_END = object()
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class Started(msgspec.Struct):
    """What is asked for by `rpc.stream`."""

    method: str
    params: dict[str, Any] | list[Any] = {}
    kwargs: dict[str, Any] = {}
    credit: _Count = 1
    """Items that are wanted at first. With 1 it is in lock-step, and takes `send` and `throw`."""
    upload: bool = False

    @property
    def arguments(self) -> Arguments:
        """Raises InvalidParams."""
        if isinstance(self.params, list):
            return Arguments(tuple(self.params), self.kwargs)
        if self.kwargs:
            raise InvalidParams("`kwargs` goes with an array of `params`")
        return Arguments((), self.params)


class Told(msgspec.Struct):
    """What is said to a stream. Each method has some of these."""

    id: msgspec.Raw
    more: _Count = 1
    value: Any = None
    type: str = ""
    message: str = ""
    items: list[Any] = []
    last: bool = False


class Opened:
    """A stream that is open."""

    def __init__(self, id: bytes, wanted: Started, say: Callable[[bytes], Awaitable[None]]) -> None:
        """`id` is that of its request, as it was written; `say` sends a text. Raises InvalidParams."""
        self._id, self._wanted, self._say = id, wanted, say
        self._arguments = wanted.arguments
        self._steps: deque[Callable[[AsyncStream], Awaitable[Any]]] = deque()
        """What is said to it, which brings an item each."""
        self._credit = wanted.credit
        """Items that are wanted before that."""
        self._said = asyncio.Event()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        """Of its upload."""
        self._room = ROOM if wanted.upload else 0
        self._thrown: Exception | None = None

    def hear(self, method: str, told: Told) -> None:
        """Raises InvalidParams, QueueFull, SerializationError."""
        if method == "rpc.upload":
            self._upload(told)
        elif method == "rpc.credit":
            self._credit += told.more
        elif self._wanted.credit != 1:
            raise InvalidParams(f"{method} needs a stream in lock-step: with `credit` 1")
        elif len(self._steps) >= MOST_SAID:
            raise QueueFull(f"{MOST_SAID} things are said to the stream, and not done yet")
        elif method == "rpc.send":
            self._steps.append(lambda stream: stream.asend(told.value))
        else:
            error = to_throw(msgspec.json.encode({"type": told.type, "message": told.message}), JSON)
            self._steps.append(lambda stream: self._throw(stream, error))
        self._said.set()

    def _upload(self, told: Told) -> None:
        self._room -= len(told.items)
        if self._room < 0:
            raise InvalidParams("more items are uploaded than there is credit for")
        for item in told.items:
            self._items.put_nowait(item)
        if told.last:
            self._room = 0
            self._items.put_nowait(_END)

    async def run(
        self, server: HttpServer, queue: Address, timeout: float | None, headers: dict[str, str]
    ) -> bytes:
        """Send its items; then the response. Raises the error that it ends with, an RpcError, and OSError if
        nobody is there any more."""
        local: Any = Local(server, headers)
        client = AsyncRpcClient(backend=local, queue=queue.name)
        items = self._uploaded() if self._wanted.upload else None
        window = min(self._wanted.credit, WINDOW)
        options: dict[str, Any] = {"window": window, "timeout": timeout, "items": items}
        try:
            stream = client.stream(self._wanted.method, self._arguments, **options)
        except ValueError as error:
            raise InvalidParams(str(error)) from None
        try:
            while True:
                item = await self._next(stream)
                await self._notify(b"rpc.items", b'"items":[%s]' % JSON.encode(item))
        except StopAsyncIteration:
            return b'{"jsonrpc":"2.0","result":%s,"id":%s}' % (JSON.encode(stream.value), self._id)
        except Exception as error:
            if error is self._thrown:  # its generator did not catch it
                raise RemoteError(type(error).__name__, str(error)) from None
            raise
        finally:
            await stream.aclose()

    async def _next(self, stream: AsyncStream) -> Any:
        while not (self._credit or self._steps):
            self._said.clear()
            await self._said.wait()
        if self._credit:
            self._credit -= 1
            return await anext(stream)
        return await self._steps.popleft()(stream)

    async def _throw(self, stream: AsyncStream, error: Exception) -> Any:
        self._thrown = error
        return await stream.athrow(error)

    async def _uploaded(self) -> AsyncGenerator[Any, None]:
        taken = 0
        while (item := await self._items.get()) is not _END:
            yield item
            taken += 1
            if taken * 2 >= ROOM:
                self._room += taken
                await self._notify(b"rpc.credit", b'"more":%d' % taken)
                taken = 0

    async def _notify(self, method: bytes, members: bytes) -> None:
        text = b'{"jsonrpc":"2.0","method":"%s","params":{"id":%s,%s}}' % (method, self._id, members)
        await self._say(text)
