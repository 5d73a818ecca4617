"""Threads that call: each request has a connection for as long as it takes, which is then used again."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing, suppress
from functools import partial

from ...deadlines import in_time, left, within
from ...errors import NoReceivers, RpcError, RpcTimeout, SerializationError
from ...loops import DelayQueue
from ...transport import Address, Message, packed
from .._retry import patience
from .endpoints import CONNECT, FAREWELL, KEEP, Connection, Peer, Peers
from .exchange import Exchange, Patience
from .wire import OURS, ROOT, Answers, Request, path_of

MOST_IDLE = 64
"""Connections to one place that are kept."""
READ = 65536
MIND_EVERY = 0.05


class Wire(Connection):
    """One connection."""

    def __init__(self, peer: Peer[Wire], connection: socket.socket) -> None:
        super().__init__(peer)
        self._socket = connection

    def send(self, request: Request, seconds: float) -> None:
        """Raises OSError."""
        self.answers.expect()
        self._socket.settimeout(seconds)
        self._socket.sendall(request.encoded())

    def receive(self, seconds: float | None) -> bool:
        """Whether there was something in that time. Raises OSError, also at its end, and
        SerializationError."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(READ)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return False
        if not data:
            raise ConnectionResetError("the connection was closed")
        self.answers.feed(data)
        return True

    def is_usable(self, now: float) -> bool:
        """Whether nothing came meanwhile, not even its end."""
        if now - self.since > KEEP:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def interrupt(self) -> None:
        """Whoever waits for something finds that it has ended. Any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class Wires:
    """The connections of all threads of a process."""

    def __init__(self, peers: Peers[Wire], context: ssl.SSLContext | None) -> None:
        self.peers, self._context = peers, context
        self._is_closed = False
        self._minding, self._is_minding = threading.Lock(), False
        self._later = DelayQueue("rpc-http-retries")
        self._open: set[BlockingReplies] = set()
        """For which somebody may not wait just now: they may have to be posted again all the same."""

    def get(self, peer: Peer[Wire], seconds: float) -> Wire:
        """One that was used before, or a new one. Raises OSError."""
        if wire := peer.take(time.monotonic()):
            return wire
        with within(seconds):
            connection = in_time(partial(self._connect, peer), undo=lambda made: made.close())
        peer.outstanding += 1
        return Wire(peer, connection)

    def _connect(self, peer: Peer[Wire]) -> socket.socket:
        connection = socket.create_connection((peer.host, peer.port), CONNECT)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context:
                return self._context.wrap_socket(connection, server_hostname=peer.host)
        except BaseException:
            connection.close()
            raise
        return connection

    def put_back(self, wire: Wire) -> None:
        """It is not used any more."""
        wire.peer.put_back(wire, time.monotonic(), 0 if self._is_closed else MOST_IDLE)

    def ask(
        self,
        peer: Peer[Wire],
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] = OURS,
        seconds: float = FAREWELL,
    ) -> Answers:
        """The answer to one request. Raises OSError, SerializationError."""
        seconds = left(seconds)
        end = time.monotonic() + seconds
        wire = self.get(peer, seconds)
        try:
            about = method, peer.prefix + target, peer.host_header, body
            wire.send(Request(*about, [*headers.items()]), seconds)
            while not wire.answers.is_complete:
                if not wire.receive(max(0.001, end - time.monotonic())) and time.monotonic() >= end:
                    raise TimeoutError("it did not answer in time")
            return wire.answers
        finally:
            self.put_back(wire)

    def mind(self, replies: BlockingReplies) -> None:
        """Until it is closed."""
        self._open.add(replies)
        if not self._is_minding:
            with self._minding:
                self._is_minding = self._is_minding or self._later(MIND_EVERY, self._mind)

    def forget(self, replies: BlockingReplies) -> None:
        self._open.discard(replies)

    def _mind(self) -> None:
        for replies in self._open.copy():
            replies.go_on()
        with self._minding:
            self._is_minding = bool(self._open) and self._later(MIND_EVERY, self._mind)

    def close(self) -> None:
        self._is_closed = True
        self._later.end()
        self.peers.close()


class BlockingReplies:
    """The way back of one request."""

    def __init__(self, wires: Wires, to: Address, message: Message, most: Patience) -> None:
        self._wires = wires
        self._exchange = Exchange(wires.peers, to, message, most, time.monotonic())
        self._wire: Wire | None = None
        self._is_closed, self._receiving = False, threading.Lock()
        self._try_all(left(CONNECT if message.ttl is None else message.ttl))
        wires.mind(self)

    def receive(self, timeout: float | None) -> Message:
        with self._receiving:
            try:
                return self._received(timeout)
            finally:
                if self._is_closed:
                    self._give_up_wire()

    def _received(self, timeout: float | None) -> Message:
        end = None if timeout is None else time.monotonic() + timeout
        come = self._exchange.come
        while not come:
            left = None if end is None else end - time.monotonic()
            if self._is_closed or self._exchange.is_over or (left is not None and left <= 0):
                raise self._exchange.late()
            self._advance(left)
        reply = come.popleft()
        if isinstance(reply, RpcError):
            raise reply
        return reply

    def _advance(self, seconds: float | None) -> None:
        """Wait for what may happen next, for so long at most."""
        exchange, wire = self._exchange, self._wire
        if wire is None:
            self._try(CONNECT if seconds is None else seconds)
            return
        try:
            if wire.receive(seconds):
                exchange.fed(wire.answers, time.monotonic())
        except SerializationError as error:
            exchange.failed(error)
        except OSError as error:
            if not self._is_closed:
                exchange.broken(error, time.monotonic())
            self._give_up_wire()
        if exchange.is_over or wire.answers.is_complete:
            self._give_up_wire()

    def _give_up_wire(self) -> None:
        wire, self._wire = self._wire, None
        if wire:
            self._wires.put_back(wire)

    def _try_all(self, seconds: float) -> None:
        """Post it to somebody, if there is one now."""
        end = time.monotonic() + seconds
        while self._wire is None and (now := time.monotonic()) < end:
            peer = self._exchange.next_peer(now)
            if peer is None:
                return
            self._post(peer, end - now)

    def _try(self, seconds: float) -> None:
        """Post it, or pause for so many seconds at most, as it is to be posted again."""
        exchange, now = self._exchange, time.monotonic()
        if peer := exchange.next_peer(now):
            self._post(peer, seconds)
        elif not exchange.is_over:
            time.sleep(max(0.0, min(exchange.pause_until - now, seconds, 0.05)))

    def _post(self, peer: Peer[Wire], seconds: float) -> None:
        exchange = self._exchange
        try:
            wire = self._wires.get(peer, max(0.001, seconds))
        except OSError as error:
            exchange.unreachable(peer, error, time.monotonic())
            return
        self._wire = wire
        try:
            wire.send(exchange.request(peer, time.monotonic()), left(CONNECT))
        except OSError as error:
            self._give_up_wire()
            exchange.unreachable(peer, error, time.monotonic())

    def go_on(self) -> None:
        """Do what there is to do, without a wait, while nobody waits for what comes."""
        if self._receiving.acquire(blocking=False):  # else whoever waits there does it
            try:
                if self._wire is None and not self._is_closed:
                    self._try_all(CONNECT)
                elif not self._is_closed and not self._exchange.is_over:
                    self._advance(0.0)
            finally:
                self._receiving.release()

    def until_taken(self, seconds: float) -> None:
        """A worker has it: it waits for no reply. Raises why not."""
        with suppress(RpcTimeout):
            self.receive(seconds)
        if not self._exchange.is_over:
            raise self._exchange.why

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._wires.forget(self)
        exchange, wire = self._exchange, self._wire
        if wire:
            wire.interrupt()
        if self._receiving.acquire(blocking=False):  # else whoever waits there does it
            self._give_up_wire()
            self._receiving.release()
        if exchange.is_withdrawn and exchange.peer:
            with suppress(OSError, SerializationError):  # it finds out, a little later
                self._wires.ask(exchange.peer, "POST", f"{ROOT}cancel/{exchange.message.id}")


class Gathered:
    """The replies of all workers, which have been asked one after the other."""

    def __init__(self, wires: Wires, to: Address, message: Message) -> None:
        self._come: deque[Message] = deque()
        seconds = FAREWELL if message.ttl is None else message.ttl
        for peer in wires.peers.all:
            with suppress(OSError, SerializationError):
                answers = wires.ask(peer, "POST", path_of(to), packed(message), seconds=seconds)
                if answers.status == 200:
                    self._come += answers.frames()

    def receive(self, timeout: float | None) -> Message:
        if not self._come:
            raise NoReceivers("all workers have answered")
        return self._come.popleft()

    def close(self) -> None:
        """Nothing is under way."""


def send(wires: Wires, to: Address, message: Message, most: Patience) -> None:
    """Returns once a worker has it. Raises what `Exchange` says, and BackendUnavailable."""
    with closing(BlockingReplies(wires, to, message, most)) as sending:
        sending.until_taken(min(patience(message.ttl), most.seconds))
