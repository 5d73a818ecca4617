"""`rpc services`: what is shown of the workers that run now."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from in_memory import until

from rpc import RpcClient, RpcReceiver, every, expose, on
from rpc.cli.output import aligned

from .conftest import SECONDS, Process, error_in

Invoke = Callable[..., Result]
ME = f"{socket.gethostname()}:{os.getpid()}"


class Example:
    name = "example"

    @expose
    def foo(self, number: int, *, key: str = "k") -> list[int]:
        return [number]

    @on("order.*", group="accountant", durable=True)
    def hear(self, data: Any) -> None:
        raise ValueError

    @on("boom")
    def hear_too(self, data: Any) -> None:
        """Nothing to do."""

    @every(seconds=90)
    def tick(self) -> None:
        """Nothing to do."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}"


@pytest.fixture
def serve(url: str) -> Iterator[Callable[..., None]]:
    """Start a receiver; it serves when this returns."""
    with ExitStack() as stack:

        def start(**options: Any) -> None:
            serving = threading.Event()
            receiver = RpcReceiver(backend=url, hooks={"on_connect": serving.set}, **options)
            thread = threading.Thread(target=receiver.start)
            thread.start()
            stack.callback(thread.join, SECONDS)
            stack.callback(receiver.stop)
            assert serving.wait(SECONDS)

        yield start


@pytest.fixture
def services(invoke: Invoke, url: str) -> Invoke:
    """`rpc services`, on that backend."""
    return lambda *words: invoke("services", "--backend", url, *words)


def test_there_is_a_table_of_what_all_workers_offer(services: Invoke, serve: Callable[..., None]) -> None:
    def add(a: int, b: int = 1) -> int:
        return a + b

    serve(jobs={"add": add}, concurrency=2)
    serve(jobs={"add": add}, services=[Example], queues=["high", "default"])
    result = services()
    assert (result.exit_code, result.stderr) == (0, "")
    *lines, one, other = result.stdout.splitlines()
    assert lines == [
        "jobs",
        "  add(a: int, b: int = 1) -> int                            2 workers",
        "  example.foo(number: int, *, key: str = 'k') -> list[int]  1 worker",
        "listeners",
        "  boom     example.hear_too                             1 worker",
        "  order.*  example.hear      group accountant, durable  1 worker",
        "timers",
        "  example.tick  every 90 s  1 worker",
        "workers",
    ]
    assert {one, other} == {
        f"  {ME}  high, default, low  concurrency 2, coroutines 100",
        f"  {ME}  high, default       concurrency 1, coroutines 100",
    }


def test_failures_of_listeners_are_shown(services: Invoke, serve: Callable[..., None], url: str) -> None:
    serve(services=[Example])
    with RpcClient(backend=url) as client:
        client.publish("order.created")
        until(lambda: client.describe(wait=0.1)[0].listeners[0].failures)
    assert re.search(r"order\.\*  example\.hear .* 1 worker  1 failed\n", services().stdout)


def test_as_json_it_is_one_object(services: Invoke, serve: Callable[..., None]) -> None:
    serve(services=[Example], queues=["high"])
    result = services("--json")
    assert result.stdout.count("\n") == 1
    (worker,) = json.loads(result.stdout)["workers"]
    assert len(worker.pop("id")) == 32
    assert worker == {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "queues": ["high"],
        "concurrency": 1,
        "coroutines": 100,
        "jobs": {"example.foo": "(number: int, *, key: str = 'k') -> list[int]"},
        "listeners": [
            {
                "event": "order.*",
                "name": "example.hear",
                "group": "accountant",
                "durable": True,
                "failures": 0,
            },
            {"event": "boom", "name": "example.hear_too", "group": None, "durable": False, "failures": 0},
        ],
        "timers": {"example.tick": "every 90 s"},
    }


def test_nobody_is_no_error(services: Invoke) -> None:
    result = services("--wait", "0.05")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no worker answered within 0.05 s\n"
    result = services("--wait", "0.05", "--json")
    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (0, {"workers": []}, "")


def test_what_a_worker_says_cannot_steer_the_terminal() -> None:
    assert list(aligned([("a\x1b[31m\nb", "1"), ("c", "2")])) == ["a\\u001b[31m b  1", "c              2"]


@pytest.mark.parametrize("wait", ["0", "-1", "nan", "inf", "x"])
def test_a_wait_is_a_time(services: Invoke, wait: str) -> None:
    assert services("--wait", wait).exit_code == 2


def test_errors_have_their_exit_codes(invoke: Invoke) -> None:
    nowhere = invoke("services", "--backend", "redis://127.0.0.1:1/0", "--json")
    assert nowhere.exit_code == 4
    assert error_in(nowhere.stdout)["type"] == "BackendUnavailable"
    assert invoke("services").exit_code == 2


@pytest.mark.redis
def test_workers_of_other_processes_are_listed(
    rpc: Callable[..., Any], spawn: Callable[..., Process], tmp_path: Path, redis_server: Any
) -> None:
    (tmp_path / "settings.py").write_text(
        f"RPC_BACKEND = {redis_server.url!r}\nRPC_JOB_MAPPING = {{'dir': lambda: 1}}\n"
    )
    workers = [spawn("worker") for _ in range(2)]
    for worker in workers:
        worker.says("serving")
    until(lambda: "2 workers" in rpc("services", "--wait", "1").stdout)
    said = rpc("services", "--wait", "1")
    assert said.returncode == 0
    for worker in workers:
        assert f"{socket.gethostname()}:{worker.pid}" in said.stdout
