"""Commands in this process (click's CliRunner) and as processes, and a project directory to run them in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from rpc import RpcReceiver
from rpc.cli import main
from rpc.testing.servers import RedisServer, start_redis

SECONDS = 20
"""How long anything that is waited for may take."""
RPC = [sys.executable, "-m", "rpc"]

JOBS = """
import logging, time

def add(request):
    request.respond({"answer": request.data["a"] + request.data["b"]})

def typed(a: int, b: int) -> int:
    return a + b

def fail(request):
    raise ValueError("no\\nway")

def echo(request):
    request.respond(request.data)

def slow(request):
    logging.getLogger("jobs").info("slow began")
    time.sleep(request.data["seconds"])
    return "done"

def count(to: int):
    for number in range(to):
        yield {"number": number}
    return "counted" if to else None

RPC_JOB_MAPPING = {"add": add, "typed": typed, "fail": fail, "echo": echo, "slow": slow, "count": count}
"""


class Process:
    """A command as a process, and what it has said so far: stdout and stderr in one."""

    def __init__(self, *command: str, cwd: Path, env: dict[str, str], **options: Any) -> None:
        self.popen = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self.pid = self.popen.pid
        self.said = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def says(self, text: str, times: int = 1) -> str:
        """Wait until it has said this; returns everything that it has said."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.said.count(text) >= times, SECONDS)
        assert done, f"{text!r} is not in {self.said!r}"
        return self.said

    def ends(self, number: signal.Signals | None = None) -> int:
        """Wait until it has ended, after this signal if one is given; returns its exit code."""
        if number is not None:
            self.popen.send_signal(number)
        code = self.popen.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    @property
    def is_silent(self) -> bool:
        """Whether nothing can be said any more: it has ended, and everything that it started."""
        return not self._reader.is_alive()

    def close(self) -> None:
        """End it, and with it what it started: by two signals, as the second one ends a worker at once."""
        for _ in range(2):
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(1)
        self.popen.kill()
        self.ends()

    def _read(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout as lines:
            for line in lines:
                with self._changed:
                    self.said += line
                    self._changed.notify_all()


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and nothing in the environment that concerns us."""
    for name in "RPC_SETTINGS_MODULE", "SETTINGS_IMPORT_PATH", "NO_COLOR", "FORCE_COLOR":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with start_redis() as server:
        yield server


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    """Of a backend that works between processes, on which nothing is: what a worker had that was killed in
    another test would be done here."""
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.flushdb()
    return f"rq+{redis_server.url}"


@pytest.fixture
def project(tmp_path: Path, url: str) -> Path:
    """A directory with a settings module."""
    (tmp_path / "settings.py").write_text(f"{JOBS}\nRPC_BACKEND = {url!r}\n")
    return tmp_path


@pytest.fixture
def rpc(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end, as a process."""

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RPC, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            **options,
        )

    return run


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a command as a process; what still runs afterwards is killed."""
    started: list[Process] = []

    def start(*words: str, **env: str) -> Process:
        started.append(Process(*RPC, *words, cwd=tmp_path, env={**os.environ, **env}))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """The URL of a backend in this process, on which the jobs are served."""
    url = f"memory://{tmp_path.name}"
    jobs: dict[str, Any] = {}
    exec(JOBS, jobs)  # the same text that the projects have
    receiver = RpcReceiver(jobs=jobs["RPC_JOB_MAPPING"], backend=url)
    serving = threading.Thread(target=receiver.start)
    serving.start()
    yield url
    receiver.stop()
    serving.join(SECONDS)


def runner() -> CliRunner:
    """One that has stdout and stderr apart, for which click 8.1 has to be asked."""
    asked = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    return CliRunner(**asked)


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Run a command in this process."""

    def run(*words: str, input: str | bytes | None = None) -> Result:
        result = runner().invoke(main, words, input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def call(invoke: Callable[..., Result], memory: str) -> Callable[..., Result]:
    """`rpc call`, answered in this process."""
    return lambda *words, **options: invoke("call", *words, "--backend", memory, **options)


def error_in(output: str) -> dict[str, Any]:
    """The error in what --json printed, which is one line."""
    assert output.count("\n") == 1
    (only,) = json.loads(output).items()
    assert only[0] == "error"
    assert only[1].keys() == {"type", "message", "code"}
    return dict(only[1])
