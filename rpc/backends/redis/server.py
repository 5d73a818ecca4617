"""One running serve of the native Redis backend, on three connections: one that waits for work, one on which
everything else is said, one that hears what is published and which callers have left."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import redis

from ...loops import Alarm, started
from ...transport import Address, Handler
from .._retry import Backoff, beside, run_together
from .._serving import Connections, OnChange, Plan, Slots, Turns, guarded
from . import scripts
from .acks import Ack, AckBuffer, Group, Page
from .admission import Admission
from .connection import FAILURES, Command, persistent, translated_or_logged, unavailable
from .delivery import RedisDelivery
from .fetch import Fetcher, Pages, Taken
from .keys import Keys, QueueNames
from .maintenance import TOO_LONG, Maintenance, Options
from .servers import Servers
from .subscriber import Subscriber
from .subscriptions import SubscriptionQueue
from .topics import run_on_client

logger = logging.getLogger(__name__)

FLUSH_AFTER = 0.002
"""Seconds that an acknowledgement may wait for others to go with, while handlers are fast."""


class RedisServer:
    """Made by `RedisBackend.server`."""

    def __init__(
        self,
        servers: Servers,
        names: QueueNames,
        addresses: Sequence[Address],
        handler: Handler,
        options: Options,
        *,
        threads: int,
        coroutines: int,
        on_change: OnChange,
        discard: Callable[[str], object],
    ) -> None:
        """`discard` deletes a queue, with what is in it."""
        plan = self._plan = Plan(addresses)
        self.name, self.prefix, self.options = uuid4().hex, names.prefix, options
        self.handler, self._threads = guarded(handler), threads
        self.queues = [names.queue(each.name) for each in plan.queues]
        self.slots, self._room = Slots(coroutines), threading.Event()
        self._turns = Turns(self._fetch, self.handle, self.is_stopped)
        self._connections, self._backoff = Connections(on_change), Backoff()
        self.check = self._connections.check
        self._stopped = self._ended = self._is_running = False
        self.alarm = Alarm()
        """Wakes up maintenance. Rung by a signal handler, too."""
        self._deliveries: dict[str, RedisDelivery] = {}
        """What is in the hands of handlers, by its id."""
        self.in_hand: set[bytes] = set()
        """The records that are begun, and are not known to be acknowledged."""
        self._flushing: set[asyncio.AbstractEventLoop] = set()
        """Event loops that will write what is owed, in their next turn."""
        self._handled, self._since = 0, time.perf_counter()
        """How many messages were begun since something was received last, and when that was."""
        self._looked = self._flushed = self._since
        """When somebody looked last for something to do, and when all that was owed was written."""
        self.servers = servers
        self._equip(names, discard)

    def _equip(self, names: QueueNames, discard: Callable[[str], object]) -> None:
        """Make what uses its connections."""
        durable = {names.queue(each.subscription_queue.name): each for each in self._plan.durable}
        self.keys = [*self.queues, *durable]
        home = (self.keys or [names.queue("default")])[0].queue
        self.acks = AckBuffer(self.servers, home, self._confirmed, self.alarm.ring)
        self.pages: Mapping[Keys, Pages] = {each: Pages(each, self.name) for each in self.keys}
        self.maintenance = Maintenance(self)
        self._admission = Admission(self, self.acks, self.in_hand, clock=self._clock, waited=self._waited)
        self.mend, sign_on = self.maintenance.mend, self.maintenance.sign_on
        self.sign_if_late = self.maintenance.sign_if_late
        pages = [self.pages[each] for each in self.queues]
        self.fetcher = (
            Fetcher(self.servers, pages, self.acks, in_hand=self.in_hand, sign_on=sign_on) if pages else None
        )
        self._subscriptions = {
            keys: SubscriptionQueue(self, to, keys, self.pages[keys]) for keys, to in durable.items()
        }
        self.subscriber = self._subscriber(names, discard)

    def _subscriber(self, names: QueueNames, discard: Callable[[str], object]) -> Subscriber:
        return Subscriber(
            self.servers,
            names,
            channels=self._plan.channels,
            durable={each.to: each for each in self._subscriptions.values()},
            watched={each.control: self._told for each in self.keys},
            handler=self.handler,
            run=self.run_commands,
            discard=discard,
            stopped=self.is_stopped,
            ended=self.has_ended,
            check=self.check,
            on_change=self._connections.notify if not self.queues else lambda connected: None,
        )

    # Running.

    def run(self) -> None:
        """Serve until stopped; what was begun is waited for."""
        threads = [
            *beside([self.maintenance.run], "rpc-maintenance"),
            *beside(self.subscriber.loops(), "rpc-topics"),
        ]
        try:
            self.subscriber.begin()  # who sees that it is there may publish
            self.maintenance.begin()
            self._is_running = True
            for thread in threads:
                started(thread)
            if self.fetcher:
                run_together([self._turns.work] * self._threads, self.stop)
            else:
                self.subscriber.wait()
            self.slots.wait()
            self.subscriber.end()
        finally:
            self._stopped = self._ended = True
            self._connections.notify(False)
            self._end([thread for thread in threads if thread.ident])

    def stop(self) -> None:
        self._stopped = True
        self.alarm.ring()
        self.subscriber.stop_waiting()

    def hand_back(self) -> None:
        self.stop()
        with translated_or_logged():
            while self.fetcher and self._turns.is_fetching():  # what is given back must not be taken again
                self.maintenance.wake_up(self.fetcher.connection)
                time.sleep(0.01)
            begun = [each for each in [*self._deliveries.values()] if not each.finished]
            self.acks.ask(*(each.marked_as_begun() for each in begun))
            self.maintenance.hand_back()

    def stalled(self) -> float:
        return self._turns.stalled(self._threads if self.fetcher else 0, self._connections)

    def is_stopped(self) -> bool:
        """Whether nothing new is to be taken."""
        return self._stopped

    @property
    def is_running(self) -> bool:
        """Whether its connections are there to be used."""
        return self._is_running and not self._stopped

    def has_ended(self) -> bool:
        """Whether nothing is in hand any more, either."""
        return self._ended

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for these threads, and give up the connections."""
        for thread in threads:
            while thread.is_alive():
                self.alarm.ring()
                thread.join(0.05)
                if thread.is_alive() and not self.acks.hangs:
                    with translated_or_logged():
                        self.maintenance.wake_up(*self.subscriber.connections())
        self.maintenance.end()
        if self.fetcher:
            self.fetcher.drop()
        self.acks.drop()
        self.subscriber.drop()
        self.alarm.close()

    # Fetching and handling.

    def _fetch(self) -> RedisDelivery | None:
        if (fetcher := self.fetcher) is None or self._stopped:
            return None
        self._looked = time.perf_counter()
        try:
            if (taken := fetcher.pop()) is None:
                if not self._has_room():
                    return None
                now = time.perf_counter()
                if self.options.max_deliveries > 1:
                    fetcher.paced(self._handled, now - self._since)
                self.sign_if_late()
                fetcher.receive(self.slots.room)
                self._handled, self._since = 0, time.perf_counter()
                self._flushed = self._since
                self._backoff.reset()
                self._connections.notify(True)
                if len(fetcher.backlog) > 1:
                    self.alarm.ring()
                taken = fetcher.pop()
            elif self._looked - self._flushed > FLUSH_AFTER:
                self._flushed = self._looked
                self.acks.flush()
            return self.begun(taken) if taken else None
        except FAILURES as error:
            self._connections.lost(reason := unavailable(error))
            self.mend(error)
            self._backoff.wait("%s; trying again", reason)
            return None

    def _has_room(self) -> bool:
        """Whether a coroutine more may run; waits for that a while."""
        if self.slots.room > 0:
            return True
        self._room.clear()
        if self.slots.room > 0:
            return True
        self.acks.flush()
        self._room.wait(0.5)
        return False

    def handle(self, delivery: RedisDelivery) -> None:
        """Call the handler. It may return before the delivery is finished."""
        self.slots.call(self.handler, delivery)

    def begun(self, taken: Taken, to: Address | None = None) -> RedisDelivery | None:
        """What is to be handled; None if nobody wants it any more, or it cannot be read. It came to the queue
        of its page, or to `to`. Raises redis.RedisError."""
        self._handled += 1
        page, raw = taken
        self.in_hand.add(raw)
        try:
            if delivery := self._admission.delivery(page, raw, to):
                self._deliveries[delivery.record.id] = delivery
            return delivery
        except FAILURES:
            self.in_hand.discard(raw)
            self.doubt(page)
            raise

    def _clock(self) -> float:
        """The seconds of Redis' own."""
        return time.monotonic() + self.maintenance.clock_offset

    def _waited(self) -> None:
        """A message was not taken at once: there may be more."""
        if self.fetcher:
            self.fetcher.may_be_crowded = True

    # What deliveries need.

    def carry_out(self, *command: Any, before: Sequence[Command] = ()) -> Any:
        """The answer to a command or a script, after others; all of it is repeated while Redis cannot be had.
        Raises BackendUnavailable."""
        return persistent(lambda: self.acks.ask(*before, command)[-1], self.options.lease)

    def say(self, *commands: Command) -> None:
        """Have these carried out, without waiting for it. Raises BackendUnavailable."""
        try:
            self.acks.say(*commands)
        except redis.RedisError as error:
            raise unavailable(error) from error

    def is_riding(self, delivery: RedisDelivery) -> bool:
        """Whether its acknowledgement will leave soon, with the wait for more."""
        return self._turns.leads_here() and not delivery.is_apart

    def waits(self) -> None:
        """A reply waits for the end of its handler: somebody must say it if that takes long."""
        self.alarm.ring()

    def change(self, page: Page, before: bytes, after: bytes, said: Sequence[Command] = ()) -> bool:
        """Write a record in hand anew, once these were carried out; False if it is not held any more."""
        self.in_hand.add(after)  # before it can be found
        done = False
        try:
            done = bool(self.carry_out(scripts.CHANGE, 1, page.key, before, after, before=said))
        finally:
            self.in_hand.discard(before if done else after)
        return done

    def finished(self, delivery: RedisDelivery, ack: Ack | None) -> None:
        """It ended: this is owed for it. None: nothing, it is to be delivered again."""
        if self._deliveries.get(delivery.record.id) is delivery:
            del self._deliveries[delivery.record.id]
        if ack is None:
            self.in_hand.discard(delivery.raw)
            self.doubt(delivery.page)
        elif not ack.record:
            self.in_hand.discard(delivery.raw)
            delivery.page.change(-1)
        else:
            self.acks.owe(ack)
            self._write_soon(delivery)
        if self.slots.done(delivery):
            self._room.set()

    def doubt(self, page: Page) -> None:
        """What is in this page must be compared with what is in hand."""
        if page.queue in self._subscriptions:
            self._subscriptions[page.queue].doubtful = True
        elif self.fetcher:
            self.fetcher.doubtful = True

    def _write_soon(self, delivery: RedisDelivery) -> None:
        if self.is_riding(delivery):
            return
        loop = asyncio._get_running_loop()
        if loop is None:
            self.acks.flush()
        elif loop not in self._flushing:  # what ends in one turn of the loop leaves in one write
            self._flushing.add(loop)
            loop.call_soon(self._flush_in_loop, loop)

    def _flush_in_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._flushing.discard(loop)
        self.acks.flush(in_loop=True)

    def _confirmed(self, group: Group) -> None:
        self.in_hand.difference_update([ack.record for ack in group])

    def run_commands(self, key: str, *commands: Command) -> list[Any]:
        """Carries out commands on a key, which on a cluster may be anywhere."""
        if self.servers.is_cluster:
            return run_on_client(self.servers, key, *commands)
        return self.acks.ask(*commands)

    def promoted(self) -> None:
        """What was due is in its queue; those who wait for it were woken, but for the subscriptions."""
        for to in self._plan.durable:
            self.subscriber.look(to)

    # What is in hand.

    def _told(self, fields: dict[bytes, bytes]) -> None:
        """What a control stream says: something was delayed, or a message was cancelled, or nobody waits for
        it any more: whoever has it is told, who comes to it does not begin."""
        if name := fields.get(b"cancelled"):
            if delivery := self._deliveries.get(name.decode(errors="replace")):
                delivery.cancel()
            return
        if (name := fields.get(b"left")) is None:
            self.maintenance.look_for_due()
            return
        id = name.decode(errors="replace")
        self._admission.left(id)
        if (delivery := self._deliveries.get(id)) and not delivery.record.once:
            delivery.cancel()

    def relieve(self) -> None:
        """If handlers take long, say what was replied, acknowledge what is done, and give back what waits
        behind them. Raises redis.RedisError."""
        self.acks.flush()
        for delivery in [*self._deliveries.values()]:
            delivery.say()
        if self.fetcher and time.perf_counter() - self._looked > TOO_LONG:
            self.fetcher.give_back(self.maintenance.release)

    def is_laden(self) -> bool:
        """Whether anything waits for a handler that may take long."""
        if not self.acks.is_empty or (self.fetcher and self.fetcher.backlog):
            return True
        return any(each.unsaid for each in [*self._deliveries.values()])
