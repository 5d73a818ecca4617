"""Order keys: how a worker serves the partitions of its queues (see `order`).

RabbitMQ gives the messages of a partition to one worker, its active consumer, one at a time; the others wait
to become that one. Each partition has a channel of its own: when it is closed, RabbitMQ puts what was not
acknowledged on it back to the head before the next worker is the active one. To cancel the consumer would
not do: RabbitMQ goes on with what is behind a message that is not acknowledged yet.

- A worker that is busy leaves the partitions of which it has begun nothing to workers that are not; one that
  gets more than its share, while others serve them, too, goes to the end of the line.
- What is to be tried again stays where it is, not acknowledged, until it is due. What it will be then is
  written into a queue `rpc:again:…`, for the worker that comes to it if this one dies.
- Whoever has done something writes down its id before the acknowledgement. So a message that was sent again
  is not done a second time after others of its key: see `doubt_of`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from ...transport import UNKNOWN, Address
from .._serving import BEGUN
from .connection import Connection
from .deliveries import COUNTED, FIRST_CHANNEL, PROBES, SAFE, QueueDelivery, key_of
from .messages import STAMP, Probe, first_sent
from .names import PARTITIONS
from .order import MOST_DONE
from .prefetch import CHANNELS
from .servers import Servers
from .wire import Arrival, Basic, Broken, Channel, Queue

logger = logging.getLogger(__name__)

KEEP_RECORD = 50 * 86400.0
"""Seconds: longer than any delay."""
PAUSE = 0.25
"""Seconds between two looks at who else serves."""
GIVEN, DUE = "rpc-given", "rpc-due"
"""Headers of what is written down: how often RabbitMQ has delivered its message before, if nobody has begun
it since; and when it is to be begun, in milliseconds of the Unix epoch."""
_PER_QUEUE = PARTITIONS + 1
"""Channels."""
UNSURE = "it was sent again, since its connection broke: it may have been done, and what follows it, too"
"""Why a message is given up."""


class Partition:
    """One of them, as its consumer here sees it."""

    def __init__(self, to: Address, name: str, channel: int) -> None:
        self.to, self.name, self.channel = to, name, channel
        self.is_open = self.is_begun = False
        """Whether it is consumed; whether its head is in the hands of a handler, or was, and waits."""
        self.head: Arrival | None = None
        """What came and is not acknowledged."""
        self.marks: list[str] = []
        """Queues that are to be deleted with the head."""
        self.since = self.came = 0.0
        """When the first message came from it since it is consumed, and the last one."""


class Partitions:
    """Those of all queues of a session."""

    def __init__(self, connection: Connection, servers: Servers, queues: Sequence[Address]) -> None:
        self._connection, self._servers, self._names = connection, servers, servers.names
        self._rank = {to.name: number for number, to in enumerate(queues)}
        self._queues, self._ordered = queues, list[Address]()
        """What is served, and what of it has partitions."""
        self._on: dict[int, Partition] = {}
        """By channel."""
        self.ready: deque[Arrival] = deque()
        """What can be begun."""
        self._waiting: list[tuple[float, Arrival]] = []
        """What is to be begun at these times of the monotonic clock."""
        self._leaving: list[Partition] = []
        """What is to be left to others, as its head cannot be done here."""
        self._lock = threading.Lock()
        self._consumers = 0
        self._is_stopping = False
        self._looked = 0.0
        """When others were looked for."""
        self._done: dict[str, tuple[float, dict[bytes, float]]] = {}
        """Of queues, when it was read what was done last, and when each was done."""

    def look(self) -> None:
        """Serve those that are there by now."""
        for to in self._queues:
            if to in self._ordered:
                continue
            servants = self._names.servants(to.name)
            if self._connection.succeeds(PROBES, Probe(servants), Queue.DeclareOk, 404):
                self._add(to, servants)

    def _add(self, to: Address, servants: str) -> None:
        first = FIRST_CHANNEL + CHANNELS + _PER_QUEUE * len(self._ordered)
        self._ordered.append(to)
        if first + _PER_QUEUE > self._connection.terms.channels:
            logger.error("%s: there are no channels for order keys: raise channel_max of RabbitMQ", to)
            return
        for number in range(PARTITIONS):
            name = self._names.partition(to.name, number)
            self._on[first + number] = Partition(to, name, first + number)
        consume = Basic.Consume(queue=servants, consumer_tag="serves", no_ack=True, nowait=True)
        self._connection.tell(first + PARTITIONS, consume)

    def at(self, arrival: Arrival) -> Partition | None:
        """Where it came from; None if that is no partition."""
        return self._on.get(arrival.channel)

    # What comes.

    def demand(self, has_room: bool) -> None:
        """Ask for what can be begun."""
        now = time.monotonic()
        with self._lock:
            self.ready += [each for due, each in self._waiting if due <= now]
            self._waiting = [each for each in self._waiting if each[0] > now]
            leaving, self._leaving = self._leaving, []
        self._close(leaving)
        if has_room and not self._is_stopping:
            for each in self._on.values():
                if not each.is_open:
                    self._consume(each)
        if self._is_time(now):
            self._share(now)

    def until_due(self) -> float:
        """Seconds until something can be begun that waits for its time; at most a minute."""
        with self._lock:
            return max(0.0, min((due - time.monotonic() for due, _ in self._waiting), default=60.0))

    def _consume(self, each: Partition) -> None:
        self._consumers += 1
        each.is_open, each.since = True, 0.0
        self._connection.listeners[each.channel] = partial(self._hear, each)
        # RabbitMQ 3.10 does not bear a tag that was used before: see `prefetch.InOrder`.
        consume = Basic.Consume(queue=each.name, consumer_tag=f"order{self._consumers}", nowait=True)
        self._connection.tell(each.channel, Basic.Qos(prefetch_count=1), consume)

    def _hear(self, each: Partition, arrival: Arrival) -> None:
        each.head, each.marks, each.is_begun, each.came = arrival, [], False, time.monotonic()
        each.since = each.since or each.came
        self.ready.append(arrival)

    def rank(self) -> int:
        """The place of the queue, among those that are served, of what is to be begun first."""
        return min(self._rank[self._on[each.channel].to.name] for each in self.ready)

    def take(self) -> Arrival | None:
        """What is to be begun first. None if it turns out that its time has not come."""
        rank = self.rank()
        arrival = next(each for each in self.ready if self._rank[self._on[each.channel].to.name] == rank)
        self.ready.remove(arrival)
        self._on[arrival.channel].is_begun = True
        return self._recalled(arrival)

    def gone(self, arrival: Arrival) -> None:
        """A message was acknowledged just now, wherever it came from: its channel may be closed. Any
        thread."""
        each = self._on.get(arrival.channel)
        if each and each.head and each.head.method.delivery_tag == arrival.method.delivery_tag:
            each.head = None

    # Others.

    def release(self) -> None:
        """There is no room here for a while: let others have what was not begun. Not more often than now and
        then: a handler that is slow once, as its machine is busy, is no reason to let everything go."""
        now = time.monotonic()
        if now - self._looked < PAUSE:
            return
        self._looked = now
        self._close([each for each in self._on.values() if each.is_open and self._is_idle(each, now)])
        for to in self._ordered if self.ready else ():
            others = self._connection.size_of(PROBES, Probe(self._names.queue(to)))[1]
            if others:  # those that have room
                self._close([each for each in self._on.values() if each.to == to and self._is_unbegun(each)])

    def _is_idle(self, each: Partition, now: float) -> bool:
        """Whether nothing comes from it: not only between two messages."""
        return not each.head and now - each.came > PAUSE

    def _is_unbegun(self, each: Partition) -> bool:
        return each.is_open and not (each.head and each.is_begun)

    def _is_time(self, now: float) -> bool:
        if now - self._looked < PAUSE or self._is_stopping:
            return False
        self._looked = now
        return True

    def _share(self, now: float) -> None:
        """Leave to others what is more than this worker's share."""
        for to in self._ordered:
            busy = [each for each in self._on.values() if each.to == to and now - each.came < 2 * PAUSE]
            if len(busy) < 2:
                continue
            workers = self._connection.size_of(PROBES, Probe(self._names.servants(to.name)))[1]
            too_many = len(busy) - -(-PARTITIONS // max(1, workers))
            if too_many > 0:
                left = [each for each in busy if self._is_unbegun(each)][:too_many]
                self._close(left)
                for each in left:
                    self._consume(each)

    def close_unbegun(self) -> None:
        """Take nothing any more, and leave to others what was not begun."""
        self._is_stopping = True
        with self._lock:
            kept = [*self._leaving, *[self._on[arrival.channel] for _, arrival in self._waiting]]
            self._waiting, self._leaving = [], []
        self._close([each for each in self._on.values() if each in kept or self._is_unbegun(each)])

    def _close(self, partitions: Sequence[Partition]) -> None:
        """Give back what these have, and be their active consumer no more."""
        answers = []
        for each in partitions:
            self._connection.listeners.pop(each.channel, None)
            each.is_open, each.head = False, None
            for arrival in [left for left in self.ready if left.channel == each.channel]:
                self.ready.remove(arrival)
            answer: Future[Arrival] = Future()
            self._connection.say(each.channel, Channel.Close(200, "", 0, 0), (Channel.CloseOk,), answer)
            answers.append((each.channel, answer))
        for channel, answer in answers:
            self._connection.wait_for(answer)
            self._connection.closed(channel)

    # What keeps its place.

    def postpone(self, delivery: QueueDelivery, seconds: float, properties: Any, body: bytes) -> None:
        """Let it be begun after so many seconds, with these properties: here, or, if this worker does not
        know the job, by another one. Any thread. Raises Broken."""
        record = self.write_down(delivery, properties, body, seconds)
        arrival = delivery.arrival_on(self._connection)
        each = arrival and self.at(arrival)
        if not arrival or not each:
            return  # RabbitMQ delivers it again
        each.marks = [*delivery.marks, *record]
        with self._lock:
            if UNKNOWN in (properties.headers or {}):
                self._leaving.append(each)
            else:
                later = _as_new(arrival, properties, body)
                self._waiting.append((time.monotonic() + seconds, later))
        self._connection.interrupt()

    def write_down(
        self, delivery: QueueDelivery, properties: Any, body: bytes, seconds: float = 0.0
    ) -> list[str]:
        """Let whoever gets it when this worker is gone begin it with these properties, after so many seconds.
        The queue where that is. Raises Broken."""
        if not delivery.message.id:  # it would not be found
            return []
        name = self._names.mark("again", f"{delivery.queue}{delivery.key}")
        declare = self._servers.queue(name, KEEP_RECORD)
        declare.arguments = {**declare.arguments, "x-max-length": 1}  # the last one counts
        self._connection.probe(PROBES, declare, Queue.DeclareOk)
        due = round((time.time() + seconds) * 1000)
        came = delivery.arrival_on(self._connection)
        head = came and self._on[came.channel].head
        given = _given(head) + 1 if head else -1
        properties.headers = {**(properties.headers or {}), GIVEN: given, DUE: due}
        if self._connection.confirmed(SAFE, name, properties, body):
            raise Broken(f"{name} took no message")
        return [name]

    def _recalled(self, arrival: Arrival) -> Arrival | None:
        """What a message is by now, if another worker had it. None if it waits for its time."""
        each = self._on[arrival.channel]
        if each.head is not arrival or not arrival.method.redelivered or not (key := key_of(arrival)):
            return arrival
        name = self._names.mark("again", f"{each.name}{key}")
        try:
            got = self._connection.probe(PROBES, Basic.Get(queue=name), Basic.GetOk, Basic.GetEmpty)
        except Broken as error:
            if error.code != 404 or not self._connection.is_open:
                raise
            return arrival
        if not isinstance(got.method, Basic.GetOk):
            return arrival
        self._connection.tell(PROBES, Basic.Reject(got.method.delivery_tag, requeue=True))
        each.marks = [name]
        later = arrival._replace(properties=got.properties, body=got.body)
        headers = got.properties.headers or {}
        if headers.get(GIVEN) == _given(arrival):  # nobody has begun it since
            later = _as_new(arrival, got.properties, got.body)
        left = _left_of(headers.get(DUE))
        if left <= 0:
            return later
        with self._lock:
            self._waiting.append((time.monotonic() + left, later))
        return None

    # What was sent again.

    def doubt_of(self, delivery: QueueDelivery) -> str:
        """Why a message may not be begun that was sent again, as another worker has done it, or may have;
        "" if none has."""
        since = first_sent(delivery.arrival.properties.headers or {})
        each = self.at(delivery.arrival)
        if since is None or each is None:
            return ""
        read, done = self._done.get(each.to.name, (0.0, {}))
        if read <= each.since:  # what is done after that is done here
            read, done = self._done[each.to.name] = time.monotonic(), self._done_last(each.to)
        if delivery.key.encode() in done:
            return BEGUN
        is_all = len(done) < MOST_DONE or min(done.values()) < since
        return "" if delivery.message.id and is_all else UNSURE

    def _done_last(self, to: Address) -> dict[bytes, float]:
        connection, name, found = self._connection, self._names.done(to.name), dict[bytes, float]()
        channel = FIRST_CHANNEL + CHANNELS - 1 + _PER_QUEUE * (1 + self._ordered.index(to))
        lock = Queue.Declare(queue=self._names.lock(name), exclusive=True)
        while not connection.succeeds(PROBES, lock, Queue.DeclareOk, 405):
            time.sleep(0.02)  # another worker looks: it has them all
        answers: list[Future[Arrival]] = []
        for _ in range(connection.size_of(PROBES, Probe(name))[0]):
            answers.append(Future())
            connection.say(channel, Basic.Get(queue=name), (Basic.GetOk, Basic.GetEmpty), answers[-1])
        for answer in answers:
            got = connection.wait_for(answer)
            if isinstance(got.method, Basic.GetOk):
                stamp = (got.properties.headers or {}).get(STAMP)
                found[got.body] = stamp / 1000 if isinstance(stamp, int) else 0.0
        connection.tell(channel, Basic.Nack(0, multiple=True, requeue=True))
        connection.ask(channel, Queue.Delete(queue=lock.queue), Queue.DeleteOk)
        return found


def _given(arrival: Arrival) -> int:
    """How often it was delivered before, as RabbitMQ says."""
    count = (arrival.properties.headers or {}).get(COUNTED)
    return count if isinstance(count, int) else 0


def _as_new(arrival: Arrival, properties: Any, body: bytes) -> Arrival:
    """What came, as if it had come with these for the first time."""
    came = arrival.method
    method = Basic.Deliver(came.consumer_tag, came.delivery_tag, redelivered=False)
    return arrival._replace(method=method, properties=properties, body=body)


def _left_of(due: Any) -> float:
    """Seconds. Anybody may have written anything there."""
    return min(KEEP_RECORD, due / 1000 - time.time()) if isinstance(due, int) else 0.0
