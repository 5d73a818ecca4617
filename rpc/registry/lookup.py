"""A client's part of the registry: what it knows of the services that run."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, cast
from uuid import uuid4

from ..backends._retry import backoff
from ..backends.features import unsupported
from ..core.bodies import Writing
from ..core.codecs import ACCEPTED, JSON
from ..core.conversation import call_message
from ..core.protocol import decode_call, decode_reply
from ..core.registry import (
    MISSED,
    SIGN,
    Registry,
    ServiceChange,
    ServiceInfo,
    Wanted,
    in_order,
    quiet,
    read_sign,
)
from ..describe import ALL_WORKERS, answers
from ..errors import MethodNotFound, NoReceivers, RpcError, RpcTimeout, shown
from ..loops import started
from ..transport import LOST, Address, Backend, Message, Replay
from .announcing import SIGNS, instance_address

logger = logging.getLogger(__name__)

ASKED_FOR = 0.25
"""Seconds that the answers of services are waited for."""
SETTLED = 0.1
"""Seconds without an answer after which there will be no other one; see `core.registry.quiet`."""
REMEMBERED = 15.0
"""Seconds of which signs of life are looked at: MISSED times those between two, by default."""
HEALTHY = 2.0
"""Seconds that a service has to say whether it is well."""


def places(services: Iterable[ServiceInfo]) -> list[Address]:
    """Where each of them is spoken to by itself."""
    return [instance_address(each.instance) for each in services]


def queues_of(services: Iterable[ServiceInfo]) -> list[str]:
    """The queues that they have because they are these services, each once."""
    return [*dict.fromkeys(queue for each in services for queue in each.identity.queues)]


def is_well(check: Any) -> bool:
    """Whether a future of the response to a health check came to true."""
    return not check.cancelled() and check.exception() is None and check.result().data is True


class Lookup:
    """What a client knows of the services that run. Any thread; also after a fork, when nothing is known."""

    def __init__(
        self, backend: Backend, tell: Callable[[list[ServiceChange]], object] = lambda changes: None
    ) -> None:
        """`tell` gets what changes, in the order in which it did, from any thread. It does not block, and
        does not call anything here."""
        self._backend, self._tell = backend, tell
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._registry = Registry()
        self._pid = os.getpid()

    def ask(self, wait: float = ASKED_FOR) -> list[ServiceInfo]:
        """Ask all: those that answer within so many seconds. It may take less: see SETTLED. Who has been
        silent for too long is forgotten. Raises BackendUnavailable, and Unsupported by a backend without
        topics."""
        if "topics" not in self._backend.features:
            raise unsupported("topics")
        message = call_message(uuid4().hex, SIGN, None, Writing(JSON), ttl=wait, replies=True)
        found, expected = dict[str, ServiceInfo](), self.expected()
        asked = ALL_WORKERS, message
        for reply in answers(self._backend, asked, wait, lambda: quiet(expected, found.keys(), SETTLED)):
            if sign := _read(reply, _answered):
                found[sign.instance] = sign  # a request that was sent again is answered again
                self._hear(sign)
        self.expire()
        return [*found.values()]

    def expected(self) -> set[str]:
        """The instances that will answer if all are asked: those that are known to run, or if there are none,
        those that the backend remembers to have given a sign of life, and not to have missed several since.
        Raises BackendUnavailable."""
        if known := self.services(Wanted()):
            return {each.instance for each in known}
        if "replay" not in self._backend.features:
            return set()
        heard = cache(self._heard_within)
        found = heard(REMEMBERED)
        return {name for name, sign in found.items() if name in heard(_patience(sign))}

    def _heard_within(self, seconds: float) -> dict[str, ServiceInfo]:
        """Who gave a sign of life in the last so many seconds, and not the last one, by instance."""
        said = Registry()
        for message in cast("Replay", self._backend).replay(SIGNS, seconds):
            if sign := _read(message, _published):
                said.hear(sign, 0.0)
        return {each.instance: each for each in said.services(0.0, Wanted())}

    def told(self, message: Message) -> None:
        """A sign of life was published."""
        if sign := _read(message, _published):
            self._hear(sign)

    def _hear(self, sign: ServiceInfo) -> None:
        with self._here():  # told before anybody hears the next one
            self._tell(self._registry.hear(sign, time.monotonic()))

    def forgive(self, deaf: float = math.inf) -> bool:
        """Nobody could be heard for so many seconds: silence counts from now on, of those that were to give a
        sign meanwhile. Whether there are any."""
        with self._here():
            return self._registry.forgive(time.monotonic(), deaf)

    def forget(self, services: Iterable[ServiceInfo]) -> None:
        """These have gone: if they have not, they will answer."""
        with self._here():
            self._registry.forget(services)

    def expire(self) -> None:
        """Forget who has been silent for too long."""
        with self._here():
            self._tell(self._registry.expire(time.monotonic()))

    def next_end(self) -> float | None:
        """Seconds until somebody may have been silent for too long. None: nobody is known."""
        with self._here():
            end = self._registry.next_end()
        return None if end is None else max(0.0, end - time.monotonic())

    def next_look(self) -> float | None:
        """The same, but at most the shortest time between two signs of life: who looks so often sees whether
        it was stopped for so long that it missed several."""
        with self._here():
            shortest = self._registry.shortest()
        end = self.next_end()
        return end if end is None or shortest is None else min(end, shortest)

    def services(self, wanted: Wanted, *, also_silent: bool = False) -> list[ServiceInfo]:
        """Those that are known to run, and fit, or also who has been silent for too long and is not forgotten
        yet. Raises ValueError if the versions wanted are none."""
        with self._here():
            return self._registry.services(-math.inf if also_silent else time.monotonic(), wanted)

    def listed(self, wanted: Wanted) -> list[ServiceInfo]:
        """Those that run now, and fit: all are asked. Raises as `ask` does, and ValueError."""
        wanted.check()
        return in_order(each for each in self.ask() if wanted.fits(each))

    def known(self, wanted: Wanted) -> list[ServiceInfo]:
        """The same, at once; if that will soon be old, all are asked meanwhile. Raises NoReceivers if there
        are none."""
        found = self.services(wanted)
        if not found:
            raise NoReceivers(f"no service runs that was asked for: {wanted}")
        with self._here():
            is_fresh = self._registry.is_fresh(found, time.monotonic())
        if not is_fresh and self._asking.acquire(blocking=False):
            try:
                started(threading.Thread(target=self._refresh, name="rpc-registry", daemon=True))
            except RpcError:  # there can be no thread now: the next call tries again
                self._asking.release()
        return found

    def find(self, wanted: Wanted, wait: float) -> list[ServiceInfo]:
        """The same, but if none is known, all are asked, for so many seconds until there is one, but at least
        once. Raises NoReceivers, BackendUnavailable, Unsupported, ValueError."""
        end, attempt = time.monotonic() + wait, 0
        while not self.services(wanted):
            self.ask()
            if time.monotonic() >= end:
                break
            if not self.services(wanted):
                time.sleep(min(backoff(attempt, cap=1.0), max(0.0, end - time.monotonic())))
                attempt += 1
        return self.known(wanted)

    def _refresh(self) -> None:
        try:
            self.ask()
        except RpcError as error:
            logger.debug("services could not be asked: %s", error)
        finally:
            self._asking.release()

    def _here(self) -> threading.Lock:
        """The lock; in a forked child everything is new: a lock may have been held."""
        if self._pid != os.getpid():
            self._lock, self._asking = threading.Lock(), threading.Lock()
            self._registry, self._pid = Registry(), os.getpid()
        return self._lock


def _patience(sign: ServiceInfo) -> float:
    """Seconds without another sign after which it may be gone; in steps, as anybody may have written them,
    and what comes of each is asked for."""
    return min(REMEMBERED, math.ceil(2 * MISSED * sign.interval) / 2)


def _answered(reply: Message) -> object:
    return decode_reply(*ACCEPTED.opened(reply))


def _published(message: Message) -> object:
    return decode_call(*ACCEPTED.opened(message)).params


def _read(message: Message, read: Callable[[Message], object]) -> ServiceInfo | None:
    """A sign of life. One that cannot be read is left out, and logged: anybody may have written it."""
    if LOST in message.headers:
        return None
    try:
        return read_sign(read(message))
    except (MethodNotFound, RpcTimeout):  # of a worker that is no service, or that came to it too late
        return None
    except RpcError as error:
        logger.warning("refused a sign of life: %s", shown(error))
        return None
