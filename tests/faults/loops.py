"""Callers in an event loop: tasks that call, and write down what came of each call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rpc import AsyncRpcClient

from .load import a_size, named
from .nursery import PATIENCE
from .oracle import Call
from .programs import answer_to
from .stage import Stage

CANCELLED = "cancelled"


async def aask(
    stage: Stage,
    client: AsyncRpcClient,
    name: str = "work",
    *,
    timeout: float = 30.0,
    hurried: bool = False,
    **data: Any,
) -> Call:
    """Call, wait, and keep what came of it; a task that is cancelled keeps that, too."""
    call = Call(stage.job(), time.monotonic(), hurried)
    stage.oracle.calls.append(call)
    try:
        answer = (await client.call_and_wait(name, {"job": call.job, **data}, timeout=timeout)).data
        call.outcome = call.judge(answer, answer_to(call.job, data.get("size", 0)))
    except asyncio.CancelledError:
        call.outcome = CANCELLED
        raise
    except Exception as error:
        call.outcome = named(error)
    finally:
        call.done = time.monotonic()
    return call


async def load_in_tasks(
    stage: Stage,
    client: AsyncRpcClient,
    *,
    tasks: int,
    over: Callable[[], bool],
    work: float = 0.002,
    largest: int = 0,
    timeout: float = 30.0,
    hurried: bool = False,
) -> None:
    """So many tasks call, one call after the other, until that is true. Answers are of up to the `largest`
    number of characters."""

    async def caller() -> None:
        while not over():
            data = {"seconds": stage.dice.uniform(0, work), "size": a_size(stage.dice, largest)}
            padding = "x" * stage.dice.choice([0, 0, 100, 10_000])
            name = stage.dice.choice(["work", "awork"])
            await aask(stage, client, name, timeout=timeout, hurried=hurried, padding=padding, **data)

    await asyncio.gather(*(caller() for _ in range(tasks)))


def in_a_loop(main: Callable[[], Awaitable[Any]], seconds: float) -> None:
    """Run it; after so many seconds it has hung. It leaves no task behind."""

    async def watched() -> None:
        await asyncio.wait_for(main(), seconds)
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(watched())


async def until(check: Callable[[], Any], within: float = PATIENCE) -> None:
    """Wait until `check` returns what is true."""
    end = time.monotonic() + within
    while not check():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)
