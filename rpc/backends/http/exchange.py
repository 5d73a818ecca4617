"""One request until it is answered, however often it must be posted. Without a wait, and without a clock:
a thread (`blocking`) or an event loop (`aio`) drives it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from ...errors import (
    BackendRefused,
    BackendUnavailable,
    NoReceivers,
    QueueFull,
    RpcError,
    RpcTimeout,
    SerializationError,
    shown,
)
from ...transport import DELAY, HANDED_BACK, IDEMPOTENCY_KEY, STREAM, Address, Message, packed
from .._retry import backoff
from .._serving import DIED, lost
from ..features import unsupported
from .endpoints import Peer, Peers
from .tls import refusal
from .wire import BOUNCED, CONTENT_TYPE, FULL, HANDED, ONCE, ROOT, WHY, Answers, Request, path_of

LONGEST_PAUSE = 0.25
AGAIN = 0.05
"""Seconds between the loss of a connection and the next attempt: a process that dies closes its connections
before it stops to listen, and would be taken for one that lives."""

NO_HTTP = "it does not speak HTTP"


class Silence(ConnectionError):
    """A connection was closed before anything came."""

    def __init__(self) -> None:
        super().__init__("it closed the connection before anything came: does it speak HTTP?")


class Nonsense(ConnectionError):
    """What came is no HTTP."""


@dataclass(frozen=True)
class Patience:
    """How long, and how often, something is tried."""

    seconds: float
    """While nobody is there, or nobody who serves it."""
    deliveries: int
    """To workers that did not answer."""


class Exchange:
    """A message on its way to whoever takes it, and what comes back (`come`): replies, or why there are none.
    Seconds are those of the monotonic clock."""

    def __init__(
        self, peers: Peers[Any], to: Address, message: Message, patience: Patience, now: float
    ) -> None:
        """Raises Unsupported."""
        for header, feature in (DELAY, "delay"), (IDEMPOTENCY_KEY, "idempotency"):
            if header in message.headers:
                raise unsupported(feature)
        self.to, self.message = to, message
        self.come: deque[Message | RpcError] = deque()
        self.is_over = self.was_sent = False
        """Nothing more will come; a worker may have it."""
        self.pause_until = now
        self.peer: Peer[Any] | None = None
        """Who was asked last."""
        self._peers, self._patience = peers, patience
        self._began = self._heard = now
        self._ttl = message.ttl
        self._deliveries, self._handed_back, self._is_once = message.deliveries, False, False
        self._tried: set[Peer[Any]] = set()
        self._refusing: set[Peer[Any]] = set()
        """Those with whom TLS cannot be agreed upon."""
        self._rounds = self._bounced = 0
        self._again: Peer[Any] | None = None
        """Who may have it still."""
        self._is_probe = self._is_silent = False
        """Whether it is asked if HTTP is spoken there, in place of the message; whether the connection was
        closed last before anything came."""
        self.why: RpcError = BackendUnavailable("nobody listens")
        """That it was not taken at last."""

    @property
    def is_withdrawn(self) -> bool:
        """Whether somebody may do it still for whom nobody waits any more."""
        return self.was_sent and not self.is_over and self.message.reply_to is not None

    def next_peer(self, now: float) -> Peer[Any] | None:
        """Who is to be asked now; None: nobody before `pause_until`, or it is over."""
        if self.is_over or now < self.pause_until:
            return None
        peer, self._again = self._again, None
        if peer is None:
            peer = self._peers.best(self.to, self._tried, now)
        if peer is None:
            self._tried.clear()
            self._pause(now)
        return peer

    def _pause(self, now: float) -> None:
        """All were asked in vain."""
        if now - self._heard >= self._patience.seconds:
            self._end(self.why)
            return
        self.pause_until = now + backoff(self._rounds, LONGEST_PAUSE)
        self._rounds += 1

    def request(self, peer: Peer[Any], now: float) -> Request:
        """What is to be sent. Raises SerializationError."""
        self.peer, self.was_sent = peer, True
        if self._is_probe:
            return Request("GET", peer.prefix + ROOT, peer.host_header)
        changed: dict[str, Any] = {}
        if self._ttl is not None and now - self._began > 0.001:
            changed["ttl"] = f"{self._ttl - (now - self._began):.3f}"
        if self._deliveries != self.message.deliveries:
            changed["deliveries"] = self._deliveries
        if self._handed_back:
            changed[HANDED_BACK.replace("-", "_")] = "1"
        message = self.message.replace(**changed) if changed else self.message
        headers = [("content-type", CONTENT_TYPE)]
        if len(self._peers.all) > 1:
            headers.append((BOUNCED, str(self._bounced)))
        target = peer.prefix + path_of(self.to)
        return Request("POST", target, peer.host_header, packed(message), headers)

    def unreachable(self, peer: Peer[Any], error: OSError, now: float) -> None:
        """Nobody is there."""
        self._peers.lost(peer, error, now)
        self._is_silent = isinstance(error, Silence)
        if self._is_probe:
            self._end(lost(self.message, DIED))
        elif not self._is_refused(peer, NO_HTTP if isinstance(error, Nonsense) else refusal(error)):
            self._refused(peer, BackendUnavailable(f"{peer.name} cannot be reached: {shown(error)}"))

    def _is_refused(self, peer: Peer[Any], why: str | None) -> bool:
        """Whether it is of no use to try again: it ends if nobody else is left."""
        if why:
            self._refused(peer, BackendRefused(f"{peer.name}: {why}"))
            self._refusing.add(peer)
            if len(self._refusing) == len(self._peers.all):
                self._end(self.why)
        return why is not None

    def _refused(self, peer: Peer[Any], why: RpcError) -> None:
        self.why = why
        self._tried.add(peer)
        if self._peers.homes.get(self.to) is peer:
            del self._peers.homes[self.to]

    def broken(self, error: Exception | None, now: float) -> None:
        """The connection is lost, after the request was sent."""
        if self.is_over or self.peer is None:
            return
        if error and self._is_refused(self.peer, refusal(error, is_begun=True)):
            return
        if self._is_probe:
            self._end(BackendUnavailable(f"{self.peer.name}: {NO_HTTP}, and closes each connection"))
        elif self.message.reply_to is None:  # that it comes twice is less bad than that it does not come
            self._again = self.peer
            self.why = BackendUnavailable(f"{self.peer.name} closed the connection: does it speak HTTP?")
        elif self._is_once or (self._deliveries >= self._patience.deliveries and self.peer.has_answered):
            self._end(lost(self.message, DIED))
        elif self._deliveries >= self._patience.deliveries:  # what is no worker does not die of a message
            self._is_probe, self._again = True, self.peer
        else:
            self._deliveries += 1
            self._again = self.peer
        self._heard, self.pause_until = now, now + AGAIN

    def fed(self, answers: Answers, now: float) -> None:
        """Something of the answer has come."""
        if answers.status and self.peer:
            self.peer.has_answered = True
        if self._is_probe:
            if answers.status:
                self._end(lost(self.message, DIED))
        elif answers.status == 200:
            self._heard = now
            for frame in answers.frames():
                self._is_once = True  # from now on it would come twice
                if ONCE not in frame.headers:
                    self._reply(frame)
            if answers.is_complete:
                self.is_over = True
        elif answers.is_complete:
            self._not_taken(answers, now)

    def _reply(self, reply: Message) -> None:
        if not self.is_over:
            self.come.append(reply)
            self.is_over = STREAM not in reply.headers

    def _not_taken(self, answers: Answers, now: float) -> None:
        assert self.peer  # noqa: S101
        why, name = answers.headers.get(WHY), self.peer.name
        if answers.status == 202:
            self.is_over = True
            if self.to.kind == "inbox":
                self._peers.found(self.to, self.peer)
        elif answers.status == 404:
            self._refused(self.peer, NoReceivers(f"no worker at {name} serves {self.to}"))
        elif why == FULL:
            self._end(QueueFull(f"the worker of {self.to} at {name} has no room: start more"))
        elif answers.status == 503:
            self._refused(self.peer, BackendUnavailable(f"{name} does not take it: {why or 'not now'}"))
            self._handed_back = self._handed_back or why == HANDED
            self._bounced += 1
            if why:
                self._heard = now
        else:
            text = shown(bytes(answers.body[:200]).decode("utf-8", "replace"))
            self._end(BackendRefused(f"{name} answered with HTTP status {answers.status}: {text}"))

    def late(self) -> RpcError:
        """Why nothing has come in time."""
        return self.why if self._is_silent and not self.was_sent else RpcTimeout()

    def failed(self, error: SerializationError) -> None:
        """What came is none of ours."""
        name = self.peer.name if self.peer else "somebody"
        self._end(BackendUnavailable(f"{name} does not speak as our workers do: {shown(error)}"))

    def _end(self, last: Message | RpcError) -> None:
        self.is_over = True
        self.come.append(last)


class Turn:
    """Who is asked, one after the other and over again, until one is there: what he does not answer is not
    asked again, as he may have done it."""

    def __init__(self, peers: Peers[Any], now: float, seconds: float) -> None:
        """For so many seconds."""
        self._peers, self._end = peers, now + seconds
        self._tried: set[Peer[Any]] = set()
        self._rounds = 0
        self._why: Exception = ConnectionError("the URL has no host to call")

    def next(self, now: float) -> Peer[Any] | float:
        """Who is asked now, or for how many seconds nobody is. Raises BackendUnavailable if the time is
        up."""
        left = [each for each in self._peers.all if each not in self._tried]
        if left:
            return self._peers.best(None, self._tried, now) or left[0]
        pause = backoff(self._rounds, LONGEST_PAUSE)
        if now + pause > self._end:
            raise BackendUnavailable(f"nobody is reached: {shown(self._why)}") from self._why
        self._tried.clear()
        self._rounds += 1
        return pause

    def failed(self, peer: Peer[Any], error: Exception, now: float) -> None:
        """Ask the next one, unless it may have heard it. Raises TimeoutError, BackendUnavailable."""
        if isinstance(error, TimeoutError):
            raise error
        if why := refusal(error):
            error = BackendRefused(f"{peer.name}: {why}")
            if len(self._peers.all) == 1:
                raise error
        elif not isinstance(error, ConnectionRefusedError):
            raise BackendUnavailable(f"{peer.name}: {shown(error)}") from error
        self._peers.lost(peer, error, now)
        self._why = error
        self._tried.add(peer)
