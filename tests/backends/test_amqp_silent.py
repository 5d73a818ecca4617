"""Something that takes connections, and says nothing: a RabbitMQ that was stopped, or another program."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient
from rpc.backends.amqp import aio_connection, connection


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    for each in connection, aio_connection:
        monkeypatch.setattr(each, "SOCKET_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=10) as listening:
        listening.setblocking(False)
        yield listening


def accepted(listening: socket.socket) -> int:
    """How many have come."""
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_what_was_never_sent_is_not_withdrawn(
    silent: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"amqp://127.0.0.1:{silent.getsockname()[1]}"
    with RpcClient(backend=url, timeout=0.1) as client:
        with pytest.raises(BackendUnavailable, match="no answer within"):
            client.call_and_wait("add")
        assert accepted(silent) == 1
    assert not caplog.records


def test_in_an_event_loop_it_says_what_and_where(silent: socket.socket) -> None:
    port = silent.getsockname()[1]

    async def program() -> None:
        async with AsyncRpcClient(backend=f"amqp://127.0.0.1:{port}", timeout=0.1) as client:
            with pytest.raises(BackendUnavailable, match=rf"RabbitMQ: 127\.0\.0\.1:{port}: no answer within"):
                await client.call_and_wait("add")

    asyncio.run(program())


def test_nobody_there_is_told_with_the_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        RpcClient(backend=f"amqp://127.0.0.1:{port}", timeout=0.1) as client,
        pytest.raises(BackendUnavailable, match=rf"RabbitMQ: 127\.0\.0\.1:{port}: .*refused"),
    ):
        client.call_and_wait("add")
