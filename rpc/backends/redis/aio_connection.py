"""One connection to Redis in an event loop: commands out, answers in, no coroutine in between.

Connecting (TLS, users, sentinels, clusters) is redis-py's, in a thread; from then on the loop minds the
socket, and hiredis reads. Nothing here is interrupted when a task is cancelled: whoever waits has a callback.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Thread
from typing import Any

import hiredis
import redis
from redis.exceptions import NoScriptError

from ...errors import RpcError
from ...loops import started
from .connection import FAILURES, Command, Connection, clock_offset_of, pack
from .evaluation import loaded
from .servers import Servers

Answered = Callable[[Any], None]
"""Gets the answer to a command; an error that Redis answered with is a redis.ResponseError."""

CHUNK = 64 * 1024
"""Bytes. A larger piece of memory is got from the kernel each time, which costs more than the receipt."""
_INCOMPLETE = object()


class AioConnection:
    """Made by `connect`. When it breaks, `lost` is called with the reason, and nothing else any more."""

    def __init__(
        self,
        connection: Any,
        scripts: dict[str, tuple[str, str]],
        clock_offset: float,
        lost: Callable[[Exception], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection, self._socket, self._scripts = connection, connection._sock, scripts
        self._lost = lost
        self.clock_offset, self.clock_read = clock_offset, self._loop.time()
        """What to add to the time of the loop for the clock of the server, and when that was found out."""
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE, replyError=_error)
        self._expected: deque[Answered] = deque()
        self._unsent = bytearray()
        self._empty: asyncio.Future[None] | None = None
        self._skip = self.pack(Connection.NO_ANSWER)
        self.heard = self._loop.time()
        """When it last gave a sign of life, or was asked something while nothing else was awaited."""
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._in_step, self._read)

    @property
    def is_waiting(self) -> bool:
        """Whether answers are to come."""
        return bool(self._expected)

    def pack(self, command: Command) -> bytes:
        """As it is written; the text of a script stands for how it is run here."""
        known = self._scripts.get(command[0])
        return pack((*known, *command[1:]) if known else command)

    def say(self, *commands: Command) -> bytes:
        """Commands without an answer, to be written."""
        return b"".join([self._skip + self.pack(command) for command in commands])

    def ask(self, command: Command, answered: Answered) -> bytes:
        """A command, to be written next, whose answer goes there."""
        if not self._expected:
            self.heard = self._loop.time()
        packed = self.pack(command)
        self._expected.append(answered)
        return packed

    def read_clock(self) -> None:
        """Ask for the time."""
        before = self.clock_read = self._loop.time()

        def answered(answer: Any) -> None:
            if isinstance(answer, list):
                middle = (before + self._loop.time()) / 2
                self.clock_offset = int(answer[0]) + int(answer[1]) / 1e6 - middle

        self.write([self.ask(("TIME",), answered)])

    def write(self, parts: Iterable[bytes]) -> None:
        """Write them; they may be asked for only now. If that fails, what has been asked would get answers
        to other questions: the connection is given up."""
        self._in_step(self._write, parts)

    def _write(self, parts: Iterable[bytes]) -> None:
        data = b"".join(parts)
        if self._unsent or not data:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            sent = 0
        except OSError as error:
            self._loop.call_soon(self.fail, redis.ConnectionError(str(error)))
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._loop.add_writer(self._socket, self._in_step, self._write_more)

    def _in_step(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do this. If it is interrupted, nobody knows what was written, or which answer is the next one; nor
        whether the connection is dropped."""
        try:
            action(*arguments)
        except BaseException as error:
            self.drop()
            self._lost(redis.ConnectionError(f"interrupted: {error!r}"))
            raise

    async def flushed(self, seconds: float) -> None:
        """Once all is written; after so many seconds at the latest."""
        if self._unsent:
            self._empty = self._loop.create_future()
            await asyncio.wait([self._empty], timeout=seconds)

    def drop(self) -> None:
        """Give it up, with the answers that are to come. Idempotent."""
        wire, self._socket = self._socket, None
        if wire is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(wire)
            self._loop.remove_writer(wire)
        self._expected.clear()
        self._connection.disconnect()

    def fail(self, error: Exception) -> None:
        if self._socket is not None:
            self.drop()
            self._lost(error)

    def _read(self) -> None:
        try:
            data = self._received()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self.fail(redis.ConnectionError(str(error)))
            return
        if not data:
            self.fail(redis.ConnectionError("Redis closed the connection"))
            return
        self.heard = self._loop.time()
        self._reader.feed(data)
        try:
            while self._socket is not None and (answer := self._reader.gets()) is not _INCOMPLETE:
                self._expected.popleft()(answer)
        except (hiredis.ProtocolError, *FAILURES) as error:
            self.fail(redis.ConnectionError(f"what came is no answer: {error}"))

    def _received(self) -> bytes:
        data: bytes = self._socket.recv(CHUNK)
        if isinstance(self._socket, ssl.SSLSocket):  # what is decrypted already wakes nobody up
            while left := self._socket.pending():
                data += self._socket.recv(left)
        return data

    def _write_more(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self.fail(redis.ConnectionError(str(error)))
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket)
            if self._empty:
                self._empty.set_result(None)


def _error(text: str) -> redis.ResponseError:
    return (NoScriptError if text.startswith("NOSCRIPT") else redis.ResponseError)(text)


def connect(
    servers: Servers,
    key: str,
    scripts: Sequence[str],
    *,
    by_text: bool,
    opened: Callable[[AioConnection | redis.RedisError], None],
    lost: Callable[[Exception], None],
) -> None:
    """Connect to the server that has this key, in a thread, and call `opened` with the wire, or with what
    went wrong. There is no task that would have to be ended."""
    loop = asyncio.get_running_loop()

    def connecting() -> None:
        try:
            connection = servers.connection(key)
            known = {script: loaded(connection, script, by_text) for script in scripts}
            offset = clock_offset_of(connection)
        except FAILURES as error:
            failure = error if isinstance(error, redis.RedisError) else redis.ConnectionError(str(error))
            tell(partial(opened, failure))
        else:
            tell(partial(made, connection, known, offset), connection.disconnect)

    def made(connection: Any, known: dict[str, tuple[str, str]], offset: float) -> None:
        descriptor = connection._sock.fileno()
        try:
            opened(AioConnection(connection, known, offset, lost))
        except BaseException as error:
            loop.remove_reader(descriptor)
            connection.disconnect()
            opened(redis.ConnectionError(f"interrupted: {error!r}"))
            raise

    def tell(news: Callable[[], None], otherwise: Callable[[], object] = lambda: None) -> None:
        try:
            loop.call_soon_threadsafe(news)
        except RuntimeError:  # the loop was closed
            otherwise()

    try:
        started(Thread(target=connecting, name="rpc-connect", daemon=True))
    except RpcError as error:
        loop.call_soon(opened, redis.ConnectionError(str(error)))
