"""Time limits of coroutines, which are interrupted, and of functions in threads, which cannot be."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable, Iterator
from threading import Event, get_ident
from typing import Any, cast

import pytest
from backends.rq_jobs import eventually

from rpc import AsyncRequest, Cancelled, RemoteError, Request, RpcClient, TimeLimitExceeded, job
from rpc.inspection import DeadLetters
from rpc.limits import Limits
from rpc.settings import Settings

LONG = 30.0
"""Seconds: far longer than anything here takes."""
SHORT = 0.1
Worker = Callable[..., RpcClient]


class Slow:
    """Jobs that take longer than they may, as long as the test wants."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.released = Event()

    def in_thread(self, **options: Any) -> Callable[..., Any]:
        @job(time_limit=SHORT, **options)
        def slow(request: Request) -> Any:
            self.heard.append(("began", request.attempt))
            if request.attempt == 1:
                self.released.wait(LONG)
                self.heard.append(("ends", request.cancelled))
            return request.attempt

        return slow

    def coroutine(self, **options: Any) -> Callable[..., Any]:
        @job(time_limit=SHORT, **options)
        async def slow(request: Request) -> Any:
            self.heard.append(("began", request.attempt))
            if request.attempt == 1:
                try:
                    await asyncio.sleep(LONG)
                except TimeLimitExceeded as error:
                    self.heard.append(str(error))
                    await asyncio.sleep(0)  # it may wait while it cleans up
                    self.heard.append("cleaned up")
            return request.attempt

        return slow


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.released.set()


@pytest.fixture
def limits() -> Iterator[Limits]:
    limits = Limits()
    yield limits
    limits.end()


def echo(value: Any) -> Any:
    return value


# Coroutines.


@pytest.mark.parametrize("has_middleware", [False, True])
def test_it_is_raised_in_a_coroutine_whose_late_result_nobody_gets(
    rpc_worker: Worker, any_url: str, slow: Slow, has_middleware: bool
) -> None:
    """With middleware, coroutines hold a thread."""
    middleware = [lambda request, call_next: call_next(request)] if has_middleware else []
    jobs = {"slow": slow.coroutine(), "echo": echo}
    client = rpc_worker(jobs, backend=any_url, queues=["default"], middleware=middleware)
    with pytest.raises(TimeLimitExceeded, match=r"^the job ran longer than 0\.1 s$"):
        client.call_and_wait("slow", timeout=LONG)
    assert slow.heard == [("began", 1), "the job ran longer than 0.1 s", "cleaned up"]
    assert client.call_and_wait("echo", [1]).data == 1


def test_a_coroutine_that_is_cancelled_before_is_not_too_late(rpc_worker: Worker) -> None:
    began, ended = Event(), list[BaseException]()

    @job(time_limit=LONG)
    async def waits() -> None:
        began.set()
        try:
            await asyncio.sleep(LONG)
        except BaseException as error:
            ended.append(error)
            raise

    future = rpc_worker({"waits": waits}).submit("waits")
    assert began.wait(LONG)
    future.cancel()
    eventually(lambda: ended)
    assert type(ended[0]) is asyncio.CancelledError


def test_what_waits_for_cancellation_alone_sees_one(limits: Limits) -> None:
    """A condition takes its lock again, and a task group ends its tasks, before anything is raised."""
    heard: list[Any] = []

    async def in_condition() -> None:
        condition = asyncio.Condition()
        async with condition:
            await condition.wait()

    async def in_group() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(LONG))
            task.add_done_callback(lambda task: heard.append(task.cancelled()))

    async def main() -> None:
        for function in (in_condition, in_group)[: 2 if sys.version_info >= (3, 11) else 1]:
            with pytest.raises(TimeLimitExceeded):
                await limits.awaited(function, SHORT)
        if sys.version_info >= (3, 11):
            assert heard == [True]
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
        await asyncio.sleep(0)  # nothing of it is left

    asyncio.run(main())


