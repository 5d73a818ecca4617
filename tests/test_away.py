"""While the broker is away, what nobody waits for is given up when the client's time is up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient
from rpc.backends import _retry

needs_driver = pytest.mark.skipif(find_spec("pamqp") is None, reason="needs RabbitMQ's driver")


@pytest.fixture(
    params=["redis", "rq+redis", "redis+cluster", pytest.param("amqp", marks=needs_driver)],
)
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where nobody listens; and without the client's time it would be tried for ever."""
    monkeypatch.setattr(_retry, "RETRY_FOR", 1e6)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        yield f"{request.param}://127.0.0.1:{port.getsockname()[1]}"


WAYS: dict[str, Any] = {
    "call": lambda client: client.call("work"),
    "call with ttl": lambda client: client.call("work", ttl=1000.0),
    "publish": lambda client: client.publish("boom"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_blocking(url: str, way: Any) -> None:
    with RpcClient(backend=url, timeout=0.3) as client, pytest.raises(BackendUnavailable):
        way(client)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_in_a_loop(url: str, way: Any) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=url, timeout=0.3) as client:
            with pytest.raises(BackendUnavailable):
                await way(client)

    asyncio.run(main())
