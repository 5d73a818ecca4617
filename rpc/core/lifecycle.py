"""What becomes of a job that failed: decided here, with the same words on every backend."""

from __future__ import annotations

from typing import Literal

from ..transport import ATTEMPT, HANDED_BACK, Message
from .jobs import FINAL, JobOptions


def next_attempt(message: Message, left: float | None) -> Message:
    """What is delivered when the job is tried again: to whoever gets it, it is new. `left` is the seconds for
    which it is still wanted (None: without end)."""
    ttl = None if left is None else f"{left:.3f}"
    headers = {"deliveries": None, HANDED_BACK: None, ATTEMPT: message.attempt + 1, "ttl": ttl}
    return message.replace(**headers)


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
