"""The table of the services that run, as their signs of life tell it. Whoever listens has one: nobody leads,
and nothing is kept at the broker. Times are seconds on a monotonic clock, given as arguments.

A sign says how long it is until the next one. Who is silent for three times as long is down, and so is, at
once, who says that it stops. That ends new calls alone: those that run end by the lease of their worker.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec

from ..errors import SerializationError
from ..identity import Identity, check_part, wanted
from .log_entries import Whole

MISSED = 3
"""Intervals without a sign of life after which somebody is down."""
SHORTEST, LONGEST = 0.05, 60.0
"""Seconds between two signs of life. What anybody may have written counts for MISSED times as long."""
MOST = 100_000
"""Workers in a table. Who would be one more is not entered: anybody may have written the signs."""

SURE = 0.3
"""The part of the usual silence that is enough after the answers of all who were expected to answer."""

SIGN = "rpc.sign"
"""The method of the call that a sign of life is, and by which it is asked for."""


Time = Annotated[float, msgspec.Meta(ge=0, lt=3e10)]
"""Seconds: what a clock may show, of the Unix epoch, too."""
Text = Annotated[str, msgspec.Meta(max_length=255)]


class ServiceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, as its last sign of life has it."""

    domain: str
    type: str
    """The type of service that it is; "" if it is none."""
    id: str
    version: str
    instance: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    """What tells it from its replicas."""
    epoch: Time
    """When it began to serve, in seconds of the Unix epoch: what it said in another one counts no more."""
    beat: Annotated[int, msgspec.Meta(ge=-1, lt=2**53)]
    """How many signs it gave in this epoch, this one included. -1: it was the last one."""
    interval: Annotated[float, msgspec.Meta(ge=SHORTEST, le=LONGEST)]
    """Seconds until the next one."""
    host: Text
    pid: Whole
    started: Time
    """When its process started, in seconds of the Unix epoch."""
    schema: Text = ""
    """A hash of what it offers: if it changes, so did that."""
    running: Whole = 0
    """How many jobs it runs, plain functions and coroutines."""
    capacity: Whole = 0
    """How many it can."""
    idle: Time | None = None
    """Seconds since it took a message from its queues last. None: it never did."""

    @property
    def identity(self) -> Identity:
        """Its domain, type, id and version."""
        return _identity(self.domain, self.type, self.id, self.version)

    @property
    def name(self) -> str:
        """Its domain, type and id: those of its replicas are the same."""
        return str(self.identity)

    @property
    def load(self) -> float:
        """The part of its capacity that is used."""
        return self.running / self.capacity if self.capacity else 1.0


@lru_cache(1024)
def _identity(domain: str, type: str, id: str, version: str) -> Identity:
    """Checked once, and not again with each sign of life."""
    return Identity(domain=domain, type=type, id=id, version=version)


class ServiceChange(NamedTuple):
    """What `watch_services` tells."""

    kind: Literal["up", "down", "changed"]
    service: ServiceInfo


class Wanted(NamedTuple):
    """What is looked for. None: any."""

    domain: str | None = None
    type: str | None = None
    id: str | None = None
    version: str | None = None
    instance: str | None = None

    def check(self) -> None:
        """Raises ValueError that names the part which no service has, or if `version` says no versions."""
        for part in ("domain", "type", "id"):
            if (value := getattr(self, part)) is not None:
                check_part(part, value)
        for part in ("version", "instance"):
            value = getattr(self, part)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{value!r:.80} is no {part} of a service: a text, as list_services has it")
        if self.version is not None:
            wanted(self.version)

    def fits(self, service: ServiceInfo | Wanted) -> bool:
        """Whether it is a service that gave this sign of life, or whose parts are all of these. Raises
        ValueError if `version` says no versions, or that of the service is none."""
        parts = (
            (self.domain, service.domain),
            (self.type, service.type),
            (self.id, service.id),
            (self.instance, service.instance),
        )
        fits = wanted(self.version) if self.version is not None else None
        return all(each in (None, has) for each, has in parts) and (not fits or fits(service.version or ""))

    def __str__(self) -> str:
        parts = [f"{name} {value!r}" for name, value in self._asdict().items() if value]
        return ", ".join(parts) or "any"


def read_sign(told: object) -> ServiceInfo:
    """The sign of life in the parameters of a call, or in the result of one. Raises SerializationError."""
    try:
        sign = msgspec.convert(told, ServiceInfo)
        _ = sign.identity
    except (msgspec.ValidationError, ValueError) as error:
        raise SerializationError(f"no sign of life: {error}") from None
    return sign


