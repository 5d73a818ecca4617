"""Retries on backends that cannot postpone a message (feature `delay`): whoever handles it keeps it, waits,
and handles it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .core.codecs import JSON
from .core.protocol import encode_error
from .errors import Interrupted, RpcTimeout
from .transport import FAILED, Address, Delivery, Handler, Message


class Kept:
    """A delivery that may be postponed, in the hands of the thread that handles it."""

    def __init__(self, delivery: Delivery, clock: Callable[[], float]) -> None:
        self._delivery, self._clock, self._began = delivery, clock, clock()
        self.message: Message = delivery.message
        self.to: Address = delivery.to
        self.pause: float | None = None
        """Seconds until it is to be handled again; None if it is not."""

    @property
    def cancelled(self) -> bool:
        return self._delivery.cancelled

    @cancelled.setter
    def cancelled(self, cancelled: bool) -> None:
        self._delivery.cancelled = cancelled

    @property
    def on_cancel(self) -> Callable[[], object] | None:
        return self._delivery.on_cancel

    @on_cancel.setter
    def on_cancel(self, action: Callable[[], object] | None) -> None:
        self._delivery.on_cancel = action

    def reply(self, message: Message) -> bool:
        return self._delivery.reply(message)

    def forbid_redelivery(self) -> None:
        self._delivery.forbid_redelivery()

    def bury(self, why: str, last: Message | None) -> None:
        self._delivery.bury(why, last)

    def postpone(self, seconds: float, message: Message) -> None:
        self.pause, self.message = seconds, message

    def wait(self) -> None:
        """Until it is to be handled again, or nobody wants it any more."""
        unwanted = threading.Event()
        self.on_cancel = unwanted.set
        if not self.cancelled:
            unwanted.wait(self.pause)
        self.pause = self.on_cancel = None
        ttl, now = self.message.ttl, self._clock()
        if ttl is not None:
            self.message = self.message.replace(ttl=f"{ttl - (now - self._began):.3f}")
        self._began = now


def keeping(handler: Handler, clock: Callable[[], float] = time.monotonic) -> Handler:
    """The handler of a backend that cannot postpone."""

    def handle(delivery: Delivery) -> Message | None:
        kept = Kept(delivery, clock)
        try:
            last = handler(kept)
            while kept.pause is not None:
                kept.wait()
                last = handler(kept)
        except Interrupted as late:  # between two attempts: no handler hears of it
            return _too_late(delivery.message, late)
        return last

    return handle


def _too_late(message: Message, late: Interrupted) -> Message:
    """The last reply where the time limit of the backend ran out."""
    body = encode_error(message.id[:128], RpcTimeout(str(late)), JSON)
    headers = {"id": message.id[:128], "content-type": JSON.content_type, FAILED: RpcTimeout.__name__}
    return Message(body, headers)
