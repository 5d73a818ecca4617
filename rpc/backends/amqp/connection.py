"""One connection to RabbitMQ, for one thread that reads; any thread may write. And who sends its heartbeats:
a handler may compute for minutes."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from pamqp import base

from ...loops import process
from .._retry import RETRY_FOR, retried, time_in_the_kernel
from .servers import SOCKET_TIMEOUT, Place, Terms, refusal, unavailable
from .wire import (
    HEARTBEAT,
    Arrival,
    Basic,
    Broken,
    Channel,
    Confirm,
    Connection,
    Probe,
    Queue,
    Wire,
    frames,
    published,
)

T = TypeVar("T")
CHUNK = 65536
"""Bytes to be read at once. For much more, each receipt would ask the system for memory."""
BLOCK = 1.0
"""Seconds that a wait without end is looked after, at the latest."""
_NEWS = (Connection.Close, Channel.Close, Basic.Cancel, Connection.Blocked, Connection.Unblocked)


class Pulse:
    """Sends the heartbeats of all connections of a backend, from one thread that lives as long as there are
    any."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._links: WeakSet[Link] = WeakSet()
        self._lock = threading.Lock()
        self._awake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._pid = process.id

    def add(self, link: Link) -> None:
        if self._pid != process.id:  # a parent's thread is not in its child
            self._begin()
        with self._lock:
            self._links.add(link)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="rpc-heartbeats", daemon=True)
                self._thread.start()
            self._awake.notify()

    def _beat(self) -> None:
        while True:
            with self._lock:
                links = [link for link in self._links if link.connected]
                if not links:
                    self._thread = None
                    return
            for link in links:
                link.beat()
            pause = min((link.terms.heartbeat for link in links if link.terms.heartbeat), default=60) / 4
            del links
            with self._lock:
                self._awake.wait(pause)