def test_a_cancellation_that_comes_with_the_limit_stays_one(limits: Limits) -> None:
    async def waits() -> None:
        await asyncio.sleep(LONG)

    async def main() -> None:
        task = asyncio.ensure_future(limits.awaited(waits, SHORT))
        asyncio.get_running_loop().call_later(SHORT, task.cancel)
        with pytest.raises((TimeLimitExceeded, asyncio.CancelledError)):
            await task

    asyncio.run(main())


def test_a_coroutine_in_time_gives_what_it_has(limits: Limits) -> None:
    async def quick() -> str:
        await asyncio.sleep(0)
        return "quick"

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("its own")

    async def main() -> None:
        assert await limits.awaited(quick, LONG) == "quick"
        with pytest.raises(KeyError, match="its own"):
            await limits.awaited(fails, LONG)

    asyncio.run(main())


# Functions.


def test_the_caller_of_a_function_is_told_while_it_goes_on(
    rpc_worker: Worker, any_url: str, slow: Slow
) -> None:
    jobs = {"slow": slow.in_thread(), "echo": echo}
    client = rpc_worker(jobs, backend=any_url, queues=["default"])
    with pytest.raises(TimeLimitExceeded, match=r"^the job ran longer than 0\.1 s$"):
        client.call_and_wait("slow", timeout=LONG)
    assert slow.heard == [("began", 1)]
    slow.released.set()
    eventually(lambda: slow.heard == [("began", 1), ("ends", True)])
    assert [client.call_and_wait("echo", [n]).data for n in range(5)] == [*range(5)]
    assert slow.heard == [("began", 1), ("ends", True)]


