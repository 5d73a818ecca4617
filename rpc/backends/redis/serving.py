"""What both backends on Redis do besides queues: the frame of `serve`, durable subscriptions, locks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import redis

from ...loops import Alarm, run_together
from ...transport import Address, Handler, Message
from .._serving import arriving
from .connection import BLOCK, milliseconds, persistent, steadily, translated
from .scripts import LOCK, UNLOCK
from .servers import Place
from .subscriber import Hearing
from .topics import Channels

logger = logging.getLogger(__name__)

ATTEND = 10.0
"""Seconds between two signs that a subscription is served; if Redis forgets it, what comes until the next one
is not kept."""


class Ending(Protocol):
    def hand_back(self) -> None:
        """Give back what still runs."""


class Serving:
    """The base of both. A lock is safe as long as Redis is: one that fails over may forget who had it."""

    place: Place
    channels: Channels
    on_change: Callable[[bool], object] | None = None
    _stopped = False
    is_spread = False
    """Whether two keys may be on two servers."""
    _connected = False
    _connections = 0
    """How often it was connected."""
    _alarms: Sequence[Alarm] = ()
    """Rung by `stop`, if there is somebody to be woken."""
    _ending: Sequence[Ending] = ()

    def serve(self, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        queues = [address.name for address in addresses if address.kind == "queue"]
        kept = [address for address in addresses if address.durable]
        others = [each for each in addresses if each.kind != "queue" and not each.durable]
        self._ending, self._changing = (), threading.Lock()
        loops = self._queue_loops(queues, handler, concurrency) if queues else []
        for each in kept:
            loops += self._queue_loops([each.shelf.name], arriving(each, handler), 1)
        if kept:
            loops.append(partial(self._attend, kept, self._alarm()))
        told = self._tell if not queues and not kept else lambda connected: None
        common = (self.place, others, handler, self._is_stopped)
        hearing = Hearing(*common, spread=self.is_spread, told=told)
        loops += hearing.loops()
        try:
            self._begin([*hearing.beginnings(), *(partial(self.channels.keep, each) for each in kept)])
            run_together(loops, self.stop)
        finally:
            self._stopped = False
            self._tell(False)
            alarms, self._alarms = self._alarms, ()
            for alarm in alarms:
                alarm.close()

    def stop(self) -> None:
        self._stopped = True
        for alarm in self._alarms:
            alarm.ring()

    def unsubscribe(self, to: Address) -> None:
        with translated():
            self.channels.forget(to)
            self._discard(to.shelf.name)

    def subscribed(self) -> list[Address]:
        with translated():
            return self.channels.subscribed()

    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return bool(self._of_lock(LOCK, name, owner, milliseconds(lease)))

    def release(self, name: str, owner: str) -> None:
        self._of_lock(UNLOCK, name, owner)

    def _of_lock(self, script: str, name: str, *arguments: Any) -> Any:
        key = f"rpc:lock:{name}"
        run = self.place.client(key).register_script(script)
        return persistent(lambda: run([key], arguments), BLOCK)

    def _publish(self, to: Address, message: Message) -> None:
        """Send to a topic or an inbox; what subscriptions keep, goes to their queues. If that fails, nobody
        else has heard of it: who publishes it again, tells only them twice."""
        if to.kind == "inbox":
            return self.channels.send(to, message)
        kept, gone = self.channels.publish(to, message)
        if not kept and not gone:
            return
        with translated():
            for each in gone:
                self._discard(each.shelf.name)
        for each in kept:
            self._keep(each, message)
        self.channels.publish(to, message, is_kept=True)

    def _begin(self, beginnings: Sequence[Callable[[], object]]) -> None:
        """Before anything is served: what is published from then on, is heard. What Redis refuses to this
        user, its loop tries again."""
        left = [*beginnings]

        def step() -> None:
            try:
                left[0]()
            except redis.ResponseError as error:
                logger.warning("Redis: %s", error)
            del left[0]

        steadily(step, lambda: not left or self._stopped)
        if not self._stopped and not self._ending:
            self._tell(True)

    def _attend(self, kept: Sequence[Address], alarm: Alarm) -> None:
        """Say of these subscriptions, now and then, that they are served; and whenever Redis is back, which
        may have forgotten it."""
        due, known = 0.0, self._connections

        def step() -> None:
            nonlocal due, known
            if (now := time.monotonic()) >= due or known != self._connections:
                known = self._connections
                for each in kept:
                    self.channels.keep(each)
                for each in self.channels.gone():
                    self._discard(each.shelf.name)
                due = now + ATTEND
            alarm.wait(ATTEND)

        steadily(step, self._is_stopped)

    def _alarm(self) -> Alarm:
        """A new one."""
        alarm = Alarm()
        self._alarms = [*self._alarms, alarm]
        return alarm

    def _hand_back(self) -> None:
        for each in self._ending:
            each.hand_back()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _tell(self, connected: bool) -> None:
        if connected == self._connected:
            return
        with self._changing:
            changed, self._connected = connected != self._connected, connected
            if changed and connected:
                self._connections += 1
                for alarm in self._alarms:
                    alarm.ring()
            if changed and self.on_change:
                self.on_change(connected)

    def send(self, to: Address, message: Message) -> None:
        raise NotImplementedError

    def _keep(self, subscription: Address, message: Message) -> None:
        """Put it into the queue of a durable subscription, however much is there."""
        raise NotImplementedError

    def _queue_loops(
        self, queues: Sequence[str], handler: Handler, concurrency: int
    ) -> list[Callable[[], None]]:
        raise NotImplementedError

    def _discard(self, queue: str) -> None:
        """Delete a queue, with what is in it."""
        raise NotImplementedError
