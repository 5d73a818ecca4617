"""How a server gets the messages of its queues. RabbitMQ gives it no more than can start at once, so that a
busy worker keeps nothing from an idle one: one for each thread; or some more, as long as handlers take no
time worth mentioning, and these are given back as soon as one does.

Several queues are served in strict order of priority: while there is work it is fetched from them, one after
the other; only a worker that has none is given some.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from .connection import Connection
from .deliveries import BESIDE, FIRST_CHANNEL, JOBS
from .wire import Arrival, Basic

AHEAD = 16
"""Messages that a server is given besides while handlers are fast."""
AHEAD_WORK = 8e-3
"""Seconds that these may take together."""
IDLE = 0.02
"""Seconds of waiting after which there is no hurry."""
CHANNELS = 64
"""So many take turns: RabbitMQ looks for what is acknowledged among all that a channel has taken, which takes
long where thousands of coroutines end in any order."""
RENEWAL = 0.005
"""Seconds between two windows for the coroutines of a server that has nearly as many as it may."""


def channel_of(connection: Connection, turn: int) -> int:
    """The channel of a consumer."""
    return FIRST_CHANNEL + turn % max(1, min(CHANNELS, connection.terms.channels - FIRST_CHANNEL))


def got_from(connection: Connection, channel: int, name: str, tag: str) -> Arrival | None:
    """The first message of a queue, as if it had been delivered to the consumer with this tag; None if there
    is none."""
    got: Arrival = connection.ask(channel, Basic.Get(queue=name), Basic.GetOk, Basic.GetEmpty)
    if not isinstance(got.method, Basic.GetOk):
        return None
    taken = got.method  # its routing key may be any
    return got._replace(method=Basic.Deliver(tag, taken.delivery_tag, taken.redelivered))


class OneQueue:
    """A consumer of one queue. RabbitMQ counts what each consumer has not acknowledged: where that is mostly
    coroutines, which may take long, another consumer with a fresh window takes its place."""

    def __init__(
        self, connection: Connection, names: Sequence[str], threads: int, ready: deque[Arrival]
    ) -> None:
        self._connection, self._name, self._threads, self.ready = connection, names[0], threads, ready
        self._channel, self._consumers = JOBS, 0
        """Where the consumer is, and how many there have been."""
        self._window = 0
        """How much the consumer may have that is not acknowledged; 0: there is none."""
        self._held: set[int] = set()
        """What it has."""
        self._renewed = self._ended = time.monotonic()
        self._quick, self._detaches = 0, False
        """How many messages in a row took no time; whether the last one became a coroutine."""

    def beside(self, name: str, other: str) -> Beside:
        """What serves another queue beside this one, too."""
        return Beside(self, self._connection, (name, other), self._threads)

    @property
    def is_wide(self) -> bool:
        return self._quick >= AHEAD

    def _hear(self, arrival: Arrival) -> None:
        if arrival.method.consumer_tag == self._tag:
            self._held.add(arrival.method.delivery_tag)
        self.ready.append(arrival)

    def done(self, arrival: Arrival) -> None:
        """A message is about to be acknowledged. Any thread."""
        if arrival.channel == self._channel:
            self._held.discard(arrival.method.delivery_tag)

    def name_of(self, arrival: Arrival) -> str:
        """The queue it came from."""
        return self._name

    def handled(self, began: float, detached: bool) -> None:
        """A handler was called at that time, and has returned just now."""
        now = time.monotonic()
        seconds, waited, self._ended, self._detaches = now - began, began - self._ended, now, detached
        if seconds > AHEAD_WORK:
            self._quick = -4 * AHEAD
        else:
            is_quick = (detached or seconds < AHEAD_WORK / AHEAD) and waited < IDLE
            self._quick = self._quick + 1 if is_quick else 0

    @property
    def is_used_up(self) -> bool:
        """Whether nothing comes before another window is asked for, or something is acknowledged."""
        return not self._window or (self._detaches and len(self._held) >= self._window)

    def demand(self, busy: int, room: int) -> None:
        """Ask for what can be begun: so many threads are busy, and there may be so many coroutines more."""
        in_threads = busy + len(self.ready)
        if self.is_wide and not in_threads and time.monotonic() - self._ended > IDLE:
            self._quick = 0
        most = self._threads + (AHEAD * (4 if self._detaches else 1) if self.is_wide else 0)
        wanted = max(0, min(most, room) - in_threads if self._detaches else most - in_threads)
        if room <= 0:
            wanted = 0
        coming = max(0, self._window - len(self._held))
        if self._window and coming > wanted:
            self.stop()
            coming = 0
        if wanted > 2 * coming and self._is_time(wanted):
            self._consume(wanted - coming)

    def poll(self, busy: int, room: int) -> None:
        """Look whether there is anything, if nothing was asked for."""
        if not self._window and (got := got_from(self._connection, self._channel, self._name, "")):
            self.ready.append(got)

    def _is_time(self, wanted: int) -> bool:
        return not self._detaches or wanted >= self._threads or time.monotonic() - self._renewed > RENEWAL

    def _consume(self, window: int) -> None:
        if self._window:
            self._connection.tell(self._channel, Basic.Cancel(consumer_tag=self._tag, nowait=True))
        self._consumers += 1
        self._channel = channel_of(self._connection, self._consumers)
        self._connection.listeners[self._channel] = self._hear
        self._window, self._held, self._renewed = window, set(), time.monotonic()
        self._connection.tell(
            self._channel,
            Basic.Qos(prefetch_count=window),
            Basic.Consume(queue=self._name, consumer_tag=self._tag, nowait=True),
        )

    @property
    def _tag(self) -> str:
        return f"take{self._consumers}"

    def stop(self) -> None:
        """Take nothing any more; what is on its way comes before this returns."""
        if self._window:
            self._window = 0
            self._connection.ask(self._channel, Basic.Cancel(consumer_tag=self._tag), Basic.CancelOk)

    def narrow(self) -> None:
        """One for each thread from now on, for a while."""
        self.stop()
        self._quick = -4 * AHEAD


BESIDE_TAG = "beside"
"""What the tags of consumers of a second queue begin with."""


class Beside:
    """A queue, and beside it the one for what expires. While handlers are fast, both are consumed: it does
    not matter that RabbitMQ may give more than can be begun. When that had to be given back both are asked in
    turn, until the second one is empty."""

    def __init__(self, main: OneQueue, connection: Connection, names: tuple[str, str], threads: int) -> None:
        """`names` are those of the two queues."""
        self._main, self._connection, self._names, self._threads = main, connection, names, threads
        self._window = 0
        """How much the consumer of the second queue may have that is not acknowledged; 0: there is none."""
        self._held: set[int] = set()
        """What it has."""
        self._takes_turns, self._turns, self._consumers = True, 0, 0

    @property
    def is_wide(self) -> bool:
        return self._main.is_wide

    @property
    def is_used_up(self) -> bool:
        return self._main.is_used_up or len(self._held) >= self._window

    def done(self, arrival: Arrival) -> None:
        self._main.done(arrival)
        if arrival.channel == BESIDE:
            self._held.discard(arrival.method.delivery_tag)

    def name_of(self, arrival: Arrival) -> str:
        return self._names[arrival.method.consumer_tag.startswith(BESIDE_TAG)]

    def handled(self, began: float, detached: bool) -> None:
        self._main.handled(began, detached)
        if not detached and time.monotonic() - began < AHEAD_WORK:
            self._takes_turns = False

    def _hear(self, arrival: Arrival) -> None:
        self._held.add(arrival.method.delivery_tag)
        self._main.ready.append(arrival)

    def demand(self, busy: int, room: int) -> None:
        has_room = busy + len(self._main.ready) < self._threads and room > 0
        if self._takes_turns and has_room:
            self._take_turn()
        if not self._takes_turns:
            self._main.demand(busy, room)
            self._listen(AHEAD if self.is_wide and room >= AHEAD else int(has_room))

    def poll(self, busy: int, room: int) -> None:
        if self._takes_turns:
            self._take_turn()
        else:
            self._main.poll(busy, room)

    def _take_turn(self) -> None:
        self._turns += 1
        for name in self._names if self._turns % 2 else self._names[::-1]:
            is_second = name == self._names[1]
            channel = channel_of(self._connection, self._turns)
            if got := got_from(self._connection, channel, name, BESIDE_TAG if is_second else ""):
                self._main.ready.append(got)
                return
            self._takes_turns = self._takes_turns and not is_second

    @property
    def _tag(self) -> str:
        return f"{BESIDE_TAG}{self._consumers}"

    def _listen(self, window: int) -> None:
        """Be given something, by a consumer that may have so much that is not acknowledged. One that may have
        more yet is left as it is: RabbitMQ 4 counts as delivered what is on its way to one that is
        cancelled."""
        if not window or len(self._held) < self._window:
            return
        if self._window:
            self._connection.tell(BESIDE, Basic.Cancel(consumer_tag=self._tag, nowait=True))
        self._consumers += 1
        self._window, self._held = window, set()
        self._connection.listeners[BESIDE] = self._hear
        consume = Basic.Consume(queue=self._names[1], consumer_tag=self._tag, nowait=True)
        self._connection.tell(BESIDE, Basic.Qos(prefetch_count=window), consume)

    def stop(self) -> None:
        """Take nothing any more; what is on its way comes before this returns."""
        self._main.stop()
        if self._window:
            self._window = 0
            self._connection.ask(BESIDE, Basic.Cancel(consumer_tag=self._tag), Basic.CancelOk)

    def narrow(self) -> None:
        self._main.narrow()
        self.stop()
        self._takes_turns = True


class InOrder:
    """Several queues, in order of priority."""

    is_wide, is_used_up = False, True

    def __init__(
        self,
        connection: Connection,
        names: Sequence[str],
        threads: int,
        ready: deque[Arrival],
        put_back: Callable[[Sequence[Arrival]], object],
    ) -> None:
        self._connection, self._threads, self._ready = connection, threads, ready
        self._put_back = put_back
        self._groups: list[tuple[str, ...]] = [(name,) for name in names]
        """Each queue, with that for what expires beside it; these two take turns."""
        self._numbered = [*names]
        """What the numbers are of with which the tags of consumers begin."""
        self._channel, self._turns = JOBS, 0
        """Where the consumers are, and how often something was asked for."""
        self._is_consuming = False
        self._came: list[Arrival] = []

    def beside(self, name: str, other: str) -> InOrder:
        """Serve another queue beside this one, too."""
        self.stop()
        self._groups[self._groups.index((name,))] = name, other
        self._numbered.append(other)
        return self

    @property
    def _names(self) -> list[str]:
        return [name for group in self._groups for name in group]

    def _hear(self, arrival: Arrival) -> None:
        self._came.append(arrival)

    def done(self, arrival: Arrival) -> None:
        """Nothing is counted here."""

    def name_of(self, arrival: Arrival) -> str:
        """The queue it came from."""
        return self._numbered[int(arrival.method.consumer_tag.partition("-")[0])]

    def _tag(self, name: str) -> str:
        """One that is not used again: RabbitMQ 3.10 has ended connections (541) on which a quorum queue was
        consumed under the tag of a consumer before, of which something was not acknowledged yet."""
        return f"{self._numbered.index(name)}-{self._turns}"

    def handled(self, began: float, detached: bool) -> None:
        """Nothing is taken ahead."""

    def demand(self, busy: int, room: int) -> None:
        """Ask for what can be begun: so many threads are busy, and there may be so many coroutines more."""
        if self._came:
            self._sort()
        if busy + len(self._ready) >= self._threads or room <= 0 or self._is_consuming:
            return
        self._turns += 1
        self._channel = channel_of(self._connection, self._turns)
        self._connection.listeners[self._channel] = self._hear
        for group in self._groups:
            for name in group if self._turns % 2 else group[::-1]:
                if got := got_from(self._connection, self._channel, name, self._tag(name)):
                    self._ready.append(got)
                    return
        self._is_consuming = True
        consumers = [
            Basic.Consume(queue=name, consumer_tag=self._tag(name), nowait=True) for name in self._names
        ]
        self._connection.tell(self._channel, Basic.Qos(prefetch_count=1), *consumers)

    poll = demand

    def _sort(self) -> None:
        """The first of what came to an idle worker is begun; others may be free to do the rest."""
        self.stop()
        came = sorted(self._came, key=lambda each: self._names.index(self.name_of(each)))
        self._came.clear()
        self._ready.append(came[0])
        self._put_back(came[1:])

    def stop(self) -> None:
        """Take nothing any more; what is on its way comes before this returns."""
        if self._is_consuming:
            self._is_consuming = False
            last, *others = self._names
            gone = [Basic.Cancel(consumer_tag=self._tag(name), nowait=True) for name in others]
            self._connection.tell(self._channel, *gone)
            self._connection.ask(self._channel, Basic.Cancel(consumer_tag=self._tag(last)), Basic.CancelOk)

    narrow = stop
