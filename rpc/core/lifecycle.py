"""What becomes of a job that failed, or could not be begun: decided here, in the same words for all. And what
its traceback shows."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Literal, TypeVar

from ..errors import (
    Cancelled,
    MethodNotFound,
    RemoteError,
    RpcError,
    SerializationError,
    ServiceNotFound,
    TimeLimitExceeded,
    VersionMismatch,
    WorkerLost,
)
from ..identity import wanted
from ..transport import ATTEMPT, HANDED_BACK, UNKNOWN, Message
from .jobs import FINAL, JobOptions
from .protocol import printable

UNKNOWN_FOR = 60.0
"""Seconds that a job which nobody waits for is passed on by workers that do not know it."""
PASS_ON = 2.0
"""Seconds, about, until the next worker looks at it: with a fixed time it might always be the same one."""
PASS_ON_SOON, SOON = 0.2, 2.0
"""The same, and for how long, of a job whose caller waits, and that wants another version: replicas of two
versions have one queue while they are replaced."""
LONGEST_TRACE = 8000
"""Characters of a traceback that a dead letter keeps: its last ones."""

E = TypeVar("E", bound=BaseException)
Fate = float | Literal["answer", "bury"]
"""Seconds to wait before the message is delivered again; or its caller is answered; or it was given up."""


def shown_as(public: type[BaseException]) -> Callable[[type[E]], type[E]]:
    """The class bears the name of the public one that it is a case of, where people see it: in hooks, logs
    and tracebacks."""

    def shown(kind: type[E]) -> type[E]:
        kind.__name__, kind.__qualname__, kind.__module__ = (
            public.__name__,
            public.__qualname__,
            public.__module__,
        )
        return kind

    return shown


@shown_as(TimeLimitExceeded)
class Overran(TimeLimitExceeded):
    """This very job did, not one that it called."""


@shown_as(WorkerLost)
class ProcessLost(WorkerLost):
    """The process of this very job died, not that of one that it called."""


@shown_as(RemoteError)
class RaisedInChild(RemoteError):
    """What a handler raised in another process, which alone has the exception itself."""

    def __init__(self, error: RemoteError, trace: str, is_tried_again: bool) -> None:
        """`error` is what callers are told of it, `trace` its traceback there; `is_tried_again` is what
        `is_tried_again` said there."""
        super().__init__(error.type, error.message, error.data, error.traceback)
        self.trace, self.is_tried_again = trace, is_tried_again


def is_tried_again(error: BaseException, options: JobOptions) -> bool:
    """Whether an error is one of those after which the job is tried again."""
    if isinstance(error, RaisedInChild):
        return error.is_tried_again
    return bool(options.retries) and isinstance(error, options.retry_on) and not isinstance(error, FINAL)


def next_attempt(message: Message, left: float | None) -> Message:
    """What is delivered when the job is tried again: to whoever gets it, it is new. `left` is the seconds for
    which it is still wanted (None: without end)."""
    ttl = None if left is None else f"{left:.3f}"
    headers = {"deliveries": None, HANDED_BACK: None, ATTEMPT: message.attempt + 1, "ttl": ttl}
    return message.replace(**headers)


def passed_on(message: Message, seconds: float) -> Message:
    """What is delivered to somebody else who may know the job. Its `ttl` is what was left as it came: it was
    refused at once."""
    return message.replace(**{"deliveries": None, UNKNOWN: f"{_passed_on_for(message) + seconds:g}"})


def _passed_on_for(message: Message) -> float:
    text = message.headers.get(UNKNOWN, "")
    return float(text) if text.replace(".", "", 1).isdecimal() and len(text) < 10 else 0.0


def after_refusal(error: RpcError, message: Message, *, unknown_for: float, chance: float) -> Fate:
    """What to do with a job that was not begun because of this error, and that nobody waits for, or that may
    be for another one's version. What is not for this worker may be for others, while the program is
    deployed: it is passed on for `unknown_for` seconds, but not beyond its time. `chance` is from 0 to 1."""
    if isinstance(error, Cancelled):
        return "answer"
    is_attended = message.reply_to is not None
    about, most = (PASS_ON_SOON, SOON) if is_attended else (PASS_ON, unknown_for)
    left = most - _passed_on_for(message)
    if type(error) in (MethodNotFound, ServiceNotFound, VersionMismatch) and left > 0:
        pause = min(about * (0.5 + chance), left)
        with suppress(SerializationError):  # its ttl is no time
            if message.ttl is None or pause < message.ttl:
                return pause
    return "answer" if is_attended else "bury"


def check_version(versions: str, version: str) -> None:
    """Raises VersionMismatch unless the version of a service is one of these (see `rpc.identity.wanted`)."""
    try:
        fits = wanted(versions)(version)
    except ValueError as error:
        raise VersionMismatch(str(error)) from None
    if not fits:
        raise VersionMismatch(f"the caller wants version {versions:.80}, and this is {version or 'none'}")


def kind_of(told: RpcError) -> str:
    """The name of what a caller is told of."""
    return str(told.type) if isinstance(told, RemoteError) else type(told).__name__


def reason(error: BaseException, told: RpcError) -> str:
    """Why a job was given up: a line, and the traceback of what its handler raised; `told` is what a caller
    is told of it."""
    text = told.message if isinstance(told, RemoteError) else str(told)
    line = printable(f"{kind_of(told)}: {text}".replace("\n", " "))[:500]
    if isinstance(error, RaisedInChild):
        trace = printable(error.trace)
    elif error.__traceback__ is None:
        return line
    else:
        trace = printable("".join(traceback.format_exception(error)))
    return f"{line}\n{trace[-LONGEST_TRACE:]}"


def after_failure(
    error: BaseException,
    options: JobOptions,
    *,
    attempt: int,
    left: float | None,
    wanted: bool,
    attended: bool,
    chance: float,
) -> Fate:
    """What to do with a job whose handler raised. It is given up if it failed each time that it was to be
    tried, or once, if nobody waits to be told (`attended`). `attempt` is the one that failed, the first being
    1; `left` the seconds that its caller waits (None: without end); `wanted` says whether anybody still wants
    it; `chance`, from 0 to 1, spreads the pauses."""
    if not is_tried_again(error, options):
        return "answer" if attended or isinstance(error, Cancelled) else "bury"
    pause = options.pause(attempt, chance)
    in_time = left is None or pause < left
    return pause if attempt <= options.retries and in_time and wanted else "bury"


_PACKAGE = __name__.partition(".")[0]
_USERS = ("core.work", "core.handling", "core.middleware", "events", "ticker")
_CALLING = tuple(f"{_PACKAGE}.{name}" for name in _USERS)
"""The modules that call what is the user's."""


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace:
        yield trace
        trace = trace.tb_next


def blamed(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this library, which say the same each time; with them if there are no
    others."""
    steps = [*_steps(trace)]
    names = [each.tb_frame.f_globals.get("__name__", "") for each in steps]
    begin = max((n + 1 for n, name in enumerate(names) if name in _CALLING), default=0)
    rest: TracebackType | None = None
    for name, each in reversed([*zip(names, steps, strict=True)][begin:]):
        if not name.startswith(f"{_PACKAGE}."):
            rest = TracebackType(rest, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return rest or trace