class Link:
    """Connects when it is opened. Everything raises Broken, after which it can be opened again."""

    def __init__(self, place: Place, pulse: Pulse) -> None:
        self.place, self._pulse = place, pulse
        self._socket: Any = None
        self._pid = 0
        self._lock = threading.Lock()
        self.terms = Terms(4096, 1, 0)
        self.blocked = ""
        """Why RabbitMQ takes no messages at present; "" if it does."""

    @property
    def connected(self) -> bool:
        return self._socket is not None and self._pid == process.id

    def open(self) -> None:
        """Connect, and open channel 1."""
        self.drop()
        self._lock, self._wire = threading.Lock(), Wire()
        self._came: deque[Arrival] = deque()
        self.blocked, self._tag, self._doubtful = "", 0, 0
        try:
            self._socket, self._pid = self.place.connected(), process.id
            self._poll = select.poll()
            self._fd = self._socket.fileno()
            self._poll.register(self._fd, select.POLLIN)
            self._heard = self._spoke = time.monotonic()
            self.terms = self._introduce(self.place.opening())
            if type(self._socket) is socket.socket:
                time_in_the_kernel(self._socket, SOCKET_TIMEOUT, socket.SO_SNDTIMEO)
        except OSError as error:
            self.drop()
            raise Broken(str(error)) from error
        except BaseException:
            self.drop()
            raise
        self._pulse.add(self)

    def sleep_through(self, size: int) -> None:
        """Do not wake up for less than so many bytes: what only confirms is not worth it."""
        if type(self._socket) is socket.socket and hasattr(socket, "SO_RCVLOWAT"):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def watch(self, other: int) -> None:
        """Let whoever reads be woken by this file descriptor, too."""
        self._poll.register(other, select.POLLIN)

    def _introduce(self, opening: Generator[tuple[bytes, type[Any]], Any, Terms]) -> Terms:
        answer = None
        while True:
            try:
                said, expected = opening.send(answer)
            except StopIteration as end:
                terms: Terms = end.value
                return terms
            self.write(said)
            answer = self._awaited(expected)

    def write(self, data: bytes) -> None:
        try:
            with self._lock:
                self._socket.sendall(data)
                self._spoke = time.monotonic()
        except (OSError, AttributeError) as error:
            self.drop()
            raise Broken(str(error)) from error
        except BaseException:  # a part of it may have left
            self.drop()
            raise

    def send(self, *methods: base.Frame, channel: int = 1) -> None:
        self.write(frames(channel, *methods))

    def publish(self, key: str, properties: Any, body: bytes, **how: Any) -> bytes:
        """The bytes that publish this."""
        return published(how.pop("channel", 1), key, properties, body, self.terms.room, **how)

    def read(self, seconds: float) -> Arrival | None:
        """What came next; None if nothing did in that time, or something else woke us up."""
        if self._came:
            return self._came.popleft()
        end = time.monotonic() + seconds
        while self._filled(max(0.0, end - time.monotonic())):
            if self._came:
                return self._came.popleft()
        return None

    def ask(self, method: base.Frame, *expected: type[Any], channel: int = 1) -> Any:
        """The answer to this. What comes before it is read later."""
        self.send(method, channel=channel)
        return self._awaited(*expected)

    def confirmed(self, *publishing: bytes, channel: int = 1) -> Arrival | None:
        """Publish on a channel with confirms; None once all of it is safe, else what came back."""
        self.write(b"".join(publishing))
        self._tag += len(publishing)
        back = None
        while True:
            arrival = self.arrival(Basic.Ack, Basic.Nack, Basic.Return, channel=channel)
            if not isinstance(arrival.method, Basic.Ack):
                back = arrival
            if not isinstance(arrival.method, Basic.Return) and arrival.method.delivery_tag >= self._tag:
                return back

    def with_confirms(self, channel: int = 1) -> None:
        self.ask(Confirm.Select(), Confirm.SelectOk, channel=channel)

    def exists(self, queue: str, channel: int) -> bool:
        """Whether there is a queue of this name, asked on a channel of its own: a no closes it."""
        return self.succeeds(Probe(queue), Queue.DeclareOk, channel=channel, refusals=(404,))

    def succeeds(
        self, method: base.Frame, *expected: type[Any], channel: int, refusals: tuple[int, ...] = (405,)
    ) -> bool:
        """Whether this is done; if it is refused for one of these reasons, the channel is opened again."""
        self._doubtful = channel
        try:
            self.ask(method, *expected, channel=channel)
        except Broken as error:
            if error.code not in refusals or not self.connected:
                raise
            self.ask(Channel.Open(), Channel.OpenOk, channel=channel)
            return False
        finally:
            self._doubtful = 0
        return True

    def beat(self) -> None:
        """Say that we are there, if nothing else did for a while."""
        if time.monotonic() - self._spoke > self.terms.heartbeat / 4 and self.terms.heartbeat:
            with suppress(Broken):  # whoever reads finds out
                self.write(HEARTBEAT)

    def hang_up(self) -> None:
        """Say goodbye, and wait until what was said before is done."""
        if self.connected:
            with suppress(Broken, OSError):
                self.sleep_through(1)
                self.ask(Connection.Close(200, "", 0, 0), Connection.CloseOk, channel=0)
        self.drop()

    def shut(self) -> None:
        """End it for whoever reads. Any thread."""
        wire = self._socket
        if wire is not None and self._pid == process.id:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        wire, self._socket = self._socket, None
        if wire is not None:
            with suppress(OSError):
                wire.close()

    def _awaited(self, *expected: type[Any]) -> Any:
        return self.arrival(*expected).method

    def arrival(self, *expected: type[Any], channel: int | None = None) -> Arrival:
        """The next of these. What comes before it is read later."""
        end = time.monotonic() + SOCKET_TIMEOUT
        while True:
            for at, found in enumerate(self._came):
                if isinstance(found.method, expected) and channel in (None, found.channel):
                    del self._came[at]
                    return found
            if (left := end - time.monotonic()) <= 0:
                self.drop()
                raise Broken(self.blocked or f"no answer within {SOCKET_TIMEOUT:g} s")
            self._filled(left)

    def _filled(self, seconds: float) -> bool:
        """Whether there was something to read, within so many seconds; only connections count."""
        try:
            ready = self._pending() or self._poll.poll(seconds * 1000)
            if not ready:
                self._check_life()
                return False
            if ready is not True and self._fd not in dict(ready):
                return False
            if not (data := self._socket.recv(CHUNK)):
                raise Broken("RabbitMQ closed the connection")  # noqa: TRY301
            self._heard = time.monotonic()
            self._sort_all(self._wire.feed(data))
        except (OSError, AttributeError) as error:
            self.drop()
            raise Broken(str(error)) from error
        except Broken as error:
            if not (self._doubtful and error.code in (404, 405)):
                self.drop()
            raise
        except BaseException:  # a part of what was read may be lost
            self.drop()
            raise
        return True

    def _pending(self) -> bool:
        """Whether TLS has read what we have not."""
        return hasattr(self._socket, "pending") and self._socket.pending() > 0

    def _check_life(self) -> None:
        silence = time.monotonic() - self._heard
        if self.terms.heartbeat and silence > 2 * self.terms.heartbeat and not self._poll.poll(0):
            raise ConnectionError(f"no sign of life of RabbitMQ for {silence:.0f} s")

    def _sort_all(self, arrivals: Iterable[Arrival]) -> None:
        failure = None
        for arrival in arrivals:
            try:
                self._sort(arrival)
            except Broken as error:
                failure = error
        if failure:
            raise failure

    def _sort(self, arrival: Arrival) -> None:
        method = arrival.method
        if not isinstance(method, _NEWS):
            self._came.append(arrival)
            return
        if isinstance(method, Connection.Blocked):
            self.blocked = f"it takes no messages at present: {method.reason}"
            return
        if isinstance(method, Connection.Unblocked):
            self.blocked = ""
            return
        if isinstance(method, Basic.Cancel):
            raise Broken("a queue that was served is gone")
        if isinstance(method, Channel.Close):
            self.send(Channel.CloseOk(), channel=arrival.channel)
            raise refusal(method)
        with suppress(Broken):
            self.send(Connection.CloseOk(), channel=0)
        self.drop()
        raise refusal(method)


def persistently(action: Callable[[], T], seconds: float = RETRY_FOR) -> T:
    """What the action returns; while RabbitMQ cannot be had it is tried again for so many seconds, so it must
    do no harm when it is carried out twice. Then raises BackendUnavailable."""
    return retried(action, seconds, Broken, unavailable)
