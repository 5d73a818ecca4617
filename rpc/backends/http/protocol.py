"""Connections of a worker, and what they may cost it: uvicorn's protocol, within bounds.

uvicorn waits for each byte as long as whoever connects likes. Its own `limit_concurrency` refuses everybody,
also on connections that are open, once so many are there."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .tls import Refused

logger = logging.getLogger(__name__)

MAX_HEAD = 64 * 1024
"""Bytes of the first line and the headers of a request."""
SLOWEST = 1024
"""Bytes of a body that come in a second, at least."""
MOST_PIPELINED = 64
"""Requests that are sent before the one in front of them is answered."""
SPARE = 256
"""Connections beyond the bounds, at a time, that are told so; more are just closed."""
LINGER = 1.0
"""Seconds for which whoever is refused may still send, so that he gets to read why."""
FAREWELL = 0.5
"""Seconds in which the other end of a connection with TLS may end it, too, when a worker is stopped."""
WARN_EVERY = 10.0
HANDSHAKE = 0x16
"""The first byte of TLS: https://www.rfc-editor.org/rfc/rfc8446#section-5.1."""


def refusal(status: str, text: str = "") -> bytes:
    """An answer after which the connection ends."""
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\nconnection: close"
    )
    return f"{head}\r\n\r\n{text}".encode()


TOO_LONG = refusal("431 Request Header Fields Too Large")
TOO_SLOW = refusal("408 Request Timeout")
TOO_MANY = refusal("503 Service Unavailable", "too many connections")
NO_TLS = refusal("400 Bad Request", "this port speaks https:, and not http:")
_SAID = b"said"
"""Nothing more: one of these was said already."""


@dataclass
class Bounds:
    """Of all connections of one worker."""

    max_connections: int
    max_per_address: int
    """Of one IP address."""
    read_timeout: float
    """Seconds in which TLS is agreed upon, or the headers of a request have come, or its body: which has a
    second more for each SLOWEST bytes that came of it."""
    keep_alive: float
    """Seconds for which a connection is kept that is not used."""
    context: ssl.SSLContext | None = None
    """TLS, if it is spoken."""
    open: int = 0
    addresses: Counter[str] = field(default_factory=Counter)
    """How many of those that are open each address has."""
    refused: int = 0
    """Connections beside these, which are told that they are too many."""
    warned: float = float("-inf")

    def enter(self, address: str) -> bool:
        """Whether it may have one more, which is counted: else that is logged, now and then."""
        if self.open < self.max_connections and self.addresses[address] < self.max_per_address:
            self.open += 1
            self.addresses[address] += 1
            return True
        self.refused += 1
        if (now := time.monotonic()) > self.warned + WARN_EVERY:
            self.warned = now
            text = "connections of %s are refused: there are %d, of which %d are its own"
            logger.warning(text, address, self.open, self.addresses[address])
        return False

    def leave(self, address: str, was_refused: bool) -> None:
        """It has one less."""
        if was_refused:
            self.refused -= 1
            return
        self.open -= 1
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]


