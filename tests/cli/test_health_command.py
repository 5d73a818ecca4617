"""`rpc health`: which workers are alive, which are not, and what it says of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from rpc import RpcClient
from rpc.cli.health import LENGTH, LINE, namespace
from rpc.testing.site import eventually

from .conftest import Process

Invoke = Callable[..., Result]
Run = Callable[..., subprocess.CompletedProcess[str]]
Spawn = Callable[..., Process]
Says = Callable[..., bool]

SETTINGS = """
import time
from pathlib import Path
from rpc.backends._serving import Turns

made = Turns.__init__

def make(self, fetch, *others):
    def fetch_or_hang():
        while Path("hang").exists():
            time.sleep(0.05)
        return fetch()
    made(self, fetch_or_hang, *others)

Turns.__init__ = make

def hold():
    Path("held").touch()
    while not Path("released").exists():
        time.sleep(0.05)

RPC_JOB_MAPPING = {"hold": hold}
RPC_HEALTH_FILE = "health"
"""
"""A worker whose loop hangs as soon as there is a file `hang`."""


@pytest.fixture
def away() -> Iterator[str]:
    """The URL of a broker that is not there."""
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


@pytest.fixture
def settings(tmp_path: Path, away: str) -> Path:
    (tmp_path / "settings.py").write_text(f"{SETTINGS}\nRPC_BACKEND = {away!r}\n")
    return tmp_path


@pytest.fixture
def health(invoke: Invoke) -> Invoke:
    return lambda *words: invoke("health", "--health-file", "health", *words)


@pytest.fixture
def says(health: Invoke) -> Says:
    """Whether this is its exit code, and what it says."""

    def says(pattern: str, *words: str) -> bool:
        result = health(*words)
        return re.fullmatch(pattern, f"{result.exit_code} {result.stdout}{result.stderr}") is not None

    return says


def line(pid: int, later: float = 0.0, where: int | None = None) -> str:
    """A sign of life of so many seconds after now."""
    return LINE.format(pid, namespace() if where is None else where, time.monotonic() + later)


def silent(pid: int) -> str:
    return rf"1 Error: worker {pid} has given no sign of life for \d+ s\n"


@pytest.mark.slow
def test_a_loop_that_hangs_is_noticed(settings: Path, any_broker_url: str, spawn: Spawn, says: Says) -> None:
    worker = spawn("worker", "--backend", any_broker_url)
    worker.says("serving")
    assert says("0 healthy: 1 worker\n")
    (settings / "hang").touch()
    eventually(lambda: says(silent(worker.pid), "--max-age", "3"))
    assert worker.popen.poll() is None
    (settings / "hang").unlink()
    eventually(lambda: says("0 healthy: 1 worker\n", "--max-age", "3"))


@pytest.mark.redis
def test_busy_workers_and_those_whose_broker_is_away_are_healthy(
    settings: Path, redis_url: str, spawn: Spawn, invoke: Invoke
) -> None:
    """The first does nothing but what its handler does, the other one has never been connected."""
    spawn("worker", "--backend", redis_url, "--concurrency", "1", "--health-file", "busy")
    other = spawn("worker", "--health-file", "alone")
    other.says("trying again")
    with RpcClient(backend=redis_url) as client:
        client.call("hold")
    eventually((settings / "held").exists)
    since, most = time.monotonic(), 5.0
    while time.monotonic() < since + most + 1:
        for file in "busy", "alone":
            result = invoke("health", "--health-file", file, "--max-age", str(most))
            assert result.exit_code == 0, result.stderr
    (settings / "released").touch()


@pytest.mark.redis
def test_each_process_counts(settings: Path, redis_url: str, spawn: Spawn, says: Says) -> None:
    (settings / "health").write_text(LINE.format(1, 0, 1.0) * 3)  # of workers that have ended
    command = spawn("worker", "--backend", redis_url, "--processes", "2")
    said = command.says("rpc.receiver: serving", 2)
    eventually(lambda: says("0 healthy: 2 workers\n"))
    for pid in map(int, re.findall(r"rpc.cli.worker: worker (\d+) on", said)):
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda pid=pid: says(silent(pid), "--max-age", "3"))
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: says("0 healthy: 2 workers\n", "--max-age", "3"))
    os.kill(pid, signal.SIGKILL)
    command.says("rpc.receiver: serving", 3)
    assert says("0 healthy: 2 workers\n")
    assert str(pid) not in (settings / "health").read_text()


def test_those_that_have_not_begun_do_not_count(settings: Path, spawn: Spawn, says: Says) -> None:
    """The others start when the first one has a connection."""
    (settings / "health").write_text(LINE.format(1, 0, 1.0) * 2)
    spawn("worker", "--processes", "2").says("trying again")
    assert says("0 healthy: 1 worker\n")
    (settings / "health").write_bytes(b"\0" * LENGTH + line(os.getpid()).encode())
    assert says("0 healthy: [12] workers?\n")


@pytest.mark.parametrize(("content", "complaint"), [
    (None, "no sign of life can be read: .* No such file or directory: 'health'"),
    ("", "no worker has left a sign of life in health, or all have ended"),
    ("nonsense\n", "health is no health file: .*"),
    (line(7, -61), r"worker 7 has given no sign of life for \d+ s"),
    (LINE.format(7, 0, 1e12), "worker 7 has left no sign of life in health since this machine started"),
], ids=["none", "empty", "foreign", "old", "of another boot"])  # fmt: skip
def test_what_is_wrong_is_one_line_and_1(says: Says, content: str | None, complaint: str) -> None:
    if content is not None:
        Path("health").write_text(content)
    assert says(f"1 Error: {complaint}\n")


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_who_was_killed_is_not_alive(says: Says, gone: int) -> None:
    file = Path("health")
    file.write_text(line(gone))
    assert says(f"1 Error: worker {gone}: killed, and not replaced\n")
    file.write_text(line(gone) + line(os.getpid()))
    assert says("0 healthy: 1 worker\n")  # it may be replaced, as yet
    file.write_text(line(gone, -61) + line(os.getpid()))
    assert says(silent(gone))
    file.write_text(line(gone, where=1))  # of a container whose pids are not ours
    assert says("0 healthy: 1 worker\n")


@pytest.mark.redis
def test_who_has_ended_as_it_should_leaves_nothing(
    settings: Path, redis_url: str, spawn: Spawn, says: Says
) -> None:
    worker = spawn("worker", "--backend", redis_url)
    worker.says("serving")
    assert says("0 healthy: 1 worker\n")
    worker.popen.terminate()
    assert worker.ends() == 0
    assert not (settings / "health").read_bytes().strip(b"\0")
    assert says("1 Error: no worker has left a sign of life in health, or all have ended\n")


def test_the_settings_may_name_the_file(settings: Path, rpc: Run, away: str) -> None:
    assert rpc("health").stderr.startswith("Error: no sign of life can be read: ")
    (settings / "health").write_text(line(os.getpid()))
    assert rpc("health").returncode == 0
    (settings / "none.py").write_text(f"RPC_BACKEND = {away!r}\n")
    result = rpc("health", "--settings", "none")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "give --health-file, or set RPC_HEALTH_FILE" in result.stderr


def test_a_file_that_cannot_be_written_ends_the_worker(settings: Path, spawn: Spawn) -> None:
    worker = spawn("worker", "--health-file", "no/such/folder")
    assert worker.ends() == 2
    assert "Error: the health file cannot be written: " in worker.said
