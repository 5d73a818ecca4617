"""Calls of a process whose main thread has ended: in threads that outlive it, and in `atexit`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from in_memory import until

from rpc import RpcClient, RpcError, RpcReceiver
from rpc.threads import DaemonThreads

SECONDS = 40
BEGIN = """
import asyncio, atexit, sys, threading
from rpc import AsyncRpcClient, BackendUnavailable, RpcClient
url = sys.argv[1]

def wait():
    client = RpcClient(backend=url, timeout=20)
    yield client.call_and_wait("inc", [1]).data
    yield client.submit("inc", [2]).result().data
    yield [each.data for each in client.map("inc", [[3], [4]])]
    client.call("inc", [5])
    client.close()

async def awaited():
    async with AsyncRpcClient(backend=url, timeout=20) as client:
        return [(await each).data for each in (client.submit("inc", [6]), client.call_and_wait("inc", [7]))]

def calls():
    if threading.current_thread() is not threading.main_thread():
        threading.main_thread().join()
    print(*wait())
    try:
        print(asyncio.run(awaited()))
    except BackendUnavailable as error:
        print(error)

"""
NO_THREADS = "RabbitMQ: {}: cannot schedule new futures after interpreter shutdown"
WAYS = {
    "thread": "threading.Thread(target=calls).start()",
    "atexit": "atexit.register(calls)",
    "used before": "print(*wait())\nthreading.Thread(target=calls).start()",
}


@pytest.fixture
def served(any_broker_url: str) -> Iterator[str]:
    receiver = RpcReceiver(jobs={"inc": lambda x: x + 1}, backend=any_broker_url)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    with RpcClient(backend=any_broker_url, timeout=SECONDS) as client:
        client.call_and_wait("inc", [1])
    yield any_broker_url
    receiver.stop()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("way", WAYS)
def test_calls_are_made_when_the_main_thread_has_ended(served: str, way: str, host: str) -> None:
    """Also to a host whose address must be looked up, which event loops do in threads: those of `asyncio.run`
    have none then, and that is an error of ours."""
    url = served.replace("127.0.0.1", host)
    command = [sys.executable, "-c", BEGIN + WAYS[way], url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    parts = urlsplit(url)
    has_none = parts.scheme == "amqp" and host == "localhost"
    awaited = NO_THREADS.format(f"{parts.hostname}:{parts.port}") if has_none else "[7, 8]"
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["2 3 [4, 5]", awaited]), done.stderr


def test_threads_are_used_again_and_no_more_than_are_needed() -> None:
    pool, names = DaemonThreads(2, "pool"), set()

    def name() -> str:
        return threading.current_thread().name

    for _ in range(20):
        names.add(pool.submit(name).result())
    assert names <= {"pool_0", "pool_1"}
    gate = threading.Event()
    waiting = [pool.submit(gate.wait, SECONDS) for _ in range(5)]
    until(lambda: sum(each.running() for each in waiting) == 2)
    pool.shutdown(wait=False, cancel_futures=True)
    gate.set()
    pool.shutdown()
    assert [each.cancelled() for each in waiting] == [False, False, True, True, True]
    with pytest.raises(RuntimeError, match="pool were shut down"):
        pool.submit(name)


def test_threads_that_nobody_has_any_more_end() -> None:
    pool = DaemonThreads(3, "forgotten")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result()
    (thread,) = (each for each in threading.enumerate() if each.name.startswith("forgotten"))
    del pool
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_without_a_thread_it_is_an_error_of_ours_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the exit of some releases of Python 3.12."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with RpcClient(backend="memory://exit", timeout=1) as client, monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RpcError, match="no thread can be started"):
                client.submit("inc", [1])
