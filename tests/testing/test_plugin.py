"""The fixtures `rpc_receiver` and `rpc_worker`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rpc import MethodNotFound, RpcClient, expose, on
from rpc.backends.redis import subscriber
from rpc.backends.redis.servers import SOCKET_TIMEOUT
from rpc.backends.rq import worker
from rpc.testing import RedisServer, plugin

Start = Callable[..., RpcClient]


class Example:
    name = "example"

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @expose
    def foo(self, number: int) -> int:
        return number + 1

    @on("boom")
    def hear(self, data: Any) -> None:
        self.heard.append(data)


def test_a_receiver_serves_as_soon_as_it_is_there(rpc_receiver: Start) -> None:
    client = rpc_receiver(Example, jobs={"add": lambda a, b: a + b})
    assert [list(worker.jobs) for worker in client.describe(wait=0.2)] == [["add", "example.foo"]]
    assert client.services.example.foo(1) == 2
    assert client.call_and_wait("add", [1, 2]).data == 3


def test_receivers_of_one_test_are_on_one_hub(rpc_receiver: Start, rpc_worker: Start) -> None:
    first, second = rpc_receiver(Example, queues=["first"]), rpc_worker({"add": sum}, queues=["second"])
    assert len(first.describe(wait=0.2)) == 2
    assert second.services.example.foo.options(queue="first")(1) == 2


@pytest.mark.parametrize("time", [1, 2])
def test_no_other_test_is_on_it(rpc_worker: Start, time: int) -> None:
    client = rpc_worker({"other": lambda: time})
    assert len(client.describe(wait=0.1)) == 1
    assert client.call_and_wait("other").data == time
    client.call("left", queue="nobody")
    with pytest.raises(MethodNotFound):
        client.call_and_wait("add")


def test_options_are_those_of_a_receiver(rpc_receiver: Start) -> None:
    notes: list[str] = []
    client = rpc_receiver(
        Example,
        hooks={"pre_call": lambda request: notes.append(request.name)},
        middleware=[lambda request, rest: rest(request) * 10],
    )
    assert client.services.example.foo(1) == 20
    assert notes == ["example.foo"]


@pytest.mark.redis
@pytest.mark.parametrize("scheme", ["", "rq+"])
def test_another_backend_may_be_given(rpc_receiver: Start, rpc_redis: RedisServer, scheme: str) -> None:
    client = rpc_receiver(Example, backend=scheme + rpc_redis.url, queues=["plugin"])
    assert client.services.example.foo.options(queue="plugin")(1) == 2


TESTS = """
import threading

def test_one(rpc_receiver):
    client = rpc_receiver(jobs={"one": lambda: 1})
    client.submit("one").result(10)
    assert {"rpc-receiver", "rpc-client"} <= {thread.name for thread in threading.enumerate()}

def test_two():
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rpc-")]
"""


def test_the_fixture_ends_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.redis
def test_on_rq_a_stop_does_not_wait_for_the_end_of_a_wait(
    rpc_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in worker, subscriber:  # longer than connections allow: it would be noticed, and logged
        monkeypatch.setattr(module, "BLOCK", 2 * SOCKET_TIMEOUT)
    with contextmanager(plugin.rpc_receiver.__wrapped__)() as start:
        client = start(Example, backend=f"rq+{rpc_redis.url}?lease=60", queues=["plugin"], concurrency=2)
        assert client.services.example.foo.options(queue="plugin")(1) == 2
    assert not caplog.records
