"""Until when what is done here may take: the deadline of a call, for all that connects, writes and waits on
its behalf, however deep below it."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Thread
from typing import TypeVar
from weakref import ref

from .errors import RpcTimeout

T = TypeVar("T")

LONG = 15.0
"""Seconds that no backend takes to send something, or to give up, in an event loop: who has more to wait need
not be watched."""
SLACK = 0.2
"""Seconds that a broker may be late to say that nothing has come, before it counts as away."""
AFTER = 0.1
"""Seconds that what knows its deadline has to say so, in an event loop."""
LEAST = 0.001
"""Seconds: 0 would be no limit to some, and to others that nothing is waited for."""


class within:
    """What is done in this `with` may take so many seconds (None: any number). It stands for what was said
    around it."""

    def __init__(self, seconds: float | None) -> None:
        self.until = None if seconds is None else time.monotonic() + seconds

    def __enter__(self) -> None:
        self._before = _here.set(ref(self))

    def __exit__(self, *_: object) -> None:
        _here.reset(self._before)


_here: ContextVar[ref[within] | None] = ContextVar("rpc.deadline", default=None)
"""A reference that ends with its block, however that ends: an interrupt may come between `__enter__` and
`__exit__`, and what the block has begun may live in a copy of this context."""


def _until() -> float | None:
    """The deadline that is here, of the monotonic clock."""
    here = _here.get()
    deadline = here() if here else None
    return deadline.until if deadline else None


def left(most: float) -> float:
    """Seconds that something may take here, which usually takes so many at most."""
    if _here.get() is None:  # as in all that a worker does
        return most
    until = _until()
    return most if until is None else max(LEAST, min(most, until - time.monotonic()))


def with_slack() -> within:
    """The deadline that is here, for what is done in another thread on behalf of this one: a little later, so
    that whoever waits for that is not told that the broker is away, if he was only late."""
    until = _until()
    return within(None if until is None else until - time.monotonic() + SLACK)


def in_time(action: Callable[[], T], undo: Callable[[T], object]) -> T:
    """What the action returns, which has no time limit that could be set, as looking up a host. If there is a
    deadline here, it is done in a thread: TimeoutError if it is late, and what it comes to is undone."""
    if _until() is None:
        return action()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = action()
        except BaseException as error:  # raised where somebody waits
            with suppress(InvalidStateError):
                outcome.set_exception(error)
            return
        try:
            outcome.set_result(result)
        except InvalidStateError:  # nobody does any more
            undo(result)

    try:
        Thread(target=run, name="rpc-in-time", daemon=True).start()
    except RuntimeError:  # there can be no more threads, or the process ends
        return action()
    try:
        wait([outcome], left(3600))
    except BaseException:
        if not outcome.cancel() and outcome.exception() is None:
            undo(outcome.result())
        raise
    if outcome.cancel():
        raise TimeoutError("the time was up")
    return outcome.result()


@contextmanager
def limited(wire: socket.socket, usual: float) -> Iterator[None]:
    """What is read and written here on a socket, whose own limit is `usual` seconds, is in time."""
    if (seconds := left(usual)) == usual:
        yield
        return
    before = wire.gettimeout()
    wire.settimeout(seconds)
    try:
        yield
    finally:
        with suppress(OSError):  # it was closed
            wire.settimeout(before)


async def within_async(seconds: float | None, action: Callable[[], Awaitable[T]]) -> T:
    """What the action returns, awaited. Raises RpcTimeout if it is late, also where it waits for what knows
    nothing of that."""
    if seconds is None or seconds > LONG:
        with within(seconds):
            return await action()
    with within(seconds):
        try:
            if sys.version_info < (3, 11):
                return await asyncio.wait_for(action(), seconds + AFTER)
            async with asyncio.timeout(seconds + AFTER):  # in this task: no other one is made for each call
                return await action()
        except RpcTimeout:
            raise
        except asyncio.TimeoutError:
            raise RpcTimeout from None
