"""`rpc services`: what is shown of the workers that run now."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from in_memory import until

from rpc import Identity, RpcClient, RpcReceiver, every, expose, on
from rpc.cli.output import aligned
from rpc.settings import Settings
from rpc.testing.servers import RedisServer

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
    ids = {tuple(each["queues"]): each["id"] for each in json.loads(services("--json").stdout)["workers"]}
    assert {one, other} == {
        f"  {ME}  {ids['high', 'default', 'low']}  high, default, low  concurrency 2, coroutines 100",
        f"  {ME}  {ids['high', 'default']}  high, default       concurrency 1, coroutines 100",
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
    assert (len(worker.pop("id")), len(worker.pop("schema"))) == (32, 64)
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
                "headers": {},
                "match": "all",
            },
            {
                "event": "boom",
                "name": "example.hear_too",
                "group": None,
                "durable": False,
                "failures": 0,
                "headers": {},
                "match": "all",
            },
        ],
        "timers": {"example.tick": "every 90 s"},
        "service": "",
        "version": "",
        "running": 0,
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


def test_services_have_a_table_with_their_replicas(services: Invoke, serve: Callable[..., None]) -> None:
    shop = Identity(domain="shop", type="orders", version="1.4.0")
    for _ in range(2):
        serve(services=[Example], identity=shop)
    serve(services=[Example], identity=Identity(domain="shop", type="stock"))
    lines = services().stdout.splitlines()
    rows = [line.split() for line in lines[1 : 1 + lines[1:].index("jobs")]]
    assert lines[0] == "services"
    assert rows == [
        ["shop.orders.default", "1.4.0", "2", "replicas", "0", "running"],
        ["shop.stock.default", "0.0.0", "1", "replica", "0", "running"],
    ]
    assert "health_check() -> bool" in services().stdout


def shown(services: Invoke, *words: str) -> list[str]:
    """The names of the services whose workers are listed."""
    workers = json.loads(services("--json", *words).stdout)["workers"]
    return sorted(f"{each['service']} {each['version']}" for each in workers)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--domain", "shop"], ["shop.orders.eu 1.4.0", "shop.stock.default 0.0.0"]),
        (["--type", "orders", "--id", "eu"], ["shop.orders.eu 1.4.0"]),
        (["--service-version", ">=1"], ["bank.orders.us 2.0.0", "shop.orders.eu 1.4.0"]),
        (["--version", ">=1"], ["bank.orders.us 2.0.0", "shop.orders.eu 1.4.0"]),
        (["--id", "no"], []),
    ],
)
def test_services_are_picked(
    services: Invoke, serve: Callable[..., None], words: list[str], found: list[str]
) -> None:
    serve(services=[Example], identity=Identity(domain="shop", type="orders", id="eu", version="1.4.0"))
    serve(services=[Example], identity=Identity(domain="shop", type="stock"))
    serve(services=[Example], identity=Identity(domain="bank", type="orders", id="us", version="2.0.0"))
    serve(services=[Example])
    assert shown(services, *words) == found
    result = services(*words)
    known = "bank.orders.us 2.0.0, shop.orders.eu 1.4.0, shop.stock.default 0.0.0"
    missing = f"no service runs that is {words[0][2:]} {words[1]!r}: there is {known}\n"
    assert (result.exit_code, result.stderr) == ((0, "") if found else (1, missing))
    assert services("--json", *words).exit_code == result.exit_code


def test_where_nobody_is_no_service_is_what_was_asked_for(
    services: Invoke, serve: Callable[..., None]
) -> None:
    result = services("--type", "nope", "--wait", "0.05")
    assert (result.exit_code, result.stderr) == (1, "no worker answered within 0.05 s\n")
    serve(services=[Example])
    result = services("--type", "nope")
    assert (result.exit_code, result.stderr) == (
        1,
        "no service runs that is type 'nope': there is none\n",
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--type", "a.b"], "'a.b' is no type"),
        (["--service-version", "new"], "'new' is no version"),
        (["--watch", "--domain", ""], "'' is no domain"),
        (["--watch", "--health"], "not with --watch"),
    ],
)
def test_what_no_service_is_cannot_be_picked(services: Invoke, words: list[str], complaint: str) -> None:
    result = services(*words)
    assert (result.exit_code, complaint in result.stderr) == (2, True)


def test_it_is_shown_who_is_well(services: Invoke, serve: Callable[..., None]) -> None:
    for well in True, False:
        serve(jobs={"health_check": lambda well=well: well}, identity=Identity(type="orders"))
    serve(services=[Example], identity=Identity(type="stock"))
    serve(services=[Example])
    lines = services("--health").stdout.splitlines()
    assert [line.split("running")[1].strip() for line in lines[1:3]] == ["1 of 2 ill", "well"]
    rows = lines[lines.index("workers") + 1 :]
    assert sorted(line.partition("coroutines 100")[2].strip() for line in rows) == ["", "ill", "well", "well"]
    assert shown(services, "--health", "--type", "stock") == ["default.stock.default 0.0.0"]
    workers = json.loads(services("--health", "--json").stdout)["workers"]
    assert sorted(str(each["well"]) for each in workers) == ["False", "None", "True", "True"]


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.parametrize("words", [[], ["--json"], ["--type", "orders", "--service-version", "0.0.0"]])
def test_watch_tells_who_comes_and_goes(
    words: list[str], redis_server: RedisServer, spawn: Callable[..., Process]
) -> None:
    watching = spawn("services", "--backend", redis_server.url, "--watch", *words)
    receiver = RpcReceiver(
        services=[Example],
        backend=redis_server.url,
        identity=Identity(type="orders"),
        settings=Settings(keep_alive=0.2),
    )
    thread = threading.Thread(target=receiver.run)
    thread.start()
    watching.says("up")
    receiver.stop()
    thread.join()
    lines = watching.says("down").splitlines()
    assert all(receiver.id in each for each in lines)
    if "--json" in words:
        assert [json.loads(each)["change"] for each in lines] == ["up", "down"]
    else:
        assert [each.split()[0] for each in lines] == ["up", "down"]


@pytest.mark.slow
@pytest.mark.redis
def test_live_shows_a_table_that_changes(redis_server: RedisServer, tmp_path: Path) -> None:
    receiver = RpcReceiver(
        services=[Example],
        backend=redis_server.url,
        identity=Identity(type="orders", version="1.4.0"),
        settings=Settings(keep_alive=0.2),
    )
    thread = threading.Thread(target=receiver.run)
    thread.start()
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "rpc", "services", "--backend", redis_server.url, "--live"]
    watching = subprocess.Popen(command, stdout=terminal, cwd=tmp_path, env={**os.environ, "COLUMNS": "150"})
    try:
        shown = b""
        while b"default.orders.default" not in shown:
            shown += os.read(screen, 4096)
        assert b"1.4.0" in shown
        assert b"capacity" in shown
    finally:
        watching.kill()
        watching.wait()
        receiver.stop()
        thread.join()
        for each in (screen, terminal):
            os.close(each)


def test_live_is_for_people(services: Invoke) -> None:
    for words in ([], ["--watch"], ["--json"], ["--health"]):
        assert services("--live", *words).exit_code == 2


def test_without_its_extra_live_says_which(services: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpc.cli.services._is_terminal", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    result = services("--live")
    assert "jobrpc[rich]" in result.stderr
