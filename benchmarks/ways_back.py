"""`python -m benchmarks.ways_back`: how a reply finds its caller, measured without the rest of the library.

Each variant sends a job with RPUSH and waits for its reply, in one write over redis-py's own connections, to
one worker in a process of its own; they differ in the way back alone. Ours is the first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any

import click
import redis

from rpc.testing import start_redis

CALLS, ROUNDS, THREADS = 1000, 5, 64
BODY = b"x" * 200


class Wire:
    """A connection, and commands that leave in one write."""

    def __init__(self, url: str) -> None:
        pool: Any = redis.ConnectionPool.from_url(url, protocol=2, socket_timeout=10)
        self._connection = pool.make_connection()
        self._connection.connect()

    def write(self, *commands: tuple[Any, ...]) -> None:
        pack = self._connection.pack_command
        self._connection.send_packed_command([b"".join(b"".join(pack(*each)) for each in commands)])

    def read(self, answers: int = 1) -> Any:
        for _ in range(answers):
            answer = self._connection.read_response(disable_decoding=True)
        return answer


def serve(url: str) -> None:
    """Send each job's body back, the way that it says."""
    wire = Wire(url)
    before: list[tuple[Any, ...]] = []
    while True:
        wire.write(*before, ("BLPOP", "jobs", 5))
        popped, before = wire.read(len(before) + 1), []
        if popped:
            how, inbox, body = popped[1].split(b" ", 2)
            if how == b"stream":
                before = [("XADD", inbox, "*", "m", body), ("PEXPIRE", inbox, 60000)]
            elif how == b"channel":
                before = [("PUBLISH", inbox, body)]
            else:
                before = [("RPUSH", inbox, body), ("PEXPIRE", inbox, 60000)]


class Peeked:
    """A list for each caller, whose head is read before it is taken away."""

    how = b"list"

    def __init__(self, url: str) -> None:
        self._wire, self._inbox = Wire(url), f"in:{os.urandom(8).hex()}"

    def call(self, id: bytes) -> bytes:
        self._wire.write(
            ("DEL", self._inbox),
            ("RPUSH", "jobs", b"%s %s %s" % (self.how, self._inbox.encode(), id + BODY)),
            self._wait(),
        )
        return self._body(self._wire.read(3))

    def _wait(self) -> tuple[Any, ...]:
        return ("BLMOVE", self._inbox, self._inbox, "LEFT", "LEFT", 5)

    def _body(self, answer: Any) -> bytes:
        return bytes(answer)


class Popped(Peeked):
    """The same, taken away with the answer: a connection that breaks then loses the reply."""

    def _wait(self) -> tuple[Any, ...]:
        return ("BLPOP", self._inbox, 5)

    def _body(self, answer: Any) -> bytes:
        return bytes(answer[1])


class Fresh(Popped):
    """A new key for each call."""

    def call(self, id: bytes) -> bytes:
        self._inbox = f"in:{id.decode()}"
        return super().call(id)


class Stream(Peeked):
    """A stream for each caller."""

    how = b"stream"

    def _wait(self) -> tuple[Any, ...]:
        return ("XREAD", "COUNT", 64, "BLOCK", 5000, "STREAMS", self._inbox, "0-0")

    def _body(self, answer: Any) -> bytes:
        return bytes(answer[0][1][0][1][1])


class Shared:
    """One inbox for the whole client, and a thread that hands replies to the callers."""

    how = b"list"

    def __init__(self, url: str) -> None:
        self._inbox = f"in:{os.urandom(8).hex()}"
        self._waiting: dict[bytes, Future[bytes]] = {}
        self._local = threading.local()
        self._url = url
        threading.Thread(target=self._listen, args=[Wire(url)], daemon=True).start()

    def call(self, id: bytes) -> bytes:
        if not hasattr(self._local, "wire"):
            self._local.wire = Wire(self._url)
        reply = self._waiting[id] = Future()
        self._local.wire.write(("RPUSH", "jobs", b"%s %s %s" % (self.how, self._inbox.encode(), id + BODY)))
        self._local.wire.read()
        return reply.result(10)

    def _listen(self, wire: Wire) -> None:
        with suppress(redis.ConnectionError):  # the end
            self._hand_out(wire)

    def _hand_out(self, wire: Wire) -> None:
        while True:
            wire.write(("BLPOP", self._inbox, 5))
            self._deliver(wire.read())

    def _deliver(self, popped: Any) -> None:
        if popped:
            self._waiting.pop(popped[-1][:32]).set_result(popped[-1])


class Channel(Shared):
    """The same over pub/sub: what is sent while nobody is connected is lost."""

    how = b"channel"

    def _hand_out(self, wire: Wire) -> None:
        wire.write(("SUBSCRIBE", self._inbox))
        wire.read()
        while True:
            self._deliver(wire.read())


WAYS: dict[str, Callable[[str], Any]] = {
    "a list for each caller, peeked at (ours)": Peeked,
    "a list for each caller, popped": Popped,
    "a new key for each call": Fresh,
    "a stream for each caller": Stream,
    "one list, and a thread that reads": cache(Shared),
    "one channel, and a thread that reads": cache(Channel),
}


def call(caller: Any) -> None:
    id = os.urandom(16).hex().encode()
    if caller.call(id)[:32] != id:
        raise RuntimeError("a wrong reply")


def latency(way: Callable[[str], Any], url: str, calls: int) -> float:
    """Median microseconds of a call."""
    caller, times = way(url), []
    for _ in range(calls):
        start = time.perf_counter()
        call(caller)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def throughput(way: Callable[[str], Any], url: str, calls: int, threads: int) -> float:
    """Calls per second of many threads."""
    callers = [way(url) for _ in range(threads)]

    def run(caller: Any) -> None:
        for _ in range(calls // threads):
            call(caller)

    running = [threading.Thread(target=run, args=[caller]) for caller in callers]
    start = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return calls // threads * threads / (time.perf_counter() - start)


@click.command()
@click.option("--calls", default=CALLS, show_default=True, help="Calls of each way in a round.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="Rounds; the median of each counts.")
def main(calls: int, rounds: int) -> None:
    """Compare ways for a reply to find its caller: one caller, and 64 threads."""
    with start_redis() as server:
        worker = subprocess.Popen([sys.executable, "-m", "benchmarks.ways_back", "serve", server.url])
        try:
            rows = [
                {
                    name: (latency(way, server.url, calls), throughput(way, server.url, 3 * calls, THREADS))
                    for name, way in WAYS.items()
                }
                for _ in range(rounds)
            ]
        finally:
            worker.kill()
            worker.wait()
    print(f"| way back | median call | 64 threads |\n|{'---|' * 3}")
    for name in WAYS:
        alone = statistics.median(row[name][0] for row in rows)
        many = statistics.median(row[name][1] for row in rows)
        print(f"| {name} | {alone:.0f} µs | {many:.0f} calls/s |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        main()
