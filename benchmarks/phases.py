"""What is measured: one side at a time, with one client and at most one worker alive that do anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from rpc.testing import RedisServer

from .processes import PATIENCE, Client, Side, SideFailed, Worker, clean, cpu_seconds

Figures = dict[str, float]
SECONDS_TO_START = 30.0
SECONDS_PER_JOB = 0.05
"""How slow a system may be before it is taken to have got stuck."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything; a side with a `share` gets that part of it."""

    calls: int = 1000
    rounds: int = 5
    jobs: int = 20_000
    idle: float = 10.0
    connections: int = 100
    callers: tuple[int, ...] = (1, 8, 64)
    payloads: tuple[int, ...] = (1, 100, 1000)
    """In kB."""


class Stand:
    """A side in a run: its client, which lives as long as the run, and its worker, while it is served."""

    def __init__(self, side: Side, server: RedisServer, directory: Path) -> None:
        self.side, self.server = side, server
        self.tally = directory / "tally"
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.side, self.server.url)
        return self._client

    @contextmanager
    def serving(self) -> Iterator[tuple[Worker, float]]:
        """A worker that has answered a call, and the seconds from its start until then."""
        self.client.tell("first")
        with self.worker() as worker:
            try:
                answer = self.client.hear(SECONDS_TO_START)
            except SideFailed as failure:
                raise SideFailed(f"{failure}; the worker: {worker.last_words()}") from None
            yield worker, answer["at"] - worker.born

    def worker(self) -> Worker:
        return Worker(self.side, self.server.url, self.tally)

    def warm_up(self, sizes: Sizes) -> None:
        self.client.ask("latency", calls=self.side.portion(sizes.calls // 10))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            if self.side.broker != "Redis":  # that is the run's own
                clean(self.side)


@dataclass(frozen=True)
class Phase:
    """A measurement, which is repeated in rounds unless it says `once`."""

    name: str
    kind: str
    measure: Callable[[Stand], Figures]
    once: bool = False


KINDS = ("latency", "throughput", "payload", "drain", "start", "idle", "memory")


def plan(kinds: tuple[str, ...], sizes: Sizes) -> list[Phase]:
    """The phases of these kinds, in order."""
    phases = [Phase("latency", "latency", lambda stand: latency(stand, sizes))]
    for callers in sizes.callers:
        phases.append(Phase(f"throughput {callers}", "throughput", _throughput(callers, sizes)))
    for size in sizes.payloads:
        phases.append(Phase(f"payload {size} kB", "payload", _payload(size, sizes)))
    phases += [
        Phase("drain", "drain", lambda stand: drain(stand, sizes)),
        Phase("start", "start", start),
        Phase("idle", "idle", lambda stand: idle(stand, sizes), once=True),
        Phase("memory", "memory", lambda stand: memory(stand, sizes), once=True),
    ]
    return [phase for phase in phases if phase.kind in kinds]


def latency(stand: Stand, sizes: Sizes) -> Figures:
    """Seconds that a call takes, one after the other, and what it costs in CPU time."""
    calls = stand.side.portion(sizes.calls)
    with stand.serving() as (worker, _):
        stand.warm_up(sizes)
        sessions = {"client": stand.client.session, "worker": worker.session, "redis": stand.server.pid}
        before = {name: cpu_seconds(session) for name, session in sessions.items()}
        figures: Figures = stand.client.ask("latency", calls=calls)
        for name, session in sessions.items():
            figures[f"cpu_{name}"] = (cpu_seconds(session) - before[name]) / calls
        return figures


def _throughput(callers: int, sizes: Sizes) -> Callable[[Stand], Figures]:
    def measure(stand: Stand) -> Figures:
        """Calls per second of so many callers in one process. Many times the calls, for it takes a second or
        so to see what many threads do to each other, and what a worker does that has just been started."""
        each = -(-stand.side.portion(16 * sizes.calls) // callers)
        with stand.serving():
            stand.warm_up(sizes)
            figures: Figures = stand.client.ask("throughput", callers=callers, each=each)
            return figures

    return measure


def _payload(size: int, sizes: Sizes) -> Callable[[Stand], Figures]:
    def measure(stand: Stand) -> Figures:
        """Seconds that a call takes which carries so many kB there, and back."""
        calls = stand.side.portion(sizes.calls // (50 if size >= 1000 else 5))
        with stand.serving():
            stand.client.ask("payload", calls=2, size=size * 1000)
            figures: Figures = stand.client.ask("payload", calls=calls, size=size * 1000)
            return {"p50": figures["p50"]}

    return measure


def drain(stand: Stand, sizes: Sizes) -> Figures:
    """Jobs per second: sent while no worker is there, then done by a worker that finds them waiting."""
    jobs = stand.side.portion(sizes.jobs)
    patience = PATIENCE + jobs * SECONDS_PER_JOB
    stand.tally.unlink(missing_ok=True)
    sent = stand.client.ask("send", patience, jobs=jobs)
    with stand.worker() as worker:
        end = time.monotonic() + patience
        while not stand.tally.exists():
            if time.monotonic() > end:
                raise SideFailed(f"did not do {jobs} jobs in {patience:g} s; {worker.last_words()}")
            time.sleep(0.02)
    return {"enqueue": sent["rate"], "rate": float(stand.tally.read_text())}


def start(stand: Stand) -> Figures:
    """Seconds from the start of a worker's process to the answer of a call that waits for it."""
    with stand.serving() as (_, seconds):
        return {"seconds": seconds}


def idle(stand: Stand, sizes: Sizes) -> Figures:
    """Percent of a CPU that a worker with nothing to do takes."""
    with stand.serving() as (worker, _):
        time.sleep(min(1.0, sizes.idle))  # what it does once, after its start, is not what it does when idle
        begun, before = time.monotonic(), cpu_seconds(worker.session)
        time.sleep(sizes.idle)
        used = cpu_seconds(worker.session) - before
        return {"cpu": 100 * used / (time.monotonic() - begun)}


def memory(stand: Stand, sizes: Sizes) -> Figures:
    """Bytes that Redis and the calling process need for a client that has made a call and is idle."""
    with ExitStack() as stack:
        stack.enter_context(stand.serving())
        # Of its own: what others have left behind would be used again, and not be seen.
        client = stack.enter_context(Client(stand.side, stand.server.url))
        client.ask("first")
        observer = stack.enter_context(redis.Redis.from_url(stand.server.url))
        before = _used(observer)
        figures = client.ask("connections", count=sizes.connections)
        return {"client": figures["bytes"], "redis": (_used(observer) - before) / sizes.connections}


def _used(observer: redis.Redis) -> int:
    answer: dict[str, int] = {}
    with suppress(redis.ResponseError):
        answer = dict(observer.info("memory"))
    if "used_memory" not in answer:
        raise SideFailed("this imitation of Redis does not know how much memory it uses")
    return answer["used_memory"]
