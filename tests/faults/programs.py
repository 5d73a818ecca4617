"""What the processes of the fault suite run, and the jobs that their workers do."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from rpc import Event, Request, RpcClient, RpcReceiver, on

from .oracle import Ledger
from .steps import stepper

__all__ = ["caller", "caller_that_forks", "listener", "stepper", "worker"]

PATIENCE = 60.0


def answer_to(job: str, size: int = 0) -> str:
    """What a job answers, of so many characters if `size` is not 0: nobody can have it from elsewhere."""
    if not size:
        return f"{job} is done"
    mark = sha256(job.encode()).hexdigest()
    return (mark * (size // len(mark) + 1))[:size]


class Jobs:
    """The handlers. Each writes down when it begins and when it ends."""

    def __init__(self, ledger: str) -> None:
        self._ledger = Ledger(ledger)
        self._release = Path(ledger).with_suffix(".release")

    def table(self) -> dict[str, Callable[[Request], Any]]:
        names = "work", "awork", "hold", "die", "burn", "eat", "odd"
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def _noted(self, request: Request) -> Iterator[str]:
        job, delivery = str(request.data["job"]), int(request.headers.get("deliveries", 1))
        self._ledger.note(job, delivery, "begin")
        yield job
        self._ledger.note(job, delivery, "end")

    def work(self, request: Request) -> str:
        """Take some seconds."""
        with self._noted(request) as job:
            time.sleep(request.data.get("seconds", 0))
            return answer_to(job, request.data.get("size", 0))

    async def awork(self, request: Request) -> str:
        """The same in the worker's event loop."""
        with self._noted(request) as job:
            await asyncio.sleep(request.data.get("seconds", 0))
            return answer_to(job, request.data.get("size", 0))

    def hold(self, request: Request) -> str:
        """Go on until the test says so."""
        with self._noted(request) as job:
            end = time.monotonic() + PATIENCE
            while not self._release.exists() and time.monotonic() < end:
                time.sleep(0.005)
            return answer_to(job)

    def die(self, request: Request) -> str:
        """Die at the first so many deliveries."""
        with self._noted(request) as job:
            if int(request.headers.get("deliveries", 1)) <= request.data["times"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer_to(job)

    def burn(self, request: Request) -> str:
        """Hold the interpreter's lock for some seconds, in one call of C code."""
        with self._noted(request) as job:
            some = 2_000_000
            start = time.monotonic()
            sum(itertools.repeat(1, some))
            sum(itertools.repeat(1, int(some * request.data["seconds"] / (time.monotonic() - start))))
            return answer_to(job)

    def eat(self, request: Request) -> str:
        """Take more memory than there is."""
        with self._noted(request) as job:
            bytearray(request.data["megabytes"] << 20)
            return answer_to(job)

    def odd(self, request: Request) -> Any:
        """Do what no handler should."""
        with self._noted(request) as job:
            return ODD[request.data["how"]](request, job)


class Textless(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class NoException(BaseException):
    """What `except Exception` does not catch."""


def _raises(error: BaseException) -> None:
    raise error


def _within_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _twice(request: Request, job: str) -> str:
    request.respond(answer_to(job))
    request.respond("again")
    return "and again"


def _recurses(*arguments: Any) -> Any:
    return _recurses(*arguments)


ODD: dict[str, Callable[[Request, str], Any]] = {
    "returns a function": lambda request, job: print,
    "returns a generator": lambda request, job: (number for number in range(3)),
    "returns itself within itself": lambda request, job: _within_itself(),
    "returns 17 MB": lambda request, job: "x" * 17_000_000,
    "returns nothing": lambda request, job: None,
    "responds twice": _twice,
    "raises": lambda request, job: _raises(ValueError(job)),
    "raises what has no text": lambda request, job: _raises(Textless()),
    "raises no Exception": lambda request, job: _raises(NoException()),
    "exits": lambda request, job: sys.exit(3),
    "interrupts itself": lambda request, job: _raises(KeyboardInterrupt()),
    "recurses": _recurses,
}


def worker(
    url: str,
    ledger: str,
    queues: tuple[str, ...] = ("default",),
    concurrency: int = 1,
    grace: float = 30.0,
    hour: float = 0,
    cgroup: str = "",
) -> None:
    """Serve the jobs until stopped. `hour` is how many hours this process's wall clock is ahead."""
    _set_clock(hour)
    if cgroup:
        Path(cgroup).write_text(str(os.getpid()))
    receiver = RpcReceiver(
        jobs=Jobs(ledger).table(), backend=url, queues=queues, concurrency=concurrency, grace=grace
    )
    receiver.start()


class Listeners:
    """A durable group, which writes down what the oracle looks at, and one that listens for itself."""

    def __init__(self, ledger: str) -> None:
        self._ledger, self._heard = Ledger(ledger), Path(ledger).with_suffix(f".{os.getpid()}")

    @on("fault", group="billing", durable=True)
    def bill(self, event: Event) -> None:
        self._ledger.note(event.data["job"], 1, "begin")
        time.sleep(event.data.get("seconds", 0))
        self._ledger.note(event.data["job"], 1, "end")

    @on("fault")
    def hear(self, event: Event) -> None:
        with self._heard.open("a") as file:
            file.write(f"{event.data['job']}\n")


class Failing:
    """A durable group that tries again."""

    def __init__(self, ledger: str) -> None:
        self._ledger, self._release = Ledger(ledger), Path(ledger).with_suffix(".release")

    @on("fails", group="billing", durable=True, retries=1, backoff=0.01)
    def fail(self, event: Event) -> None:
        """The first one, once the test says so."""
        self._ledger.note(event.data["job"], 1, "begin")
        if not self._release.exists():
            end = time.monotonic() + PATIENCE
            while not self._release.exists() and time.monotonic() < end:
                time.sleep(0.005)
            raise ConnectionError("not now")
        self._ledger.note(event.data["job"], 1, "end")


def listener(url: str, ledger: str, fails: bool = False) -> None:
    """Listen until stopped."""
    service = Failing(ledger) if fails else Listeners(ledger)
    receiver = RpcReceiver(jobs={}, services=[service], backend=url)
    begun = Path(ledger).with_suffix(f".{os.getpid()}")
    receiver.hook("on_connect")(begun.touch)
    receiver.start()


def caller(url: str, job: str, timeout: float = 30.0, seconds: float = 0.0, hour: float = 0) -> None:
    """Call once, and wait; exit with 1 if that fails."""
    _set_clock(hour)
    answer = RpcClient(backend=url, timeout=timeout).call_and_wait("work", {"job": job, "seconds": seconds})
    sys.exit(answer.data != answer_to(job))


def _set_clock(hour: float) -> None:
    clock = time.time
    time.time = lambda: clock() + hour * 3600


def caller_that_forks(url: str, calls: int, children: int) -> None:
    """Use a client, fork, and use it in all the children at once; exit with the number of wrong answers."""
    client = RpcClient(backend=url)

    def wrong_answers(who: int) -> int:
        jobs = [f"{who}-{number}" for number in range(calls)]
        return sum(client.call_and_wait("work", {"job": job}).data != answer_to(job) for job in jobs)

    wrong = wrong_answers(0)
    forked = []
    for who in range(1, children + 1):
        pid = os.fork()
        if pid == 0:
            os._exit(min(99, wrong_answers(who)))
        forked.append(pid)
    wrong += wrong_answers(children + 1)
    sys.exit(wrong + sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in forked))
