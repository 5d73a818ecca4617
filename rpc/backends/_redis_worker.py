"""A worker of the native Redis backend: one loop, one connection, one slot for each queue.

After a handler, one write carries its reply and acknowledgement, the wait for the next message and its
receipt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, cast
from uuid import uuid4

from ..errors import SerializationError, WorkerLost
from ..message import FAILED, LOST, Handler, Message, packed, unpacked
from . import _redis_scripts as scripts
from ._cancellable import Cancellable
from ._redis import BLOCK, Absences, Link, milliseconds, persistent, steadily, translated_or_logged

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
LOADED = (scripts.NEXT, scripts.ACK, scripts.REPLY, scripts.FORBID)


class Keys:
    """The keys of a queue. They have one hash tag: the part of its name before the first dot, so that one
    worker can serve `shop.high` and `shop.low` on a cluster, too."""

    def __init__(self, queue: str) -> None:
        self.tag = "{" + queue.partition(".")[0] + "}"
        self.queue = f"rpc:{self.tag}:{queue}"
        self.bell = f"{self.queue}:bell"
        self.ids = f"{self.queue}:ids"
        self.cancelled = f"{self.queue}:cancelled"
        self.deaths = f"{self.queue}:deaths"
        self.dead = f"{self.queue}:dead"
        self.workers = f"{self.queue}:workers"
        self.channel = f"{self.queue}:withdrawn"

    def slot(self, worker: str) -> str:
        return f"{self.queue}:slot:{worker}"

    def inbox(self, lane: str) -> str:
        return f"rpc:{self.tag}:in:{lane}"


@lru_cache(1024)
def keys_of(queue: str) -> Keys:
    return Keys(queue)


def alive(worker: str) -> str:
    """The key whose presence says that a worker lives; Redis counts its time."""
    return f"rpc:alive:{worker}"


class RedisDelivery(Cancellable):
    """A message in the hands of a handler."""

    def __init__(self, worker: RedisWorker, keys: Keys, id: str, lane: str, message: Message) -> None:
        self._worker, self.keys, self.id, self.lane, self.message = worker, keys, id, lane, message
        self.number = 1

    def reply(self, message: Message) -> bool:
        """Send a reply at once. False if nobody listens."""
        if not self.lane:
            return False
        sent = self._worker.carry_out(
            scripts.REPLY, 3, self.slot, self.lane, self.keys.cancelled, self.id, packed(message), self.number
        )
        self.number += 1
        return bool(sent)

    def forbid_redelivery(self) -> None:
        """Make the next death of a worker that holds this message its last."""
        if not self._worker.carry_out(scripts.FORBID, 2, self.slot, self.keys.deaths, self.id):
            raise WorkerLost("it was given to another worker meanwhile")

    @property
    def slot(self) -> str:
        return self.keys.slot(self._worker.name)


class RedisWorker:
    """Receives messages of its queues one at a time, until stopped."""

    def __init__(
        self,
        client: Any,
        queues: Sequence[Keys],
        handler: Handler,
        lease: float,
        max_deliveries: int,
        stopped: Callable[[], bool],
    ) -> None:
        self._client, self._queues, self._handler = client, queues, handler
        self._lease, self._max_deliveries, self._stopped = lease, max_deliveries, stopped
        self.name = uuid4().hex
        self.delivery: RedisDelivery | None = None
        self.ended = False
        self._signing = threading.Lock()
        """Held to give a sign of life, and to leave for good: who has left gives none."""
        self._link = Link(client.connection_pool, LOADED)
        self._done: Sequence[Any] | None = None
        self._last_beat = 0.0
        self._absences: Absences[tuple[Keys, str]] = Absences(lease / BEATS_PER_LEASE)
        self._recover = client.register_script(scripts.RECOVER)
        keys: list[str] = [alive(self.name)]
        for each in queues:
            slot = each.slot(self.name)
            keys += (each.queue, slot, each.ids, each.cancelled, each.deaths, each.bell)
        self._next = (scripts.NEXT, len(keys), *keys)
        self._wait = ("BLPOP", *(each.bell for each in queues), BLOCK)

    def work(self) -> None:
        """Receive and handle until stopped, through whatever happens to Redis meanwhile."""
        try:
            self._link_up()
            steadily(self._session, self._stopped)
        finally:
            self._link.drop()
            with self._signing:
                self.ended = True
                self._leave()

    def _link_up(self) -> None:
        steadily(self.beat, lambda: self._last_beat > 0 or self._stopped())

    def _session(self) -> None:
        """Serve on one connection, until it breaks."""
        answer = self._ask(self._next)
        while True:
            if answer == 0:
                self._last_beat = 0.0
                self.beat()
                answer = self._ask(self._next)
            elif self._stopped():
                return  # what is in the slot goes back
            else:
                if answer is not None:
                    self._done = self._take(*answer)
                    if self._stopped():
                        self._ask()
                        return
                answer = self._ask(self._wait, self._next)

    def _ask(self, *commands: Sequence[Any]) -> Any:
        """The answer to the last of these commands, None if there is none. Before them goes the
        acknowledgement that is owed, until it is answered: on the next connection if this one breaks."""
        link, done = self._link, self._done
        if done:
            commands = (done, *commands)
        if commands:
            link.write(*commands)
        answer = None
        for command in commands:
            answer = link.read()
            if command is done:
                if not answer:
                    logger.warning("%r was given to another worker before it was finished", done[8])
                self._done = answer = None
        return answer

    def _take(self, number: int, record: bytes, left: int, deaths: Any) -> Sequence[Any]:
        """Handle a message; the command that acknowledges it, with its last reply."""
        keys = self._queues[number]
        id, _, lane, frame = record.split(b"\n", 3)
        delivery = RedisDelivery(self, keys, id.decode(), lane.decode(), Message())
        try:
            message = unpacked(frame)
        except SerializationError as error:
            logger.error("refused a record in queue %r: %s", keys.queue, error)
            return self._ack(delivery, b"")
        headers = cast("dict[str, str]", message.headers)  # just made, and nobody else's
        if left >= 0:
            headers["ttl"] = str(left / 1000)
        if int(deaths):
            headers["deliveries"] = str(int(deaths) + 1)
        delivery.message = message
        self.delivery = delivery
        reply = b""
        try:
            last = self._handler(delivery)
            if last is not None and lane:
                reply = packed(last)
        except Exception:
            logger.exception("a handler raised: %r", message)
            reply = (
                packed(Message(headers={"id": message.id[:128], LOST: "its handler failed"})) if lane else b""
            )
        self.delivery = None
        return self._ack(delivery, reply)

    def _ack(self, delivery: RedisDelivery, reply: bytes) -> Sequence[Any]:
        keys = delivery.keys
        return (
            scripts.ACK, 5, delivery.slot, keys.ids, keys.deaths, delivery.lane or keys.queue, keys.cancelled,
            delivery.id, reply, delivery.number,
        )  # fmt: skip

    def carry_out(self, script: str, *arguments: Any) -> Any:
        """Run a script on the connection of this worker, from within its handler."""

        def once() -> Any:
            self._link.write((script, *arguments))
            return self._link.read()

        return persistent(once, self._lease)

    # Signs of life.

    def beat(self) -> None:
        """Say that this worker lives, if that is due."""
        if time.monotonic() - self._last_beat < self._lease / BEATS_PER_LEASE:
            return
        with self._signing:
            if not self.ended:
                self._beat()

    def _beat(self) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.set(alive(self.name), 1, px=milliseconds(self._lease))
        for each in self._queues:
            pipe.sadd(each.workers, self.name)
        pipe.execute()
        self._last_beat = time.monotonic()

    def mind_others(self) -> None:
        """Recover what workers hold that died, if a look is due."""
        if self._absences.look_is_due():
            for keys, worker in self._absences.lasting(self._absent()):
                self._bring_back(keys, worker, force=False, died=True)

    def _absent(self) -> Iterator[tuple[Keys, str]]:
        """Queue and name of each worker that gives no sign of life."""
        for keys in self._queues:
            for member in self._client.smembers(keys.workers):
                worker = member.decode()
                if not self._client.exists(alive(worker)):
                    yield keys, worker

    def _bring_back(self, keys: Keys, worker: str, *, force: bool, died: bool) -> None:
        why = "its worker died; it is not delivered again" if died else "its worker was stopped"
        lost = packed(Message(headers={LOST: why, FAILED: "WorkerLost"}))
        outcome = self._recover(
            [
                alive(worker),
                keys.slot(worker),
                keys.queue,
                keys.bell,
                keys.ids,
                keys.deaths,
                keys.dead,
            ],
            [int(force), int(died), self._max_deliveries, lost],
        )
        if outcome >= 2:
            then = "is delivered again" if outcome == 2 else "is given up"
            logger.warning("what worker %s held in %s %s", worker, keys.queue, then)
        if outcome:
            self._client.srem(keys.workers, worker)

    def hand_back(self) -> None:
        """Give back what is still running here, at once."""
        if delivery := self.delivery:
            with translated_or_logged():
                self._bring_back(delivery.keys, self.name, force=True, died=False)

    def _leave(self) -> None:
        with translated_or_logged():
            for each in self._queues:
                self._bring_back(each, self.name, force=True, died=False)
            self._client.delete(alive(self.name))


def keep_alive(workers: Sequence[RedisWorker], client: Any, queues: Sequence[Keys]) -> None:
    """Beat for all workers of this process, and pass on cancellations, until all of them are done."""
    heard: list[Any] = []
    beat = min(BLOCK, workers[0]._lease / BEATS_PER_LEASE)

    def step() -> None:
        if not heard:
            pubsub = client.pubsub(ignore_subscribe_messages=True)
            pubsub.subscribe(*(each.channel for each in queues))
            heard.append(pubsub)
        for worker in workers:
            worker.beat()
        workers[0].mind_others()
        told = heard[0].get_message(timeout=beat)
        for worker in workers:
            delivery = worker.delivery
            if told and delivery and delivery.id.encode() == told["data"]:
                delivery.cancel()

    try:
        steadily(step, lambda: all(worker.ended for worker in workers))
    finally:
        for pubsub in heard:
            pubsub.close()