class Registry:
    """Who runs. Two that heard the same signs have the same."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[ServiceInfo, float]] = {}
        """By instance: the last sign, and when it counts no more. It stays until then if it was the last."""

    def hear(self, sign: ServiceInfo, now: float) -> list[ServiceChange]:
        """What changes by a sign of life. One that is older than what is known changes nothing, as long as it
        can have been on its way: if signs go on and the newer one was the last of its kind, somebody else may
        have written that."""
        known, end = self._last.get(sign.instance, (None, 0.0))
        if known is None and len(self._last) >= MOST:
            return []
        if known and _is_before(sign, known) and now < end - MISSED * known.interval + sign.interval:
            return []
        self._last[sign.instance] = sign, now + MISSED * sign.interval
        was_up = known is not None and known.beat >= 0
        if sign.beat < 0:
            return [ServiceChange("down", sign)] if was_up else []
        if known is None or not was_up:
            return [ServiceChange("up", sign)]
        if sign.epoch != known.epoch:
            return [ServiceChange("down", known), ServiceChange("up", sign)]
        return [ServiceChange("changed", sign)] if _offers(sign) != _offers(known) else []

    def expire(self, now: float) -> list[ServiceChange]:
        """Who has been silent for too long."""
        over = [(name, sign) for name, (sign, end) in self._last.items() if end <= now]
        for name, _ in over:
            del self._last[name]
        return [ServiceChange("down", sign) for _, sign in over if sign.beat >= 0]

    def forget(self, services: Iterable[ServiceInfo]) -> None:
        """Nothing is known of these any more."""
        for each in services:
            self._last.pop(each.instance, None)

    def forgive(self, now: float, deaf: float = math.inf) -> bool:
        """Whoever is known, and gives signs at least each `deaf` seconds, counts as heard of now. Whether
        there is somebody."""
        forgiven = {
            name: (sign, max(end, now + MISSED * sign.interval))
            for name, (sign, end) in self._last.items()
            if sign.interval <= deaf
        }
        self._last |= forgiven
        return bool(forgiven)

    def shortest(self) -> float | None:
        """Seconds between two signs of life of who gives the most. None: nobody is known."""
        return min((sign.interval for sign, _ in self._last.values()), default=None)

    def next_end(self) -> float | None:
        """When `expire` has something to do, at the earliest. None: never."""
        return min((end for _, end in self._last.values()), default=None)

    def is_fresh(self, services: Iterable[ServiceInfo], now: float) -> bool:
        """Whether these will be heard of again before they count no more, if they are not silent yet."""
        none = (None, 0.0)
        return all(self._last.get(each.instance, none)[1] - now > each.interval for each in services)

    def services(self, now: float, wanted: Wanted) -> list[ServiceInfo]:
        """Those that run, and fit, by name and instance. Raises ValueError if the versions that are wanted
        are none."""
        return in_order(self._fitting(now, wanted))

    def _fitting(self, now: float, wanted: Wanted) -> Iterator[ServiceInfo]:
        for sign, end in self._last.values():
            if sign.beat >= 0 and now < end and wanted.fits(sign):
                yield sign


def quiet(expected: Collection[str], answered: Collection[str], settled: float) -> float:
    """Seconds without an answer after which there will be no other one, if these instances are expected to
    answer, and those have: until all have, there is no such time. If nobody else has, there is hardly anybody
    else, and of `settled` seconds a part is enough."""
    if not expected:
        return settled
    seen = {*answered}
    if not seen.issuperset(expected):
        return math.inf
    return settled * (SURE if seen.issubset(expected) else 1)


def in_order(services: Iterable[ServiceInfo]) -> list[ServiceInfo]:
    """By name, version and instance."""
    return sorted(services, key=lambda each: (each.name, each.version, each.instance))


def least_loaded(services: Iterable[ServiceInfo], chance: float) -> ServiceInfo:
    """One of these: of two by chance (from 0 to 1) the one that is less loaded. After M. Mitzenmacher, The
    Power of Two Choices in Randomized Load Balancing, 2001: all others know the same, and it is old."""
    several = [*services]
    first = int(chance * len(several)) % len(several)
    second = int(chance * len(several) ** 2) % len(several)
    return min(several[first], several[second], key=lambda each: each.load)


def _is_before(sign: ServiceInfo, known: ServiceInfo) -> bool:
    if sign.epoch != known.epoch:
        return sign.epoch < known.epoch
    return known.beat < 0 or 0 <= sign.beat <= known.beat


def _offers(sign: ServiceInfo) -> tuple[object, ...]:
    return sign.identity, sign.schema, sign.capacity, sign.interval
