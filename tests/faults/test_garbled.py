"""Bytes of the broker's answers arrive changed, are missing, or come twice.

TCP's checksum lets one in some ten thousand such packets through; a proxy, or memory that is broken, any.
What is demanded: nobody hangs, nobody gets another's answer, callers get nothing but answers and RpcErrors,
workers live on, and each damage costs at most the messages in which it is. Not that it is noticed: a text in
which a letter was changed is still a text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import pytest

from rpc import AsyncRpcClient, RpcClient

from .conftest import Last, rarely
from .load import ask, load, meanwhile, named
from .loops import in_a_loop, load_in_tasks
from .oracle import WRONG, Call
from .stage import Stage

LARGEST = 20_000
"""Characters of an answer."""
PATIENCE = 4.0
"""Seconds that a call may take."""
DAMAGED = "damaged answer"


def inspections(client: RpcClient, job: str) -> list[Callable[[], Any]]:
    """All else that a client asks of a broker; `job` is the id of one that is delayed."""
    backend: Any = client.backend
    asked: list[Callable[[], Any]] = [
        client.queues,
        lambda: backend.dead_letters("default"),
        lambda: backend.is_served("default"),
        lambda: client.call("work", {"job": "none"}, delay=3600),
        lambda: client.publish("fault", {"job": "none"}),
        lambda: client.describe(wait=0.05),
        lambda: client.submit("work", {"job": "none"}, timeout=PATIENCE).cancel(),
    ]
    if "inspection" in backend.features:
        asked += [lambda: client.job(job), lambda: list(client.jobs()), lambda: client.cancel(job)]
    return asked


def leave_jobs(client: RpcClient) -> str:
    """Some that are delayed, and some that are dead letters; the id of one of the former."""
    for _ in range(5):
        client.call("hold")  # with nothing to hold
    for number in range(5):
        delayed = client.call("work", {"job": f"delayed-{number}"}, delay=3600)
    return delayed


def inspect(stage: Stage, client: RpcClient, job: str) -> None:
    """Each of these once; what came of it is kept."""
    for action in inspections(client, job):
        call = Call(stage.job(), time.monotonic(), hurried=True)
        stage.oracle.calls.append(call)
        try:
            action()
            call.outcome = "inspected"
        except Exception as error:
            call.outcome = named(error)
        call.done = time.monotonic()


def is_anothers(stage: Stage, call: Call) -> bool:
    """Whether its wrong answer is that of another call."""
    marks = {sha256(other.job.encode()).hexdigest() for other in stage.oracle.calls if other is not call}
    return any(part in marks for part in re.findall("[0-9a-f]{64}", str(call.answer)))


@pytest.mark.parametrize("often", [0.03, rarely(0.3)])
@pytest.mark.parametrize("whose", ["callers", "workers"])
def test_garbled_answers(
    stage: Stage, last: Last, whose: str, often: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes of what the broker says to callers, or to workers, are changed, missing or there twice, in so
    many of the chunks: nobody hangs, nobody gets another's answer, workers live on"""
    fleet, seconds = stage.fleet(3, stage.back, concurrency=2), last(4.0, 60.0)
    client = stage.client(stage.front)
    ask(stage, client)
    job = leave_jobs(client)
    proxy = stage.front if whose == "callers" else stage.back
    end = time.monotonic() + seconds

    async def tasks() -> None:
        async with AsyncRpcClient(backend=stage.url(stage.front)) as other:
            over = lambda: time.monotonic() > end  # noqa: E731
            await load_in_tasks(
                stage, other, tasks=8, over=over, work=0, largest=LARGEST, timeout=PATIENCE, hurried=True
            )

    proxy.damage["down"] = often
    with meanwhile(lambda: inspect(stage, client, job)), ThreadPoolExecutor(1) as pool:
        loop = pool.submit(in_a_loop, tasks, seconds + 60)
        load(
            stage,
            client,
            seconds=seconds,
            timeout=PATIENCE,
            unattended=0.2,
            work=0,
            largest=LARGEST,
            hurried=True,
        )
        loop.result()
    proxy.heal()
    stage.oracle.faults["damaged chunk"] = proxy.damaged
    ask(stage, stage.client(stage.front))
    assert stage.oracle.calls[-1].outcome == "answered"
    for call in stage.oracle.calls:
        if call.outcome == WRONG and not is_anothers(stage, call):
            call.outcome = DAMAGED
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0, figures
    assert [name for name in figures.errors if ": " in name] == [], figures
    assert figures.lost <= proxy.damaged
    assert [each.getMessage() for each in caplog.records if each.name == "asyncio"] == []
    assert fleet.ended_by_themselves() == {}, stage.log()[-4000:]
