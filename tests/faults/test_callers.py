"""Callers that die, leave, fork, or are many."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .conftest import Pick
from .load import ask, asked, load, meanwhile, named
from .nursery import ROOT
from .oracle import ANSWERED, WRONG, Call
from .programs import answer_to
from .stage import Stage

A_DAY = 24 * 3600 * 1000
"""What no key of ours is kept longer than, in ms."""


def test_caller_killed(stage: Stage, pick: Pick) -> None:
    """A caller is killed (SIGKILL) while it waits, again and again; what it leaves in Redis has an end"""
    for _ in range(2):
        stage.worker()
    stage.idle(2)
    before = set(stage.broker.keys())

    def kill(_: int) -> None:
        call = Call(stage.job(), time.monotonic(), hurried=True)
        stage.oracle.calls.append(call)
        caller = stage.spawn("caller", url=stage.url(), job=call.job, seconds=0.02)
        stage.until(lambda: stage.begun(call.job))
        caller.kill()
        call.done, call.outcome = time.monotonic(), "killed"
        stage.oracle.faults["SIGKILL"] += 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(kill, range(pick(30, 1000))))
    with stage.client() as client:
        ask(stage, client)
    assert stage.verdict(errors=["killed"]).duplicated == 0
    stage.idle(2)

    def have_an_end() -> bool:  # what a worker has taken has none, until it is acknowledged
        kept = {name: ttl for name, ttl in stage.broker.keys().items() if name not in before}
        return all(0 < ttl <= A_DAY for ttl in kept.values())

    stage.until(have_an_end, "something is kept for ever")
    if pick(False, True):
        stage.until(lambda: len(set(stage.broker.keys()) - before) <= 4, "keys are left", within=150)
        with stage.client() as client:
            ask(stage, client)  # whoever sends sweeps
        # On rq a way back is a stream, which takes 5 kB however little is in it, and there may be four still.
        stage.until(lambda: stage.broker.size() < 10_000, "what is left is large", within=150)


def test_expired(stage: Stage, pick: Pick) -> None:
    """Calls end at their timeout before a worker comes to them: none of them is done any more"""
    stage.worker()
    client = stage.client()
    with asked(stage, "hold") as busy, ThreadPoolExecutor(16) as pool:
        stage.until(lambda: stage.begun(busy.job))
        for _ in range(pick(50, 500)):
            pool.submit(ask, stage, client, hurried=True, timeout=stage.dice.uniform(0.01, 0.3))
        pool.shutdown()
        stage.release()
    ask(stage, client)
    figures = stage.verdict(errors=["RpcTimeout"])
    assert figures.executed == figures.answered == 2


def test_cut_while_waiting(stage: Stage, pick: Pick) -> None:
    """Every connection of the callers is reset, ten times a second"""
    for _ in range(2):
        stage.worker()

    def cut() -> None:
        stage.front.cut()
        stage.oracle.faults["reset"] += 1

    with meanwhile(cut, every=0.1, sparing=stage):
        load(stage, stage.client(stage.front), calls=pick(500, 5000), unattended=0.2)
    assert stage.done_once(stage.verdict())


def test_fork(stage: Stage, pick: Pick) -> None:
    """A client is used, and after a fork in three children and the parent at once"""
    stage.worker(concurrency=2)
    calls, children, start = pick(100, 1000), 3, time.monotonic()
    parent = stage.spawn("caller_that_forks", url=stage.url(), calls=calls, children=children)
    assert parent.wait(pick(60, 600)) == 0, stage.log()
    for who in range(children + 2):  # before the fork, in each child, and in the parent after it
        for number in range(calls):
            stage.oracle.calls.append(Call(f"{who}-{number}", start, False, time.monotonic(), ANSWERED))
    figures = stage.verdict()
    assert figures.executed == figures.sent
    assert figures.duplicated == 0


def test_threads(stage: Stage, pick: Pick) -> None:
    """32 threads share one client"""
    for _ in range(2):
        stage.worker()
    stage.idle(2)
    connected = stage.broker.connections
    before = connected()
    client = stage.client()
    load(stage, client, calls=pick(1000, 10_000), threads=32, work=0, unattended=0.2)
    assert connected() - before <= 2 * 32 + 1
    client.close()
    assert stage.verdict().duplicated == 0
    stage.until(lambda: connected() <= before)


def test_cancelled(stage: Stage, pick: Pick) -> None:
    """Calls are submitted and cancelled at any time, also by the timeouts of asyncio"""
    for _ in range(2):
        stage.worker()
    client = stage.client()

    async def call(patience: float) -> None:
        call = Call(stage.job(), time.monotonic(), hurried=True)
        stage.oracle.calls.append(call)
        future = client.submit("work", {"job": call.job, "seconds": 0.001})
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(future), patience)
            call.outcome = ANSWERED if answer.data == answer_to(call.job) else WRONG
        except TimeoutError:
            call.outcome = "cancelled"
        except Exception as error:  # none may come: it stands out among the figures
            call.outcome = named(error)
        call.done = time.monotonic()

    async def storm() -> None:
        for _ in range(pick(300, 3000) // 20):
            await asyncio.gather(*(call(stage.dice.uniform(0, 0.02)) for _ in range(20)))

    asyncio.run(storm())
    load(stage, client, calls=50)
    figures = stage.verdict(errors=["cancelled"])
    assert figures.answered >= 50
    assert figures.duplicated == 0


@pytest.mark.faults
def test_gevent(stage: Stage) -> None:
    """Greenlets share one client, everything patched by gevent"""
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")
    stage.worker()
    command = [sys.executable, "-m", "tests.faults.greenlets", stage.url(), "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.only("redis", "rq")
def test_foreign_replies(stage: Stage) -> None:
    """While a caller waits, its inbox gets a reply from an earlier call, another's reply, and nonsense"""
    stage.worker()
    client, inboxes = stage.client(), Inboxes(stage.redis.admin)
    ask(stage, client)
    old = [entry for name in inboxes.names() for entry in inboxes.entries(name)]
    with asked(stage, "hold", client) as call:
        stage.until(lambda: stage.begun(call.job))
        for name in inboxes.names() | inboxes.known:
            for entry in [*old, b"", b"nonsense", b"1\n\xff\n", b"1\nanother\n\x00\x00"]:
                inboxes.put(name, entry)
                stage.oracle.faults["foreign reply"] += 1
        stage.release()
    ask(stage, client)
    assert stage.verdict().answered == 3


class Inboxes:
    """Where callers' replies arrive: keys of these names (docs/protocol.md), streams or lists."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin
        self.known: set[bytes] = set()

    def names(self) -> set[bytes]:
        """Those that there are."""
        found = {name for pattern in ("rpc:re:*", "rpc:*:in:*") for name in self._admin.scan_iter(pattern)}
        self.known |= found
        return found

    def entries(self, name: bytes) -> list[bytes]:
        if self._admin.type(name) == b"stream":
            return [fields[b"m"] for _, fields in self._admin.xrange(name)]
        return list(self._admin.lrange(name, 0, -1))

    def put(self, name: bytes, entry: bytes) -> None:
        """Ahead of what may come."""
        if name.startswith(b"rpc:re:"):
            last = self._admin.xinfo_stream(name)["last-generated-id"].decode()
            stamp, _, number = last.partition("-")
            self._admin.xadd(name, {"m": entry}, id=f"{stamp}-{int(number) + 1}")
        else:
            self._admin.lpush(name, entry)
