"""Connections of an event loop to workers, each of which carries one request at a time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ...errors import SerializationError
from .endpoints import CONNECT, FAREWELL, KEEP, Connection, Peer, Peers
from .wire import OURS, Answers, Request

P = TypeVar("P", bound=asyncio.Protocol)

MOST_IDLE = 256
"""Connections to one place that are kept."""


class Link(Connection):
    """One that tells what comes."""

    def __init__(self, peer: Peer[Any]) -> None:
        super().__init__(peer)
        self.is_lost = False
        self.lost_by: Exception | None = None
        self.error: SerializationError | None = None
        """What came is none of ours."""
        self.changed: Callable[[], object] = lambda: None
        """Called when something came, or the connection is lost."""

    def is_usable(self, now: float) -> bool:
        return not self.is_lost and now - self.since < KEEP

    def send(self, request: Request) -> None:
        raise NotImplementedError


class Line(Link, asyncio.Protocol):
    """One connection."""

    def __init__(self, peer: Peer[Any]) -> None:
        super().__init__(peer)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self.answers.feed(data)
        except SerializationError as error:
            self.error = error
            self.close()
        self.changed()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost, self.lost_by = True, error
        self.changed()

    def send(self, request: Request) -> None:
        self.answers.expect()
        assert self._transport  # noqa: S101
        self._transport.write(request.encoded())

    def close(self) -> None:
        self.is_lost = True
        if self._transport:
            self._transport.abort()


class Ending(Protocol):
    """Who waits for something on a link."""

    def end(self) -> None: ...


class Lines:
    """The connections of one event loop: each carries one request at a time."""

    def __init__(self, peers: Peers[Any], context: ssl.SSLContext | None) -> None:
        self.peers, self.loop, self._context = peers, asyncio.get_running_loop(), context
        self.open: set[Ending] = set()
        self.is_over = False
        self._telling: set[asyncio.Task[None]] = set()

    async def get(self, peer: Peer[Any], seconds: float) -> Link:
        """One that was used before, or a new one. Raises OSError."""
        line: Link | None = peer.take(self.loop.time())
        if line:
            return line
        try:
            made = await asyncio.wait_for(self._connect(peer, lambda: Line(peer)), min(seconds, CONNECT))
        except asyncio.TimeoutError as error:
            raise TimeoutError("no connection in time") from error
        peer.outstanding += 1
        return made

    async def _connect(self, peer: Peer[Any], make: Callable[[], P]) -> P:
        """A new connection. Raises OSError."""
        name = peer.host if self._context else None
        _, made = await self.loop.create_connection(
            make, peer.host, peer.port, ssl=self._context, server_hostname=name
        )
        return made

    def put_back(self, line: Link) -> None:
        """It is not used any more."""
        line.changed = lambda: None
        line.peer.put_back(line, self.loop.time(), 0 if line.is_lost or self.is_over else MOST_IDLE)

    async def ask(
        self,
        peer: Peer[Any],
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] = OURS,
        seconds: float = FAREWELL,
    ) -> Answers:
        """The answer to one request. Raises OSError, SerializationError."""
        line = await self.get(peer, seconds)
        try:
            come = asyncio.Event()
            line.changed = come.set
            line.send(Request(method, peer.prefix + target, peer.host_header, body, [*headers.items()]))
            end = self.loop.time() + seconds
            while not line.answers.is_complete:
                if line.error:
                    raise line.error
                if line.is_lost:
                    raise line.lost_by or ConnectionResetError("the connection was closed")
                try:
                    await asyncio.wait_for(come.wait(), max(0.001, end - self.loop.time()))
                except asyncio.TimeoutError as error:
                    raise TimeoutError("it did not answer in time") from error
                come.clear()
            return line.answers
        finally:
            self.put_back(line)

    def tell(self, peer: Peer[Any], target: str) -> None:
        """Soon."""

        async def told() -> None:
            with suppress(OSError, SerializationError):  # it finds out, a little later
                await self.ask(peer, "POST", target)

        if not self.loop.is_closed():
            task = self.loop.create_task(told())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        for replies in [*self.open]:
            replies.end()
        if self._telling:
            await asyncio.wait(self._telling, timeout=FAREWELL)
        self.is_over = True
        self.peers.close()

    def abandon(self) -> None:
        """Without a word: the loop may be closed."""
        self.is_over = True
