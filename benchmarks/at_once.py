"""The cases of `concurrency`. Each is run in a process of its own; the jobs that they call are in `jobs`."""

from __future__ import annotations

import concurrent.futures
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import msgspec
import redis

from rpc import RpcClient
from rpc.backends.redis.keys import QueueNames

from . import logs, streaming
from .callers import Callers, Futures, Tasks, alive, connections, wrong
from .client import resident
from .concurrency import Amounts, Row
from .ordered import ordered, ordered_on_rabbitmq
from .registry import registry
from .results import Bound
from .serving import resident_of, serving, settled, threads_of, until
from .work import REDIS, VARIANT
from .worker import end_with_stdin

AT_ONCE = 50
"""Calls that are made before some of them are cancelled; those before may still wait."""
SHARE = 0.3
NAP = 0.2
COUNT = 500_000
"""How far a job counts, which is ten milliseconds of work or so."""
NONE, TWO = Bound(0), Bound(2)
QUEUE = QueueNames().queue("default").queue


def in_flight(kind: type[Callers], url: str, amounts: Amounts) -> Iterator[Row]:
    """Calls that all wait: the worker that answers them is started when they have been sent."""
    what = f"{amounts.in_flight:,} calls of {kind.name} in flight"
    with closing(kind(url)) as callers, redis.Redis.from_url(url) as observer:
        with serving(url):
            callers.finish(callers.start([0]))
        before = resident()
        calls = callers.start(range(amounts.in_flight))
        until(lambda: observer.llen(QUEUE) == len(calls), callers.pause)
        unanswered = sum(not call.done() for call in calls)
        grown, connected = resident() - before, connections(observer)
        with serving(url):
            callers.finish(calls)
    yield Row(f"{what}: unanswered", unanswered, bound=Bound(len(calls), at_most=False), must=True)
    yield Row(f"{what}: wrong answers", wrong(enumerate(calls)), bound=NONE, must=True)
    yield Row(f"{what}: connections", connected, bound=TWO, must=True)
    yield Row(f"{what}: memory of the process grows by", grown / 1e6, "MB", 1)
    yield Row(f"{what}: memory of a call", grown / len(calls), "B")


def cancelled(kind: type[Callers], url: str, amounts: Amounts) -> Iterator[Row]:
    """Calls, some of which are cancelled: before they are sent, while they wait or run, or too late."""
    what = f"{amounts.cancelled:,} calls of {kind.name}, {100 * SHARE:.0f} % cancelled"
    chance = random.Random(amounts.seed)
    with closing(kind(url)) as callers, redis.Redis.from_url(url) as observer:
        with serving(url):
            some_cancelled(callers, range(1000), chance)
            callers.pause(0.5)
            before = alive()
            withdrawn, bad = some_cancelled(callers, range(amounts.cancelled), chance)
            connected = connections(observer)
            settled(lambda: alive() <= before and not observer.llen(QUEUE), callers.pause)
            left = max(0, alive() - before)
        lasting = sum(observer.ttl(key) == -1 for key in observer.scan_iter(count=1000))
        callers.close()
        settled(lambda: not connections(observer), time.sleep)
        unclosed = connections(observer)
    yield Row(f"{what}: cancelled before they were answered", withdrawn)
    yield Row(f"{what}: wrong answers", bad, bound=NONE, must=True)
    yield Row(f"{what}: tasks, futures and other objects left", left, bound=NONE, must=True)
    yield Row(f"{what}: keys without a TTL left", lasting, bound=NONE, must=True)
    yield Row(f"{what}: connections", connected, bound=TWO, must=True)
    yield Row(f"{what}: connections left when it is closed", unclosed, bound=NONE, must=True)


def some_cancelled(callers: Callers, numbers: Sequence[int], chance: random.Random) -> tuple[int, int]:
    """How many calls did end by being cancelled, and how many others had no right answer."""
    calls, chosen = list[Any](), list[Any]()
    for first in range(0, len(numbers), AT_ONCE):
        made = callers.start(numbers[first : first + AT_ONCE])
        callers.pause(chance.uniform(0, 0.004))
        calls += made
        for call in made:
            if chance.random() < SHARE:
                chosen.append(call)
                call.cancel()
    callers.finish(calls)
    withdrawn = {id(call) for call in chosen if call.cancelled()}
    others = [each for each in zip(numbers, calls, strict=True) if id(each[1]) not in withdrawn]
    return len(withdrawn), wrong(others)


