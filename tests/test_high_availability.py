"""Replicas of a service share its work: whatever happens to one of them, callers do not see it.

`RPC_FULL_LENGTH=1` has replicas restarted for a minute, and one cut off for 20 s; `-s` shows how much was
done.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rpc import RpcClient, RpcError, WorkerLost
from tests.faults.machine import network
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.slow

PATIENCE = 60.0
CALLERS = 8
RESTARTS, CUT = (60.0, 20.0) if os.environ.get("RPC_FULL_LENGTH") else (0.0, 0.0)
"""Seconds for which replicas are restarted, but each of them once; and for which one is cut off, but until
others have noticed."""
SETTINGS = """
import os, time
from rpc import job

def double(number: int) -> list:
    time.sleep(0.002)
    return [2 * number, os.getpid()]

@job(delivery="at-most-once")
def once(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()

def again(request):
    if not request.redelivered:
        with open("begun", "w") as file:
            file.write(f"{request.id} {os.getpid()}\\n")
        time.sleep(3600)
    request.respond([request.redelivered, request.id, os.getpid()])

RPC_JOB_MAPPING = {"double": double, "once": once, "again": again}
RPC_GRACE = 0.2
RPC_KEEP_ALIVE = 0.5
RPC_SERVICE_TYPE = "calc"
RPC_CONCURRENCY = 2
"""


class Replicas:
    """Worker processes of one service, and a client of it."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory, self._url, self._number = directory, url, 0
        (directory / "settings.py").write_text(SETTINGS)
        self.client = RpcClient(backend=url, timeout=PATIENCE)
        self.service = self.client.service(type="calc", wait_for_receiver=PATIENCE)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *before: str, url: str | None = None) -> subprocess.Popen[bytes]:
        command = [*before, sys.executable, "-m", "rpc", "worker", "--quiet", "--backend", url or self._url]
        environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}"}
        process = subprocess.Popen(command, cwd=self._directory, env=environment)
        self.processes.append(process)
        return process

    def until(self, *running: subprocess.Popen[bytes]) -> None:
        """Wait until just these are listed."""
        end, wanted = time.monotonic() + PATIENCE, {each.pid for each in running}
        while {each.pid for each in self.client.list_services(type="calc")} != wanted:
            assert time.monotonic() < end, f"{wanted} are not listed alone"

    def close(self) -> None:
        for each in self.processes:
            each.kill()
            each.wait()
        self.client.close()


