"""Timers: when a function is called next. Whoever asks says what time it is."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Protocol, TypeVar

from .core.jobs import marking
from .durations import Duration
from .durations import seconds as checked
from .errors import SettingsError, not_installed

F = TypeVar("F", bound=Callable[..., Any])


class Schedule(Protocol):
    """When something happens, again and again."""

    clock: Callable[[], float]
    """Its time, in seconds."""

    def after(self, due: float, now: float) -> float:
        """When the next tick is due, given when the last one was and the time now. What was missed is left
        out."""


@dataclass(frozen=True)
class Every:
    """At a fixed rate: a tick that takes long, or is late, does not put off those after it."""

    seconds: float
    clock = staticmethod(time.monotonic)

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"

    def after(self, due: float, now: float) -> float:
        late = max(0.0, now - due)
        return due + self.seconds * (1 + late // self.seconds)


class Local(tzinfo):
    """The time zone of this machine, with the days on which its clocks change."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        local = (when or datetime.now()).replace(tzinfo=None)
        return local - datetime.fromtimestamp(local.timestamp(), timezone.utc).replace(tzinfo=None)

    def dst(self, when: datetime | None) -> None:
        """It is not known which part of the offset that is."""

    def tzname(self, when: datetime | None) -> str:
        return "local"

    def fromutc(self, when: datetime) -> datetime:
        return datetime.fromtimestamp(when.replace(tzinfo=timezone.utc).timestamp()).replace(tzinfo=self)


LOCAL = Local()


@dataclass(frozen=True)
class Cron:
    """As crontab(5) has it, in a time zone, or local time."""

    expression: str
    zone: tzinfo | None
    clock = staticmethod(time.time)

    def __str__(self) -> str:
        return f"cron {self.expression}{f' {self.zone}' if self.zone else ''}"

    def after(self, due: float, now: float) -> float:
        from cronsim import CronSim

        start = datetime.fromtimestamp(max(due, now), self.zone or LOCAL)
        found: datetime = next(CronSim(self.expression, start))
        return found.timestamp()


@dataclass(frozen=True)
class Timer:
    """What `every` or `cron` said of a function."""

    schedule: Schedule
    singleton: bool

    def __str__(self) -> str:
        return f"{self.schedule}, by one worker at a time" if self.singleton else str(self.schedule)


def every(*, seconds: Duration, singleton: bool = False) -> Callable[[F], F]:
    """Have a function, or a method of a service, called every so many seconds while a worker serves; for the
    first time after that time.

    The rate is fixed, but a call never begins before the last one has ended: what is missed is left out. One
    that raises is logged, and called again. In each worker process; with `singleton`, in one of those that
    have it at a time, by a lock of the broker's, and in another one soon after that one died. Raises
    ValueError.
    """
    rate = Every(checked(seconds, "seconds", above=True))
    return marking("__rpc_timers__", Timer(rate, singleton), several=True)


def cron(expression: str, *, zone: tzinfo | None = None, singleton: bool = False) -> Callable[[F], F]:
    """The same, at the times that a crontab expression names, such as "*/5 * * * *", in a time zone
    (default: local time; https://man7.org/linux/man-pages/man5/crontab.5.html). Raises ValueError, and
    Unsupported if the extra `cron` is not installed."""
    try:
        from cronsim import CronSim, CronSimError
    except ModuleNotFoundError as error:
        raise not_installed("cron:", "cron") from error
    if zone is not None and not isinstance(zone, tzinfo):
        raise ValueError(f'zone is a tzinfo, such as ZoneInfo("Europe/Berlin"), not {zone!r:.80}')
    try:
        next(CronSim(expression, datetime.now()))
    except (CronSimError, AttributeError) as error:  # it may be no text
        raise ValueError(f"{expression!r} is no crontab expression: {error}") from None
    except StopIteration:
        raise ValueError(f"{expression!r} is no crontab expression: it names no day that there is") from None
    return marking("__rpc_timers__", Timer(Cron(expression, zone), singleton), several=True)


@dataclass(frozen=True)
class Ticking:
    """A function and one of its timers."""

    name: str
    handler: Callable[[], Any]
    timer: Timer


def timers_in(members: Sequence[tuple[str, Callable[..., Any]]]) -> list[Ticking]:
    """Those among these functions that are marked; SettingsError if one needs arguments."""
    found = []
    for name, each in members:
        for number, timer in enumerate(getattr(each, "__rpc_timers__", ())):
            required = [
                parameter
                for parameter in inspect.signature(each).parameters.values()
                if parameter.default is parameter.empty
                and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            ]
            if required:
                raise SettingsError(f"timer {name}: it is called without arguments")
            found.append(Ticking(f"{name}.{number}" if number else name, each, timer))
    return found
