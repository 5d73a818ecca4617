"""Jobs: names, the handlers that they are mapped to, and how each is called."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypeVar, get_args

import msgspec

from ..durations import Duration, seconds
from ..errors import (
    Cancelled,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    SerializationError,
    ServiceNotFound,
    SettingsError,
    Unauthorized,
    Unsupported,
)
from ..transport import HANDED_BACK, TOKEN, Delivery
from .parameters import Parameters, function_of, wants_request
from .protocol import Call
from .streams import RESUME, number_in

DeliveryMode = Literal["at-least-once", "at-most-once"]
JOB_NAME = re.compile(r"[A-Za-z_][\w.\-]{0,127}", re.ASCII)
F = TypeVar("F", bound=Callable[..., Any])


class Response(msgspec.Struct, frozen=True):
    """What a caller gets."""

    data: Any
    """What the handler responded with."""
    id: str
    """The request's id: the one that the handler saw."""
    response_key: str
    """The request's `response_key`."""


class Progress(msgspec.Struct, frozen=True):
    """How far a job is."""

    fraction: float
    """From 0 to 1."""
    text: str = ""
    """What it does just now."""


class Request:
    """What a handler in request style gets."""

    __slots__ = (
        *("_calls", "_delivery", "_overran", "_respond", "_tell", "_uploads"),
        *("data", "deadline", "headers", "id", "kwargs", "name", "response_key"),
    )

    def __init__(
        self,
        delivery: Delivery,
        call: Call,
        deadline: float | None,
        respond: Callable[[Request, Any], bool],
        calls: Calls | None = None,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        message = delivery.message
        self.name = call.method
        """The name of the job (str), with that of its service: "service.method"."""
        self.data: Any = {} if call.params is None else call.params
        """What the caller sent as `data`: a dict or a list; {} if it sent none."""
        self.kwargs = call.kwargs or {}
        """The named arguments (a dict), if there are positional ones, too, in `data`."""
        self.id = message.id
        """The request's id (str): the same at the caller, and when the job is delivered again."""
        self.response_key = message.reply_to
        """Where the reply goes (str); None if nobody waits for one."""
        self.headers: Mapping[str, str] = message.headers
        if TOKEN in self.headers:  # it stays out of logs
            self.headers = {name: text for name, text in self.headers.items() if name != TOKEN}
        self.deadline = deadline
        """When the caller stops waiting, in seconds of `time.monotonic()`; None if it does not."""
        self._delivery, self._respond, self._calls, self._tell = delivery, respond, calls, tell
        self._uploads: Any = None
        self._overran = False
        """Whether its function runs on after its time limit."""

    def respond(self, data: Any) -> bool:
        """Send the response at once, and return True. Returns False, and sends nothing, for a call that
        waits for no response, the second time, and when the caller has gone. Raises SerializationError
        if `data` cannot be encoded or is too large."""
        return self._respond(self, data)

    def call(self, name: str, data: Any = None, **options: Any) -> str:
        """`RpcClient.call` as a part of this request: with its trace, and the application's headers of it."""
        with self._current() as calls:
            id: str = calls.client.call(name, data, **options)
            return id

    def call_and_wait(self, name: str, data: Any = None, **options: Any) -> Response:
        """`RpcClient.call_and_wait` as a part of this request: also within its deadline."""
        with self._current() as calls:
            response: Response = calls.client.call_and_wait(name, data, **options)
            return response

    def why_late(self, name: str, queue: str) -> str:
        """What this worker knows of why a call of its own was not answered; "" if nothing."""
        return self._calls.why_late(name, queue) if self._calls else ""

    @contextmanager
    def _current(self) -> Iterator[Calls]:
        """In a thread that the handler started, nobody else would know what request this is."""
        if self._calls is None:
            raise Unsupported("whoever handles this request has no client: make one")
        token = current_request.set(self)
        try:
            yield self._calls
        finally:
            current_request.reset(token)

    def progress(self, fraction: float, text: str = "") -> None:
        """Tell how far the job is: from 0 to 1, and what it does just now. The caller sees it if it asked for
        that (`on_progress`), and everybody by the job's id (`RpcClient.job`), if outcomes can be kept. For
        one thread at a time. Raises ValueError."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is from 0 to 1, not {fraction!r:.80}")
        self._tell(Progress(float(fraction), text))

    @property
    def items(self) -> Any:
        """What the caller uploads (`RpcClient.stream(items=)`), item by item: an iterator. It raises
        StreamBroken if some are lost on their way, Cancelled if the caller has left."""
        return iter(()) if self._uploads is None else self._uploads

    @property
    def resume_from(self) -> int:
        """How many items of this stream its caller has got already, from a worker that is lost."""
        return number_in(self._delivery.message, RESUME, 0)

    @property
    def redelivered(self) -> bool:
        """True if a worker had begun this job before, and died or was stopped."""
        message = self._delivery.message
        return message.deliveries > 1 or HANDED_BACK in message.headers

    @property
    def attempt(self) -> int:
        """1, and more if the job failed before and is tried again."""
        return self._delivery.message.attempt

    @property
    def cancelled(self) -> bool:
        """True as soon as the caller no longer waits, or the time limit is over: long work may then stop."""
        return self._overran or self._delivery.cancelled


class AsyncRequest(Request):
    """What a coroutine function, or an async generator, gets: the same, but its calls are awaited."""

    __slots__ = ()

    @property
    def items(self) -> Any:
        """As `Request.items`, but an async iterator."""
        return _nothing() if self._uploads is None else self._uploads

    async def call(self, name: str, data: Any = None, **options: Any) -> str:  # type: ignore[override]
        """As `Request.call`."""
        with self._current() as calls:
            id: str = await calls.async_client.call(name, data, **options)
            return id

    async def call_and_wait(self, name: str, data: Any = None, **options: Any) -> Response:  # type: ignore[override]
        """As `Request.call_and_wait`."""
        with self._current() as calls:
            response: Response = await calls.async_client.call_and_wait(name, data, **options)
            return response


async def _nothing() -> AsyncIterator[Any]:
    none: tuple[Any, ...] = ()
    for item in none:
        yield item


class Calls(Protocol):
    """What a receiver gives its handlers to call others with."""

    @property
    def client(self) -> Any:
        """An RpcClient."""

    @property
    def async_client(self) -> Any:
        """An AsyncRpcClient."""

    def why_late(self, name: str, queue: str) -> str: ...


current_request: ContextVar[Request | None] = ContextVar("rpc.current_request", default=None)
"""The request that is being handled here: calls made meanwhile inherit its deadline, its trace
and the application's headers."""


MAX_BACKOFF = 3600.0
FINAL = (InvalidParams, SerializationError, Unauthorized, Cancelled)
"""Errors that another attempt would not mend."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    delivery: DeliveryMode | None = None
    retries: int = 0
    backoff: float = 1.0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    keep: float = 0.0
    time_limit: float | None = None
    fork: bool = False

    @classmethod
    def checked(
        cls,
        delivery: DeliveryMode | None,
        retries: int,
        backoff: Duration,
        retry_on: type[BaseException] | tuple[type[BaseException], ...],
        keep: Duration = 0.0,
        time_limit: Duration | None = None,
        fork: bool = False,
    ) -> JobOptions:
        """ValueError for what makes no sense."""
        if delivery is not None and delivery not in get_args(DeliveryMode):
            raise ValueError(f"delivery is one of {', '.join(get_args(DeliveryMode))}, not {delivery!r}")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is a number from 0 on, not {retries!r:.80}")
        backoff = seconds(backoff, "backoff")
        retry_on = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in retry_on):
            raise ValueError("retry_on is an exception class, or a tuple of them")
        limit = None if time_limit is None else math.inf
        if time_limit not in (None, math.inf):
            limit = seconds(time_limit, "time_limit", above=True)
        return cls(delivery, retries, backoff, retry_on, seconds(keep, "keep"), limit, fork)

    def pause(self, attempt: int, chance: float) -> float:
        """Seconds between an attempt, the first being 1, and the next: doubled each time, and less by up to a
        half, as `chance` (0 to 1) has it, so that what failed together does not come back together."""
        return min(MAX_BACKOFF, self.backoff * 2.0 ** min(attempt - 1, 60)) * (1 - chance / 2)


def job(
    *function: NoReturn,
    delivery: DeliveryMode | None = None,
    retries: int = 0,
    backoff: Duration = 1.0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
    keep: Duration = 0.0,
    time_limit: Duration | None = None,
    fork: bool = False,
) -> Callable[[F], F]:
    """Options of one job.

    `delivery="at-most-once"`: if a worker dies while it has this job, nobody tries it again, and the caller
    gets WorkerLost; overrides the receiver's setting. `retries`: if the handler raises one of `retry_on`, it
    is tried again so many times, the first time after up to `backoff` seconds, then after twice that, and so
    on up to an hour, as long as the caller waits; a job that failed each time becomes a dead letter. `keep`:
    the seconds for which its outcome is kept if nobody waits for it (see `RpcClient.job`). `time_limit`: the
    seconds that an attempt may take, after which it has failed with TimeLimitExceeded (None: what the
    receiver's settings say, `math.inf`: any time). `fork=True`: the handler, a plain function, runs in a
    process of its own, which is killed at the time limit, and whose death is that of the job alone. Raises
    ValueError.
    """
    if function:
        raise TypeError("write @job(…), with options in parentheses; a job without options needs no @job")
    options = JobOptions.checked(delivery, retries, backoff, retry_on, keep, time_limit, fork)

    return marking("__rpc_job__", options)


def marking(name: str, mark: Any, *, several: bool = False) -> Callable[[F], F]:
    """A decorator that gives functions an attribute, or adds to one that has `several` marks. It may be above
    `staticmethod` and `classmethod`, whose own attributes the methods do not have."""

    def decorate(handler: F) -> F:
        function: Any = handler.__func__ if isinstance(handler, staticmethod | classmethod) else handler
        setattr(function, name, [*getattr(function, name, ()), mark] if several else mark)
        return handler

    return decorate


class Job:
    """A handler, in whichever of the two styles it is written."""

    def __init__(self, name: str, handler: Callable[..., Any]) -> None:
        if not JOB_NAME.fullmatch(name):
            raise SettingsError(f"{name!r} is no job name: a letter, then letters, digits, '_', '.' or '-'")
        if not callable(handler):
            raise SettingsError(f"job {name!r} is mapped to {handler!r}, which cannot be called")
        self.name, self.handler = name, handler
        function = function_of(handler)
        of_function = getattr(function, "__rpc_job__", JobOptions())
        self.options: JobOptions = getattr(handler, "__rpc_job__", of_function)
        functions = (handler, function, type(function).__call__)
        self.is_coroutine = any(map(inspect.iscoroutinefunction, functions))
        decorated = inspect.iscoroutinefunction(inspect.unwrap(function))
        is_async = decorated or any(map(inspect.isasyncgenfunction, functions))
        self.request_type = AsyncRequest if self.is_coroutine or is_async else Request
        self.is_generator = (is_async and not decorated) or any(map(inspect.isgeneratorfunction, functions))
        if self.options.fork and (self.is_coroutine or self.is_generator):
            raise SettingsError(
                f"job {name!r}: fork=True is for plain functions, not for coroutines or generators"
            )
        limited = self.options.time_limit not in (None, math.inf)
        if self.is_generator and (self.options.retries or limited):
            raise SettingsError(f"job {name!r} is a generator: retries and time_limit are not for these")
        try:
            self._parameters = None if wants_request(handler, Request) else Parameters(handler)
        except ValueError as error:
            raise SettingsError(f"job {name!r}: {error}; map it to a function of your own") from error
        except TypeError as error:
            raise SettingsError(f"job {name!r}: {error}") from error

    @property
    def is_typed(self) -> bool:
        """Whether it gets arguments, and no request."""
        return self._parameters is not None

    def bound(self, call: Call, request: Request) -> Callable[[], Any]:
        """The handler with its arguments; InvalidParams if they do not fit."""
        handler = self.handler
        if self._parameters is None:
            return lambda: handler(request)
        args, kwargs = self._parameters.bind(call)
        return lambda: handler(*args, **kwargs)


class Jobs(dict[str, Job]):
    """Jobs by name. `hidden` are the names of methods that services have, but not for clients."""

    def __init__(self, jobs: Mapping[str, Job], hidden: Iterable[str] = ()) -> None:
        super().__init__(jobs)
        self.hidden = frozenset(hidden)
        self.services = {name.rpartition(".")[0] for name in (*jobs, *self.hidden)}

    def find(self, name: str) -> Job:
        """The job of this name; MethodNotFound, or one of its kinds, if there is none."""
        found = self.get(name)
        if found is not None:
            return found
        service, _, method = name[:128].rpartition(".")
        if name in self.hidden:
            raise MethodNotExposed(f"service {service!r} does not expose {method!r}")
        if not service:
            raise MethodNotFound(f"no job is named {method!r} here")
        if service not in self.services:
            raise ServiceNotFound(f"no service is named {service!r} here")
        raise MethodNotFound(f"service {service!r} has no method {method!r}")


def jobs_from(mapping: Mapping[str, Callable[..., Any]], hidden: Iterable[str] = ()) -> Jobs:
    """The jobs of a mapping of names to handlers; SettingsError if one cannot be."""
    return Jobs({name: Job(name, handler) for name, handler in mapping.items()}, hidden)
