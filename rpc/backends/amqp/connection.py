"""One connection to RabbitMQ, for threads. What is said goes into a buffer, and leaves with the next write;
one thread at a time reads, and any thread that waits for an answer does so if no other one does. And who
sends heartbeats: a handler may compute for minutes."""

from __future__ import annotations

import concurrent.futures
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, TypeVar
from weakref import WeakSet

from pamqp import base

from ...deadlines import left, limited
from ...loops import Alarm, process, started
from .._retry import RETRY_FOR, retried, time_in_the_kernel
from .dialogue import Dialogue
from .servers import SOCKET_TIMEOUT, Servers, unavailable
from .wire import HEARTBEAT, Arrival, Broken, Channel, Queue
from .wire import Connection as Methods

logger = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK = 65536
"""Bytes to be read at once. For much more, each receipt would ask the system for memory."""
BLOCK = 1.0
"""Seconds that a wait without end is looked after, at the latest."""
LAZY = 0.02
"""Seconds that what says no more than that a message is safe may wait."""
SHIFT = 0.002
"""Seconds after which a thread that waits for an answer looks whether it must read itself."""


class Heartbeats:
    """Sends those of all connections of a backend, from one thread that lives as long as there are any."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._connections: WeakSet[Connection] = WeakSet()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._pid = process.id

    def add(self, connection: Connection) -> None:
        if self._pid != process.id:  # a parent's thread is not in its child
            self._begin()
        with self._lock:
            self._connections.add(connection)
            if self._thread is None or not self._thread.is_alive():
                self._thread = started(threading.Thread(target=self._run, name="rpc-heartbeats", daemon=True))
            self._changed.notify()

    def removed(self) -> None:
        """Look again whether there are any: the thread ends with the last one."""
        if self._pid == process.id:
            with self._lock:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                connections = [each for each in self._connections if each.is_open]
                if not connections:
                    self._thread = None
                    return
            for each in connections:
                try:
                    each.beat()
                except Exception as error:  # the others need theirs
                    logger.exception("a heartbeat could not be sent")
                    each.drop(error)
            pause = min((each.interval for each in connections if each.interval), default=60) / 4
            del connections, each  # nobody else may know them any more
            with self._lock:
                self._changed.wait(pause)


class Connection(Dialogue):
    """Connects when it is made. Everything raises Broken."""

    def __init__(self, servers: Servers, heartbeats: Heartbeats, wakeup: Alarm | None = None) -> None:
        """`wakeup` ends a wait of whoever reads."""
        super().__init__()
        self._wakeup, self._heartbeats, self._pid = wakeup, heartbeats, process.id
        self._unsent: deque[bytes] = deque()
        self._writing, self._reading, self._doubtful = (threading.Lock() for _ in range(3))
        self.is_waiting = self._is_lazy = False
        """Whether somebody waits for what comes, and will not look at what is to be sent until then."""
        try:
            self._socket: Any = servers.connected()
        except OSError as error:
            raise Broken(str(error)) from error
        self._is_safe = type(self._socket) is not socket.socket
        self._poll, self._fd = select.poll(), self._socket.fileno()
        for each in (self._fd, *([wakeup.fileno()] if wakeup else [])):
            self._poll.register(each, select.POLLIN)
        self._heard = self._spoke = time.monotonic()
        try:
            self._introduce(servers)
        except BaseException as error:
            self.drop(error)
            raise
        if not self._is_safe:
            time_in_the_kernel(self._socket, SOCKET_TIMEOUT, socket.SO_SNDTIMEO)
        heartbeats.add(self)

    def _introduce(self, servers: Servers) -> None:
        opening, answer = servers.opening(), None
        while True:
            try:
                said, expected = opening.send(answer)
            except StopIteration as end:
                self.terms = end.value
                return
            future: concurrent.futures.Future[Arrival] = concurrent.futures.Future()
            self.expect(0, (expected,), future)
            self.put(said)
            answer = self.wait_for(future).method

    @property
    def is_open(self) -> bool:
        return self.failure is None and self._pid == process.id

    @property
    def interval(self) -> float:
        """Seconds in which RabbitMQ expects a sign of life; 0: it does not."""
        return self.terms.heartbeat

    def __del__(self) -> None:
        """Whoever made it may have been interrupted before it could be kept."""
        if self.failure is None and "_socket" in vars(self):
            self._socket.close()

    # What is said.

    def put(self, data: bytes) -> None:
        """Let it leave with the next write. Any thread; does not block."""
        self._unsent.append(data)

    def flush(self) -> None:
        """Write what was put. Any thread."""
        if not self._unsent:
            return
        try:
            with self._writing:
                parts = []
                while self._unsent:
                    parts.append(self._unsent.popleft())
                if parts:
                    with limited(self._socket, SOCKET_TIMEOUT):
                        self._socket.sendall(parts[0] if len(parts) == 1 else b"".join(parts))
                    self._spoke = time.monotonic()
        except BaseException as error:  # a part of it may have left
            raise self.drop(error) from error

    def flush_soon(self) -> None:
        """See to it that what was put leaves, by whoever reads. Any thread; does not block."""
        if self.is_waiting and self._wakeup:
            self._wakeup.ring()

    def interrupt(self) -> None:
        """End the wait of whoever reads, or the next one. Any thread; does not block."""
        if self._wakeup:
            self._wakeup.ring()

    def ask(self, channel: int, method: base.Frame, *expected: type[Any]) -> Arrival:
        """The answer to a method. If that is refused, its channel alone is closed, and opened again by its
        next use."""
        future: concurrent.futures.Future[Arrival] = concurrent.futures.Future()
        self.say(channel, method, expected, future)
        return self.wait_for(future)

    def probe(self, channel: int, method: base.Frame, *expected: type[Any]) -> Arrival:
        """Ask on a channel of questions of which any may be refused: one at a time."""
        with self._doubtful:
            return self.ask(channel, method, *expected)

    def succeeds(self, channel: int, method: base.Frame, expected: type[Any], *refusals: int) -> bool:
        """Whether this is done; False if it is refused for one of these reasons."""
        try:
            self.probe(channel, method, expected)
        except Broken as error:
            if error.code not in refusals or not self.is_open:
                raise
            return False
        return True

    def size_of(self, channel: int, probe: base.Frame) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consumers it has; none if it does not exist."""
        try:
            declared: Any = self.probe(channel, probe, Queue.DeclareOk).method
        except Broken as error:
            if error.code != 404 or not self.is_open:
                raise
            return 0, 0
        return declared.message_count, declared.consumer_count

    def close_channel(self, channel: int) -> None:
        """Close a channel: what was taken on it and not acknowledged goes back."""
        self.ask(channel, Channel.Close(200, "", 0, 0), Channel.CloseOk)
        self.closed(channel)

    def confirmed(self, channel: int, key: str, properties: Any, body: bytes, **how: Any) -> Arrival | None:
        """Publish; None once RabbitMQ has it, else what says that it has not."""
        future: concurrent.futures.Future[Arrival | None] = concurrent.futures.Future()
        self.publish_safely(channel, key, properties, body, future, **how)
        return self.wait_for(future)

    def wait_for(self, answer: concurrent.futures.Future[T]) -> T:
        """The result of a future, which comes from RabbitMQ. Reads, if nobody else does."""
        try:
            return self._result(answer)
        except Broken:
            raise
        except BaseException as error:  # interrupted: the answer would be taken for that of another question
            raise self.drop(error) from error

    def _result(self, answer: concurrent.futures.Future[T]) -> T:
        seconds, has_read = left(SOCKET_TIMEOUT), False
        end = time.monotonic() + seconds
        while not answer.done():
            self.flush()
            if (rest := end - time.monotonic()) < 0:
                raise self.drop(Broken(self.blocked or f"no answer within {seconds:.3g} s"))
            if self._reading.acquire(blocking=False):
                try:
                    has_read = self._fill(0 if answer.done() else min(BLOCK, rest)) or has_read
                finally:
                    self._reading.release()
            else:
                with suppress(concurrent.futures.TimeoutError):
                    answer.exception(SHIFT)
        if has_read and self._wakeup:
            self._wakeup.ring()  # who reads otherwise may be waited for by what came
        return answer.result()

    def beat(self) -> None:
        """Say that we are there, if nothing else did for a while."""
        if self.interval and time.monotonic() - self._spoke > self.interval / 4:
            self.put(HEARTBEAT)
            with suppress(Broken):  # whoever reads finds out
                self.flush()

    # What is heard.

    def read(self, seconds: float, ready: Callable[[], object] = lambda: False) -> bool:
        """Write what is to be written, and hear what comes within that time. Whether something did, or is
        `ready`, or somebody woke us up."""
        try:
            with self._reading:
                return bool(ready()) or self._fill(seconds)
        except BaseException as error:  # who is interrupted on the way out of it leaves the lock behind
            raise self.drop(error) from error

    def look(self) -> None:
        """Hear what came by now: it may have broken while nobody read."""
        if self._pending() or self._poll.poll(0):
            self.read(0)

    def _fill(self, seconds: float) -> bool:
        try:
            self.is_waiting = True
            self.flush()
            if not (ready := self._pending() or self._ready(seconds)):
                self._check_life()
                return False
            self.is_waiting = False
            if ready is not True and self._fd not in dict(ready):
                if self._wakeup:
                    self._wakeup.wait(0)
                return True
            with self._writing if self._is_safe else nullcontext():  # TLS is not for two threads at a time
                data = self._socket.recv(CHUNK)
            if not data:
                raise Broken("RabbitMQ closed the connection")  # noqa: TRY301
            self._heard = time.monotonic()
            self.hear(data)
        except BaseException as error:  # a part of what was read may be lost
            raise self.drop(error) from error
        finally:
            self.is_waiting = False
        return True

    def _ready(self, seconds: float) -> Any:
        if self._is_lazy and seconds > LAZY:
            if ready := self._poll.poll(LAZY * 1000):
                return ready
            self.sleep_through(1)
            seconds -= LAZY
        return self._poll.poll(seconds * 1000)

    def sleep_through(self, size: int) -> None:
        """Do not wake up for less than so many bytes in the first LAZY seconds of the next waits, until one
        takes longer: what only confirms is not worth it."""
        if self._is_lazy != (size > 1) and not self._is_safe:
            self._is_lazy = size > 1
            with suppress(OSError, AttributeError):  # it need not be
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _pending(self) -> bool:
        """Whether TLS has read what we have not."""
        return self._is_safe and self._socket.pending() > 0

    def _check_life(self) -> None:
        silence = time.monotonic() - self._heard
        if self.interval and silence > 2 * self.interval and not self._poll.poll(0):
            raise ConnectionError(f"no sign of life of RabbitMQ for {silence:.0f} s")

    # The end.

    def close(self) -> None:
        """Say goodbye, and wait until what was said before is done."""
        if self.is_open:
            with suppress(Broken):
                self.sleep_through(1)
                self.ask(0, Methods.Close(200, "", 0, 0), Methods.CloseOk)
        self.drop(Broken("it was closed"))
        self._heartbeats.removed()

    def drop(self, error: BaseException) -> BaseException:
        """Make it of no use, for this reason. Any thread. What the reason is to be raised as."""
        failure = self.end(error)
        if self._pid == process.id:  # else it is a parent's, who goes on with it
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                self._socket.close()
        return failure if isinstance(error, OSError | Broken) else error


def persistently(action: Callable[[], T], seconds: float = RETRY_FOR) -> T:
    """What the action returns; while RabbitMQ cannot be had it is tried again for so many seconds, so it must
    do no harm when it is carried out twice. Then raises BackendUnavailable."""
    return retried(action, seconds, Broken, unavailable)
