"""What the registry costs those who listen to it, and how soon it knows. As a program: so many services."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import redis

from rpc import Identity, RpcClient, RpcReceiver, ServiceChange
from rpc.registry.announcing import SIGNS
from rpc.settings import Settings

from .concurrency import Amounts, Row
from .results import Bound

EVERY = 1.0
"""Seconds between two signs of life of a service."""
FEW, MANY = 10, 50
LOOKS = 5


def registry(url: str, amounts: Amounts) -> Iterator[Row]:
    """Services that give a sign of life each second, and a client that hears all of them."""
    per_second = {}
    for count in FEW, MANY:
        with RpcClient(backend=url) as client, redis.Redis.from_url(url) as observer:
            news = SimpleQueue[ServiceChange]()
            with _services(url, count), client.watch_services(news.put):
                for _ in range(count):
                    assert news.get(timeout=60).kind == "up"
                before, used, began = _sent(observer), time.process_time(), time.perf_counter()
                time.sleep(10 * EVERY)
                seconds = time.perf_counter() - began
                share = 100 * (time.process_time() - used) / seconds
                per_second[count] = (_sent(observer) - before) / seconds
                if count == MANY:
                    yield Row(f"{count} services: CPU of a client that listens", share, "%", 2, Bound(2))
                    yield Row("of a loop that reads the same with redis-py", _reading(url), "%", 2)
                    yield from _killed(url, news)
                    listing, driver = _listing(url)
                    yield Row(f"{count} services: rpc services", 1000 * listing, "ms", bound=Bound(300))
                    yield Row(
                        "of that, to import the driver alone (python -c 'import redis')", 1000 * driver, "ms"
                    )
    each = {count: sent / count for count, sent in per_second.items()}
    title = f"bytes that Redis sends for each service, {MANY} beside {FEW}"
    yield Row(title, each[MANY] / each[FEW], "times", 2, Bound(1.2))


def _reading(url: str) -> float:
    """Percent of a processor that it takes, beyond what the client takes that listens meanwhile, to read the
    signs in a thread with nothing but the driver."""
    key, is_over, used = f"rpc:topic:{{{SIGNS.name}}}", threading.Event(), 0.0

    def read() -> None:
        nonlocal used
        last, began = "$", time.thread_time()
        with redis.Redis.from_url(url) as client:
            while not is_over.is_set():
                for _, entries in client.xread({key: last}, count=64, block=1000) or []:
                    last = entries[-1][0]
        used = time.thread_time() - began

    thread, began = threading.Thread(target=read), time.perf_counter()
    thread.start()
    time.sleep(10 * EVERY)
    is_over.set()
    thread.join()
    return 100 * used / (time.perf_counter() - began)


def _killed(url: str, news: SimpleQueue[ServiceChange]) -> Iterator[Row]:
    with _services(url, 1) as victim:
        assert news.get(timeout=60).kind == "up"
        victim.kill()
        killed = time.perf_counter()
        assert news.get(timeout=60).kind == "down"
    yield Row("a killed service is gone after", time.perf_counter() - killed, "s", 2, Bound(3.2 * EVERY))


def _listing(url: str) -> tuple[float, float]:
    """Seconds that the command takes, from its start to its end, and those of a program that only imports the
    driver, taken in turns. With what is compiled kept, as wherever it is installed."""
    commands = ["-m", "rpc", "services", "--backend", url, "--json"], ["-c", "import redis"]
    took: tuple[list[float], list[float]] = ([], [])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(LOOKS):
        for command, seconds in zip(commands, took, strict=True):
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, env=kept, check=True)
            seconds.append(time.perf_counter() - began)
    return statistics.median(took[0]), statistics.median(took[1])


def _sent(observer: redis.Redis) -> int:
    return int(observer.info("stats")["total_net_output_bytes"])


@contextmanager
def _services(url: str, count: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "benchmarks.registry", url, str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def main(url: str, count: str) -> None:
    """Serve so many services, until stdin ends."""
    settings = Settings(keep_alive=EVERY)
    for number in range(int(count)):
        identity = Identity(domain="bench", type=f"service-{number}")  # each with a queue of its own
        receiver = RpcReceiver(jobs={"len": len}, backend=url, settings=settings, identity=identity)
        threading.Thread(target=receiver.run, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
