"""What the workers of a process need beside their loops: signs of life, news of callers that left, delayed
messages that are due, and what workers held that died. There is no leader: every process does it for all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...loops import Alarm
from ...transport import FAILED, LOST, Message, packed
from . import scripts
from .connection import BLOCK, Absences, Link, steadily, translated, translated_or_logged
from .keys import Keys
from .servers import Place
from .worker import BEATS_PER_LEASE, TOO_LONG, Options, RedisWorker

logger = logging.getLogger(__name__)

DIED = "its worker died; it is not delivered again"
STOPPED = "its worker was stopped"
REMEMBERED = 4096
"""Ids of messages whose callers have left: more than are taken, and withdrawn meanwhile, at a time."""


def workers_of(place: Place, keys: Keys) -> dict[str, bool]:
    """The names of those that serve a queue, and whether each gives signs of life."""
    client = place.client(keys.queue)
    names = [member.decode() for member in client.smembers(keys.workers)]
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.exists(keys.alive(name))
    return {name: bool(lives) for name, lives in zip(names, pipe.execute(), strict=True)}


class Minder:
    """For the workers of one `serve`, which share their queues."""

    def __init__(
        self,
        place: Place,
        queues: Sequence[Keys],
        workers: Sequence[RedisWorker],
        options: Options,
        stopped: Callable[[], bool],
        alarm: Alarm,
    ) -> None:
        self._place, self._queues, self._workers, self._options = place, queues, workers, options
        self._stopped, self._alarm = stopped, alarm
        self._beat = min(BLOCK, options.lease / BEATS_PER_LEASE)
        self._absences: Absences[tuple[Keys, str]] = Absences(options.lease / BEATS_PER_LEASE)
        self._news: Any = None
        self._looked = 0.0

    def mind(self) -> None:
        """Until all workers are done."""
        link = self._link(scripts.RECOVER, scripts.PROMOTE)
        try:
            steadily(lambda: self._mind_once(link), self._all_ended, cap=self._beat / 4)
        finally:
            with translated_or_logged():
                for worker in self._workers:
                    self._leave(link, worker)
            link.drop()
            if self._news:
                self._news.close()

    def relieve(self) -> None:
        """Until all workers are done: acknowledge what is done, say what was replied, and give back what
        is not begun, where a handler takes long; wake those up that wait, when they are to stop."""
        link = self._link(scripts.RELEASE)
        while not self._all_ended():
            self._alarm.wait(BLOCK)
            while not self._all_ended() and (self._stopped() or any(each.is_laden for each in self._workers)):
                with translated_or_logged():
                    for worker in self._workers:
                        self._relieve_one(link, worker)
                time.sleep(TOO_LONG)
        link.drop()

    def _relieve_one(self, link: Link, worker: RedisWorker) -> None:
        if worker.is_slow():
            worker.outbox.flush()
            if delivery := worker.delivery:
                delivery.say()
            self._give_back(link, worker)
        elif self._stopped() and not worker.ended and (number := worker.outbox.connection):
            with translated():
                link.ask(("CLIENT", "UNBLOCK", number))

    def hand_back(self) -> None:
        """Give back what is still running here, at once."""
        link = self._link(scripts.RECOVER)
        with translated_or_logged():
            for worker in self._workers:
                if delivery := worker.delivery:
                    self._bring_back(link, delivery.keys, worker.name, force=True, died=False)
        link.drop()

    def _all_ended(self) -> bool:
        return all(worker.ended for worker in self._workers)

    def _link(self, *loaded: str) -> Link:
        return Link(self._place, self._queues[0].queue, loaded)

    def _mind_once(self, link: Link) -> None:
        for worker in self._workers:
            worker.beat()
        if not self._news:
            news = self._place.client(self._queues[0].queue).pubsub(ignore_subscribe_messages=True)
            news.subscribe(*(each.channel for each in self._queues))
            self._news = news
        if self._absences.look_is_due():
            for keys, name in self._absences.lasting(self._absent()):
                self._bring_back(link, keys, name, force=False, died=True)
        if time.monotonic() - self._looked > self._beat:
            self._look_for_left()
            self._looked = time.monotonic()
        due = [self._promote(link, keys) for keys in self._queues]
        soonest = min((seconds for seconds in due if seconds >= 0), default=self._beat)
        try:
            told = self._news.get_message(timeout=min(self._beat, soonest))
        except BaseException:
            news, self._news = self._news, None
            news.close()
            raise
        if told and told["data"]:
            self._pass_on(told["data"].decode(errors="replace"))

    def _promote(self, link: Link, keys: Keys) -> float:
        """Move what is due; seconds until more will be, less than 0 if nothing is delayed."""
        return float(link.ask((scripts.PROMOTE, 3, keys.delayed, keys.queue, keys.bell))) / 1000

    def _pass_on(self, id: str) -> None:
        """Tell whoever has this message here that its caller has left; who is about to begin it finds it."""
        for worker in self._workers:
            worker.left[id] = None
            if len(worker.left) > REMEMBERED:
                del worker.left[next(iter(worker.left))]
            delivery = worker.delivery
            if delivery and delivery.record.id == id:
                delivery.cancel()

    def _look_for_left(self) -> None:
        """Whoever leaves says so, but perhaps while this was not heard: that a token is gone says it, too."""
        running = [worker.delivery for worker in self._workers]
        awaited = [each for each in running if each and each.is_awaited and not each.cancelled]
        if not awaited:
            return
        pipe = self._place.client(self._queues[0].queue).pipeline(transaction=False)
        for each in awaited:
            pipe.exists(each.keys.token(each.record.id))
        for each, is_there in zip(awaited, pipe.execute(), strict=True):
            if not is_there:
                each.cancel()

    def _absent(self) -> Iterator[tuple[Keys, str]]:
        """Queue and name of each worker that gives no sign of life."""
        for keys in self._queues:
            for name, lives in workers_of(self._place, keys).items():
                if not lives:
                    yield keys, name

    def _give_back(self, link: Link, worker: RedisWorker) -> None:
        """What it has not begun."""
        with worker.taking_stock:
            unbegun: list[tuple[int, bytes, int]] = []
            while worker.backlog:
                try:
                    unbegun.insert(0, worker.backlog.pop())
                except IndexError:  # it was faster
                    break
            for number, keys in enumerate(self._queues):
                if records := [record for its, record, _ in unbegun if its == number]:
                    slot = keys.slot(worker.name)
                    with translated():
                        link.ask((scripts.RELEASE, 3, slot, keys.queue, keys.bell, *records))

    def _leave(self, link: Link, worker: RedisWorker) -> None:
        with translated():
            for keys in self._queues:
                self._bring_back(link, keys, worker.name, force=True, died=False)
            for keys in self._queues:
                self._place.client(keys.queue).delete(keys.alive(worker.name))

    def _bring_back(self, link: Link, keys: Keys, name: str, *, force: bool, died: bool) -> None:
        why = DIED if died else STOPPED
        lost = packed(Message(headers={LOST: why, FAILED: "WorkerLost"}))
        places = (keys.alive(name), keys.slot(name), keys.queue, keys.bell, keys.dead, keys.workers)
        arguments = (int(force), int(died), self._options.max_deliveries, lost, f"WorkerLost: {why}", name)
        outcome = link.ask((scripts.RECOVER, 6, *places, *arguments))
        if outcome and any(outcome):
            text = "of what worker %s held in %s, %d are delivered again, %d were given up"
            logger.warning(text, name, keys.queue, *outcome)
