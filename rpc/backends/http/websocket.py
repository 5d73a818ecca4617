"""The backend of `ws://host:port` and `wss://host:port`: all calls of a process, or of an event loop, share
one WebSocket to each worker (https://www.rfc-editor.org/rfc/rfc6455)."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from ...deadlines import within
from ...errors import SerializationError, shown
from ...loops import locked_cached_property
from ...transport import Address, Message, Replies
from .._in_loop import InLoop
from ..features import FEATURES
from .backend import HttpBackend, possible
from .endpoints import CONNECT, FAREWELL, KEEP, Peer, Peers
from .exchange import Nonsense, Silence
from .links import Lines, Link
from .wire import LEFT, MORE, SOCKET, STATUS, Request, numbered, numbered_of

logger = logging.getLogger(__name__)

PING_EVERY = 10.0
"""Seconds without a word of a worker after which it is asked whether it is there; if it says nothing for as
long again, the connection is lost."""
LARGEST_NUMBER = 2**32


class WebSocketBackend(HttpBackend):
    """The backend of HTTP whose callers have one connection to a worker for all that they ask, instead of one
    for each request that is not answered. Its workers are those of HTTP: either kind of caller reaches them.
    The URL and the options are those of HttpBackend."""

    features = FEATURES["ws"]

    @locked_cached_property
    def _blocking(self) -> InLoop:
        return InLoop(self.asynchronous(), "rpc-websocket")

    def send(self, to: Address, message: Message) -> None:
        self._blocking.send(possible(to), message)

    def request(self, to: Address, message: Message) -> Replies:
        replies: Replies = self._blocking.request(possible(to), message)
        return replies

    def close(self) -> None:
        self._blocking.close()
        super().close()

    def _lines(self) -> Sockets:
        return Sockets(Peers(self._endpoints), self.context())


class Channel(Link):
    """One request on a connection that it shares with others."""

    def __init__(self, peer: Peer[Any], socket: Socket) -> None:
        super().__init__(peer)
        self._socket, self._number = socket, 0

    def send(self, request: Request) -> None:
        self.answers.expect()
        self._number = self._socket.open(self)
        # All that is asked on it is below the prefix at which it was opened.
        within = request._replace(target=request.target.removeprefix(self.peer.prefix))
        self._socket.send(within.numbered(self._number))

    def heard(self, frame: Message) -> None:
        """A part of the answer."""
        headers, answers = dict(frame.headers), self.answers
        if LEFT in headers:
            self.lost(None)
            return
        if (status := headers.pop(STATUS, "")).isdecimal():
            answers.status = int(status)
            answers.headers = headers
        answers.body += frame.body
        answers.is_complete = MORE not in headers
        self.changed()

    def lost(self, error: Exception | None) -> None:
        """There will be no more of it."""
        self.is_lost, self.lost_by = True, error
        self.changed()

    def failed(self, error: SerializationError) -> None:
        """What came on the connection makes no sense."""
        self.error = error
        self.lost(None)

    def close(self) -> None:
        is_waiting = not (self.answers.is_complete or self.is_lost)
        self.is_lost = True
        if self._socket.left(self._number) and is_waiting:
            self._socket.send(numbered(self._number, b"", {LEFT: "1"}))


class Socket(asyncio.Protocol):
    """One connection, and the requests that are open on it."""

    def __init__(self, peer: Peer[Any], is_secure: bool) -> None:
        self._peer, scheme = peer, "wss" if is_secure else "ws"
        uri = parse_uri(f"{scheme}://{peer.name}{peer.prefix}{SOCKET}")
        self._protocol = ClientProtocol(uri, max_size=None)
        self._loop = asyncio.get_running_loop()
        self.is_ready: asyncio.Future[None] = self._loop.create_future()
        """Done when it may be used. Raises OSError."""
        self.is_gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._channels: dict[int, Channel] = {}
        self._last = 0
        self._parts = bytearray()
        """Of a message that comes in several frames."""
        self._heard = self._used = self._loop.time()
        self._is_asked, self._unsent = False, 0
        """Whether the other end was asked whether it is there; the bytes that were not sent then."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_usable(self) -> bool:
        return self._protocol.state is State.OPEN and not self.is_gone.is_set()

    def open(self, channel: Channel) -> int:
        """The number of its next request. If the connection is lost, it hears that soon."""
        while self._last in self._channels or not self._last:
            self._last = (self._last + 1) % LARGEST_NUMBER
        number = self._last
        self._last = (self._last + 1) % LARGEST_NUMBER
        if self.is_usable:
            self._channels[number] = channel
        else:
            self._loop.call_soon(channel.lost, ConnectionResetError("the connection was closed"))
        return number

    def left(self, number: int) -> bool:
        """Nobody waits for the answer to this request. Whether it was open."""
        self._used = self._loop.time()
        return self._channels.pop(number, None) is not None

    def send(self, data: bytes) -> None:
        if self.is_usable:
            self._protocol.send_binary(data)
            self._flush()

    async def end(self, seconds: float) -> None:
        """Say so, and wait for so long at most until the connection is closed."""
        if self._transport is None or self.is_gone.is_set():
            return
        if self.is_usable:
            self._protocol.send_close(1000)
            self._flush()
        try:
            await asyncio.wait_for(self.is_gone.wait(), seconds)
        except asyncio.TimeoutError:
            self._transport.abort()

    def abort(self) -> None:
        """End it at once."""
        if self._transport:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        self._timer = self._loop.call_later(PING_EVERY, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard, self._is_asked = self._loop.time(), False
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            try:
                self._event(event)
            except SerializationError as error:
                self._fail(error)
                return
        self._flush()
        if self._transport and self._protocol.close_expected():
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone.set()
        if self._transport:
            self._transport.close()  # before Python 3.11, TLS warns of one that was lost and not closed
        if self._timer:
            self._timer.cancel()
        if not self.is_ready.done():
            why = Nonsense() if self._protocol.handshake_exc else error or Silence()
            self.is_ready.set_exception(why)
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.lost(error)

    def _event(self, event: Any) -> None:
        if isinstance(event, Response):
            self._peer.has_answered = True
            if self._protocol.handshake_exc is None:
                self.is_ready.set_result(None)
            elif not self.is_ready.done():
                self.is_ready.set_exception(_refused(event, self._protocol.handshake_exc))
        elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._parts += event.data
            if event.fin:
                whole, self._parts = bytes(self._parts), bytearray()
                number, frame = numbered_of(whole)
                if channel := self._channels.get(number):
                    channel.heard(frame)

    def _fail(self, error: SerializationError) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.failed(error)
        assert self._transport  # noqa: S101
        self._transport.abort()

    def _flush(self) -> None:
        assert self._transport  # noqa: S101
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _look(self) -> None:
        """Whether the other end is there still, and whether it is of use."""
        assert self._transport  # noqa: S101
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        is_dead = self._is_asked and unsent >= self._unsent  # else it has not come to that yet
        if is_dead or (not self._channels and now - self._used > KEEP):
            self._transport.abort()
            return
        if self.is_usable and not self._is_asked and now - self._heard >= PING_EVERY:
            self._is_asked = True
            self._protocol.send_ping(b"")
            self._flush()
        self._unsent = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(PING_EVERY, self._look)


def _refused(response: Response, error: Exception) -> ConnectionError:
    body = bytes(response.body or b"")[:100].decode("utf-8", "replace")
    why = f"HTTP status {response.status_code} {body}".rstrip()
    return ConnectionError(f"it opens no WebSocket: {why} ({shown(error)})")


class Sockets(Lines):
    """The connections of one event loop: each carries any number of requests."""

    def __init__(self, peers: Peers[Any], context: ssl.SSLContext | None) -> None:
        super().__init__(peers, context)
        self._sockets: dict[Peer[Any], Socket] = {}
        self._making: dict[Peer[Any], asyncio.Task[None]] = {}

    async def get(self, peer: Peer[Any], seconds: float) -> Link:
        socket = self._sockets.get(peer)
        if socket is None or not socket.is_usable:
            making = self._making.get(peer)
            if making is None:
                with within(None):  # it is for others, too, and what it begins goes on for longer
                    making = self._making[peer] = self.loop.create_task(self._make(peer))
                making.add_done_callback(lambda done: self._made(peer, done))
            try:
                await asyncio.wait_for(asyncio.shield(making), max(0.001, min(seconds, CONNECT)))
            except asyncio.TimeoutError as error:
                raise TimeoutError("no connection in time") from error
            socket = self._sockets[peer]
        peer.outstanding += 1
        return Channel(peer, socket)

    async def _make(self, peer: Peer[Any]) -> None:
        """For all who wait for it. Raises OSError."""
        socket = await asyncio.wait_for(
            self._connect(peer, lambda: Socket(peer, self._context is not None)), CONNECT
        )
        try:
            await asyncio.wait_for(socket.is_ready, CONNECT)
        except BaseException:
            socket.abort()
            raise
        self._sockets[peer] = socket

    def _made(self, peer: Peer[Any], done: asyncio.Task[None]) -> None:
        del self._making[peer]
        if not done.cancelled():
            done.exception()  # whoever waited has it

    async def close(self) -> None:
        await super().close()
        for task in self._making.values():
            task.cancel()
        if self._sockets:
            await asyncio.gather(*(socket.end(FAREWELL) for socket in self._sockets.values()))
