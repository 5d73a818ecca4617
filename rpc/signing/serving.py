"""What comes to a server, verified, and done once."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from ..core.codecs import JSON
from ..core.protocol import encode_error
from ..core.signing import (
    binding_of,
    job,
    message_id,
)
from ..errors import Cancelled, RpcError, Unauthorized, shown
from ..transport import (
    FAILED,
    KEEP,
    Address,
    Delivery,
    Handler,
    Message,
    Server,
)
from .signer import Signer

logger = logging.getLogger("rpc.signing")

REFUSED = "the request is not signed as this receiver wants it: see RPC_SIGNING_KEYS"
"""What a caller is told, whatever the reason: that is for the receiver's log."""
MOST_RECENT = 100_000
"""Ids of messages that a server remembers."""
MOST_REPLY_BYTES = 16 * 1024 * 1024
"""Of all replies that it remembers, together."""
LATER = 1.0
"""Seconds after which a message comes again that is in hand: what is done by then is not done twice."""


class Recent:
    """What a server has in hand, and what it has done: it does neither again. What was put back (postponed,
    handed back, made a dead letter) is forgotten: it comes again, and is to be done then. Any thread."""

    def __init__(self, most: int = MOST_RECENT, *, by_caller: bool = False) -> None:
        """`by_caller`: it is the caller who sends again what a worker has lost sight of, which is cancelled
        there: that is forgotten, too."""
        self._most, self._by_caller, self._lock = most, by_caller, threading.Lock()
        self._in_hand: dict[Any, Delivery] = {}
        self._done: OrderedDict[Any, None] = OrderedDict()
        self._replies: OrderedDict[Any, Message] = OrderedDict()
        self._size = 0

    def begin(self, key: Any, delivery: Delivery) -> bool:
        """Whether it may be begun; else it is in hand, or done."""
        with self._lock:
            before = self._in_hand.get(key)
            if key in self._done or (before and not (self._by_caller and before.cancelled)):
                return False
            self._in_hand[key] = delivery
            return True

    def is_done(self, key: Any) -> bool:
        return key in self._done

    def reply(self, key: Any) -> Message | None:
        """The last reply to what is done, if it is still known."""
        return self._replies.get(key)

    def end(self, key: Any, delivery: Delivery, last: Message | None) -> None:
        """It is done, and was answered so, unless it was forgotten meanwhile."""
        with self._lock:
            if self._in_hand.get(key) is not delivery:
                return
            del self._in_hand[key]
            if delivery.cancelled and self._by_caller:
                return
            self._done[key] = None
            if last and not delivery.cancelled:
                self._replies[key] = last
                self._size += _weight(last)
            if len(self._done) > self._most:
                self._forget_reply(self._done.popitem(last=False)[0])
            while self._size > MOST_REPLY_BYTES:
                self._forget_reply(next(iter(self._replies)))

    def _forget_reply(self, key: Any) -> None:
        if reply := self._replies.pop(key, None):
            self._size -= _weight(reply)

    def forget(self, key: Any) -> None:
        """It is to come again."""
        with self._lock:
            self._in_hand.pop(key, None)

    def forget_all(self) -> None:
        """What is in hand goes back."""
        with self._lock:
            self._in_hand.clear()


def _weight(reply: Message) -> int:
    return len(reply.body) + 1000  # about what its headers take


class SignedServer:
    """A server whose handler gets what is signed."""

    def __init__(self, server: Server, recent: Recent) -> None:
        self._server, self._recent = server, recent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def hand_back(self) -> None:
        """As the server's."""
        self._recent.forget_all()
        self._server.hand_back()