def test_what_a_function_raises_after_its_limit_is_nothing_new(
    rpc_worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    released, errors = Event(), list[Any]()

    @job(time_limit=SHORT)
    def slow() -> None:
        released.wait(LONG)
        raise KeyError("late")

    hooks = {"post_error": lambda request, error: errors.append(error)}
    client = rpc_worker({"slow": slow, "echo": echo}, hooks=hooks)
    with pytest.raises(TimeLimitExceeded):
        client.call_and_wait("slow", timeout=LONG)
    released.set()
    eventually(lambda: errors)
    assert isinstance(errors[0], TimeLimitExceeded)
    client.call_and_wait("echo", [1])  # by the same thread
    assert caplog.text.count("job 'slow'") == 1


@pytest.mark.parametrize("way", ["coroutine", "in_thread"])
def test_its_name_is_the_public_one_everywhere(
    rpc_worker: Worker, slow: Slow, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    names: list[str] = []
    hooks = {"post_error": lambda request, error: names.append(type(error).__name__)}
    client = rpc_worker({"slow": getattr(slow, way)()}, hooks=hooks)
    with caplog.at_level(logging.INFO, "rpc.jobs"), pytest.raises(TimeLimitExceeded):
        client.call_and_wait("slow", timeout=LONG)
    slow.released.set()
    eventually(lambda: names and any(record.name == "rpc.jobs" for record in caplog.records))
    outcomes = [record.outcome for record in caplog.records if record.name == "rpc.jobs"]
    assert (names, outcomes) == (["TimeLimitExceeded"], ["failed: TimeLimitExceeded"])
    assert "lifecycle.Overran" not in caplog.text


def test_what_has_responded_in_time_is_answered(rpc_worker: Worker) -> None:
    released = Event()

    @job(time_limit=SHORT)
    def slow(request: Request) -> None:
        request.respond("in time")
        released.wait(LONG)

    client = rpc_worker({"slow": slow})
    assert client.call_and_wait("slow").data == "in time"
    released.set()


def test_many_functions_have_limits_of_their_own(limits: Limits) -> None:
    late: list[float] = []
    released = Event()

    def wait_with(seconds: float) -> None:
        def tell(error: Exception) -> None:
            late.append(seconds)
            if len(late) == 2:
                released.set()

        limits.called(lambda: released.wait(LONG), seconds, tell)

    async def main() -> list[Any]:
        each = [asyncio.to_thread(wait_with, seconds) for seconds in (LONG, 0.2, 0.1)]
        return await asyncio.gather(*each, return_exceptions=True)

    ended = asyncio.run(main())
    assert late == [0.1, 0.2]
    assert [isinstance(error, TimeLimitExceeded) for error in ended] == [False, True, True]
    assert limits.called(get_ident, LONG, late.append) == get_ident()


# Both.


@pytest.mark.parametrize("colour", ["in_thread", "coroutine"])
def test_what_took_too_long_is_tried_again_if_the_job_is(
    rpc_worker: Worker, any_url: str, slow: Slow, colour: str
) -> None:
    @job(time_limit=SHORT, retries=1, backoff=0.01)
    def in_thread(request: Request) -> int:
        while request.attempt == 1 and not request.cancelled:
            slow.released.wait(0.01)
        return request.attempt

    function = in_thread if colour == "in_thread" else slow.coroutine(retries=1, backoff=0.01)
    client = rpc_worker({"slow": function}, backend=any_url, queues=["default"])
    assert client.call_and_wait("slow", timeout=LONG).data == 2


def test_the_next_attempt_does_not_wait_for_a_function_that_goes_on(
    rpc_worker: Worker, any_url: str, slow: Slow
) -> None:
    jobs = {"slow": slow.in_thread(retries=1, backoff=0.01)}
    client = rpc_worker(jobs, backend=any_url, queues=["default"], concurrency=2)
    assert client.call_and_wait("slow", timeout=LONG).data == 2
    assert slow.heard == [("began", 1), ("began", 2)]


@pytest.mark.parametrize("colour", ["in_thread", "coroutine"])
def test_a_job_that_took_too_long_each_time_is_a_dead_letter(
    rpc_worker: Worker, any_url: str, colour: str
) -> None:
    released = Event()

    @job(time_limit=SHORT, retries=1, backoff=0.01, retry_on=TimeLimitExceeded)
    def in_thread(request: Request) -> None:
        while not request.cancelled:
            released.wait(0.01)

    @job(time_limit=SHORT, retries=1, backoff=0.01, retry_on=TimeLimitExceeded)
    async def coroutine() -> None:
        await asyncio.sleep(LONG)

    client = rpc_worker({"slow": locals()[colour]}, backend=any_url, queues=["default"])
    with pytest.raises(TimeLimitExceeded):
        client.call_and_wait("slow", timeout=LONG)
    shelf = cast("DeadLetters", client.backend)
    (letter,) = eventually(lambda: shelf.dead_letters("default"))
    assert letter.why == "TimeLimitExceeded: the job ran longer than 0.1 s"


def test_a_default_is_for_jobs_that_have_none(rpc_worker: Worker) -> None:
    async def short(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    @job(time_limit=math.inf)
    async def endless(seconds: float) -> str:
        return await short(seconds)

    @job(time_limit=LONG)
    async def longer(seconds: float) -> str:
        return await short(seconds)

    jobs = {"short": short, "longer": longer, "endless": endless}
    client = rpc_worker(jobs, settings=Settings(time_limit=SHORT))
    with pytest.raises(TimeLimitExceeded):
        client.call_and_wait("short", [2 * SHORT])
    assert client.call_and_wait("longer", [2 * SHORT]).data == "slept"
    assert client.call_and_wait("endless", [2 * SHORT]).data == "slept"


def test_the_limit_of_what_it_called_is_not_its_own(rpc_worker: Worker, slow: Slow) -> None:
    async def outer(request: AsyncRequest) -> Any:
        return (await request.call_and_wait("slow")).data

    client = rpc_worker({"slow": slow.coroutine(), "outer": outer})
    with pytest.raises(RemoteError, match=r"TimeLimitExceeded: the job ran longer than 0\.1 s"):
        client.call_and_wait("outer")


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_a_limit_is_more_than_nothing(seconds: float) -> None:
    with pytest.raises(ValueError, match="time_limit is in seconds"):
        job(time_limit=seconds)


def test_a_withdrawn_job_is_cancelled_not_late(rpc_worker: Worker) -> None:
    async def raises() -> None:
        raise Cancelled("by itself")

    with pytest.raises(Cancelled):
        rpc_worker({"raises": job(time_limit=LONG)(raises)}).call_and_wait("raises")
