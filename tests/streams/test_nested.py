"""Streams within streams, and consumers that are interrupted, or whose broker is away."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rpc import AsyncRpcClient, RpcClient
from rpc.loops import LoopThread

from .conftest import Site
from .handlers import PATIENCE, until


def relays(url: str) -> dict[str, Callable[..., Any]]:
    """Handlers that hand on twice what another stream of the same worker gives."""

    def relay(most: int, name: str) -> Any:
        with RpcClient(backend=url, timeout=PATIENCE) as client:
            for number in client.stream("count", {"most": most, "name": name}, window=5):
                yield 2 * number

    async def arelay(most: int, name: str) -> Any:
        async with AsyncRpcClient(backend=url, timeout=PATIENCE) as client:
            async for number in client.stream("acount", {"most": most, "name": name}, window=5):
                yield 2 * number

    return {"relay": relay, "arelay": arelay}


@pytest.mark.parametrize(("job", "at_once"), [("relay", 12), ("arelay", 20)])
def test_a_generator_may_consume_another_stream(site: Site, job: str, at_once: int, name: str) -> None:
    if site.kind == "rq":
        at_once = 3  # each stream holds a thread there
    site.serve(jobs=relays(site.url))
    client = site.client()

    def taken(_: int) -> list[Any]:
        return [*client.stream(job, {"most": 30, "name": "all"}, window=3)]

    with ThreadPoolExecutor(at_once) as threads:
        assert [*threads.map(taken, range(at_once))] == [[2 * number for number in range(30)]] * at_once
    with client.stream(job, {"most": 10**9, "name": name}, window=3) as stream:
        assert [next(stream) for _ in range(5)] == [0, 2, 4, 6, 8]
    until(lambda: site.lines(f"{name} ends"))  # that within it is closed, too
    until(lambda: not site.open)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C means what it does in a program: what ran here before may have had it mean something else."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_next_leaves_the_stream_in_step(site: Site) -> None:
    """As Ctrl-C does while it waits."""
    gate = threading.Event()

    def waits(number: int) -> Any:
        for each in range(number):
            if each == 2:
                gate.wait(PATIENCE)
            got = yield each
            assert got is None

    site.serve(jobs={"waits": waits})
    stream, other = site.client().stream("waits", {"number": 5}), site.client().stream("count", {"most": 3})
    assert [next(stream), next(stream), next(other)] == [0, 1, 0]
    me = threading.main_thread().ident
    assert me == threading.get_ident()
    timer = threading.Timer(0.2, signal.pthread_kill, [me, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    timer.join()
    with pytest.raises(RuntimeError, match="call next"):
        stream.send(1)
    gate.set()
    assert [*stream] == [2, 3, 4]
    assert [*other] == [1, 2]


@pytest.mark.usefixtures("interruptible")
def test_a_closed_stream_after_an_interruption_is_closed_there(site: Site, name: str) -> None:
    gate = threading.Event()

    def waits() -> Any:
        try:
            yield 0
            gate.wait(PATIENCE)
            yield 1
        finally:
            gate.set()

    site.serve(jobs={"waits": waits})
    stream = site.client().stream("waits")
    assert next(stream) == 0
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt), stream:
        next(stream)
    timer.join()
    gate.set()
    until(lambda: not site.open)
    assert [*site.client().stream("count", {"most": 3})] == [0, 1, 2]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rq", marks=[pytest.mark.redis, pytest.mark.slow]),
        pytest.param("amqp", marks=[pytest.mark.xdist_group("rabbit_node"), pytest.mark.slow]),
    ],
)
def test_what_a_consumer_says_blocks_no_event_loop_while_the_broker_is_away(
    kind: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    from .conftest import URLS

    site = Site(kind, URLS[kind](request), tmp_path)
    try:
        site.serve()
        if kind == "amqp":
            stop: Callable[[int], object] = request.getfixturevalue("rabbit_node").send_signal
        else:
            server = request.getfixturevalue("rpc_redis").pid
            stop = lambda number: os.kill(server, number)  # noqa: E731
        loop = LoopThread("test")
        client = AsyncRpcClient(backend=site.url, timeout=PATIENCE)
        loop.run(_takes_items(client, stop)).result(2 * PATIENCE)
        loop.close()
    finally:
        site.close()


async def _takes_items(client: AsyncRpcClient, send_signal: Callable[[int], object]) -> None:
    stream = client.stream("count", {"most": 200}, window=4)
    got = [await anext(stream) for _ in range(10)]
    send_signal(signal.SIGSTOP)
    try:
        rest = asyncio.ensure_future(_all_of(stream))
        for _ in range(50):  # with a loop that is blocked, they would not come to their end
            await asyncio.sleep(0.01)
        assert not rest.done()
    finally:
        send_signal(signal.SIGCONT)
    assert got + await rest == [*range(200)]
    await client.close()


async def _all_of(stream: Any) -> list[Any]:
    return [each async for each in stream]
