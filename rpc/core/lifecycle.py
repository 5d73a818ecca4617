"""What becomes of a job that failed: decided here, with the same words on every backend. And what its
traceback shows."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Literal

from ..transport import ATTEMPT, HANDED_BACK, Message
from .jobs import FINAL, JobOptions


def next_attempt(message: Message) -> Message:
    """What is delivered when the job is tried again: to whoever gets it, it is new."""
    return message.replace(**{"deliveries": None, HANDED_BACK: None, ATTEMPT: message.attempt + 1})


def after_failure(
    error: BaseException,
    options: JobOptions,
    *,
    attempt: int,
    left: float | None,
    wanted: bool,
    chance: float,
) -> float | Literal["answer", "bury"]:
    """What to do with a job whose handler raised: "answer" its caller; "bury" it, since it failed each time
    that it was to be tried; or the seconds to wait before it is tried again. `attempt` is the one that
    failed, the first being 1; `left` the seconds that its caller waits (None: without end); `wanted` says
    whether anybody still wants it; `chance`, from 0 to 1, spreads the pauses."""
    if not options.retries or not isinstance(error, options.retry_on) or isinstance(error, FINAL):
        return "answer"
    pause = options.pause(attempt, chance)
    in_time = left is None or pause < left
    return pause if attempt <= options.retries and in_time and wanted else "bury"


_PACKAGE = __name__.partition(".")[0]
_CALLING = tuple(f"{_PACKAGE}.{name}" for name in ("core.dispatch", "core.middleware", "events", "ticker"))
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
