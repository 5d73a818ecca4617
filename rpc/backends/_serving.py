"""The part of a delivery that is the same everywhere: where it came to, how its handler learns that nobody
listens any more, and the answer of backends that cannot do everything."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Unsupported
from ..transport import Address, Delivery, Handler, Message


def arriving(to: Address, handler: Handler) -> Handler:
    """The handler of what arrives at this address, whichever way it took."""

    def handle(delivery: Delivery) -> Message | None:
        delivery.to = to
        return handler(delivery)

    return handle


class Cancellable:
    to: Address
    cancelled = False
    on_cancel: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Tell the handler that nobody listens any more. Any thread."""
        self.cancelled = True
        if self.on_cancel:
            self.on_cancel()

    def postpone(self, seconds: float, message: Message) -> None:
        raise Unsupported("this backend has no feature 'delay'; redis: and memory: have it")

    def bury(self, why: str, last: Message | None) -> None:
        raise Unsupported("this backend has no feature 'dead-letters'; redis:, amqp: and memory: have it")
