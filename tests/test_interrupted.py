"""A signal handler that raises, or a task that is cancelled, wherever a call is just then: the next call gets
its own answer."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from in_memory import LONG, until

import rpc
from rpc import AsyncRpcClient, BackendUnavailable, RpcClient, RpcReceiver, RpcTimeout
from rpc.deadlines import left
from rpc.threads import DaemonThreads

pytestmark = [
    # What an exception leaves to nobody, the garbage collector closes, and complains.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

OURS = str(Path(rpc.__file__).parent)
ENOUGH = 2000
"""Lines; a call that waits may run through some of them without end."""

SOME = 9
"""Lines from one that fails to the next."""


class Interruption(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


class Lines:
    """The lines of ours that this thread comes to, at one of which an exception is raised."""

    def __init__(self, last: int) -> None:
        """It is raised at the one of that number, counted from 1."""
        self._left = last
        self.interrupted = ""
        """Where it was raised: a file and a line; "" if it did not come so far."""

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A block whose lines are counted, and which the interruption ends."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            with suppress(Interruption):
                yield
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        file, at = frame.f_code.co_filename, 0
        if not file.startswith(OURS):
            return None

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal at
            if event == "line":
                before, at = at, frame.f_lineno
                if not leaves_a_block(file, before, at):
                    self._count(f"{file}:{at}")
            return trace

        return trace

    def _count(self, place: str) -> None:
        self._left -= 1
        if not self._left:
            self.interrupted = place
            raise Interruption


def leaves_a_block(file: str, before: int, line: int) -> bool:
    """Whether this line of a file, which comes after another one, is that of a `with` whose block has ended.
    No signal handler runs after the last call of the block and before `__exit__`: what an exception leaves
    locked there, it leaves for `sys.settrace` alone."""
    return before > line and getline(file, line).lstrip().startswith("with ")


@pytest.fixture
def url(job_url: str) -> Iterator[str]:
    receiver = RpcReceiver(jobs={"echo": echo}, backend=job_url)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    yield job_url
    receiver.stop()
    thread.join(LONG)
    assert not thread.is_alive()
    gc.collect()  # what keeps a connection alive that an exception has left to nobody, keeps its thread, too


def echo(number: int) -> int:
    return number


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_call_that_is_interrupted_anywhere_leaves_the_next_one_alone(url: str) -> None:
    with RpcClient(backend=url, timeout=LONG) as client:
        client.call_and_wait("echo", [0])
        for line in range(1, ENOUGH):
            lines = Lines(line)
            with lines.counted():
                client.call_and_wait("echo", [-line])
            assert left(1e9) == 1e9, f"{lines.interrupted}: a deadline is left behind"
            assert client.call_and_wait("echo", [line]).data == line, lines.interrupted
            if not lines.interrupted:
                break


def test_a_pool_of_threads_goes_on_and_ends_wherever_its_user_was_interrupted() -> None:
    for line in range(1, ENOUGH):
        pool, lines = DaemonThreads(8, "rpc-interrupted"), Lines(line)
        with lines.counted():
            pool.submit(int).result(LONG)
        assert pool.submit(int).result(LONG) == 0, lines.interrupted
        pool.shutdown(wait=False)
        until(lambda: not [each for each in threading.enumerate() if each.name.startswith("rpc-interrupted")])
        if not lines.interrupted:
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

    async def failing(lines: Lines, call: Coroutine[Any, Any, Any]) -> None:
        with lines.counted(), suppress(RpcTimeout, BackendUnavailable):
            await asyncio.create_task(call)

    async def call() -> None:
        async with AsyncRpcClient(backend=url, timeout=LONG) as client:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
            for line in range(random.randrange(1, SOME), ENOUGH, SOME):
                lines = Lines(line)
                await failing(lines, client.call_and_wait("echo", [-line], timeout=0.1))
                assert (await client.call_and_wait("echo", [line])).data == line, lines.interrupted
                if not lines.interrupted:
                    break

    asyncio.run(call())
