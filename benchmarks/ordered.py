"""What it costs that jobs with one order key are done one after the other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from typing import Any

from rpc import RpcClient
from rpc.transport import queue

from .concurrency import Amounts, Row
from .results import Bound
from .serving import serving, until
from .work import RABBIT

KEYS, WORKERS = 1000, 4
QUEUE = queue("default")


def ordered_on_rabbitmq(_: str, amounts: Amounts) -> Iterator[Row]:
    """What `ordered` tells of Redis."""
    url = f"{RABBIT}?prefix=bench{os.getpid()}"
    with RpcClient(backend=url) as client:
        backend: Any = client.backend
        backend.declare(QUEUE)
        try:
            for row in ordered(url, amounts):
                row.title = f"on RabbitMQ, {row.title}"
                if row.unit == "%":  # what is in the partition of that key waits for it
                    row.bound = None
                yield row
        finally:
            backend.delete(QUEUE)


def ordered(url: str, amounts: Amounts) -> Iterator[Row]:
    """Jobs that wait when the workers start: without keys, with many, and with one that has most of them."""
    jobs = amounts.items // 5
    spread: list[tuple[float, float]] = []
    for _ in range(amounts.rounds):
        plain, _ = _drained(url, jobs, lambda number: None)
        keyed, _ = _drained(url, jobs, lambda number: number % KEYS)
        spread.append((keyed / plain, keyed))
    ratio = statistics.median(ratio for ratio, _ in spread)
    rate = statistics.median(rate for _, rate in spread)
    what = f"{jobs:,} jobs with {KEYS:,} order keys, {WORKERS} workers"
    yield Row(f"{what}: jobs/s", rate)
    yield Row(f"{what}: of those without keys", ratio, digits=2, bound=Bound(0.5, at_most=False))
    ratio = _left(url, jobs, lambda number: number % KEYS) / _left(url, jobs, lambda number: None)
    title = f"{what}, for which nobody waits: of those without keys"
    yield Row(title, ratio, digits=2, bound=Bound(0.5, at_most=False))
    _, order = _drained(url, jobs, lambda number: "big" if number < jobs // 2 else number % KEYS)
    others = max(place for place, number in enumerate(order) if number >= jobs // 2)
    title = f"{jobs:,} jobs, half of them of one key: done when the last of another key is, of that key"
    yield Row(title, 100 * (others + 1 - (jobs - jobs // 2)) / (jobs // 2), "%", 1, Bound(20))


def _drained(url: str, jobs: int, key: Callable[[int], int | str | None]) -> tuple[float, list[int]]:
    """Jobs a second from the first reply to the last, and in which order the replies came."""
    done: list[int] = []
    with RpcClient(backend=url, timeout=600) as client:
        futures = []
        for number in range(jobs):
            futures.append(client.submit("add", {"a": number, "b": 0}, order_key=key(number)))
            futures[-1].add_done_callback(partial(_note, done, number))
        until(lambda: _waiting(client) == jobs, time.sleep)
        with serving(url, f"--processes {WORKERS}"):
            wait(futures[:1])
            before, begun = len(done), time.perf_counter()
            wait(futures)
            seconds = time.perf_counter() - begun
        assert all(future.result().data == {"answer": number} for number, future in enumerate(futures))
    return (jobs - before) / seconds, done


def _left(url: str, jobs: int, key: Callable[[int], int | str | None]) -> float:
    """Jobs a second that nobody waits for, from the first one that is gone from the queue to the last."""
    with RpcClient(backend=url) as client:
        for number in range(jobs):
            client.call("add", {"a": number, "b": 0}, order_key=key(number))
        with serving(url, f"--processes {WORKERS}"):
            until(lambda: _waiting(client) < jobs, time.sleep)
            before, begun = _waiting(client), time.perf_counter()
            until(lambda: not _waiting(client), time.sleep)
            return before / (time.perf_counter() - begun)


def _note(done: list[int], number: int, _: object) -> None:
    done.append(number)


def _waiting(client: RpcClient) -> int:
    backend: Any = client.backend
    waiting: int = backend.queue_info(QUEUE.name).waiting
    return waiting
