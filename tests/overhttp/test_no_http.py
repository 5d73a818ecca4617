"""Callers at a port where something else listens than HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from rpc import AsyncRpcClient, BackendUnavailable, RpcClient

NO_HTTP = "it does not speak HTTP|no HTTP|does it speak HTTP"


def greets(connection: socket.socket) -> None:
    """As SSH does."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    connection.recv(65536)


def hangs_up(connection: socket.socket) -> None:
    """As Redis does, which takes it for an attack."""
    connection.recv(65536)


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of something that serves one connection after the other so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if is_over.is_set():
                        return
                    serve(connection)

        is_over, thread = threading.Event(), threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        is_over.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()


@pytest.fixture(params=[greets, hangs_up])
def url(request: pytest.FixtureRequest, scheme: str) -> Iterator[str]:
    with listening(request.param) as address:
        yield f"{scheme}://{address}"


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_caller_is_told_that_no_http_is_spoken_there(url: str) -> None:
    with RpcClient(backend=url, timeout=2) as client:
        with pytest.raises(BackendUnavailable, match=NO_HTTP):
            client.call_and_wait("add")
        with pytest.raises(BackendUnavailable, match=NO_HTTP):
            client.call("add")


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_caller_in_a_loop_is_told_so_too(url: str) -> None:
    async def calls() -> None:
        async with AsyncRpcClient(backend=url, timeout=2) as client:
            with pytest.raises(BackendUnavailable, match=NO_HTTP):
                await client.call_and_wait("add")

    asyncio.run(calls())
