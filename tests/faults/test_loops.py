"""Callers in an event loop: cancelled by the thousand, cut off, blocked."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest

from rpc import AsyncRpcClient, RpcTimeout
from rpc.threads import DaemonThreads

from .conftest import Last, Pick
from .load import meanwhile
from .loops import CANCELLED, aask, in_a_loop, load_in_tasks, until
from .oracle import ANSWERED, WRONG, Call
from .programs import answer_to
from .stage import Stage

A_DAY = 24 * 3600 * 1000
CALLS = int(os.environ.get("RPC_STORM", "0"))
"""How many calls the storm makes; 0: as the plan says."""


def tables(client: AsyncRpcClient) -> dict[str, int]:
    """How much there is in each of the tables of the client's sessions. The one look at privates here."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def look(value: Any, path: str) -> None:
        if id(value) in seen or not type(value).__module__.startswith(("rpc.backends", "rpc.loops")):
            return
        seen.add(id(value))
        if isinstance(value, DaemonThreads):  # those that are idle wait for the next calls, up to its end
            found[f"{path}.at_work"] = len(value._started) - value._free._value
            return
        names = {*getattr(value, "__dict__", ())} | {
            name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())
        }
        for name in names:
            each, where = getattr(value, name, None), f"{path}.{name}"
            if isinstance(each, (dict, list, set)) or type(each).__name__ in ("deque", "WeakSet"):
                found[where] = len(each)
                for item in each.values() if isinstance(each, dict) else each:
                    look(item, where)
                    for inner in item.values() if isinstance(item, dict) else ():
                        look(inner, where)
            else:
                look(each, where)

    look(client._async, "client")
    others = (".servers", "_backend", "_scripts")
    return {path: size for path, size in found.items() if not any(name in path for name in others)}


class Storm:
    """Calls that are cancelled at any moment, in one way or another."""

    def __init__(self, stage: Stage, client: AsyncRpcClient) -> None:
        self.stage, self.client, self.dice = stage, client, stage.dice

    async def blow(self, calls: int, at_once: int) -> None:
        left = iter(range(calls))

        async def one_after_the_other() -> None:
            for _ in left:
                await self._call()

        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))

    async def _call(self) -> None:
        call = Call(self.stage.job(), time.monotonic())
        self.stage.oracle.calls.append(call)
        data = {"job": call.job, "seconds": 0, "padding": "x" * self.dice.choice([0, 0, 0, 5000, 70_000])}
        fate = self.dice.random()
        moment = self.dice.choice([0, self.dice.uniform(0, 0.002), self.dice.uniform(0, 0.05)])
        pending = self.client.call_and_wait("work", data, timeout=self.dice.choice([30, None]))
        try:
            if fate < 0.1:
                answer = await asyncio.wait_for(pending, moment)
            elif fate < 0.3:
                task = asyncio.ensure_future(pending) if fate < 0.2 else self._submitted(pending, data)
                asyncio.get_running_loop().call_later(moment, task.cancel)
                answer = await task
            else:
                answer = await pending
        except RpcTimeout as error:  # an asyncio.TimeoutError, too; nobody's time is up here
            call.outcome = repr(error)
        except (asyncio.CancelledError, asyncio.TimeoutError):
            call.outcome = CANCELLED
        except Exception as error:
            call.outcome = repr(error)
        else:
            call.outcome = ANSWERED if answer.data == answer_to(call.job) else WRONG
        call.done = time.monotonic()

    def _submitted(self, pending: Any, data: Any) -> Any:
        pending.close()
        return self.client.submit("work", data)


