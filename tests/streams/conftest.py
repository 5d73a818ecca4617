"""A site for streams on each kind of backend, which the tests of a module share: a receiver in this process,
clients of both kinds, and processes that can be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from rpc import AsyncRpcClient, RpcClient, RpcReceiver
from rpc.loops import LoopThread
from rpc.settings import Settings
from tests.conftest import BROKERS
from tests.zeromq import http_places, tcp_url

from . import handlers
from .handlers import JOBS, PATIENCE, noted, until

URLS: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "memory": lambda request: f"memory://{uuid4().hex}",
    "redis": lambda request: _redis(request),
    "rq": lambda request: f"rq+{_redis(request)}",
    "http": lambda request: f"{http_places(4)}?retry_for=30",
    "ws": lambda request: f"{http_places(4, 'ws')}?retry_for=30",
    "amqp": lambda request: str(request.getfixturevalue("rabbit_node").empty("default", "other", "nobody")),
    "zmq": lambda request: f"{tcp_url(4)}?lease=2",
}
"""Where nothing is, for each kind of backend."""


def slow(broker: Any) -> Any:
    """The same parameter for tests that are left to `make test-all`."""
    return pytest.param(*broker.values, marks=[*broker.marks, pytest.mark.slow])


ELSEWHERE = [*BROKERS, pytest.param("zmq"), pytest.param("http"), pytest.param("ws")]
"""What outlives a process, or is between processes."""
KINDS = ["memory", *(each if each.values[0] in ("redis", "http") else slow(each) for each in ELSEWHERE)]


def _redis(request: pytest.FixtureRequest) -> str:
    import redis

    server = request.getfixturevalue("rpc_redis")
    with redis.Redis.from_url(server.url) as admin:
        admin.flushall()
    return f"{server.url}?lease=2"


class Driven(Generator[Any, Any, Any]):
    """An async generator of an AsyncRpcClient, as a generator."""

    def __init__(self, run: Callable[[Any], Any], stream: Any) -> None:
        self._run, self.stream = run, stream

    @property
    def value(self) -> Any:
        return self.stream.value

    def send(self, value: Any) -> Any:
        return self._result(self.stream.asend(value))

    def throw(self, *error: Any) -> Any:
        return self._result(self.stream.athrow(*error))

    def close(self) -> None:
        self._run(self.stream.aclose())

    def __enter__(self) -> Driven:
        self._run(self.stream.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._run(self.stream.__aexit__(*error))

    def _result(self, step: Any) -> Any:
        async def stepped() -> Any:
            try:
                return True, await step
            except StopAsyncIteration:
                return False, None

        is_item, item = self._run(stepped())
        if not is_item:
            raise StopIteration(self.value)
        return item


class InALoop:
    """An AsyncRpcClient for a thread: what it gives are generators."""

    def __init__(self, **options: Any) -> None:
        self._loop = LoopThread("test")
        self.client = AsyncRpcClient(**options)

    def stream(self, *arguments: Any, **options: Any) -> Driven:
        async def opened() -> Any:
            return self.client.stream(*arguments, **options)

        return Driven(self.run, self.run(opened()))

    def run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine).result(2 * PATIENCE)

    def close(self) -> None:
        self.run(self.client.close())
        self._loop.close()


CLIENTS: dict[str, Callable[..., Any]] = {"sync": RpcClient, "async": InALoop}


class Site:
    """Where streams are opened and served."""

    def __init__(self, kind: str, url: str, directory: Path) -> None:
        self.kind, self.url, self.log = kind, url, directory / "log"
        self.directory = directory
        handlers.log_path = self.log
        self._stack = ExitStack()
        self._clients: dict[str, Any] = {}
        self.receivers: list[RpcReceiver] = []

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._stack.close()

    def client(self, how: str = "sync") -> Any:
        """That which tests share."""
        if how not in self._clients:
            self._clients[how] = self.another(how)
        return self._clients[how]

    def another(self, how: str = "sync", **options: Any) -> Any:
        return CLIENTS[how](**{"backend": self.url, "timeout": PATIENCE, **options})

    def serve(self, *, idle: float = 30.0, jobs: Any = None, **options: Any) -> RpcReceiver:
        """A receiver in a thread, until the end."""
        serving = threading.Event()
        receiver = RpcReceiver(
            **{
                "jobs": {**JOBS, **(jobs or {})},
                "backend": self.url,
                "concurrency": 8,
                "coroutines": 2000,
                "grace": 3,
                "settings": Settings(stream_idle=idle),
                **options,
            }
        )
        receiver.hook("on_connect")(serving.set)
        thread = threading.Thread(target=receiver.run, name="receiver")
        thread.start()

        def stop() -> None:
            receiver.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the receiver did not stop"

        self._stack.callback(stop)
        assert serving.wait(PATIENCE)
        self.receivers.append(receiver)
        return receiver

    def spawn(self, *, idle: float = 30.0, concurrency: int = 8, url: str = "") -> subprocess.Popen[bytes]:
        """A worker process, until the end of the test at the latest."""
        command = [sys.executable, "-m", "tests.streams.handlers", url or self.url, str(self.log)]
        process = subprocess.Popen([*command, str(idle), str(concurrency)])
        self._stack.callback(ended, process)
        until(lambda: f"ready {process.pid}" in self.lines(), "a worker did not start")
        return process

    @property
    def open(self) -> int:
        """How many streams the receivers here have."""
        return sum(len(each._application._streams) for each in self.receivers)

    def lines(self, *begin: str) -> list[str]:
        """What was noted, or those lines of it that begin so."""
        return [line for line in noted(self.log) if not begin or line.startswith(begin)]


def ended(process: subprocess.Popen[bytes], how: int = signal.SIGKILL) -> None:
    if process.poll() is None:
        process.send_signal(how)
    process.wait()


@pytest.fixture(params=KINDS, scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a receiver, for all tests of a module."""
    site = Site(request.param, URLS[request.param](request), tmp_path_factory.mktemp("streams"))
    site.serve()
    yield site
    site.close()


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site of a test's own, which nobody serves yet."""
    site = Site(request.param, URLS[request.param](request), tmp_path)
    yield site
    site.close()


@pytest.fixture(params=[slow(each) for each in ELSEWHERE])
def abroad(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The same on what outlives a process."""
    site = Site(request.param, URLS[request.param](request), tmp_path)
    yield site
    site.close()


@pytest.fixture
def name() -> str:
    """Of a stream, in the log."""
    return uuid4().hex