class Load:
    """Callers that call without end, or so many times in all; what they got."""

    def __init__(self, service: Any, calls: int | None = None) -> None:
        self._service, self._calls, self._next = service, calls, 0
        self._lock, self.stopped = threading.Lock(), False
        self.by, self.errors, self.done = Counter[int](), list[Exception](), 0
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]
        for each in self._threads:
            each.start()

    def _take(self) -> int | None:
        with self._lock:
            if self.stopped or self._next == self._calls:
                return None
            self._next += 1
            return self._next

    def _run(self) -> None:
        while (number := self._take()) is not None:
            try:
                answer, pid = self._service.double(number)
                assert answer == 2 * number
                with self._lock:
                    self.by[pid] += 1
                    self.done += 1
            except (RpcError, AssertionError) as error:
                self.errors.append(error)

    def until(self, done: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.done < done:
            assert time.monotonic() < end, self.errors
            time.sleep(0.005)

    def more(self, calls: int) -> None:
        """Wait until so many more are answered."""
        self.until(self.done + calls)

    def end(self) -> None:
        self.stopped = self._calls is None
        for each in self._threads:
            each.join(2 * PATIENCE)
            assert not each.is_alive(), "a call hangs"
        assert self.errors == []


@pytest.fixture
def replicas(any_broker_url: str, tmp_path: Path) -> Iterator[Replicas]:
    found = Replicas(tmp_path, any_broker_url)
    yield found
    found.close()


def test_one_of_two_is_killed_and_all_calls_are_answered(replicas: Replicas) -> None:
    one, two = replicas.start(), replicas.start()
    replicas.until(one, two)
    load = Load(replicas.service, calls=5000)
    load.until(1500)
    one.kill()
    load.end()
    assert load.done == 5000
    assert set(load.by) == {one.pid, two.pid}
    replicas.until(two)


def test_a_rolling_restart_of_three_shows_no_error(replicas: Replicas) -> None:
    running = [replicas.start() for _ in range(3)]
    replicas.until(*running)
    load, restarts, end = Load(replicas.service), 0, time.monotonic() + RESTARTS
    while restarts < 3 or time.monotonic() < end:
        load.more(100)
        old = running.pop(0)
        old.send_signal(signal.SIGTERM)
        assert old.wait(PATIENCE) == 0
        running.append(replicas.start())
        replicas.until(*running)
        restarts += 1
    load.more(100)
    load.end()
    assert {each.pid for each in running} <= set(load.by)
    print(f"{restarts} restarts, {load.done} calls")


def test_what_may_be_done_once_only_fails_at_once_with_its_worker(replicas: Replicas) -> None:
    one, two = replicas.start(), replicas.start()
    replicas.until(one, two)
    calls = [replicas.service.once.submit(3600.0) for _ in range(4)]
    while sum(each.running for each in replicas.client.list_services(type="calc")) < 4:
        time.sleep(0.02)
    one.kill()
    two.kill()
    replicas.start()
    for each in calls:
        with pytest.raises(WorkerLost):
            each.result(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "broker",
    [
        *("zmq", "http", "ws"),
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rq", marks=pytest.mark.redis),
        pytest.param("amqp", marks=pytest.mark.xdist_group("rabbit_node")),
    ],
)
def test_who_gets_what_another_one_had_begun_is_told_so(
    broker: str, number: signal.Signals, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """By `request.redelivered`, and the same id."""
    with closing(Replicas(tmp_path, str(request.getfixturevalue(f"{broker}_url")))) as replicas:
        workers = {each.pid: each for each in (replicas.start(), replicas.start())}
        begun, end = tmp_path / "begun", time.monotonic() + PATIENCE
        while len(replicas.client.describe()) < 2:  # where nothing is listed, too
            assert time.monotonic() < end
        future = replicas.client.submit("again", queue="default.calc.default")
        while not (begun.exists() and (said := begun.read_text()).endswith("\n")):
            assert time.monotonic() < end
            time.sleep(0.02)
        id, first = said.split()
        workers.pop(int(first)).send_signal(number)
        response = future.result(PATIENCE)
        assert response.data == [True, id, *workers]


@pytest.mark.real_redis
@pytest.mark.skipif(os.getuid() != 0, reason="needs the repository's tests to run as root, for a network")
def test_one_that_was_cut_off_from_the_network_comes_back_and_nobody_sees_it(
    any_broker_url: str, tmp_path: Path
) -> None:
    url = urlsplit(any_broker_url)
    with ExitStack() as stack:
        inside, address, link = stack.enter_context(network())
        proxy = stack.enter_context(closing(Proxy(url.port or 0, random.Random(1), host=address)))
        replicas = Replicas(tmp_path, any_broker_url)
        stack.callback(replicas.close)
        user = url.netloc.rpartition("@")
        over = url._replace(netloc=f"{user[0]}{user[1]}{address}:{proxy.port}")
        far = replicas.start(*inside, url=over.geturl())
        near = replicas.start()
        replicas.until(far, near)
        load = Load(replicas.service)
        load.more(200)
        link("down")
        end = time.monotonic() + CUT
        replicas.until(near)
        load.more(1000)
        time.sleep(max(0.0, end - time.monotonic()))
        link("up")
        replicas.until(far, near)
        load.more(500)
        load.end()
        assert set(load.by) == {far.pid, near.pid}
        print(f"{load.done} calls, {load.by[far.pid]} of them by the one that was cut off")