def blocking(url: str, amounts: Amounts) -> Iterator[Row]:
    """Four handlers that block, with slots for just them, and for more."""
    for slots, bound in (4, 1.3), (8, 1.6):
        with serving(url, f"--concurrency {slots}"), RpcClient(backend=url) as client:
            client.submit("add", {"a": 1, "b": 1}).result()
            begun = time.perf_counter()
            list(client.map("block", [{"seconds": amounts.seconds}] * 4))
            seconds = time.perf_counter() - begun
        title = f"4 handlers that sleep {amounts.seconds:g} s, --concurrency {slots}"
        yield Row(title, seconds, "s", 2, Bound(bound * amounts.seconds))


def naps(url: str, amounts: Amounts) -> Iterator[Row]:
    """Coroutines that sleep, a thousand at a time and then ten thousand: what they take, and what they cost
    the worker."""
    for at_once, number, bound in (1000, 3000, 1.2), (10_000, 10_000, None):
        seconds = NAP * number / at_once
        with serving(url, f"--coroutines {at_once} --grace 5") as worker, closing(Tasks(url)) as callers:
            before = resident_of(worker)
            callers.finish(callers.start_others("nap", [{"seconds": 0.0}]))
            begun = time.perf_counter()
            calls = callers.start_others("nap", [{"seconds": NAP}] * number)
            callers.pause(NAP)
            threads, grown = threads_of(worker), resident_of(worker) - before
            callers.finish(calls)
            took = time.perf_counter() - begun
        what = f"{number:,} coroutines that sleep {NAP:g} s, --coroutines {at_once:,}"
        yield Row(f"{what} (ideal: {seconds:.1f} s)", took, "s", 2, Bound(bound) if bound else None)
        yield Row(f"{what}: threads of the worker", threads, bound=Bound(12))
        if at_once == number:
            yield Row(f"{what}: memory of each", 1000 * grown / number, "kB", 1, Bound(8))


def ticking(url: str, amounts: Amounts) -> Iterator[Row]:
    """A coroutine that ticks beside another handler of the same worker, which blocks."""
    seconds = 2 * amounts.seconds
    others = {"": "no other", "block": "one that sleeps", "spin": "one that computes in pure Python"}
    with serving(url, "--concurrency 2"), RpcClient(backend=url) as client:
        for name, other in others.items():
            blocked = [client.submit(name, {"seconds": seconds + 0.5})] if name else []
            time.sleep(0.2)  # it has begun, and goes on longer
            late = client.call_and_wait("tick", {"seconds": seconds}).data
            title = f"a coroutine that ticks every 10 ms beside {other}: its latest tick is late by"
            yield Row(title, 1000 * late, "ms", 1, Bound(20) if name else None)
            concurrent.futures.wait(blocked)


def processes(url: str, amounts: Amounts) -> Iterator[Row]:
    """Handlers that compute, in one process and in two, in turn."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(amounts.rounds):
        for many in (1, 2) if number % 2 == 0 else (2, 1):
            with serving(url, f"--processes {many}"), RpcClient(backend=url) as client:
                until(partial(_are_there, client, many), time.sleep)
                begun = time.perf_counter()
                list(client.map("count", [{"to": COUNT}] * amounts.counted))
                rates[many].append(amounts.counted / (time.perf_counter() - begun))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    what = "calls/s that compute in pure Python, --processes"
    yield Row(f"{what} 1", statistics.median(rates[1]))
    yield Row(f"{what} 2 / 1", statistics.median(ratios), digits=2, bound=Bound(1.7, at_most=False))


CASES: dict[str, Callable[[str, Amounts], Iterator[Row]]] = {
    "in-flight-tasks": partial(in_flight, Tasks),
    "in-flight-futures": partial(in_flight, Futures),
    "cancelled-tasks": partial(cancelled, Tasks),
    "cancelled-futures": partial(cancelled, Futures),
    "blocking": blocking,
    "naps": naps,
    "ticking": ticking,
    "processes": processes,
    "ordered": ordered,
    "ordered-rabbitmq": ordered_on_rabbitmq,
    "pushed": streaming.pushed,
    "slow-consumer": streaming.slow,
    "upload": streaming.upload,
    "left": streaming.left,
    "two-way": streaming.two_way,
    "registry": registry,
    "logs": logs.logged,
}


def _are_there(client: RpcClient, many: int) -> bool:
    """Whether so many processes serve."""
    answers = client.map("block", [{"seconds": 0.05}] * 4 * many)
    return len({answer.data for answer in answers}) == many


if __name__ == "__main__":
    threading.Thread(target=end_with_stdin, daemon=True).start()
    rows = CASES[sys.argv[1]](REDIS, msgspec.json.decode(VARIANT, type=Amounts))
    print(msgspec.json.encode(list(rows)).decode())
