"""The calling process of a side: `python -m benchmarks.client MODULE`, in the side's own environment.

It obeys commands, a line of JSON on stdin each, and answers each with a line of JSON on stdout. The module
has `connect()`, whose result has `call()` and `send()`: functions, which threads call, or coroutine functions
if `connect` is one, which tasks of one event loop call. Every answer is checked. What is raised where
there is no worker yet, it may name in `UNROUTABLE`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any

Answer = dict[str, Any]
AGAIN = 0.01
"""Seconds until a first call is tried again."""


class WrongAnswer(Exception):
    pass


class Threads:
    """The commands, for a system that blocks."""

    def __init__(self, module: ModuleType) -> None:
        self._connect: Callable[[], Any] = module.connect
        self._caller = module.connect()
        self._unroutable = getattr(module, "UNROUTABLE", ())
        self._idle: list[Any] = []

    def first(self) -> Answer:
        """One call, which waits for a worker to start; `at` is a clock that all processes share."""
        while True:
            with suppress(*self._unroutable):
                self._added(1)
                return {"at": time.monotonic()}
            time.sleep(AGAIN)

    def latency(self, calls: int) -> Answer:
        return _quantiles([self._added(number) for number in range(calls)])

    def payload(self, calls: int, size: int) -> Answer:
        text = "x" * size
        return _quantiles([self._timed("echo", {"text": text}, text=text) for _ in range(calls)])

    def throughput(self, callers: int, each: int) -> Answer:
        """Calls per second of so many threads. All have called once before the clock runs."""
        ready = threading.Barrier(callers + 1)

        def work(start: int) -> None:
            ready.wait()  # for all, lest they share connections
            try:
                self._added(start)
            except BaseException:
                ready.abort()
                raise
            ready.wait()
            for number in range(start, start + each):
                self._added(number)

        with ThreadPoolExecutor(callers) as pool:
            running = [pool.submit(work, each * number) for number in range(callers)]
            with suppress(threading.BrokenBarrierError):  # one of the threads says why
                ready.wait()
                ready.wait()
            begun = time.perf_counter()
            wait(running)
            seconds = time.perf_counter() - begun
        failed = [error for one in running if (error := one.exception())]
        if failed:
            raise min(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        return {"rate": callers * each / seconds}

    def send(self, jobs: int) -> Answer:
        begun = time.perf_counter()
        for _ in range(jobs):
            self._caller.send("tick", of=jobs)
        return {"rate": jobs / (time.perf_counter() - begun)}

    def connections(self, count: int) -> Answer:
        """So many clients more, each of which has made a call: bytes that one of them costs here."""
        before = resident()
        for number in range(count):
            caller = self._connect()
            _check(caller.call("add", a=number, b=1), {"answer": number + 1})
            self._idle.append(caller)
        return {"bytes": (resident() - before) / count}

    def _added(self, number: int) -> float:
        return self._timed("add", {"answer": number + 1}, a=number, b=1)

    def _timed(self, name: str, wanted: Answer, **arguments: Any) -> float:
        begun = time.perf_counter()
        answer = self._caller.call(name, **arguments)
        seconds = time.perf_counter() - begun
        _check(answer, wanted)
        return seconds


class Tasks:
    """The same commands, for a system of coroutines: its callers are tasks."""

    def __init__(self, module: ModuleType) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._connect: Callable[[], Any] = module.connect
        self._caller = self._run(module.connect())
        self._unroutable = getattr(module, "UNROUTABLE", ())
        self._idle: list[Any] = []

    def first(self) -> Answer:
        while True:
            with suppress(*self._unroutable):
                self._run(self._added(1))
                return {"at": time.monotonic()}
            time.sleep(AGAIN)

    def latency(self, calls: int) -> Answer:
        async def measure() -> list[float]:
            return [await self._added(number) for number in range(calls)]

        return _quantiles(self._run(measure()))

    def payload(self, calls: int, size: int) -> Answer:
        text = "x" * size

        async def measure() -> list[float]:
            return [await self._timed("echo", {"text": text}, text=text) for _ in range(calls)]

        return _quantiles(self._run(measure()))

    def throughput(self, callers: int, each: int) -> Answer:
        async def work(start: int) -> None:
            for number in range(start, start + each):
                await self._added(number)

        async def measure() -> float:
            await asyncio.gather(*(self._added(number) for number in range(callers)))
            begun = time.perf_counter()
            await asyncio.gather(*(work(each * number) for number in range(callers)))
            return callers * each / (time.perf_counter() - begun)

        return {"rate": self._run(measure())}

    def send(self, jobs: int) -> Answer:
        async def measure() -> float:
            begun = time.perf_counter()
            for _ in range(jobs):
                await self._caller.send("tick", of=jobs)
            return jobs / (time.perf_counter() - begun)

        return {"rate": self._run(measure())}

    def connections(self, count: int) -> Answer:
        async def measure() -> float:
            before = resident()
            for number in range(count):
                caller = await self._connect()
                _check(await caller.call("add", a=number, b=1), {"answer": number + 1})
                self._idle.append(caller)
            return (resident() - before) / count

        return {"bytes": self._run(measure())}

    async def _added(self, number: int) -> float:
        return await self._timed("add", {"answer": number + 1}, a=number, b=1)

    async def _timed(self, name: str, wanted: Answer, **arguments: Any) -> float:
        begun = time.perf_counter()
        answer = await self._caller.call(name, **arguments)
        seconds = time.perf_counter() - begun
        _check(answer, wanted)
        return seconds

    def _run(self, measured: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(measured)


def obey(module: ModuleType, answers: Any) -> None:
    """Do what stdin says, until it ends."""
    kind = Tasks if inspect.iscoroutinefunction(module.connect) else Threads
    commands = kind(module)
    versions = {package: version(package) for package in module.PACKAGES}
    print(json.dumps({"versions": versions, "note": module.NOTE}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(commands, command.pop("do"))(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _check(answer: Any, wanted: Answer) -> None:
    if answer != wanted:
        raise WrongAnswer(f"{answer!r:.80} instead of {wanted!r:.80}")


def _quantiles(times: list[float]) -> Answer:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints must not come between the answers
        obey(import_module(sys.argv[1]), answers)
        os._exit(0)  # libraries leave threads behind that would be waited for
