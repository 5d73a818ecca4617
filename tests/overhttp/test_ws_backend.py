"""Our callers on `ws://`: one connection, whatever is open on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.server import serve as other_server

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient, RpcReceiver
from rpc.backends.http.endpoints import Endpoints
from rpc.settings import Settings
from rpc.testing.site import eventually

from .conftest import PATIENCE, Serve, Site


def opened(site: Site) -> int:
    """Connections of the worker."""
    return int(site.receiver.backend.bounds.open)


def test_a_thousand_calls_are_open_on_one_connection(serve: Serve) -> None:
    come: list[int] = []
    threads: list[int] = []
    all_there = asyncio.Event()
    before = threading.active_count()

    async def meet(number: int) -> int:
        come.append(number)
        if len(come) == 1000:
            threads.append(threading.active_count())
            all_there.set()
        await all_there.wait()
        return number

    settings = Settings(timeout=60, grace=1, coroutines=1000)
    options: dict[str, Any] = {"concurrency": 4, "settings": settings}
    site = serve(RpcReceiver(jobs={"meet": meet}, backend="ws://127.0.0.1:0", **options))

    async def program() -> list[Any]:
        async with AsyncRpcClient(backend=f"ws://{site.host}", timeout=60) as client:
            calls = [client.call_and_wait("meet", [number]) for number in range(1000)]
            answers = await asyncio.gather(*calls)
            assert opened(site) == 1
            return [each.data for each in answers]

    assert asyncio.run(program()) == [*range(1000)]
    assert threads[0] - before <= 12


def test_threads_share_a_connection(serve: Serve) -> None:
    together = threading.Barrier(4, timeout=PATIENCE)
    site = serve(url="ws://127.0.0.1:0", meet=lambda: together.wait() >= 0)
    with RpcClient(backend=f"ws://{site.host}", timeout=PATIENCE) as client:
        futures = [client.submit("meet") for _ in range(4)]
        assert [future.result().data for future in futures] == [True] * 4
        assert opened(site) <= 2  # of this thread, and of the loop of futures
    eventually(lambda: opened(site) == 0)


def test_either_kind_of_caller_reaches_either_kind_of_worker(serve: Serve) -> None:
    for url in "ws://127.0.0.1:0", "http://127.0.0.1:0":
        site = serve(url=url, add=lambda a, b: a + b)
        for scheme in "ws", "http":
            with RpcClient(backend=f"{scheme}://{site.host}", timeout=PATIENCE) as client:
                assert client.call_and_wait("add", [1, 2]).data == 3


def test_a_message_of_many_megabytes_passes_both_ways(serve: Serve) -> None:
    site = serve(url="ws://127.0.0.1:0", echo=lambda text: text)
    with RpcClient(backend=f"ws://{site.host}", timeout=PATIENCE) as client:
        for size in 0, 15 * 2**20, 1:
            text = "x" * size
            assert client.call_and_wait("echo", [text]).data == text


@pytest.fixture
def strange() -> Iterator[str]:
    """A server of WebSockets that says what no worker of ours would."""

    def say(socket: Any) -> None:
        socket.recv()
        socket.send(b"\0")
        socket.recv()

    with other_server(say, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(PATIENCE)


def test_who_is_none_of_ours_is_told(strange: str, serve: Serve) -> None:
    with (
        RpcClient(backend=f"ws://{strange}?retry_for=0.1", timeout=PATIENCE) as client,
        pytest.raises(BackendUnavailable, match="does not speak as our workers do"),
    ):
        client.call_and_wait("add", [1, 2])
    site = serve(add=lambda a, b: a + b)
    with (
        RpcClient(backend=f"ws://{site.host}/elsewhere?retry_for=0.1", timeout=PATIENCE) as client,
        pytest.raises(BackendUnavailable, match="it opens no WebSocket: HTTP status 403"),
    ):
        client.call_and_wait("add", [1, 2])


def test_urls_have_the_ports_of_http() -> None:
    assert Endpoints("ws://a").places == [("a", 80)]
    assert Endpoints("wss://a,b:1").places == [("a", 443), ("b", 1)]
