"""How far a job is: told by handlers, seen by callers, futures, and whoever knows the job's id."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import forked_progress
import pytest

from rpc import AsyncRpcClient, RemoteError, RpcClient, RpcReceiver
from rpc.core.jobs import Progress
from rpc.testing.site import eventually

STEPS = [Progress(0.0, "begins"), Progress(0.5, ""), Progress(1.0, "ends")]


def tell(request: Any) -> str:
    for step in STEPS:
        request.progress(step.fraction, step.text)
    return "done"


async def atell(request: Any) -> str:
    for step in STEPS:
        request.progress(step.fraction, step.text)
        await asyncio.sleep(0)
    return "done"


def wrong(request: Any) -> None:
    request.progress(request.data["fraction"])


@contextmanager
def serving(url: str, **jobs: Callable[..., Any]) -> Iterator[RpcReceiver]:
    receiver = RpcReceiver(jobs=jobs, backend=url, concurrency=2)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("name", ["tell", "atell"])
def test_a_caller_that_waits_sees_it(any_url: str, name: str) -> None:
    seen: list[Progress] = []
    with serving(any_url, tell=tell, atell=atell), RpcClient(backend=any_url) as client:
        eventually(lambda: client.describe())
        assert client.call_and_wait(name, on_progress=seen.append).data == "done"
        assert seen == STEPS
        future: Any = client.submit(name, on_progress=seen.append)
        assert future.result().data == "done"
        assert future.progress == STEPS[-1]
        assert seen == [*STEPS, *STEPS]
        assert client.call_and_wait(name).data == "done"  # who did not ask is not disturbed


def test_a_task_that_waits_sees_it(any_url: str) -> None:
    async def call() -> None:
        seen: list[Progress] = []
        async with AsyncRpcClient(backend=any_url) as client:
            assert (await client.call_and_wait("tell", on_progress=seen.append)).data == "done"
            future: Any = client.submit("tell", on_progress=seen.append)
            assert (await future).data == "done"
            assert future.progress == STEPS[-1]
        assert seen == [*STEPS, *STEPS]

    with serving(any_url, tell=tell), RpcClient(backend=any_url) as client:
        eventually(lambda: client.describe())
        asyncio.run(call())


def test_whoever_knows_the_id_sees_it(any_url: str) -> None:
    go = threading.Event()

    def work(request: Any) -> str:
        request.progress(0.25, "overwritten")
        request.progress(0.4, "resizing")
        go.wait(30)
        return "done"

    with RpcClient(backend=any_url) as client:
        if not {"results", "inspection"} <= client.backend.features:
            pytest.skip(f"{any_url.partition(':')[0]} has no feature 'results'")
        with serving(any_url, work=work):
            id = client.call("work", keep=60)
            try:
                eventually(lambda: client.job(id).progress == Progress(0.4, "resizing"))
            finally:
                go.set()
            eventually(lambda: client.job(id).state == "succeeded")
            job = client.job(id)
            assert (job.progress, job.result) == (None, "done")


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_it_is_from_0_to_1(memory_url: str, fraction: float) -> None:
    out_of_range = pytest.raises(RemoteError, match="ValueError: progress is from 0 to 1")
    with (
        serving(memory_url, wrong=wrong),
        RpcClient(backend=memory_url, codec="msgpack") as client,
        out_of_range,
    ):
        client.call_and_wait("wrong", {"fraction": fraction})


def test_a_callback_that_raises_ends_the_call(memory_url: str) -> None:
    def refuse(progress: Progress) -> None:
        raise LookupError(progress.text)

    with serving(memory_url, tell=tell), RpcClient(backend=memory_url) as client:
        with pytest.raises(LookupError, match="begins"):
            client.call_and_wait("tell", on_progress=refuse)
        with pytest.raises(LookupError, match="begins"):
            client.submit("tell", on_progress=refuse).result()


def test_a_job_in_a_process_of_its_own_tells_it(memory_url: str) -> None:
    seen: list[Progress] = []
    with serving(memory_url, convert=forked_progress.convert), RpcClient(backend=memory_url) as client:
        assert client.call_and_wait("convert", on_progress=seen.append).data == "converted"
    assert seen == [Progress(0.5, "converting")]
