"""One connection to RabbitMQ, for an event loop. Everything raises Broken once it broke."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pamqp import base

from .dialogue import Dialogue
from .servers import SOCKET_TIMEOUT, Servers
from .wire import HEARTBEAT, Arrival, Broken, Connection


class AsyncConnection(Dialogue, asyncio.Protocol):
    """Make it with `connect`."""

    def __init__(self) -> None:
        super().__init__()
        self._lost: Callable[[AsyncConnection], object] = lambda connection: None
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._unsent: list[bytes] = []
        self._heard = self._loop.time()
        self._beats: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return self.failure is None

    @classmethod
    async def connect(cls, servers: Servers, lost: Callable[[AsyncConnection], object]) -> AsyncConnection:
        """`lost` hears when it breaks later on."""
        failure = Broken("no server is given")
        for server in servers.in_any_order():
            connection = cls()
            try:
                await asyncio.wait_for(connection._open(servers, *server), SOCKET_TIMEOUT)
            except (OSError, RuntimeError, asyncio.TimeoutError) as error:
                # RuntimeError: a loop looks up names in threads, and has none once the main thread has ended
                why = str(error) or f"no answer within {SOCKET_TIMEOUT:g} s"
                failure = Broken(f"{server[0]}:{server[1]}: {why}")
                connection.drop(failure)
            except BaseException as error:
                connection.drop(error)
                raise
            else:
                connection._lost = lost
                return connection
        raise failure

    async def _open(self, servers: Servers, host: str, port: int) -> None:
        name = host if servers.context else None
        await self._loop.create_connection(
            lambda: self, host, port, ssl=servers.context, server_hostname=name
        )
        await self._introduce(servers)

    async def _introduce(self, servers: Servers) -> None:
        opening, answer = servers.opening(), None
        while True:
            try:
                said, expected = opening.send(answer)
            except StopIteration as end:
                self.terms = end.value
                break
            future = self._future()
            self.expect(0, (expected,), future)
            self.put(said)
            answer = (await future).method
        if self.terms.heartbeat:
            self._beat()

    # What is said.

    def put(self, data: bytes) -> None:
        """Let it leave with all that is put until the loop gets to it; each time, as the loop may have been
        interrupted before it was at the one before."""
        self._unsent.append(data)
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._unsent:
            return
        try:
            unsent, self._unsent = self._unsent, []
            if self._transport and not self._transport.is_closing():
                self._transport.write(b"".join(unsent))
        except BaseException as error:  # what follows would be out of step
            self.drop(error)
            raise

    async def ask(self, channel: int, method: base.Frame, *expected: type[Any]) -> Arrival:
        """The answer to a method. If that is refused, its channel alone is closed, and opened again by its
        next use."""
        future = self._future()
        self.say(channel, method, expected, future)
        answer: Arrival = await self._within(future)
        return answer

    async def confirmed(
        self, channel: int, key: str, properties: Any, body: bytes, **how: Any
    ) -> Arrival | None:
        """Publish; None once RabbitMQ has it, else what says that it has not."""
        future = self._future()
        self.publish_safely(channel, key, properties, body, future, **how)
        answer: Arrival | None = await self._within(future)
        return answer

    def _future(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(lambda it: it.cancelled() or it.exception())  # somebody may stop waiting
        return future

    async def _within(self, future: asyncio.Future[Any]) -> Any:
        try:
            return await asyncio.wait_for(future, SOCKET_TIMEOUT)
        except asyncio.TimeoutError:
            failure = Broken(self.blocked or f"no answer within {SOCKET_TIMEOUT:g} s")
            self.drop(failure)
            raise failure from None

    def _beat(self) -> None:
        silence, interval = self._loop.time() - self._heard, self.terms.heartbeat
        if silence > 2 * interval:
            self.drop(Broken(f"no sign of life of RabbitMQ for {silence:.0f} s"))
            return
        self.put(HEARTBEAT)
        self._beats = self._loop.call_later(interval / 2, self._beat)

    # What is heard.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self.hear(data)
        except Broken as error:
            self._flush()
            self.drop(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.drop(error or Broken("RabbitMQ closed the connection"))

    # The end.

    async def close(self) -> None:
        """Say goodbye, and wait until what was said before is done."""
        self._lost = lambda connection: None
        if self.is_open:
            with suppress(Broken):
                await self.ask(0, Connection.Close(200, "", 0, 0), Connection.CloseOk)
        self.drop(Broken("it was closed"))

    def drop(self, error: BaseException) -> None:
        """Make it of no use, for this reason."""
        if self.failure:
            return
        self.end(error)
        if self._beats:
            self._beats.cancel()
        if self._transport:
            self._transport.abort()
        self._lost(self)
