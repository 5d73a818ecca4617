"""WebSockets of a worker, and what they may cost it: uvicorn's protocol, within bounds."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .protocol import FAREWELL, SLOWEST, Bounds
from .wire import SOCKET

MOST_TEXT = 16 * 1024 * 1024
"""Bytes of a message of others than our callers."""


class BoundedSocket(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, bounds: Bounds, **options: Any) -> None:
        super().__init__(**options)
        self._bounds, self._most = bounds, MOST_TEXT
        self._came, self._since = 0, 0.0
        """Bytes of a message that is not complete, and when it began."""
        self._has_heard, self._unsent = False, 0
        """Whether anything came since it was asked whether the other end is there; the bytes that were not
        sent then."""
        self._timer: asyncio.TimerHandle | None = None

    def handle_connect(self, event: Any) -> None:
        if event.path.partition("?")[0].endswith(SOCKET):
            self._most = self.config.ws_max_size
        super().handle_connect(event)

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        self._has_heard = True
        super().data_received(data)
        if not (self.conn.reader.buffer or self.frames):  # no message is incomplete
            self._rest()
        elif self._came > self._most:
            self._fail(1009, "the message is too large")
        elif self._timer is None:
            self._since = self.loop.time()
            self._timer = self.loop.call_later(self._bounds.read_timeout, self._look)

    def send_receive_event_to_app(self) -> None:
        super().send_receive_event_to_app()
        self._rest()

    def _rest(self) -> None:
        self._came = 0
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        bounds, now = self._bounds, self.loop.time()
        end = self._since + bounds.read_timeout + self._came / SLOWEST
        if self.read_paused:  # it is we who do not listen
            end = now + bounds.read_timeout
        if now < end:
            self._timer = self.loop.call_at(end, self._look)
        else:
            self._fail(1008, "the message comes too slowly")

    # Whoever does not listen: pongs, too, are written whether there is room for them or not.

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:
        event = await super().receive()
        if not self.writable.is_set() and not self.transport.is_closing():
            self.transport.pause_reading()
        return event

    # Whoever is gone: but a pong comes after what is sent before it, which may be much.

    def send_keepalive_ping(self) -> None:
        super().send_keepalive_ping()
        self._has_heard, self._unsent = False, self.transport.get_write_buffer_size()

    def keepalive_timeout(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if self.ping_timeout and (self._has_heard or unsent < self._unsent):
            self._has_heard, self._unsent = False, unsent
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    def _fail(self, code: int, why: str) -> None:
        self._rest()
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(code, why)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()

    # The end.

    def shutdown(self) -> None:
        super().shutdown()
        if self._bounds.context:  # TLS would wait for the other end
            self.loop.call_later(FAREWELL, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)
