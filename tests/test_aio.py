"""The asynchronous client, with memory between it and its workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from async_calls import (
    Calls,
    SpecialCalls,
    Stage,
    double,
    refuse_what_rabbitmq_cannot_do,
    run,
    signatures,
    until,
)

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient, RpcTimeout, SettingsError
from rpc.backends.memory import MemoryBackend
from rpc.backends.memory.hubs import HUBS
from rpc.transport import queue


class MemoryStage(Stage):
    def backend(self, **options: Any) -> Any:
        return MemoryBackend(self.url, **options)

    def waiting(self) -> int:
        return len(HUBS[self.url, "rpc"].waiting[queue("default")])


@pytest.fixture
def stage() -> Iterator[MemoryStage]:
    with ExitStack() as stack:
        yield MemoryStage(stack, f"memory://{uuid4().hex}")


class TestMemory(Calls, SpecialCalls):
    pass


class Blocking(MemoryBackend):
    """Has no asynchronous side of its own."""

    asynchronous = None  # type: ignore[assignment]


class BlockingStage(MemoryStage):
    def backend(self, **options: Any) -> Any:
        return Blocking(self.url, **options)


class TestInThreads(Calls, SpecialCalls):
    @pytest.fixture
    def stage(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingStage]:
        monkeypatch.setattr(MemoryBackend, "asynchronous", None)
        with ExitStack() as stack:
            yield BlockingStage(stack, f"memory://{uuid4().hex}")


# Both clients are one.


def test_the_methods_of_both_clients_have_the_same_parameters() -> None:
    assert signatures(AsyncRpcClient) == signatures(RpcClient)
    assert {"call", "call_and_wait", "submit", "map", "close", "__init__"} <= set(signatures(RpcClient))


def test_what_the_backend_cannot_do_is_refused_before_anything_is_sent() -> None:
    refuse_what_rabbitmq_cannot_do()


def test_a_settings_module_is_all_that_it_needs(stage: MemoryStage) -> None:
    settings = ModuleType("shop")
    settings.RPC_BACKEND, settings.RPC_TIMEOUT = stage.url, 0.05  # type: ignore[attr-defined]
    stage.serve({"double": double}, queues=["doubles"])

    async def main() -> None:
        async with AsyncRpcClient(settings=settings, queue="doubles") as client:
            assert (await client.call_and_wait("double", [1], timeout=5)).data == 2
            with pytest.raises(RpcTimeout, match=r"within 0\.05 s"):
                await client.call_and_wait("double", [1], queue="nobody")

    run(main)
    with pytest.raises(SettingsError, match="when_full is 'raise' or 'wait', not 'hope'"):
        AsyncRpcClient(backend=stage.url, when_full="hope")  # type: ignore[arg-type]


def test_a_client_closes_the_backend_that_it_made_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(MemoryBackend, "close", lambda backend: closed.append(backend))

    async def main() -> None:
        async with AsyncRpcClient(backend="memory://"), AsyncRpcClient(backend=MemoryBackend()):
            assert closed == []

    run(main)
    assert len(closed) == 1


def test_a_backend_that_fails_at_once_is_not_asked_over_and_over(
    stage: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Failing:
        def receive(self, timeout: float | None) -> Any:
            asked.append(timeout)
            raise BackendUnavailable("down")

        def close(self) -> None:
            """Nothing to do."""

    monkeypatch.setattr(Blocking, "request", lambda *_: Failing())

    async def main() -> None:
        async with AsyncRpcClient(backend=Blocking(stage.url)) as client:
            with pytest.raises((BackendUnavailable, RpcTimeout)):
                await client.call_and_wait("add", timeout=1.2)

    run(main)
    assert len(asked) < 100


@pytest.mark.parametrize("kind", [MemoryBackend, Blocking])
def test_what_one_receive_did_not_wait_for_the_next_one_gets(kind: Any) -> None:
    """A task that is cancelled while it receives loses nothing."""
    from threading import Thread

    from rpc.backends import asynchronous
    from rpc.testing.site import PATIENCE, request

    async def main() -> None:
        backend = kind(f"memory://{uuid4().hex}")
        asynchronously = asynchronous(backend)
        asked = [await asynchronously.request(queue("q"), request(b"%d" % n)) for n in range(20)]
        for cancelled in range(3):
            receiving = [asyncio.ensure_future(replies.receive(PATIENCE)) for replies in asked]
            await asyncio.sleep(0.01 * cancelled)
            for each in receiving:
                each.cancel()
            await asyncio.wait(receiving)
        server = backend.server([queue("q")], lambda delivery: delivery.finish(delivery.message))
        thread = Thread(target=server.run)
        thread.start()
        try:
            for number, replies in enumerate(asked):
                assert (await replies.receive(PATIENCE)).body == b"%d" % number
                replies.close()
        finally:
            server.stop()
            await until(lambda: not thread.is_alive())
            await asynchronously.close()

    run(main)


def test_a_loop_that_was_blocked_still_gets_its_answers(stage: MemoryStage) -> None:
    async def main() -> None:
        async with stage.client() as client:
            futures = [client.submit("double", [number], timeout=30) for number in range(50)]
            await asyncio.sleep(0)
            time.sleep(0.3)  # noqa: ASYNC251 - it is a blocked loop that is tested
            assert [(await each).data for each in futures] == list(range(0, 100, 2))

    stage.serve({"double": double})
    run(main)