class Verified:
    """A `Handler`: gives another one what is signed, once."""

    def __init__(self, signer: Signer, features: frozenset[str], handler: Handler) -> None:
        """`features` are those of the backend."""
        self._signer, self._features, self._handler = signer, features, handler
        self.recent = Recent(by_caller="delay" not in features)

    def __call__(self, delivery: Delivery) -> None:
        message, to = delivery.message, delivery.to
        try:
            self._signer.check(to, message)
        except RpcError as why:
            self._refuse(delivery, why)
            return
        if to.kind == "inbox":  # credit, items and signs of life, which may come twice: they are numbered
            self._handler(delivery)
            return
        key = (to, message_id(message))
        if self.recent.begin(key, delivery):
            self._handler(cast("Delivery", SignedDelivery(delivery, self._signer, self.recent, key)))
        else:
            self._again(delivery, key)

    def _again(self, delivery: Delivery, key: Any) -> None:
        """It is in hand here, or done."""
        is_done = self.recent.is_done(key)
        if not is_done and delivery.to.kind == "queue" and "delay" in self._features:
            try:
                delivery.postpone(LATER, delivery.message)
            except Cancelled:
                delivery.finish(None)
            except RpcError as trouble:  # it is delivered again
                logger.warning("%s could not be postponed: %s", shown(delivery.message.id), trouble)
            return
        why = Unauthorized("it was done before" if is_done else "it is in hand already")
        self._signer.note("replay", delivery.message, why)
        delivery.finish(self.recent.reply(key))

    def _refuse(self, delivery: Delivery, why: RpcError) -> None:
        message, kind = delivery.message, delivery.to.kind
        what = {"queue": "job", "topic": "event", "inbox": "message"}[kind]
        self._signer.note(what, message, why)
        if kind != "queue":
            delivery.finish(None)
            return
        delivery.error = Unauthorized(str(why))
        body = encode_error(message.id[:128], Unauthorized(REFUSED), JSON)
        headers = {"id": message.id[:128], FAILED: "Unauthorized", "content-type": JSON.content_type}
        # Not signed: only those read it who have no keys. What came may be a good request that somebody has
        # changed on its way, whose caller waits for another worker's reply, or for the end of his time.
        failure = Message(body, headers)
        try:
            if "dead-letters" in self._features:
                delivery.bury(f"Unauthorized: {why}", failure)
                return
        except RpcError as trouble:
            logger.warning("%s could not be kept as a dead letter: %s", shown(message.id), trouble)
        delivery.finish(failure)


class SignedDelivery:
    """A delivery whose replies are signed."""

    __slots__ = ("_backend", "_binding", "_delivery", "_is_over", "_key", "_recent")

    def __init__(self, delivery: Delivery, backend: Signer, recent: Recent, key: Any) -> None:
        self._delivery, self._backend = delivery, backend
        self._recent, self._key, self._is_over = recent, key, False
        self._binding = binding_of(delivery.to, delivery.message)

    @property
    def message(self) -> Message:
        return self._delivery.message

    @property
    def to(self) -> Address:
        return self._delivery.to

    @property
    def caller(self) -> str | None:
        return self._delivery.caller

    @property
    def cancelled(self) -> bool:
        return self._delivery.cancelled

    @property
    def on_cancel(self) -> Callable[[], object] | None:
        return self._delivery.on_cancel

    @on_cancel.setter
    def on_cancel(self, action: Callable[[], object] | None) -> None:
        self._delivery.on_cancel = action

    @property
    def error(self) -> BaseException | None:
        return self._delivery.error

    @error.setter
    def error(self, error: BaseException | None) -> None:
        self._delivery.error = error

    def reply(self, message: Message) -> bool:
        return self._delivery.reply(self._signed(message))

    def finish(self, last: Message | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        last = None if last is None else self._signed(last)
        self._recent.end(self._key, self._delivery, last)
        self._delivery.finish(last)

    def forbid_redelivery(self) -> None:
        self._delivery.forbid_redelivery()

    def postpone(self, seconds: float, message: Message) -> None:
        self._recent.forget(self._key)  # before: it may come at once
        self._delivery.postpone(seconds, message)
        self._is_over = True

    def bury(self, why: str, last: Message | None) -> None:
        self._recent.forget(self._key)
        self._delivery.bury(why, None if last is None else self._signed(last))
        self._is_over = True

    def _signed(self, reply: Message) -> Message:
        bindings = [self._binding]
        if KEEP in reply.headers:
            bindings.append(job(self.to.name, self.message.id))
        return self._backend.answer(bindings, reply)
