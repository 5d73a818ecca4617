"""A pytest plugin, loaded wherever the package is installed: the fixtures `rpc_receiver`, `rpc_worker` and
`rpc_redis`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

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
def rpc_worker(rpc_receiver: Callable[..., RpcClient]) -> Callable[..., RpcClient]:
    """The same for jobs: `client = rpc_worker({"add": add})`."""
    return lambda jobs, **options: rpc_receiver(jobs=jobs, **options)


@pytest.fixture
def rpc_receiver() -> Iterator[Callable[..., RpcClient]]:
    """Starts a receiver of services in a thread, until the end of the test, and returns a client of it, which
    is closed then: `client = rpc_receiver(Example)`. It serves when this returns. The keyword arguments are
    those of RpcReceiver; the backend is a hub in memory that no other test sees, if none is given."""
    from rpc import RpcClient, RpcReceiver

    class Telling(RpcReceiver):
        told: Callable[[], None]

        def _changed(self, connected: bool) -> None:
            super()._changed(connected)
            self.told()  # not a hook: it would run in the receiver's context, which may fail

    url = f"memory://{uuid4().hex}"
    with ExitStack() as stack:

        def start(*services: Any, **options: Any) -> RpcClient:
            options = {"backend": url, **({"services": services} if services else {}), **options}
            receiver, serving = Telling(**options), threading.Event()
            receiver.told = serving.set
            thread = threading.Thread(target=receiver.start, name="rpc-receiver")
            thread.start()

            def stop() -> None:
                receiver.stop()
                thread.join(STOP_WITHIN)
                assert not thread.is_alive(), "the receiver did not stop: a handler still runs"

            stack.callback(stop)
            assert serving.wait(STOP_WITHIN), "the receiver does not serve: see the log"
            return stack.enter_context(RpcClient(backend=options["backend"]))

        yield start
