"""What becomes of a job that failed: decided here, with the same words on every backend."""

from __future__ import annotations

from typing import Literal

from ..errors import RemoteError, TimeLimitExceeded, WorkerLost
from ..transport import ATTEMPT, HANDED_BACK, Message
from .jobs import FINAL, JobOptions


class Overran(TimeLimitExceeded):
    """This very job did, not one that it called."""


class ProcessLost(WorkerLost):
    """The process of this very job died, not that of one that it called."""


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
    if not is_tried_again(error, options):
        return "answer"
    pause = options.pause(attempt, chance)
    in_time = left is None or pause < left
    return pause if attempt <= options.retries and in_time and wanted else "bury"