@pytest.mark.parametrize("via", ["directly", "a slow network"])
def test_storm(stage: Stage, pick: Pick, via: str) -> None:
    """Thousands of calls, three of ten cancelled at a random moment: each answer is its call's, what had not
    begun is not done, and nothing is left"""
    for _ in range(2):
        stage.worker()
    stage.idle(2)
    before, began, withdrawn = set(stage.broker.keys()), stage.broker.connections(), list[str]()
    calls = CALLS or (pick(4000, 20_000) if via == "directly" else pick(500, 5000))
    front = None
    if via != "directly":
        front = stage.front
        front.delay, front.jitter = 0.01, 0.01
    threads = {*threading.enumerate()}

    async def main() -> None:
        async with AsyncRpcClient(backend=stage.url(front)) as client:
            storm = Storm(stage, client)
            await storm.blow(calls, at_once=200)
            if not stage.scheme.startswith("rq"):  # whose calls are in threads
                assert stage.broker.connections() - began <= 2
            await aask(stage, client)
            stage.idle(2)
            await until(lambda: max(tables(client).values()) <= 4)  # what is said soon has been said
            kept = {name: ttl for name, ttl in stage.broker.keys().items() if name not in before}
            assert {name: ttl for name, ttl in kept.items() if not 0 <= ttl <= A_DAY} == {}
            withdrawn.extend(await cancelled_while_queued(stage, client, calls // 10))

    in_a_loop(main, 300)
    stage.until(lambda: {*threading.enumerate()} <= threads)
    figures = stage.verdict(errors=[CANCELLED])
    assert figures.duplicated == 0
    assert figures.errors[CANCELLED] > len(withdrawn) > 0
    assert set(withdrawn).isdisjoint(stage.oracle.executions())
    stage.until(lambda: stage.broker.connections() <= began)


async def cancelled_while_queued(stage: Stage, client: AsyncRpcClient, calls: int) -> list[str]:
    """Calls of which half are cancelled while both workers are busy: their jobs."""
    holding = [asyncio.ensure_future(aask(stage, client, "hold")) for _ in range(2)]
    await asyncio.sleep(0)
    holds = [call.job for call in stage.oracle.calls[-2:]]
    await until(lambda: all(stage.begun(job) for job in holds))
    queued = [asyncio.ensure_future(aask(stage, client)) for _ in range(calls)]
    left = stage.dice.sample(queued, calls // 2)
    for task in left:
        asyncio.get_running_loop().call_later(stage.dice.uniform(0, 0.5), task.cancel)
    await asyncio.wait(left)
    await asyncio.sleep(0.3)  # what is to be said soon has been said, on a slow network, too
    stage.release()
    await asyncio.gather(*holding, *(task for task in queued if task not in left))
    assert all(task.cancelled() for task in left)
    return [call.job for call in stage.oracle.calls[-calls:] if call.outcome == CANCELLED]


def cut(stage: Stage) -> str:
    stage.broker.cut()
    return "connections ended"


def reset(stage: Stage) -> str:
    stage.front.cut()
    return "reset"


def restart(stage: Stage) -> str:
    stage.redis.server.restart()
    return "restart of Redis"


def flush(stage: Stage) -> str:
    stage.redis.admin.script_flush()
    return "SCRIPT FLUSH"


def delay(stage: Stage) -> str:
    stage.front.delay, stage.front.jitter = stage.dice.choice([(0, 0), (0.01, 0.01), (0.03, 0.01)])
    return "delay"


def anything(stage: Stage) -> str:
    return stage.dice.choice([cut, reset, delay, reset, cut])(stage)


@pytest.mark.parametrize(
    ("fault", "every"),
    [
        (cut, 0.2),
        (reset, 0.2),
        pytest.param(restart, 1.0, marks=pytest.mark.only("redis", "rq")),
        pytest.param(flush, 0.05, marks=pytest.mark.only("redis", "rq")),
        (delay, 0.3),
        (anything, 0.5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tasks(stage: Stage, last: Last, fault: Callable[[Stage], str], every: float) -> None:
    """200 tasks of one loop call, while connections are cut, Redis is started again, scripts are flushed: all
    are answered, and each job is done once"""
    stage.open("always")
    for _ in range(2):
        stage.worker()
    stage.idle(2)
    seconds = last(3.0, 20.0)

    def strike() -> None:
        stage.oracle.faults[fault(stage)] += 1

    async def main() -> None:
        async with AsyncRpcClient(backend=stage.url(stage.front)) as client:
            await aask(stage, client)
            end = time.monotonic() + seconds
            await load_in_tasks(stage, client, tasks=200, over=lambda: time.monotonic() > end)

    with meanwhile(strike, every=every, sparing=stage):
        in_a_loop(main, seconds + 60)
    figures = stage.verdict()
    assert stage.done_once(figures)
    assert figures.executed == figures.sent == figures.answered


@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_blocked(stage: Stage, seconds: float) -> None:
    """The loop is blocked by its user, while calls are under way: all are answered, each job is done once"""
    stage.worker()
    stage.idle()

    async def main() -> None:
        async with AsyncRpcClient(backend=stage.url()) as client:
            for turns in range(3):
                calls = [
                    asyncio.ensure_future(aask(stage, client, seconds=0.001 * (number % 2)))
                    for number in range(200)
                ]
                for _ in range(turns * 5):
                    await asyncio.sleep(0)
                time.sleep(seconds)  # noqa: ASYNC251 - it is a blocked loop that is tested
                await asyncio.gather(*calls)

    in_a_loop(main, 60)
    figures = stage.verdict()
    assert figures.duplicated == 0
    assert figures.executed == figures.answered == 600


def test_two_loops(stage: Stage, last: Last) -> None:
    """One client in two loops at a time, each in its thread, whose connections are cut"""
    stage.open("always")
    for _ in range(2):
        stage.worker()
    client = AsyncRpcClient(backend=stage.url(stage.front))
    end = time.monotonic() + last(2.0, 10.0)

    async def main() -> None:
        await load_in_tasks(stage, client, tasks=50, over=lambda: time.monotonic() > end)
        await client.close()

    with meanwhile(lambda: stage.front.cut(), every=0.3, sparing=stage):
        threads = [Thread(target=in_a_loop, args=[main, 90]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    figures = stage.verdict()
    assert stage.done_once(figures)
    assert figures.executed == figures.sent == figures.answered


def test_late_copy_of_a_loop(stage: Stage) -> None:
    """What was sent on a connection that was given up arrives after all, while others call"""
    stage.worker()

    async def main() -> None:
        async with AsyncRpcClient(backend=stage.url(stage.front)) as client:
            await asyncio.gather(*(aask(stage, client) for _ in range(100)))
            stage.front.stall()
            stage.oracle.faults["late copy"] += 1
            await asyncio.gather(*(aask(stage, client) for _ in range(20)))
            end = time.monotonic() + 2
            healing = asyncio.ensure_future(asyncio.to_thread(_later, stage, end - 1))
            await load_in_tasks(stage, client, tasks=50, over=lambda: time.monotonic() > end, work=0)
            await healing

    in_a_loop(main, 60)
    figures = stage.verdict()
    assert stage.done_once(figures)
    assert figures.executed == figures.answered


def _later(stage: Stage, when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))
    stage.front.heal()
