"""Jobs, and a worker process that does them: `python rq_jobs.py URL LOG '{"queues": ["q"]}'`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from rpc import Request, RpcClient, RpcReceiver, job

PATIENCE = 20.0
log_path = Path(os.devnull)


@contextmanager
def later(seconds: float, action: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Does something while the body runs, and waits for it at the end."""
    timer = threading.Timer(seconds, action, arguments)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def note(line: str) -> None:
    with log_path.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def add(a: int, b: int) -> int:
    return a + b


def ran(name: str) -> str:
    note(name)
    time.sleep(0.005)  # so that a death may fall into it
    return name


def fail(text: str) -> None:
    raise ValueError(text)


def hold(request: Request) -> str:
    """Runs until the test says `release`, or until it is cancelled."""
    note(f"{os.getpid()} holds")
    released = log_path.with_suffix(".release")
    while not released.exists():
        time.sleep(0.01)
        if request.cancelled:
            note("cancelled")
            break
    note("held")
    return "again" if request.redelivered else "first"


def die(request: Request) -> str:
    note("dies")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


die_once = job(delivery="at-most-once")(lambda request: die(request))


def sleep(seconds: float) -> str:
    note("sleeps")
    time.sleep(seconds)
    return "slept"


def say(text: str) -> None:
    print(text)


@job(retries=9, backoff=60)
def flaky() -> None:
    note("flaky")
    raise ConnectionError("not now")


def nested() -> None:
    """Waits for what nobody serves."""
    RpcClient(backend=os.environ["RPC_TEST_URL"], queue="nobody").call_and_wait("add", timeout=15)


JOBS: dict[str, Callable[..., Any]] = {
    "add": add,
    "ran": ran,
    "fail": fail,
    "hold": hold,
    "die": die,
    "die_once": die_once,
    "sleep": sleep,
    "nested": nested,
    "flaky": flaky,
    "say": say,
}


def eventually(check: Callable[[], Any], what: str = "it never happened", within: float = PATIENCE) -> Any:
    """What `check` returns, as soon as it is true."""
    end = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return result


Serve = Callable[..., threading.Thread]
"""The fixture `serve`."""


class Bench:
    """A queue of its own on a Redis, a log of what ran, and worker processes that end with the test."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log, self._stack = url, log, ExitStack()
        log.touch()
        self.queue = f"q{uuid4().hex[:8]}"
        self.rq_queue = f"rpc.{self.queue}"
        """What it is called to rq."""
        self.redis: Any = self._stack.enter_context(redis.Redis.from_url(url))
        self.client = self.make_client()

    def close(self) -> None:
        self._stack.close()

    def backend(self, scheme: str) -> str:
        return f"{scheme}:{self.url.partition(':')[2]}"

    def make_client(self, scheme: str = "rq+redis", **options: Any) -> RpcClient:
        client = RpcClient(backend=self.backend(scheme), queue=self.queue, timeout=PATIENCE, **options)
        return self._stack.enter_context(client)

    def lines(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1]

    def release(self) -> None:
        self.log.with_suffix(".release").touch()

    def worker(
        self,
        query: str = "lease=2",
        *,
        scheme: str = "rq+redis",
        ready: bool = True,
        stdout: Any = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """A worker process; `query` are the options of its backend, the others those of RpcReceiver."""
        options = {"queues": [self.queue], **options}
        url = f"{self.backend(scheme)}?{query}"
        before = self.workers()
        command = [sys.executable, __file__, url, str(self.log), json.dumps(options)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen(command, stdout=stdout, env=environment)
        self._stack.callback(end, process)
        if ready:
            eventually(lambda: self.workers() - before, "the worker did not start", within=3 * PATIENCE)
        return process

    def asks(self) -> int:
        """A good call, which has to be answered."""
        return int(self.client.call_and_wait("add", {"a": 1, "b": 1}).data)

    def workers(self) -> set[bytes]:
        return {key for key in self.redis.keys("rq:worker:*") if self.redis.type(key) == b"hash"}


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


RQ_BOOKKEEPING = (
    "rq:queue:",
    "rq:queues",
    "rq:workers",
    "rq:finished:",
    "rq:failed:",
    "rq:wip:",
    "rq:canceled:",
)


def without_end(client: Any) -> list[str]:
    """The keys without a TTL that are not rq's own lists, sets and registries."""
    keys = [key.decode(errors="replace") for key in client.scan_iter(count=1000) if client.ttl(key) == -1]
    return [key for key in keys if not key.startswith(RQ_BOOKKEEPING)]


def main(url: str, log: str, options: str) -> None:
    global log_path
    log_path, os.environ["RPC_TEST_URL"] = Path(log), url
    logging.basicConfig(level=logging.WARNING)
    RpcReceiver(jobs=JOBS, backend=url, **json.loads(options)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
