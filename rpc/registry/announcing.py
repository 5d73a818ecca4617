"""A worker's part of the registry: its signs of life."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from uuid import uuid4

import msgspec

from ..core.bodies import Writing
from ..core.codecs import JSON
from ..core.conversation import call_message
from ..core.registry import SIGN, ServiceInfo
from ..errors import RpcError
from ..identity import Identity
from ..loops import DelayQueue
from ..transport import Address, Backend, topic

logger = logging.getLogger(__name__)

SIGNS = topic("rpc.services")
"""Where signs of life are published."""
EARLIER = 0.1
"""The part of an interval by which a sign may come early, so that those of many do not come together."""
LAST_WORD = 1.0
"""Seconds that the last sign may take to be said."""


def instance_address(instance: str) -> Address:
    """Where one worker among its replicas is spoken to."""
    return topic(f"rpc.instance.{instance}")


class Announcer:
    """Gives the signs of life of a worker, as long as it serves: at the beginning, at each interval, when
    there is a connection again, and at the end."""

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        instance: str,
        interval: float | None,
        *,
        schema: Callable[[], str],
        slots: Callable[[], dict[str, tuple[int, int]]],
        stopped: Callable[[], bool],
    ) -> None:
        """`interval` is in seconds; None, as an identity without a type: there are no signs. `schema` is the
        hash of what the worker offers, `slots` says how many are used of each kind, of how many, and
        `stopped` whether it takes nothing new."""
        is_heard = bool(identity.type) and "topics" in backend.features
        self.gives_signs = interval is not None and is_heard
        self._backend, self._identity, self._instance = backend, identity, instance
        self._interval = interval or 1.0
        self._schema, self._slots, self._stopped = schema, slots, stopped
        self._later = DelayQueue("rpc-signs")
        self._lock = threading.Lock()
        self._started = self._epoch = time.time()
        self._beat = 0
        self._round = 0
        """Of the signs that follow each other: a later one ends the ones before."""
        self.took: float | None = None
        """When a message was taken from a queue last, in seconds of the monotonic clock."""

    def sign(self, *, is_last: bool = False) -> ServiceInfo:
        """The next one."""
        with self._lock:
            self._beat += 1
            beat = -1 if is_last else self._beat
        slots, took = [*self._slots().values()], self.took
        return ServiceInfo(
            domain=self._identity.domain,
            type=self._identity.type,
            id=self._identity.id,
            version=self._identity.version,
            instance=self._instance,
            epoch=self._epoch,
            beat=beat,
            interval=self._interval,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            schema=self._schema(),
            running=sum(used for used, _ in slots),
            capacity=sum(most for _, most in slots),
            idle=None if took is None else time.monotonic() - took,
        )

    def start(self) -> None:
        """It is about to serve."""
        later = math.nextafter(self._epoch, math.inf)
        self._epoch, self._beat = max(time.time(), later), 0  # the clock may have been set back

    def begin(self) -> None:
        """There is a connection, for the first time or again."""
        if not self.gives_signs:
            return
        with self._lock:
            self._round += 1
            number = self._round
        self._later(0, lambda: self._give(number))

    def end(self, *, is_heard: bool) -> None:
        """It has stopped: say so, if there is somebody to hear it and it was not said."""
        self._later.end()
        with self._lock:
            begun, self._round = self._round, 0
        if begun and is_heard:
            self._publish(self.sign(is_last=True), LAST_WORD)

    def _give(self, number: int) -> None:
        if number != self._round:
            return
        if self._stopped():  # what it runs may take long, but it takes nothing new
            self._round = 0
            return self._publish(self.sign(is_last=True), LAST_WORD)
        self._later(self._interval * (1 - EARLIER * random.random()), lambda: self._give(number))
        self._publish(self.sign(), self._interval)

    def _publish(self, sign: ServiceInfo, seconds: float) -> None:
        params = msgspec.to_builtins(sign)
        message = call_message(uuid4().hex, SIGN, params, Writing(JSON), ttl=seconds, replies=False)
        try:
            self._backend.send(SIGNS, message)
        except RpcError as error:
            logger.debug("no sign of life could be given: %s", error)
