"""A signal handler that raises, or a task that is cancelled, wherever a call is just then: the next call gets
its own answer."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from itertools import count
from types import FrameType
from typing import Any

import pytest
from conftest import BROKERS
from in_memory import LONG

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient, RpcReceiver, RpcTimeout

ENOUGH = 2000
"""Lines; a call that waits may run through some of them without end."""

SOME = 9
"""Lines from one that fails to the next."""


class Interruption(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


def interrupted(line: int, action: Callable[[], object]) -> bool:
    """Do this; at the line of that number, of those of ours that it comes to, an exception is raised. Whether
    it came so far."""
    left = line

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if event == "line" and "/rpc/" in frame.f_code.co_filename:
            left -= 1
            if not left:
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(Interruption):
            action()
    finally:
        sys.settrace(before)
    return left <= 0


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    url = request.getfixturevalue(f"{request.param}_url")
    receiver = RpcReceiver(jobs={"echo": echo}, backend=url)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    yield url
    receiver.stop()
    thread.join(LONG)
    assert not thread.is_alive()


def echo(number: int) -> int:
    return number


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_call_that_is_interrupted_anywhere_leaves_the_next_one_alone(url: str) -> None:
    with RpcClient(backend=url, timeout=LONG) as client:
        client.call_and_wait("echo", [0])
        for line in count(1):
            came_so_far = interrupted(line, lambda line=line: client.call_and_wait("echo", [-line]))  # type: ignore[misc]
            assert client.call_and_wait("echo", [line]).data == line
            if not came_so_far or line == ENOUGH:
                break


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_task_that_is_cancelled_anywhere_leaves_the_next_ones_alone(url: str) -> None:
    async def call() -> None:
        async with AsyncRpcClient(backend=url, timeout=LONG) as client:
            for turns in count():
                task = asyncio.create_task(client.call_and_wait("echo", [-1]))
                for _ in range(turns):  # of the event loop
                    await asyncio.sleep(0)
                is_done = task.done()
                task.cancel()
                both = [client.call_and_wait("echo", [number]) for number in (turns, turns + 1)]
                assert [each.data for each in await asyncio.gather(*both)] == [turns, turns + 1]
                with suppress(asyncio.CancelledError):
                    assert (await task).data == -1
                if is_done or turns == ENOUGH:
                    break

    asyncio.run(call())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_task_that_fails_anywhere_leaves_the_next_one_alone(url: str) -> None:
    """What fails on behalf of the loop, and not in the task, may cost the call its answer. At some
    of the lines: after many of them there is another connection."""

    async def call() -> None:
        async with AsyncRpcClient(backend=url, timeout=LONG) as client:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
            for line in count(random.randrange(1, SOME), SOME):
                is_over = await failing(line, client.call_and_wait("echo", [-line], timeout=0.1))
                assert (await client.call_and_wait("echo", [line])).data == line
                if is_over or line > ENOUGH:
                    break

    asyncio.run(call())


async def failing(line: int, call: Coroutine[Any, Any, Any]) -> bool:
    """Await the call; at the line of that number, of those of ours in this thread, an exception is raised.
    Whether the call was over before."""
    left = line

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if event == "line" and "/rpc/" in frame.f_code.co_filename:
            left -= 1
            if not left:
                raise Interruption
        return trace

    sys.settrace(trace)
    try:
        with suppress(Interruption, RpcTimeout, BackendUnavailable):
            await asyncio.create_task(call)
    finally:
        sys.settrace(None)
    return left > 0
