"""A TCP proxy that breaks connections in the ways in which networks do.

It runs in a thread of its own; everything else may be called from any thread, and has happened on return.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from .damage import damaged
from .wire import FrameEnd, Frames

Way = Literal["up", "down"]
HOST = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)
CHUNK = 65536


class Pair:
    """Two connections that are one: the client's and the one to the server."""

    def __init__(
        self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, frame_end: FrameEnd | None
    ) -> None:
        self.writers: dict[Way, asyncio.StreamWriter] = {"up": server, "down": client}
        self.frames: dict[Way, Frames] = (
            {"up": Frames(frame_end), "down": Frames(frame_end)} if frame_end else {}
        )
        self.frozen = False
        """Whether both ends believe that it is there, and it is not."""
        self.flows = asyncio.Event()
        """Else what is sent on it is under way, and arrives later."""
        self.flows.set()

    def end(self, *, reset: bool = False) -> None:
        for writer in self.writers.values():
            if not reset:
                writer.close()
                continue
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Proxy:
    """Forwards to 127.0.0.1:`target`. `up` is towards the server, `down` towards the client. Only a proxy
    with a `frame_end` knows what is said, and can lose some of it: nothing may be garbled, damaged or
    swallowed then."""

    def __init__(
        self, target: int, dice: random.Random, *, frame_end: FrameEnd | None = None, host: str = HOST
    ) -> None:
        self.target, self._dice, self._frame_end, self._host = target, dice, frame_end, host
        self.opened = 0
        """Connections that were asked for, also those that were refused."""
        self.refusing = False
        self.holes: set[Way] = set()
        """Ways on which everything disappears."""
        self.swallowed: dict[Way, bytes] = {"up": b"", "down": b""}
        """What has disappeared there; the latest of it."""
        self.delay = self.jitter = 0.0
        """Seconds, for each chunk."""
        self.drip = 0.0
        """Seconds between two bytes; 0: no drip."""
        self.damage: dict[Way, float] = {}
        """The share of chunks in which some bytes are changed, missing, or there twice."""
        self.damaged = 0
        """How many were."""
        self._garbled: set[Way] = set()
        self._lost: dict[Way, int | None] = {"up": None, "down": None}
        self._counts: dict[Way, int] = {"up": 0, "down": 0}
        """How many frames came since the beginning, or since `lose`."""
        self._pairs: set[Pair] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Faults.

    def cut(self) -> None:
        """Reset every connection."""

        def reset() -> None:
            for pair in self._pairs:
                pair.end(reset=True)

        self._soon(reset)

    def freeze(self) -> None:
        """The connections that there are go half-open: neither end is told. New ones work."""

        def forget() -> None:
            for pair in self._pairs:
                pair.frozen = True

        self._soon(forget)

    def stall(self) -> None:
        """What is sent on the connections that there are arrives at the next `heal`, also if whoever sent it
        has given up by then. New ones work."""

        def delay() -> None:
            for pair in self._pairs:
                pair.flows.clear()

        self._soon(delay)

    def garble(self, way: Way) -> None:
        """The next chunk on this way arrives as other bytes."""
        self._garbled.add(way)

    def heal(self) -> None:
        """Work again. What was swallowed does not come back, so these connections are cut."""
        swallowed, self.holes = bool(self.holes), set()
        self.refusing, self._garbled, self.damage = False, set(), {}
        self.delay = self.jitter = self.drip = 0.0

        def go_on() -> None:
            for pair in self._pairs:
                pair.flows.set()

        self._soon(go_on)
        if swallowed:
            self.cut()

    def lose(self, way: Way, number: int) -> None:
        """The frame of this number on this way from now on (1 is the next one), on whichever connection it
        comes, is lost, and its connection ends."""

        def arm() -> None:
            self._counts[way], self._lost[way] = 0, number

        self._soon(arm)

    @property
    def armed(self) -> bool:
        """Whether what is to be lost has not been lost yet."""
        return any(number is not None for number in self._lost.values())

    # The loop's side.

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _soon(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._run(act())

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, self._host, 0)

    async def _close(self) -> None:
        self._server.close()
        writers = [writer for pair in self._pairs for writer in pair.writers.values()]
        for pair in self._pairs:
            pair.end(reset=True)
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            if self.refusing:
                raise ConnectionRefusedError
            answers, server = await asyncio.open_connection(HOST, self.target)
        except OSError:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.transport.abort()
            return
        pair = Pair(client, server, self._frame_end)
        self._pairs.add(pair)
        pumps = self._pump(reader, "up", pair), self._pump(answers, "down", pair)
        tasks = [asyncio.create_task(pump) for pump in pumps]
        with contextlib.suppress(asyncio.CancelledError):  # at the end of it all
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        pair.end()
        self._pairs.discard(pair)

    async def _pump(self, reader: asyncio.StreamReader, way: Way, pair: Pair) -> None:
        writer = pair.writers[way]
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(max(0.0, self.delay + self._dice.uniform(-self.jitter, self.jitter)))
                await pair.flows.wait()
                if pair.frozen or way in self.holes:
                    self.swallowed[way] = (self.swallowed[way] + data)[-CHUNK:]
                    continue
                data, going_on = self._counted(data, way, pair)
                if way in self._garbled:
                    self._garbled.discard(way)
                    data = self._dice.randbytes(len(data))
                if self._dice.random() < self.damage.get(way, 0):
                    self.damaged += 1
                    data = damaged(data, self._dice)
                await self._write(writer, data)
                if not going_on:
                    return

    def _counted(self, data: bytes, way: Way, pair: Pair) -> tuple[bytes, bool]:
        """What of it is forwarded, and whether the connection goes on after that."""
        if pair.frames:
            for frame in pair.frames[way].feed(data):
                self._counts[way] += 1
                if self._counts[way] == self._lost[way]:
                    self._lost[way] = None
                    return data[: max(0, frame.start)], False
        return data, True

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while self.drip and data:
            writer.write(data[:1])
            data = data[1:]
            await asyncio.sleep(self.drip)
        writer.write(data)
        await writer.drain()
