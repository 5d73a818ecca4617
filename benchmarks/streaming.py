"""The cases of `concurrency` that are about streams."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing

import redis

from rpc import AsyncRpcClient, RpcClient

from .client import resident
from .concurrency import Amounts, Row
from .results import Bound
from .serving import resident_of, serving, settled, threads_of

WINDOW = 2000
AT_ONCE = 100
"""Items of the bare loop in one round trip."""
CHUNK = 1_000_000
"""Bytes."""
ECHOES = 20
"""Items that go to and fro in each two-way stream."""
NONE = Bound(0)


def pushed(url: str, amounts: Amounts) -> Iterator[Row]:
    """Small items: lock-step, pushed, and what XADD and XREAD carry of their like."""
    pushed_rates, bare, ratios = [], [], []
    with serving(url), closing(RpcClient(backend=url)) as client:
        few = amounts.items // 50
        for _ in range(amounts.rounds):
            bare.append(_bare(url, amounts.items))
            pushed_rates.append(_rate(client, amounts.items, WINDOW))
            ratios.append(pushed_rates[-1] / _rate(client, few, 1))
    what = f"{amounts.items:,} small items pushed"
    of_bare = [ours / theirs for ours, theirs in zip(pushed_rates, bare, strict=True)]
    yield Row(f"{what}: items/s", statistics.median(pushed_rates))
    yield Row(f"{what}: of lock-step", statistics.median(ratios), digits=1, bound=Bound(10, at_most=False))
    yield Row(
        f"{what}: of XADD and XREAD, {AT_ONCE} at a time",
        statistics.median(of_bare),
        digits=2,
        bound=Bound(0.5, at_most=False),
    )


def _rate(client: RpcClient, items: int, window: int) -> float:
    begun = time.perf_counter()
    assert sum(1 for _ in client.stream("items", {"number": items}, window=window)) == items
    return items / (time.perf_counter() - begun)


def _bare(url: str, items: int) -> float:
    """Items a second that a process writes to a stream and reads from it, so many at a time."""
    with redis.Redis.from_url(url) as client:
        client.delete("bare")
        begun, last, read = time.perf_counter(), "0", 0
        while read < items:
            with client.pipeline(transaction=False) as pipeline:
                for number in range(read, read + AT_ONCE):
                    pipeline.xadd("bare", {"m": b"%d" % number}, maxlen=10 * AT_ONCE)
                pipeline.execute()
            [[_, entries]] = client.xread({"bare": last}, count=AT_ONCE)
            last, read = entries[-1][0], read + len(entries)
        client.delete("bare")
        return items / (time.perf_counter() - begun)


def slow(url: str, amounts: Amounts) -> Iterator[Row]:
    """A consumer that is ten times slower than the producer: what everybody remembers meanwhile."""
    what = f"{amounts.slow:,} items to a consumer ten times slower"
    with (
        serving(url) as worker,
        closing(RpcClient(backend=url)) as client,
        redis.Redis.from_url(url) as admin,
    ):
        begun = time.perf_counter()
        for _ in client.stream("items", {"number": 20_000}, window=WINDOW):
            pass
        pause = 10 * (time.perf_counter() - begun) / 20_000
        before = resident() / 1e6, resident_of(worker), admin.info("memory")["used_memory"] / 1e6
        most, due = before, time.perf_counter()
        for number, _ in enumerate(client.stream("items", {"number": amounts.slow}, window=WINDOW)):
            due += pause
            if number % 1000 == 0:
                time.sleep(max(0.0, due - time.perf_counter()))
                now = resident() / 1e6, resident_of(worker), admin.info("memory")["used_memory"] / 1e6
                most = tuple(map(max, most, now))
        for side, grown in zip(
            ("consumer", "worker", "Redis"), map(float.__sub__, most, before), strict=True
        ):
            yield Row(f"{what}: memory of the {side} grows by", grown, "MB", 1, Bound(10))
        stream = client.stream("made", window=10)
        for _ in range(3):
            next(stream)
        settled(lambda: False, time.sleep, 0.5)
        made = client.call_and_wait("how_many").data
        yield Row("a consumer stops after 3 items, window 10: items made", made, bound=Bound(13))
        stream.close()


def upload(url: str, amounts: Amounts) -> Iterator[Row]:
    """A large file goes up: what both sides remember of it."""
    chunk = random.Random(1).randbytes(CHUNK)
    number = amounts.upload // CHUNK
    with serving(url) as worker, closing(RpcClient(backend=url, codec="msgpack")) as client:
        list(client.stream("swallow", items=[chunk] * 10))
        before, begun = (resident() / 1e6, resident_of(worker)), time.perf_counter()
        most = before

        def chunks() -> Iterator[bytes]:
            nonlocal most
            for _ in range(number):
                most = max(most[0], resident() / 1e6), max(most[1], resident_of(worker))
                yield chunk

        stream = client.stream("swallow", items=chunks())
        list(stream)
        took = time.perf_counter() - begun
    what = f"an upload of {number * CHUNK / 1e9:g} GB"
    yield Row(f"{what}: bytes that did not arrive", number * CHUNK - stream.value, bound=NONE)
    yield Row(f"{what}: MB/s", number * CHUNK / 1e6 / took)
    for side, grown in zip(("caller", "worker"), map(float.__sub__, most, before), strict=True):
        yield Row(f"{what}: peak memory of the {side} grows by", grown, "MB", 1, Bound(50))


def left(url: str, amounts: Amounts) -> Iterator[Row]:
    """How long a generator runs on that nobody wants any more."""
    late = []
    with serving(url), closing(RpcClient(backend=url)) as client:
        for _ in range(51):
            stream = client.stream("until_left", window=10)
            next(stream)
            closed = time.time()
            stream.close()
            while (at := client.call_and_wait("left_at").data) < closed:
                pass
            late.append(at - closed)
    yield Row("a running generator is closed after", 1000 * statistics.median(late), "ms", 1, Bound(100))


def two_way(url: str, amounts: Amounts) -> Iterator[Row]:
    """A thousand generators on two workers, all open, to and fro."""
    what = f"{amounts.open:,} two-way streams open at once on two workers"
    options = "--coroutines 1000 --concurrency 8"
    with serving(url, options) as one, serving(url, options) as other:
        took, bad = asyncio.run(_to_and_fro(url, amounts.open))
        threads = max(threads_of(one), threads_of(other))
    yield Row(f"{what}: wrong or missing items", bad, bound=NONE, must=True)
    yield Row(f"{what}: threads of a worker", threads, bound=Bound(20))
    yield Row(f"{what}: items/s", ECHOES * amounts.open / took)


async def _to_and_fro(url: str, number: int) -> tuple[float, int]:
    begun, bad = time.perf_counter(), 0
    async with AsyncRpcClient(backend=url, timeout=60) as client:
        streams = [client.stream("echoes") for _ in range(number)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        for item in range(ECHOES):
            answers = await asyncio.gather(
                *(stream.asend([index, item]) for index, stream in enumerate(streams))
            )
            bad += sum(answer != [index, item] for index, answer in enumerate(answers))
        await asyncio.gather(*(stream.aclose() for stream in streams))
    return time.perf_counter() - begun, bad
