"""A receiver in the event loop of an application, on every kind of backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from in_memory import LONG

from rpc import AsyncRpcClient, Request, RpcReceiver, Unsupported, job
from rpc.backends.memory import MemoryBackend
from rpc.backends.memory.server import MemoryServer


class Nap:
    """A coroutine handler that ends when it is told to, and what became of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: Request) -> str:
        self.log.append("began")
        self.began.set()
        try:
            await self.may_end.wait()
            self.log.append("done")
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        return "slept"


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def timed() -> None:
        await asyncio.wait_for(main(), 2 * LONG)

    asyncio.run(timed())


async def done_by_the_next(url: str) -> None:
    """Another receiver gets what was handed back."""
    nap = Nap()
    nap.may_end.set()
    async with RpcReceiver(jobs={"nap": nap.__call__}, backend=url):
        await asyncio.wait_for(nap.began.wait(), LONG)
    assert nap.log == ["began", "done"]


def test_coroutines_run_in_the_loop_of_the_application(any_url: str) -> None:
    async def main() -> None:
        loop, lock, before = asyncio.get_running_loop(), asyncio.Lock(), asyncio.all_tasks()

        async def locked(number: int) -> bool:
            async with lock:
                return asyncio.get_running_loop() is loop

        for _ in range(2):  # the same again
            async with (
                RpcReceiver(jobs={"locked": locked}, backend=any_url),
                AsyncRpcClient(backend=any_url) as client,
            ):
                async with lock:
                    calls = [asyncio.create_task(client.call_and_wait("locked", [n])) for n in range(3)]
                    await asyncio.sleep(0)
                assert [(await call).data for call in calls] == [True] * 3
        assert asyncio.all_tasks() == before

    run(main)


def test_what_runs_at_the_end_of_the_block_may_finish(any_url: str) -> None:
    async def main() -> None:
        nap = Nap()
        async with AsyncRpcClient(backend=any_url, timeout=LONG) as client:
            async with RpcReceiver(jobs={"nap": nap.__call__}, backend=any_url):
                call = asyncio.create_task(client.call_and_wait("nap"))
                await nap.began.wait()
                asyncio.get_running_loop().call_later(0.1, nap.may_end.set)
            assert (await call).data == "slept"

    run(main)


def test_what_does_not_finish_in_time_is_cancelled_and_goes_back(any_broker_url: str) -> None:
    async def main() -> None:
        nap = Nap()
        async with RpcReceiver(jobs={"nap": nap.__call__}, backend=any_broker_url, grace=0.1):
            async with AsyncRpcClient(backend=any_broker_url) as client:
                await client.call("nap")
            await nap.began.wait()
        await done_by_the_next(any_broker_url)
        assert nap.log == ["began", "cancelled"]

    run(main)


def test_what_the_application_cancels_goes_back(any_broker_url: str) -> None:
    """It is in a hurry: it does not wait for the end of the block."""
    nap = None

    async def hurried() -> None:
        nonlocal nap
        nap = Nap()
        async with RpcReceiver(jobs={"nap": nap.__call__}, backend=any_broker_url):
            async with AsyncRpcClient(backend=any_broker_url) as client:
                await client.call("nap")
            await nap.began.wait()
            asyncio.get_running_loop().call_later(0.2, asyncio.current_task().cancel)  # type: ignore[union-attr]

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(hurried())
    assert nap is not None
    assert nap.log == ["began", "cancelled"]
    run(lambda: done_by_the_next(any_broker_url))


def test_what_is_raised_in_the_block_ends_it(any_url: str) -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with RpcReceiver(jobs={"nap": Nap().__call__}, backend=any_url):
                raise KeyError

    run(main)


def test_what_hinders_a_receiver_is_raised_where_it_is_entered() -> None:
    class Hindered(MemoryBackend):
        def server(self, *_: Any, **options: Any) -> MemoryServer:
            raise Unsupported("not today")

    async def main() -> None:
        receiver = RpcReceiver(jobs={"nap": Nap().__call__}, backend=Hindered("memory://hindered"))
        with pytest.raises(Unsupported, match="not today"):
            async with receiver:
                raise AssertionError("it was entered")

    run(main)


def test_one_receiver_is_entered_once_at_a_time(any_url: str) -> None:
    async def main() -> None:
        receiver = RpcReceiver(jobs={"nap": Nap().__call__}, backend=any_url)
        async with receiver:
            with pytest.raises(RuntimeError, match="serves already"):
                async with receiver:
                    raise AssertionError("it was entered")

    run(main)


@pytest.mark.redis
def test_a_stop_ends_the_wait_for_a_connection() -> None:
    async def main() -> None:
        receiver = RpcReceiver(jobs={"nap": Nap().__call__}, backend="redis://127.0.0.1:1/0")
        asyncio.get_running_loop().call_later(0.2, receiver.stop)
        async with receiver:
            pass

    run(main)


def test_a_receiver_that_was_left_in_a_hurry_can_be_entered_again(any_url: str) -> None:
    async def main() -> None:
        nap, quick = Nap(), Nap()
        quick.may_end.set()
        receiver = RpcReceiver(jobs={"nap": nap.__call__, "quick": quick.__call__}, backend=any_url)

        async def hurried() -> None:
            async with receiver, AsyncRpcClient(backend=any_url) as client:
                await client.call("nap")
                await nap.began.wait()

        left = asyncio.create_task(hurried())
        await nap.began.wait()
        done, _ = await asyncio.wait([left], timeout=0.1)
        assert not done
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        nap.may_end.set()
        async with receiver, AsyncRpcClient(backend=any_url) as client:
            assert (await client.call_and_wait("quick")).data == "slept"

    run(main)


def test_each_job_ends_whose_caller_leaves_while_it_fails(any_url: str) -> None:
    """What is to be done about it may take a word with the broker, and nobody may interrupt that."""

    async def main() -> None:
        began = asyncio.Semaphore(0)

        @job(retries=1, backoff=0.01)
        async def fails() -> None:
            began.release()
            raise ConnectionError

        async with (
            RpcReceiver(jobs={"fails": fails}, backend=any_url, concurrency=4),
            AsyncRpcClient(backend=any_url) as client,
        ):
            for _ in range(10):
                calls = [asyncio.create_task(client.call_and_wait("fails")) for _ in range(10)]
                await began.acquire()
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)

    run(main)
