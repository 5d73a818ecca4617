"""Retries on backends that cannot postpone a message (feature `delay`): whoever handles it keeps it, waits,
and handles it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .core.codecs import JSON
from .core.protocol import encode_error
from .errors import Interrupted, RpcTimeout
from .loops import DelayQueue
from .transport import FAILED, Address, Delivery, Handler, Message


class KeptDelivery:
    """A delivery that may be postponed. While its handler runs in the thread that was given the delivery,
    that thread waits; a coroutine, which holds none, is begun again by the delay queue."""

    def __init__(
        self, delivery: Delivery, handler: Handler, later: DelayQueue, clock: Callable[[], float]
    ) -> None:
        self._delivery, self._handler, self._later, self._clock = delivery, handler, later, clock
        self.message: Message = delivery.message
        self.to: Address = delivery.to
        self._began = clock()
        self._pause: float | None = None
        """Seconds until it is to be handled again; None if it is not."""
        self._lock, self._is_called = threading.Lock(), False

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

    @property
    def error(self) -> BaseException | None:
        return self._delivery.error

    @error.setter
    def error(self, error: BaseException | None) -> None:
        self._delivery.error = error

    def reply(self, message: Message) -> bool:
        return self._delivery.reply(message)

    def finish(self, last: Message | None) -> None:
        if self._pause is None:
            self._delivery.finish(last)

    def forbid_redelivery(self) -> None:
        self._delivery.forbid_redelivery()

    def bury(self, why: str, last: Message | None) -> None:
        self._delivery.bury(why, last)

    def postpone(self, seconds: float, message: Message) -> None:
        with self._lock:
            self._pause, self.message = seconds, message
            if self._is_called:
                return
        if not self._later(seconds, self.handle):
            self.handle()

    def handle(self) -> None:
        """Call the handler; again after each pause, if one is wanted by the time that it returns."""
        while True:
            with self._lock:
                self._is_called, self._pause = True, None
            ttl, now = self.message.ttl, self._clock()
            if ttl is not None:
                self.message = self.message.replace(ttl=f"{ttl - (now - self._began):.3f}")
            self._began = now
            self._handler(self)
            with self._lock:
                self._is_called = False
                if self._pause is None:
                    return
            self._wait(self._pause)

    def _wait(self, seconds: float) -> None:
        """Until it is to be handled again, or nobody wants it any more."""
        unwanted = threading.Event()
        self.on_cancel = unwanted.set
        if not self.cancelled:
            unwanted.wait(seconds)
        self.on_cancel = None


def retrying_locally(
    handler: Handler, later: DelayQueue, clock: Callable[[], float] = time.monotonic
) -> Handler:
    """The handler of a backend that cannot postpone."""

    def handle(delivery: Delivery) -> None:
        try:
            KeptDelivery(delivery, handler, later, clock).handle()
        except Interrupted as late:  # between two attempts: no handler hears of it
            delivery.finish(_too_late(delivery.message, late))

    return handle


def _too_late(message: Message, late: Interrupted) -> Message:
    """The last reply where the time limit of the backend ran out."""
    body = encode_error(message.id[:128], RpcTimeout(str(late)), JSON)
    headers = {"id": message.id[:128], "content-type": JSON.content_type, FAILED: RpcTimeout.__name__}
    return Message(body, headers)
