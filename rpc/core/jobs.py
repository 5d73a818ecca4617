"""Jobs: names, the handlers that they are mapped to, and how each is called."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from ..errors import MethodNotFound, SettingsError
from ..message import Delivery
from .parameters import Parameters, wants_request
from .protocol import Call

DeliveryMode = Literal["at-least-once", "at-most-once"]
JOB_NAME = re.compile(r"[A-Za-z_][\w.\-]{0,127}", re.ASCII)
F = TypeVar("F", bound=Callable[..., Any])


class Request:
    """What a handler in request style gets."""

    __slots__ = ("_delivery", "_respond", "data", "deadline", "headers", "id", "response_key")

    def __init__(
        self, delivery: Delivery, data: Any, deadline: float | None, respond: Callable[[Request, Any], bool]
    ) -> None:
        message = delivery.message
        self.data = data
        """What the caller sent as `data`: a dict or a list; {} if it sent none."""
        self.id = message.id
        """The request's id (str): the same at the caller, and when the job is delivered again."""
        self.response_key = message.reply_to
        """Where the reply goes (str); None if nobody waits for one."""
        self.headers: Mapping[str, str] = message.headers
        self.deadline = deadline
        """When the caller stops waiting, in seconds of `time.monotonic()`; None if it does not."""
        self._delivery, self._respond = delivery, respond

    def respond(self, data: Any) -> bool:
        """Send the response at once, and return True. Returns False, and sends nothing, for a call that
        waits for no response, the second time, and when the caller has gone. Raises SerializationError
        if `data` cannot be encoded or is too large."""
        return self._respond(self, data)

    @property
    def redelivered(self) -> bool:
        """True if a worker had this job before, and died."""
        return self._delivery.message.deliveries > 1

    @property
    def attempt(self) -> int:
        """1, and more if the job failed before and is tried again."""
        return self._delivery.message.attempt

    @property
    def cancelled(self) -> bool:
        """True as soon as the caller no longer waits: long work may then stop."""
        return self._delivery.cancelled


current_request: ContextVar[Request | None] = ContextVar("rpc.current_request", default=None)
"""The request that is being handled here: calls made meanwhile inherit its deadline."""


MAX_BACKOFF = 3600.0


@dataclass(frozen=True, slots=True)
class JobOptions:
    delivery: DeliveryMode | None = None
    retries: int = 0
    backoff: float = 1.0
    retry_on: tuple[type[BaseException], ...] = (Exception,)

    def pause(self, attempt: int, chance: float) -> float:
        """Seconds between an attempt, the first being 1, and the next: doubled each time, and less by up to a
        half, as `chance` (0 to 1) has it, so that what failed together does not come back together."""
        return min(MAX_BACKOFF, self.backoff * 2.0 ** min(attempt - 1, 60)) * (1 - chance / 2)


def job(
    *,
    delivery: DeliveryMode | None = None,
    retries: int = 0,
    backoff: float = 1.0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
) -> Callable[[F], F]:
    """Options of one job.

    `delivery="at-most-once"`: if a worker dies while it has this job, nobody tries it again, and the caller
    gets WorkerLost; overrides the receiver's setting. `retries`: if the handler raises one of `retry_on`, it
    is tried again so many times, the first time after up to `backoff` seconds, then after twice that, and so
    on up to an hour, as long as the caller waits; a job that failed each time becomes a dead letter. Raises
    ValueError.
    """
    if delivery is not None and delivery not in get_args(DeliveryMode):
        raise ValueError(f"delivery is one of {', '.join(get_args(DeliveryMode))}, not {delivery!r}")
    if retries < 0 or backoff < 0:
        raise ValueError("retries and backoff are not negative")
    retry_on = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in retry_on):
        raise ValueError("retry_on is an exception class, or a tuple of them")

    def mark(handler: F) -> F:
        handler.__rpc_job__ = JobOptions(delivery, retries, backoff, retry_on)  # type: ignore[attr-defined]
        return handler

    return mark


class Job:
    """A handler, in whichever of the two styles it is written."""

    def __init__(self, name: str, handler: Callable[..., Any]) -> None:
        if not JOB_NAME.fullmatch(name):
            raise SettingsError(f"{name!r} is no job name: a letter, then letters, digits, '_', '.' or '-'")
        if not callable(handler):
            raise SettingsError(f"job {name!r} is mapped to {handler!r}, which cannot be called")
        self.name, self._handler = name, handler
        self.options: JobOptions = getattr(handler, "__rpc_job__", JobOptions())
        call = handler if inspect.isroutine(handler) else type(handler).__call__
        self.is_coroutine = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
        try:
            self._parameters = None if wants_request(handler, Request) else Parameters(handler)
        except ValueError as error:
            raise SettingsError(f"job {name!r}: {error}; map it to a function of your own") from error

    def bound(self, call: Call, request: Request) -> Callable[[], Any]:
        """The handler with its arguments; InvalidParams if they do not fit."""
        handler = self._handler
        if self._parameters is None:
            return lambda: handler(request)
        args, kwargs = self._parameters.bind(call)
        return lambda: handler(*args, **kwargs)


def jobs_from(mapping: Mapping[str, Callable[..., Any]]) -> dict[str, Job]:
    """The jobs of a mapping of names to handlers; SettingsError if one cannot be."""
    return {name: Job(name, handler) for name, handler in mapping.items()}


def find(jobs: Mapping[str, Job], name: str) -> Job:
    """The job of this name; MethodNotFound if there is none."""
    found = jobs.get(name)
    if found is None:
        raise MethodNotFound(f"no job is named {name[:128]!r} here")
    return found
