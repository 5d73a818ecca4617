"""Callers: threads that call, one call after the other, and write down what came of each."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rpc import RpcClient, RpcError

from .oracle import ACCEPTED, Call
from .programs import answer_to
from .stage import Stage

LATE = 20.0
"""Seconds after its time at which a caller that still waits has hung."""
CALLERS = 8
"""Threads that call at a time."""
PATIENT = 0.5
"""Seconds that a call may have waited when it meets another fault."""


def ask(
    stage: Stage,
    client: RpcClient,
    name: str = "work",
    *,
    hurried: bool = False,
    timeout: float = 30.0,
    **data: Any,
) -> Call:
    """Call, wait, and keep what came of it."""
    call = Call(stage.job(), time.monotonic(), hurried)
    stage.oracle.calls.append(call)
    try:
        answer = client.call_and_wait(name, {"job": call.job, **data}, timeout=timeout).data
        outcome = call.judge(answer, answer_to(call.job, data.get("size", 0)))
    except Exception as error:
        outcome = named(error)
    call.done, call.outcome = time.monotonic(), outcome
    return call


def named(error: Exception) -> str:
    """The name of an error; the text of one that is not ours, and should not have left a client."""
    name = type(error).__name__
    return name if isinstance(error, RpcError) else f"{name}: {error}"


@contextmanager
def asked(stage: Stage, name: str, client: RpcClient | None = None, **data: float) -> Iterator[Call]:
    """A call that goes on while the body runs, and is over after it."""
    arguments = [stage, client or stage.client(), name]
    thread = threading.Thread(target=ask, args=arguments, kwargs=data)
    known = len(stage.oracle.calls)
    thread.start()
    try:
        yield stage.until(lambda: stage.oracle.calls[known:])[0]
    finally:
        thread.join()


def tell(stage: Stage, client: RpcClient, name: str = "work", **data: Any) -> Call:
    """Call, and do not wait."""
    call = Call(stage.job(), time.monotonic())
    stage.oracle.calls.append(call)
    try:
        client.call(name, {"job": call.job, **data})
        outcome = ACCEPTED
    except Exception as error:
        outcome = named(error)
    call.done, call.outcome = time.monotonic(), outcome
    return call


def load(
    stage: Stage,
    client: RpcClient,
    *,
    calls: int = 10**9,
    seconds: float = 10**9,
    threads: int = CALLERS,
    timeout: float = 30.0,
    work: float = 0.004,
    unattended: float = 0.0,
    hurried: bool = False,
    largest: int = 0,
) -> None:
    """Make so many calls, or call for so many seconds, from several threads. A job takes up to `work`
    seconds; a share of them, `unattended`, has nobody who waits; `hurried` callers may run out of time.
    Answers are short, or of any size up to the `largest`, in characters."""
    end, lock, left = time.monotonic() + seconds, threading.Lock(), iter(range(calls))
    dice = stage.dice

    def caller() -> None:
        while time.monotonic() < end:
            with lock:
                if next(left, None) is None:
                    return
                took, waits = dice.uniform(0, work), dice.random() >= unattended
                data = {"seconds": took, "padding": "x" * dice.choice([0, 0, 100, 10_000])}
                data["size"] = a_size(dice, largest)
            if waits:
                ask(stage, client, timeout=timeout, hurried=hurried, **data)
            else:
                tell(stage, client, **data)

    running = [threading.Thread(target=caller, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running) and not stage.oracle.hung(timeout + LATE):
        for thread in running:
            thread.join(0.1)


def a_size(dice: random.Random, largest: int) -> int:
    """From 1 to the largest, small ones as often as large ones: each number of digits is as likely."""
    return round(math.exp(dice.uniform(0, math.log(largest)))) if largest else 0


@contextmanager
def meanwhile(
    action: Callable[[], object], every: float = 0.0, sparing: Stage | None = None
) -> Iterator[None]:
    """Do it again and again while the body runs; what it raises is raised at the end. `sparing`: not while a
    call on this stage has waited for too long already, as on a machine where it takes as long to connect as
    until the next time: sending is given up after five seconds."""
    over, failures = threading.Event(), list[BaseException]()

    def again() -> None:
        try:
            while not over.wait(every):
                while sparing and sparing.oracle.hung(PATIENT) and not over.wait(0.05):
                    pass
                action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
