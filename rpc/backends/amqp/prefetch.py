"""How a loop gets its messages. RabbitMQ gives it no more than can start at once, so that a busy worker keeps
nothing from an idle one: one message; or some, as long as handlers take no time worth mentioning, and these
are given back as soon as one does.

Several queues are served in strict order of priority: while there is work it is fetched from them, one after
the other; only a worker that has none is given some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from pamqp import base

from .connection import BLOCK, Link
from .wire import Arrival, Basic, frames

AHEAD = 16
"""Messages that a loop is given while handlers are fast."""
AHEAD_WORK = 8e-3
"""Seconds that these may take together."""
IDLE = 0.02
"""Seconds of waiting after which there is no hurry."""


class Intake:
    """For the thread that has the turn to read."""

    def __init__(
        self,
        link: Link,
        names: Sequence[str],
        put_back: Callable[[Arrival], object],
        widened: Callable[[], object],
    ) -> None:
        """`put_back` gives a message to others, `widened` hears that there may be some to be given."""
        self._link, self._names, self._put_back, self._widened = link, names, put_back, widened
        self._consuming = False
        self._width, self._quick, self._turns = 1, 0, 0
        self._held: deque[Arrival] = deque()
        """What was taken ahead, and is to be handled next."""

    @property
    def is_wide(self) -> bool:
        """Whether there may be more than what is being handled."""
        return self._width > 1 or bool(self._held)

    def begin(self) -> None:
        """On a new connection."""
        self._consuming, self._width, self._quick = False, 1, 0
        self._held.clear()
        if len(self._names) > 1:
            self._link.ask(Basic.Qos(prefetch_count=1), Basic.QosOk)

    def name_of(self, arrival: Arrival) -> str:
        """The queue it came from."""
        method = arrival.method
        if len(self._names) == 1:
            return self._names[0]
        return str(getattr(method, "consumer_tag", method.routing_key))

    def next(self, more: bytes) -> Arrival | None:
        """What is to be handled next; None if nothing came for a while. `more` is what there is to say."""
        if len(self._names) > 1:
            return self._next_by_priority(more)
        if not self._consuming and not self._held:
            more += self._consume()
        if more:
            self._link.write(more)
        return self._held.popleft() if self._held else self._delivered()

    def paced(self, seconds: float, waited: float) -> bytes:
        """What is to be said after a message that was waited for and handled in so many seconds."""
        if len(self._names) > 1 or not self._consuming or self._held:
            return b""
        self._quick = self._quick + 1 if seconds < AHEAD_WORK / AHEAD and waited < IDLE else 0
        if self._width == 1 and self._quick >= AHEAD:
            before, self._width = self._tag, AHEAD
            self._widened()
            return self._consume() + frames(1, Basic.Cancel(consumer_tag=before, nowait=True))
        if self._width > 1 and (seconds > AHEAD_WORK or waited > IDLE):
            self.narrow()
        return b""

    def narrow(self) -> None:
        """One at a time from now on."""
        if self._consuming and self._width > 1:
            self._width, self._quick = 1, -4 * AHEAD
            self._link.ask(Basic.Cancel(consumer_tag=self._tag), Basic.CancelOk)
            self._consuming = False
            self._held.extend(self._came())

    def share(self) -> None:
        """What waits behind the message that is being handled is for others."""
        self.narrow()
        self._quick = -4 * AHEAD
        while self._held:
            self._put_back(self._held.popleft())

    def stop(self) -> bytes:
        """What to say in order to get nothing any more."""
        if not self._consuming or self._width > 1:
            return b""
        self._consuming = False
        return frames(1, *(Basic.Cancel(consumer_tag=tag, nowait=True) for tag in self._tags()))

    def leave(self) -> None:
        """Take nothing any more, and give back what came too late: in its place."""
        if self._consuming:
            for tag in self._tags():
                self._link.ask(Basic.Cancel(consumer_tag=tag), Basic.CancelOk)
        for each in [*self._held, *self._came()]:
            self._link.send(Basic.Nack(delivery_tag=each.method.delivery_tag, requeue=True))

    @property
    def _tag(self) -> str:
        return f"take{self._turns}"

    def _tags(self) -> Sequence[str]:
        return self._names if len(self._names) > 1 else [self._tag]

    def _consume(self) -> bytes:
        self._consuming = True
        self._turns += 1
        consume = Basic.Consume(queue=self._names[0], consumer_tag=self._tag, nowait=True)
        return frames(1, Basic.Qos(prefetch_count=self._width), consume)

    def _delivered(self) -> Arrival | None:
        while arrival := self._link.read(BLOCK):
            if isinstance(arrival.method, Basic.Deliver):
                return arrival
        return None

    def _came(self) -> list[Arrival]:
        """What has come besides."""
        came = []
        while arrival := self._link.read(0):
            if isinstance(arrival.method, Basic.Deliver):
                came.append(arrival)
        return came

    def _next_by_priority(self, more: bytes) -> Arrival | None:
        link = self._link
        if not self._consuming:
            for name in self._names:
                link.write(more + frames(1, Basic.Get(queue=name)))
                more = b""
                got = link.arrival(Basic.GetOk, Basic.GetEmpty)
                if isinstance(got.method, Basic.GetOk):
                    return got
            self._consuming = True
            consumes: list[base.Frame] = [
                Basic.Consume(queue=name, consumer_tag=name, nowait=True) for name in self._names
            ]
            link.send(*consumes)
        elif more:
            link.write(more)
        first = self._delivered()
        if first is None:
            return None
        self._consuming = False
        link.send(*(Basic.Cancel(consumer_tag=name, nowait=True) for name in self._names[1:]))
        link.ask(Basic.Cancel(consumer_tag=self._names[0]), Basic.CancelOk)
        came = sorted([first, *self._came()], key=lambda each: self._names.index(self.name_of(each)))
        for each in came[1:]:
            self._put_back(each)
        return came[0]
