"""A call ends in time whatever its broker does, and whatever the driver would wait for: each limit of a
connection is far longer here than any test takes."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from importlib import import_module
from threading import Event
from typing import Any

import pytest
from faults.proxy import Proxy

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient, RpcTimeout
from rpc.threads import DaemonThreads

TIMEOUT = 0.5
SECONDS = 60
"""Longer than it takes on any machine, and far shorter than the limits."""
ENDLESS = 3600.0
LIMITS = {
    "redis.servers": ["SOCKET_TIMEOUT", "CONNECT_TIMEOUT"],
    "redis.connection": ["SOCKET_TIMEOUT"],
    "redis.session": ["SOCKET_TIMEOUT"],
    "amqp.servers": ["SOCKET_TIMEOUT"],
    "amqp.connection": ["SOCKET_TIMEOUT"],
    "amqp.aio_connection": ["SOCKET_TIMEOUT"],
    "http.blocking": ["CONNECT", "FAREWELL"],
    "http.links": ["CONNECT"],
    "http.websocket": ["CONNECT"],
    "http.aio": ["CONNECT"],
}
SCHEMES = ["redis", "rq+redis", "amqp", "zmq+tcp", "http", "ws"]
CALLS: dict[str, Callable[[str], object]] = {}


def call(make: Callable[[str], object]) -> Callable[[str], object]:
    CALLS[make.__name__] = make
    return make


@call
def blocking(url: str) -> object:
    with RpcClient(backend=url, timeout=TIMEOUT) as client:
        return client.call_and_wait("add")


@call
def in_order(url: str) -> object:
    with RpcClient(backend=url, timeout=TIMEOUT) as client:
        return client.call_and_wait("add", order_key="k" if "order" in client.backend.features else None)


@call
def sending(url: str) -> object:
    with RpcClient(backend=url, timeout=TIMEOUT) as client:
        return client.call("add")


@call
def submitted(url: str) -> object:
    with RpcClient(backend=url, timeout=TIMEOUT) as client:
        return client.submit("add").result()


@call
def streamed(url: str) -> object:
    with RpcClient(backend=url, timeout=TIMEOUT) as client:
        return next(client.stream("add"))


@call
def awaited(url: str) -> object:
    async def main() -> object:
        async with AsyncRpcClient(backend=url, timeout=TIMEOUT) as client:
            return await client.call_and_wait("add")

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in LIMITS.items():
        for name in names:
            monkeypatch.setattr(import_module(f"rpc.backends.{module}"), name, ENDLESS)


def ends(attempt: Callable[[], object]) -> None:
    """It does, with an error that says why."""
    thread = DaemonThreads(1, "call")
    try:
        with pytest.raises((RpcTimeout, BackendUnavailable)):
            thread.submit(attempt).result(SECONDS)
    finally:
        thread.shutdown(wait=False)


@pytest.fixture(params=["silent", "full"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where connections are taken by somebody who says nothing, or are not even taken: what is sent there is
    dropped."""
    with ExitStack() as stack:
        backlog = 100 if request.param == "silent" else 0
        listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0), backlog=backlog)))
        where: Any = listener.getsockname()
        for _ in range(4 if request.param == "full" else 0):
            filling = stack.enter_context(closing(socket.socket()))
            filling.setblocking(False)
            filling.connect_ex(where)
        yield f"127.0.0.1:{where[1]}"


@pytest.mark.parametrize("made", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_answers_on_a_new_connection(scheme: str, made: Callable[[str], object], place: str) -> None:
    ends(lambda: made(f"{scheme}://{place}"))


@pytest.mark.parametrize("made", [blocking, sending, submitted], ids=lambda made: made.__name__)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_host_cannot_be_looked_up(
    scheme: str, made: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, is_over = socket.getaddrinfo, Event()

    def look(host: Any, *about: Any, **options: Any) -> Any:
        if host in ("rpc.invalid", b"rpc.invalid"):
            is_over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "nobody knows it")
        return known(host, *about, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    try:
        ends(lambda: made(f"{scheme}://rpc.invalid:7000"))
    finally:
        is_over.set()


@pytest.fixture
def hanging(any_broker_url: str) -> Iterator[tuple[str, Proxy]]:
    """The URL of a broker, and what makes it hang."""
    scheme, _, rest = any_broker_url.partition("://127.0.0.1:")
    port = rest.partition("/")[0].partition("?")[0]
    with closing(Proxy(int(port), random.Random(0))) as proxy:
        yield f"{scheme}://127.0.0.1:{rest.replace(port, str(proxy.port), 1)}", proxy
        proxy.heal()


@pytest.mark.parametrize("order_key", [None, "k"])
@pytest.mark.parametrize("size", [1, 8 * 1024 * 1024], ids=["small", "large"])
def test_nobody_answers_any_more(hanging: tuple[str, Proxy], size: int, order_key: str | None) -> None:
    url, proxy = hanging
    with RpcClient(backend=url, timeout=SECONDS) as client:
        client.call("add")
        with suppress(RpcTimeout):
            client.call_and_wait("add", timeout=TIMEOUT)
        proxy.holes.update(["up", "down"])
        ends(lambda: client.call_and_wait("add", ["x" * size], timeout=TIMEOUT, order_key=order_key))
        ends(lambda: client.call_and_wait("add", timeout=3 * TIMEOUT))
        proxy.heal()
