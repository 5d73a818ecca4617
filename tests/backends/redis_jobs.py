"""Jobs for the native Redis backend, and worker processes that do them: `python redis_jobs.py URL LOG`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import redis

from rpc import Request, RpcClient, RpcReceiver, every, job, on
from rpc.backends._prefix import PREFIX
from rpc.backends.redis.keys import QueueNames
from rpc.inspection import DeadLetters
from rpc.testing import RedisServer

from .rq_jobs import PATIENCE, end, eventually

log_path = Path(os.devnull)


def note(line: object) -> None:
    with log_path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def fast(n: Any) -> Any:
    note(n)
    return n


def slow(n: int) -> int:
    """Runs until the test says `release`."""
    note(f"slow {n}")
    eventually(log_path.with_suffix(".release").exists)
    note(f"slept {n}")
    return n


def poison(request: Request) -> None:
    note(f"poison {request.redelivered}")
    os.kill(os.getpid(), signal.SIGKILL)


def neighbour(request: Request) -> Any:
    note(f"neighbour {request.data[0]} {request.redelivered}")
    return request.data[0]


@job(retries=1, backoff=0.01)
def flaky(request: Request) -> Any:
    if request.attempt == 1:
        raise ValueError("once")
    return request.data[0]


@job(retries=1, backoff=0.01)
def hopeless(text: str) -> None:
    raise ValueError("each time")


@job(delivery="at-most-once")
def once(request: Request) -> None:
    request.respond(request.data[0])


def echo(text: str) -> str:
    return text


class Listeners:
    @on("boom")
    def alone(self, data: Any) -> None:
        note("alone")

    @on("boom", group="team")
    def team(self, data: Any) -> None:
        note("team")

    @on("boom", group="team", durable=True)
    def durable(self, data: Any) -> None:
        note("durable")

    @every(seconds=0.1, singleton=True)
    def tick(self) -> None:
        note("tick")


JOBS: dict[str, Callable[..., Any]] = {
    "fast": fast,
    "slow": slow,
    "poison": poison,
    "neighbour": neighbour,
    "flaky": flaky,
    "hopeless": hopeless,
    "once": once,
    "echo": echo,
}


class Bench:
    """A Redis, a log of what ran, workers as threads or processes; all of it ends with the test."""

    def __init__(self, server: RedisServer, log: Path, query: str = "lease=1", prefix: str = PREFIX) -> None:
        global log_path
        self.server, self.log, self.url = server, log, f"{server.url}?{query}"
        log_path = log
        log.touch()
        self._workers = QueueNames(prefix).queue("default").workers
        self._stack = ExitStack()
        self.admin: Any = self._stack.enter_context(redis.Redis.from_url(server.url))
        self.admin.flushall()
        self.client = self.make_client()

    def close(self) -> None:
        self._stack.close()

    def make_client(self, query: str = "", **options: Any) -> RpcClient:
        options.setdefault("backend", f"{self.server.url}?{query}" if query else self.url)
        return self._stack.enter_context(RpcClient(**{"timeout": PATIENCE, **options}))

    def serve(self, **options: Any) -> Callable[[], None]:
        """A worker in a thread; what is returned ends it before the test does."""
        receiver = RpcReceiver(jobs=JOBS, backend=self.url, **{"queues": ["default"], **options})
        thread = threading.Thread(target=receiver.start)
        thread.start()

        def stop() -> None:
            receiver.stop()
            self.release()
            thread.join(PATIENCE)
            assert not thread.is_alive()

        self._stack.callback(stop)
        return stop

    def spawn(self, *services: str) -> subprocess.Popen[bytes]:
        """A worker process; of these services, too."""
        before = self.admin.hlen(self._workers)
        command = [sys.executable, "-m", __name__, self.url, str(self.log), *services]
        process = subprocess.Popen(command, cwd=ROOT)
        self._stack.callback(end, process)
        eventually(
            lambda: self.admin.hlen(self._workers) > before, "the worker did not start", within=3 * PATIENCE
        )
        return process

    def lines(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1]

    def release(self) -> None:
        self.log.with_suffix(".release").touch()

    def letters(self) -> list[Any]:
        return self.shelf.dead_letters("default")

    @property
    def shelf(self) -> DeadLetters:
        return cast("DeadLetters", self.client.backend)

    def without_end(self) -> set[str]:
        """The keys without a TTL."""
        return {key.decode() for key in self.admin.scan_iter(count=1000) if self.admin.ttl(key) == -1}


WORKERS = "rpc:{default}:default:workers"
QUEUE = "rpc:{default}:default"
ROOT = Path(__file__).parent.parent


def main(url: str, log: str, *services: str) -> None:
    global log_path
    log_path = Path(log)
    classes = [globals()[name] for name in services]
    RpcReceiver(jobs=JOBS, services=classes, backend=url, queues=["default"]).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
