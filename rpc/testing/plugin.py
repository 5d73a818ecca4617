"""A pytest plugin, loaded wherever the package is installed: the fixtures `rpc_redis` and `rpc_worker`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rpc import RpcClient
    from rpc.testing import RedisServer

STOP_WITHIN = 30.0


@pytest.fixture(scope="session")
def rpc_redis() -> Iterator[RedisServer]:
    """An embedded Redis of this test session; `rpc_redis.url` is its URL."""
    from rpc.testing import start_redis

    with start_redis() as server:
        yield server


@pytest.fixture
def rpc_worker() -> Iterator[Callable[..., RpcClient]]:
    """Starts a receiver in a thread, until the end of the test, and returns a client of it:
    `client = rpc_worker({"add": add})`. The keyword arguments are those of RpcReceiver; the backend is a
    hub in memory that no other test sees, if none is given."""
    from rpc import RpcClient, RpcReceiver

    with ExitStack() as stack:

        def start(jobs: dict[str, Callable[..., Any]], **options: Any) -> RpcClient:
            options.setdefault("backend", f"memory://{id(stack)}")
            receiver = RpcReceiver(jobs=jobs, **options)
            thread = threading.Thread(target=receiver.start, name="rpc-worker")
            thread.start()

            def stop() -> None:
                receiver.stop()
                thread.join(STOP_WITHIN)
                assert not thread.is_alive(), "the receiver did not stop: a handler still runs"

            stack.callback(stop)
            return stack.enter_context(RpcClient(backend=options["backend"]))

        yield start
