"""One connection to RabbitMQ, for threads. What is said goes into a buffer, and leaves with the next write;
one thread at a time reads, and any thread that waits for an answer does so if no other one does. And who sends
heartbeats: a handler may compute for minutes."""

from __future__ import annotations

import concurrent.futures
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from pamqp import base

from ...loops import Alarm, process
from .._retry import RETRY_FOR, retried, time_in_the_kernel
from .dialogue import Answer, Dialogue
from .servers import SOCKET_TIMEOUT, Servers, unavailable
from .wire import HEARTBEAT, Arrival, Broken, Channel
from .wire import Connection as Methods

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
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rpc-heartbeats", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                connections = [each for each in self._connections if each.is_open]
                if not connections:
                    self._thread = None
                    return
            for each in connections:
                each.beat()
            pause = min((each.interval for each in connections if each.interval), default=60) / 4
            del connections
            with self._lock:
                self._changed.wait(pause)


class Wakeup(Alarm):
    """An alarm that can be waited for together with a connection."""

    def fileno(self) -> int:
        return self._ear.fileno()


class Connection:
    """Connects when it is made. It breaks once, and is of no use then. Everything raises Broken."""

    def __init__(self, servers: Servers, heartbeats: Heartbeats, wakeup: Wakeup | None = None) -> None:
        """`wakeup` ends a wait of whoever reads."""
        self.failure: Broken | None = None
        """Why it is of no use any more."""
        self.dialogue = Dialogue(self.put)
        self._wakeup, self._pid = wakeup, process.id
        self._unsent: deque[bytes] = deque()
        self._order = threading.RLock()
        """Held to say something that will be answered, and to hear."""
        self._writing, self._reading, self._doubtful = (threading.Lock() for _ in range(3))
        self.is_waiting = False
        """Whether somebody waits for what comes, and will not look at what is to be sent until then."""
        self._is_lazy = False
        try:
            self._socket: Any = servers.connected()
        except OSError as error:
            raise Broken(str(error)) from error
        self._poll = select.poll()
        self._fd = self._socket.fileno()
        for each in (self._fd, *([wakeup.fileno()] if wakeup else [])):
            self._poll.register(each, select.POLLIN)
        self._heard = self._spoke = time.monotonic()
        try:
            self._introduce(servers)
        except BaseException as error:
            self.drop(error)
            raise
        if type(self._socket) is socket.socket:
            time_in_the_kernel(self._socket, SOCKET_TIMEOUT, socket.SO_SNDTIMEO)
        heartbeats.add(self)

    def _introduce(self, servers: Servers) -> None:
        opening, answer = servers.opening(), None
        while True:
            try:
                said, expected = opening.send(answer)
            except StopIteration as end:
                self.dialogue.terms = end.value
                return
            future: concurrent.futures.Future[Arrival] = concurrent.futures.Future()
            self.dialogue.expect(0, (expected,), future)
            self.put(said)
            answer = self.wait_for(future).method

    @property
    def is_open(self) -> bool:
        return self.failure is None and self._pid == process.id

    @property
    def interval(self) -> float:
        """Seconds in which RabbitMQ expects a sign of life; 0: it does not."""
        return self.dialogue.terms.heartbeat

    # What is said.

    def put(self, data: bytes) -> None:
        """It leaves with the next write. Any thread; does not block."""
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
                    self._socket.sendall(parts[0] if len(parts) == 1 else b"".join(parts))
                    self._spoke = time.monotonic()
        except BaseException as error:  # a part of it may have left
            raise self.drop(error) from error

    def flush_soon(self) -> None:
        """See to it that what was put leaves, by whoever reads. Any thread; does not block."""
        if self.is_waiting and self._wakeup:
            self._wakeup.ring()

    def tell(self, channel: int, *methods: base.Frame) -> None:
        with self._order:
            self.dialogue.tell(channel, *methods)

    def publish(self, channel: int, key: str, properties: Any, body: bytes, **how: Any) -> None:
        with self._order:
            self.dialogue.publish(channel, key, properties, body, **how)

    def publish_safely(
        self, channel: int, key: str, properties: Any, body: bytes, answer: Answer, **how: Any
    ) -> None:
        with self._order:
            self._check()
            self.dialogue.publish_safely(channel, key, properties, body, answer, **how)

    def ask(self, channel: int, method: base.Frame, *expected: type[Any]) -> Arrival:
        """The answer to this. If it is refused the channel alone is closed, and opened again by its next
        use."""
        future: concurrent.futures.Future[Arrival] = concurrent.futures.Future()
        with self._order:
            self._check()
            self.dialogue.ask(channel, method, expected, future)
        return self.wait_for(future)

    def probe(self, channel: int, method: base.Frame, expected: type[Any]) -> Arrival:
        """As `ask`, on a channel of questions of which any may be refused: one at a time."""
        with self._doubtful:
            return self.ask(channel, method, expected)

    def succeeds(self, channel: int, method: base.Frame, expected: type[Any], *refusals: int) -> bool:
        """Whether this is done; False if it is refused for one of these reasons."""
        try:
            self.probe(channel, method, expected)
        except Broken as error:
            if error.code not in refusals or not self.is_open:
                raise
            return False
        return True

    def close_channel(self, channel: int) -> None:
        """What was taken on it and not acknowledged goes back."""
        self.ask(channel, Channel.Close(200, "", 0, 0), Channel.CloseOk)
        self.dialogue.closed(channel)

    def confirmed(self, channel: int, key: str, properties: Any, body: bytes, **how: Any) -> Arrival | None:
        """Publish; None once RabbitMQ has it, else what says that it has not."""
        future: concurrent.futures.Future[Arrival | None] = concurrent.futures.Future()
        self.publish_safely(channel, key, properties, body, future, **how)
        return self.wait_for(future)

    def wait_for(self, answer: concurrent.futures.Future[T]) -> T:
        """Its result. Reads, if nobody else does."""
        end, has_read = time.monotonic() + SOCKET_TIMEOUT, False
        while not answer.done():
            self.flush()
            if time.monotonic() > end:
                raise self.drop(Broken(self.dialogue.blocked or f"no answer within {SOCKET_TIMEOUT:g} s"))
            if self._reading.acquire(blocking=False):
                try:
                    has_read = self._fill(0 if answer.done() else BLOCK) or has_read
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
        with self._reading:
            return bool(ready()) or self._fill(seconds)

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
            if not (data := self._socket.recv(CHUNK)):
                raise Broken("RabbitMQ closed the connection")  # noqa: TRY301
            self._heard = time.monotonic()
            with self._order:
                self.dialogue.hear(data)
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
        if self._is_lazy != (size > 1) and type(self._socket) is socket.socket:
            self._is_lazy = size > 1
            with suppress(OSError, AttributeError):  # it need not be
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _pending(self) -> bool:
        """Whether TLS has read what we have not."""
        return hasattr(self._socket, "pending") and self._socket.pending() > 0

    def _check_life(self) -> None:
        silence = time.monotonic() - self._heard
        if self.interval and silence > 2 * self.interval and not self._poll.poll(0):
            raise ConnectionError(f"no sign of life of RabbitMQ for {silence:.0f} s")

    def _check(self) -> None:
        if self.failure:
            raise self.failure

    # The end.

    def close(self) -> None:
        """Say goodbye, and wait until what was said before is done."""
        if self.is_open:
            with suppress(Broken):
                self.sleep_through(1)
                self.ask(0, Methods.Close(200, "", 0, 0), Methods.CloseOk)
        self.drop(Broken("it was closed"))

    def drop(self, error: BaseException) -> BaseException:
        """Make it of no use, for this reason. Any thread. What the reason is to be raised as."""
        if self._pid != process.id:  # it is a parent's, who goes on with it
            self.failure = Broken("it is another process's")
            return self.failure
        is_failure = isinstance(error, OSError | Broken)
        failure = error if isinstance(error, Broken) else Broken(str(error) or type(error).__name__)
        with self._order:
            self.failure = self.failure or failure
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                self._socket.close()
            self.dialogue.end(failure)
        return self.failure if is_failure else error


def persistently(action: Callable[[], T], seconds: float = RETRY_FOR) -> T:
    """What the action returns; while RabbitMQ cannot be had it is tried again for so many seconds, so it must
    do no harm when it is carried out twice. Then raises BackendUnavailable."""
    return retried(action, seconds, Broken, unavailable)
