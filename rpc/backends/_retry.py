"""Trying again, where a broker may be away: for how long, and with which pauses; and loops that go on,
whatever happens to them."""

from __future__ import annotations

import logging
import random
import socket
import struct
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import TypeVar

from ..deadlines import left
from ..errors import BackendRefused, RpcError, SettingsError, Unsupported, shown
from ..loops import started

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

    def wait(
        self,
        text: str,
        error: object,
        sleep: Callable[[float], object] = time.sleep,
        trace: Exception | None = None,
    ) -> None:
        """Sleep before the next attempt; log the error now and then, in a text with one %s, and with the
        traceback of `trace`."""
        if self._attempt % 10 == 0:
            logger.warning(text, shown(error), exc_info=trace)
        sleep(backoff(self._attempt, self._cap))
        self._attempt += 1


def patience(ttl: float | None) -> float:
    """Seconds that the sending of a message which lives so long may be tried."""
    return left(RETRY_FOR if ttl is None else min(RETRY_FOR, ttl))


def retried(
    action: Callable[[], T],
    seconds: float,
    lost: type[Exception] | tuple[type[Exception], ...],
    told: Callable[[Exception], Exception],
) -> T:
    """What the action returns; while it raises `lost` it is tried again for so many seconds, so it must do no
    harm when it is carried out twice. Then raises what is `told` of the last failure."""
    end, attempt = time.monotonic() + left(seconds), 0
    while True:
        try:
            return action()
        except lost as error:
            pause = backoff(attempt)
            if time.monotonic() + pause > end:
                raise told(error) from error
            time.sleep(pause)
            attempt += 1


def lasting(loop: Callable[[], object]) -> Callable[[], None]:
    """The loop, which ends for no exception: that is logged, and after a pause the loop is run again, until
    it returns. But what trying again cannot mend, SettingsError, Unsupported, BackendRefused, is raised."""

    def run() -> None:
        pauses = Backoff()
        while True:
            began = time.monotonic()
            try:
                loop()
                return
            except (SettingsError, Unsupported, BackendRefused):
                raise
            except Exception as error:
                if time.monotonic() - began > RETRY_FOR:
                    pauses.reset()
                pauses.wait("a loop failed (%s); it goes on", type(error).__name__, trace=error)

    return run


def beside(loops: Sequence[Callable[[], object]], name: str) -> list[Thread]:
    """Threads, not started, in which these loops last."""
    return [Thread(target=lasting(loop), name=name, daemon=True) for loop in loops]


def run_together(loops: Sequence[Callable[[], object]], stop: Callable[[], object]) -> None:
    """Run the first loop here and the others in threads, until all have returned. They end for no exception
    (see `lasting`); if one cannot go on, `stop` is called so that the others end, and its error is raised.
    Raises RpcError if there can be no thread."""
    failures: list[BaseException] = []

    def guarded(loop: Callable[[], object]) -> None:
        try:
            lasting(loop)()
        except BaseException as error:  # raised again below, in the thread that called
            failures.append(error)
            stop()

    running: list[Thread] = []
    try:
        for loop in loops[1:]:
            running.append(started(Thread(target=guarded, args=[loop], name="rpc-loop", daemon=True)))
    except RpcError as error:
        failures.append(error)
        stop()
    guarded(loops[0])
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]


def time_in_the_kernel(wire: socket.socket, seconds: float, *ways: int) -> None:
    """Let the kernel mind the time limit of these (SO_RCVTIMEO, SO_SNDTIMEO). Python would ask it before each
    send and receipt whether it may."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    for way in ways:
        wire.setsockopt(socket.SOL_SOCKET, way, limit)
    wire.settimeout(None)
