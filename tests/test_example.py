"""The example: its compose file says the right things, and what it runs works, here without containers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpc.testing.servers import RedisServer, start_redis

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "example"
SECONDS = 60

Start = Callable[..., "Service"]


class Service:
    """A service of the compose file as a process: the same command, the same environment, other hosts."""

    def __init__(self, command: list[str], environment: dict[str, str], directory: Path) -> None:
        self.popen = subprocess.Popen(
            command,
            cwd=directory,
            env={**_without_ours(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ends(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.popen.send_signal(number)
        code = self.popen.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def _read(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout as lines:
            for line in lines:
                self.said += line


def _without_ours() -> dict[str, str]:
    ours = re.compile(r"RPC_|REDIS_|SETTINGS_IMPORT_PATH")
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start_redis() as server:
        yield server


@pytest.fixture
def start(server: RedisServer) -> Iterator[Start]:
    """Start a service of the compose file, by name; or another command in another directory."""
    started: list[Service] = []

    def start(name: str, command: list[str] | None = None, directory: Path = EXAMPLE) -> Service:
        service = COMPOSE["services"][name]
        where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port)}
        assert service["environment"].keys() == where.keys()
        program, *words = command or service["command"]
        assert program == "python"
        started.append(Service([sys.executable, *words], where, directory))
        return started[-1]

    yield start
    for service in started:
        service.popen.kill()
        service.ends()


COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_has_the_three_services_and_nothing_unknown() -> None:
    known = {"image", "build", "command", "environment", "depends_on", "healthcheck", "restart", "init"}
    assert COMPOSE.keys() == {"services"}
    assert COMPOSE["services"].keys() == {"redis", "worker", "client"}
    for service in COMPOSE["services"].values():
        assert service.keys() <= known
        assert ("image" in service) != ("build" in service)


def test_redis_is_healthy_when_it_answers() -> None:
    redis = COMPOSE["services"]["redis"]
    assert redis["image"].startswith("redis:")
    assert redis["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert isinstance(redis["healthcheck"]["retries"], int)
    for key in "interval", "timeout":
        assert re.fullmatch(r"\d+s", redis["healthcheck"][key])


@pytest.mark.parametrize("name", ["worker", "client"])
def test_worker_and_client_are_built_here_and_wait_for_redis(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["build"] == "."
    assert service["command"] == ["python", f"{name}.py"]
    assert (EXAMPLE / f"{name}.py").is_file()
    assert service["environment"] == {"REDIS_HOST": "redis", "REDIS_PORT": "6379"}
    assert service["depends_on"]["redis"] == {"condition": "service_healthy"}
    for other, how in service["depends_on"].items():
        assert other in COMPOSE["services"]
        assert how["condition"] in {"service_started", "service_healthy"}


def test_the_worker_comes_back_and_the_client_does_not() -> None:
    assert COMPOSE["services"]["worker"]["restart"] == "unless-stopped"
    assert "restart" not in COMPOSE["services"]["client"]


def test_the_image_is_slim_runs_as_nobody_special_and_takes_wheels_alone() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    values = {instruction: value for instruction, value in instructions}  # the last of each
    assert re.fullmatch(r"python:3\.\d+-slim", values["FROM"])
    assert values["USER"] not in {"root", "0"}
    assert "--only-binary :all:" in next(value for name, value in instructions if "pip install" in value)
    assert values["WORKDIR"] == "/app/example"
    assert not any("apt" in value for _, value in instructions)


def test_what_the_image_copies_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert copies
    for name in " ".join(copies).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


@pytest.mark.redis
def test_the_client_gets_its_answers_and_every_line_has_an_arrow(start: Start) -> None:
    worker, client = start("worker"), start("client")
    assert client.ends() == 0, client.said + worker.said
    assert "-----> client: add says {'answer': 2}\n" in client.said
    assert "-----> client: multiply says 42" in client.said
    assert "-----> client: divide says RemoteError: ZeroDivisionError: " in client.said
    assert "-----> client: divide says InvalidParams: b: " in client.said
    assert worker.ends(signal.SIGTERM) == 0
    assert "-----> worker: adding 1 and 1\n" in worker.said
    for line in (client.said + worker.said).splitlines():
        assert line.startswith("-----> ")


@pytest.mark.slow
@pytest.mark.redis
def test_a_worker_that_was_killed_starts_again_and_serves(start: Start) -> None:
    worker = start("worker")
    assert start("client").ends() == 0
    assert worker.ends(signal.SIGKILL) == -signal.SIGKILL
    worker = start("worker")
    client = start("client")
    assert client.ends() == 0
    assert "-----> client: add says {'answer': 2}\n" in client.said
    assert worker.ends(signal.SIGTERM) == 0
    assert "already" not in worker.said
    assert "-----> worker: adding 1 and 1\n" in worker.said


ORIGINAL = {
    "calc.py": """
def add(request):
    request.respond({'answer': request.data['a'] + request.data['b']})
""",
    "settings.py": """
import os
from redis import Redis
from rpc import PythonRqBackend
from calc import add

RPC_JOB_MAPPING = {
    'add': add,
}

redis = Redis(host=os.environ['REDIS_HOST'], port=os.environ['REDIS_PORT'])
RPC_RECEIVER_BACKEND = PythonRqBackend(redis)
RPC_CLIENT_BACKEND = PythonRqBackend(redis)
""",
    "worker.py": """
from rpc import RpcReceiver

RpcReceiver().start()
""",
    "client.py": """
from rpc import RpcClient

response = RpcClient().call_and_wait('add', {'a': 1, 'b': 1})
assert response.data == {'answer': 2}
""",
}


@pytest.mark.slow
@pytest.mark.redis
def test_the_original_example_runs_as_it_was(start: Start, tmp_path: Path) -> None:
    for name, text in ORIGINAL.items():
        (tmp_path / name).write_text(text)
    worker = start("worker", directory=tmp_path)
    client = start("client", directory=tmp_path)
    assert client.ends() == 0, client.said
    assert worker.ends(signal.SIGTERM) == 0


@pytest.mark.redis
def test_rpc_worker_serves_the_example_too(start: Start) -> None:
    worker = start("worker", ["python", "-m", "rpc", "worker"])
    answer = start("client", ["python", "-m", "rpc", "call", "add", "a:=1", "b:=1"])
    assert answer.ends() == 0
    assert answer.said == '{"answer":2}\n'
    assert worker.ends(signal.SIGTERM) == 0
