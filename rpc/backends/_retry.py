"""Trying again, where a broker may be away: for how long, and with which pauses."""

from __future__ import annotations

import logging
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_FOR = 5.0
"""Seconds that sending goes on trying while the broker cannot be had."""


def backoff(attempt: int, cap: float = 1.0) -> float:
    """Seconds to wait before trying again: exponential with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)."""
    return random.uniform(0, min(cap, 0.05 * 2 ** min(attempt, 16)))


class Backoff:
    """The pauses between attempts that may go on for ever; `cap` is the longest, in seconds."""

    def __init__(self, cap: float = 1.0) -> None:
        self._cap, self._attempt = cap, 0

    def reset(self) -> None:
        """It worked."""
        self._attempt = 0

    def wait(self, text: str, error: object, sleep: Callable[[float], object] = time.sleep) -> None:
        """Sleep before the next attempt; log the error now and then, in a text with one %s."""
        if self._attempt % 10 == 0:
            logger.warning(text, one_line(error))
        sleep(backoff(self._attempt, self._cap))
        self._attempt += 1


def patience(ttl: float | None) -> float:
    """Seconds that the sending of a message which lives so long may be tried."""
    return RETRY_FOR if ttl is None else min(RETRY_FOR, ttl)


def retried(
    action: Callable[[], T],
    seconds: float,
    lost: type[Exception] | tuple[type[Exception], ...],
    told: Callable[[Exception], Exception],
) -> T:
    """What the action returns; while it raises `lost` it is tried again for so many seconds, so it must do no
    harm when it is carried out twice. Then raises what is `told` of the last failure."""
    end, attempt = time.monotonic() + seconds, 0
    while True:
        try:
            return action()
        except lost as error:
            pause = backoff(attempt)
            if time.monotonic() + pause > end:
                raise told(error) from error
            time.sleep(pause)
            attempt += 1


def time_in_the_kernel(wire: socket.socket, seconds: float, *ways: int) -> None:
    """Let the kernel mind the time limit of these (SO_RCVTIMEO, SO_SNDTIMEO). Python would ask it before each
    send and receipt whether it may."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    for way in ways:
        wire.setsockopt(socket.SOL_SOCKET, way, limit)
    wire.settimeout(None)