def most_connections() -> int:
    """How many a process can have: three quarters of the files that it may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if soft == resource.RLIM_INFINITY else max(16, min(10_000, soft * 3 // 4))


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, bounds: Bounds, **options: Any) -> None:
        super().__init__(**options)
        self._bounds, self._address = bounds, ""
        self._is_counted = self._is_too_much = False
        self._in_head, self._has_moved = True, False
        """Whether it is headers that come; whether what came last has completed something."""
        self._head = self._came = 0
        """Bytes that have come of the headers, and of the headers or the body, that are not complete."""
        self._since = 0.0
        """When these began."""
        self._timer: asyncio.TimerHandle | None = None
        self._refusal = b""
        """What is said to whatever comes."""
        self._securing: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        """What came before TLS was said to be ready."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        bounds = self._bounds
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self._is_counted, self._is_too_much = True, not bounds.enter(self._address)
        self.transport = transport
        if self._is_too_much:
            self._refusal = TOO_MANY
            if bounds.refused > SPARE or bounds.context:  # a handshake costs more than he is worth
                transport.abort()
        if bounds.context is None:
            self._begin(transport)
        elif not self._is_too_much:
            self._securing = self.loop.create_task(self._secure(transport, bounds.context))

    def _begin(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    async def _secure(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        transport.pause_reading()
        # It is the same connection, of which a part can be read without being taken.
        looking = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        made: asyncio.BaseTransport | None = None
        try:
            first = await asyncio.wait_for(self._first_byte(looking), self._bounds.read_timeout)
            if first == HANDSHAKE:
                options = {"server_side": True, "ssl_handshake_timeout": self._bounds.read_timeout}
                made = await self.loop.start_tls(transport, self, context, **options)  # type: ignore[arg-type]
        except (OSError, asyncio.TimeoutError) as error:
            logger.debug("no TLS with %s: %s", self._address, error)
            if isinstance(error, Refused):
                with suppress(OSError):
                    looking.send(error.alert)
            transport.abort()
        else:
            if first != HANDSHAKE:
                self._refusal, made = NO_TLS, transport
        finally:
            looking.close()
        if made is None:  # it may have been closed meanwhile, which nobody is told
            self._leave()
            return
        self._securing = None
        self._begin(cast("asyncio.Transport", made))
        if made is transport:
            transport.resume_reading()
        for data in self._early:
            self.data_received(data)
        self._early.clear()

    async def _first_byte(self, looking: socket.socket) -> int:
        """Raises OSError."""
        readable = asyncio.Event()
        self.loop.add_reader(looking, readable.set)
        try:
            await readable.wait()
        finally:
            self.loop.remove_reader(looking)
        if found := looking.recv(1, socket.MSG_PEEK):
            return found[0]
        raise ConnectionResetError("it was closed")

    def data_received(self, data: bytes) -> None:
        if self._securing:
            self._early.append(data)
            return
        if self._refusal:
            self._refuse(self._refusal)
            return
        self._has_moved = False
        super().data_received(data)
        if self._in_head and self._has_moved:
            self._head = 0
            self._rest()
            return
        if self._timer is None:
            self._wait()
        self._came += len(data)
        if not self._in_head:
            self._head = 0
        elif not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(TOO_LONG)

    def _refuse(self, answer: bytes) -> None:
        """Say so, once, and listen a little longer: a connection that is closed while something comes is
        broken off, and the answer is lost."""
        self._rest()
        if not self.transport.is_closing() and self._refusal is not _SAID:
            self._refusal = _SAID
            self.transport.write(answer)
            self.loop.call_later(LINGER, self.transport.abort)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head, self._has_moved = False, True
        self._since, self._came = self.loop.time(), 0
        if len(self.pipeline) > MOST_PIPELINED:
            raise ValueError("too many requests at once")  # the parser ends with that

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = self._has_moved = True

    # Whoever is too slow.

    def _wait(self) -> None:
        """From now on."""
        self._since, self._came = self.loop.time(), 0
        seconds = LINGER if self._refusal else self._bounds.read_timeout
        self._timer = self.loop.call_later(seconds, self._look)

    def _rest(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        bounds, now = self._bounds, self.loop.time()
        if self._refusal:
            self._refuse(self._refusal)
            return
        end = self._since + bounds.read_timeout + (0 if self._in_head else self._came / SLOWEST)
        if self.flow.read_paused:  # it is we who do not listen
            end = now + bounds.read_timeout
        if now < end:
            self._timer = self.loop.call_at(end, self._look)
        elif not self._in_head and self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(TOO_SLOW)

    # The end.

    def shutdown(self) -> None:
        super().shutdown()
        if self._bounds.context and self.transport.is_closing():  # TLS would wait for the other end
            self.loop.call_later(FAREWELL, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._leave()
        if self._securing:
            self._securing.cancel()
        if self.flow:  # else it never was one of uvicorn's
            super().connection_lost(exc)

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._bounds.leave(self._address, self._is_too_much)

    def handle_websocket_upgrade(self) -> None:
        """Another protocol has the connection from now on: it is counted until its end."""
        self._rest()
        super().handle_websocket_upgrade()
        after: Any = self.transport.get_protocol()
        lost = after.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            self._leave()
            lost(exc)

        after.connection_lost = connection_lost
