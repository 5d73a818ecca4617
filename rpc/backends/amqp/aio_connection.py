"""One connection to RabbitMQ in an event loop, with many channels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pamqp import base

from .servers import SOCKET_TIMEOUT, Place, Terms, refusal
from .wire import (
    HEARTBEAT,
    Arrival,
    Basic,
    Broken,
    Channel,
    Confirm,
    Connection,
    Wire,
    frames,
    published,
)


class Peer(asyncio.Protocol):
    """Channel 1 has confirms. What comes on the channels in `rooms` is theirs; the others answer
    questions."""

    def __init__(self, place: Place, lost: Callable[[Peer], object]) -> None:
        self.place, self._lost = place, lost
        self.terms = Terms(4096, 1, 0)
        self.rooms: dict[int, Callable[[Arrival], object]] = {}
        self.is_open = False
        self.failure = Broken("not connected")
        self.blocked = ""
        self._loop = asyncio.get_running_loop()
        self._wire = Wire()
        self._transport: Any = None
        self._asked: list[tuple[int, tuple[type[Any], ...], asyncio.Future[Any]]] = []
        self._sent: dict[int, tuple[str, asyncio.Future[Arrival | None]]] = {}
        self._back: dict[str, Arrival] = {}
        self._tag = 0
        self._buffer: list[bytes] = []
        self._heard = self._loop.time()
        self._pulse: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Raises Broken."""
        try:
            await asyncio.wait_for(self._open(), SOCKET_TIMEOUT)
        except (OSError, asyncio.TimeoutError) as error:
            self.abort()
            raise Broken(str(error) or "no connection") from error
        except BaseException:
            self.abort()
            raise

    async def _open(self) -> None:
        await self._connect()
        opening, answer = self.place.opening(), None
        while True:
            try:
                said, expected = opening.send(answer)
            except StopIteration as end:
                self.terms = end.value
                break
            waiting = self._expect((0, 1), expected)
            self.write(said)
            answer = await waiting
        await self.ask(Confirm.Select(), Confirm.SelectOk)
        self.is_open = True
        if self.terms.heartbeat:
            self._beat()

    async def _connect(self) -> None:
        failure: OSError = OSError("no server is given")
        for host, port in self.place.in_any_order():
            name = host if self.place.context else None
            try:
                await self._loop.create_connection(
                    lambda: self, host, port, ssl=self.place.context, server_hostname=name
                )
            except OSError as error:
                failure = error
            else:
                return
        raise failure

    # What is said.

    def write(self, data: bytes) -> None:
        """It leaves with all that is written until the loop gets to it."""
        if not self._buffer:
            self._loop.call_soon(self._flush)
        self._buffer.append(data)

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, []
        if self._transport and not self._transport.is_closing():
            self._transport.write(b"".join(buffer))

    def published(self, channel: int, key: str, properties: Any, body: bytes, **how: Any) -> bytes:
        return published(channel, key, properties, body, self.terms.room, **how)

    async def ask(self, method: base.Frame, *expected: type[Any], channel: int = 1) -> Any:
        """The answer to this. Raises Broken."""
        waiting = self._expect((channel,), *expected)
        self.write(frames(channel, method))
        return await self._within(waiting)

    async def confirmed(self, id: str, publishing: bytes) -> Arrival | None:
        """Publish on channel 1; None once it is safe, else what came back."""
        self._check()
        self._tag += 1
        tag, waiting = self._tag, self._loop.create_future()
        self._sent[tag] = id, waiting
        self.write(publishing)
        try:
            back: Arrival | None = await self._within(waiting)
            return back
        finally:
            self._sent.pop(tag, None)

    async def _within(self, waiting: asyncio.Future[Any]) -> Any:
        try:
            return await asyncio.wait_for(waiting, SOCKET_TIMEOUT)
        except asyncio.TimeoutError:
            failure = Broken(self.blocked or f"no answer within {SOCKET_TIMEOUT:g} s")
            self.abort()
            raise failure from None

    def _expect(self, channels: tuple[int, ...], *expected: type[Any]) -> asyncio.Future[Any]:
        self._check()
        waiting: asyncio.Future[Any] = self._loop.create_future()
        self._asked += [(channel, expected, waiting) for channel in channels]
        return waiting

    def _check(self) -> None:
        if self._transport is None:
            raise self.failure

    def _beat(self) -> None:
        silence = self._loop.time() - self._heard
        if silence > 2 * self.terms.heartbeat:
            self.failure = Broken(f"no sign of life of RabbitMQ for {silence:.0f} s")
            self.abort()
            return
        self.write(HEARTBEAT)
        self._pulse = self._loop.call_later(self.terms.heartbeat / 2, self._beat)

    async def hang_up(self) -> None:
        """Say goodbye, and wait until what was said before is done."""
        if self._transport is not None:
            self._lost = lambda peer: None
            with suppress(Broken):
                await self.ask(Connection.Close(200, "", 0, 0), Connection.CloseOk, channel=0)
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What is heard.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if error or self.is_open:
            self.failure = Broken(str(error or "RabbitMQ closed the connection"))
        self._transport, self.is_open = None, False
        if self._pulse:
            self._pulse.cancel()
        for _, _, waiting in self._asked:
            _fail(waiting, self.failure)
        for _, waiting in self._sent.values():
            _fail(waiting, self.failure)
        self._asked.clear()
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            for arrival in self._wire.feed(data):
                room = self.rooms.get(arrival.channel)
                if room and not isinstance(arrival.method, Channel.Close):
                    room(arrival)
                else:
                    self._sort(arrival)
        except Broken as error:
            self.failure = error
            self.abort()

    def _sort(self, arrival: Arrival) -> None:
        method, channel = arrival.method, arrival.channel
        if isinstance(method, Basic.Ack | Basic.Nack | Basic.Return):
            self._settle(arrival)
        elif isinstance(method, Connection.Close):
            self.write(frames(0, Connection.CloseOk()))
            raise refusal(method)
        elif isinstance(method, Connection.Blocked):
            self.blocked = f"it takes no messages at present: {method.reason}"
        elif isinstance(method, Connection.Unblocked):
            self.blocked = ""
        elif isinstance(method, Channel.Close):
            self.write(frames(channel, Channel.CloseOk()))
            asked = [each for each in self._asked if each[0] == channel]
            if channel == 1 or channel in self.rooms or not asked:
                raise refusal(method)
            self._answer(asked[0], refusal(method))
        else:
            for each in self._asked:
                if each[0] == channel and isinstance(method, each[1]):
                    self._answer(each, method)
                    break

    def _answer(self, asked: tuple[int, tuple[type[Any], ...], asyncio.Future[Any]], answer: Any) -> None:
        self._asked = [each for each in self._asked if each[2] is not asked[2]]
        if isinstance(answer, Broken):
            _fail(asked[2], answer)
        elif not asked[2].done():
            asked[2].set_result(answer)

    def _settle(self, arrival: Arrival) -> None:
        method = arrival.method
        if isinstance(method, Basic.Return):
            self._back[arrival.properties.correlation_id or ""] = arrival
            return
        last = method.delivery_tag
        tags = [tag for tag in self._sent if tag <= last] if method.multiple else [last]
        for tag in tags:
            id, waiting = self._sent.pop(tag, ("", None))
            back = self._back.pop(id, None)
            if waiting and not waiting.done():
                waiting.set_result(arrival if isinstance(method, Basic.Nack) else back)


def _fail(waiting: asyncio.Future[Any], error: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(error)
        waiting.exception()  # somebody may have stopped waiting
