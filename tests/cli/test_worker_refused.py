"""`rpc worker` on a broker that refuses it: one line and exit code 4, or patience if that is wanted."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from rpc.testing import RedisServer, start_redis

from .conftest import Process

Spawn = Callable[..., Process]
AMQP = pytest.mark.xdist_group("rabbit_node")
SCHEMES = pytest.mark.parametrize("scheme", ["", pytest.param("rq+", marks=pytest.mark.slow)])
"""What refuses it, and how that is said, is Redis's on both."""
SETTINGS = "RPC_JOB_MAPPING = {'add': lambda a, b: a + b}\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(SETTINGS)


def refused(process: Process, *texts: str) -> None:
    """It ends with 4, after one line."""
    assert process.ends() == 4
    (line,) = process.said.splitlines()
    assert line.startswith("Error: ")
    assert all(text in line for text in texts), line


@pytest.fixture(scope="module")
def strict_redis() -> Any:
    """It wants a password."""
    with start_redis() as server:
        with redis.Redis(port=server.port) as admin:
            weak = ("on", ">weak", "~rpc:*", "-@all", "+client|setname")
            admin.execute_command("ACL", "SETUSER", "weak", *weak)
            admin.config_set("requirepass", "right")
        yield server


@pytest.mark.redis
@pytest.mark.real_redis
@SCHEMES
@pytest.mark.parametrize(
    ("who", "database", "text"),
    [
        ("", "0", "Authentication required"),
        (":wrong@", "0", "invalid username-password pair"),
        ("weak:weak@", "0", "has no permissions"),
        (":right@", "99", "DB index is out of range"),
    ],
)
def test_redis(
    strict_redis: RedisServer, spawn: Spawn, scheme: str, who: str, database: str, text: str
) -> None:
    url = f"{scheme}redis://{who}127.0.0.1:{strict_redis.port}/{database}"
    refused(spawn("worker", "--backend", url, "--log-level", "warning"), "Redis: ", text)


@pytest.mark.redis
@pytest.mark.real_redis
@SCHEMES
def test_of_several_processes_one_complains(strict_redis: RedisServer, spawn: Spawn, scheme: str) -> None:
    url = f"{scheme}redis://:wrong@127.0.0.1:{strict_redis.port}"
    words = ("--concurrency", "3", "--log-level", "warning")
    refused(spawn("worker", "--processes", "2", "--backend", url, *words), "invalid")


@AMQP
@pytest.mark.parametrize(
    ("who", "vhost", "text"),
    [
        ("guest:wrong", "", "ACCESS_REFUSED"),
        ("guest:guest", "none_such", "vhost none_such not found"),
        ("client:client", "", "access to queue 'shop:queue:high' in vhost '/' refused"),
    ],
)
def test_rabbitmq(rabbit_node: Any, spawn: Spawn, who: str, vhost: str, text: str) -> None:
    url = rabbit_node.url.replace("//", f"//{who}@") + f"/{vhost}?prefix=shop"
    refused(spawn("worker", "--backend", url, "--concurrency", "2", "--quiet"), "RabbitMQ: ", text)


@pytest.mark.redis
@pytest.mark.real_redis
@SCHEMES
def test_with_wait_it_waits_until_it_may(spawn: Spawn, scheme: str) -> None:
    with start_redis() as server, redis.Redis(port=server.port) as admin:
        admin.config_set("requirepass", "other")
        worker = spawn("worker", "--wait", "--backend", f"{scheme}redis://:right@127.0.0.1:{server.port}")
        worker.says("WARNING", times=2)
        admin.config_set("requirepass", "right")
        worker.says("rpc.receiver: serving")
        assert worker.ends(signal.SIGTERM) == 0


@AMQP
def test_with_wait_a_signal_ends_it_all_the_same(rabbit_node: Any, spawn: Spawn) -> None:
    url = rabbit_node.url.replace("//", "//guest:wrong@")
    worker = spawn("worker", "--wait", "--backend", url)
    worker.says("ACCESS_REFUSED")
    assert worker.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize("scheme", ["redis", "rq+redis", "amqp"])
def test_a_broker_that_is_away_is_waited_for(spawn: Spawn, scheme: str) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))  # nobody listens there
        worker = spawn("worker", "--backend", f"{scheme}://127.0.0.1:{port.getsockname()[1]}")
        worker.says("trying again")
        assert worker.ends(signal.SIGTERM) == 0


@pytest.mark.redis
@pytest.mark.real_redis
@SCHEMES
def test_one_that_was_let_in_once_goes_on(spawn: Spawn, scheme: str) -> None:
    with start_redis() as server, redis.Redis(port=server.port) as admin:
        worker = spawn("worker", "--backend", f"{scheme}{server.url}")
        worker.says("rpc.receiver: serving")
        admin.config_set("requirepass", "changed")
        admin.client_kill_filter(_type="normal", skipme=True)
        worker.says("trying again")
        admin.config_set("requirepass", "")
        assert worker.ends(signal.SIGTERM) == 0
