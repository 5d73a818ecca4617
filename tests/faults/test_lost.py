"""Exactly one command, or exactly one reply of the broker's, is lost (of RabbitMQ: one frame): each of a
whole conversation in its turn."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count

import pytest

from .conftest import rarely
from .load import ask, tell
from .oracle import Call
from .proxy import Way
from .stage import Stage

AT_ONCE = 16
"""Conversations, each with a queue, a worker and a caller of its own."""


def done(stage: Stage, calls: list[Call]) -> bool:
    return all(stage.ended(call.job) for call in calls)


@pytest.mark.parametrize("way", ["up", "down"])
def test_lost_by_caller(stage: Stage, way: Way) -> None:
    """One command of a caller, or the reply to it, is lost: each in its turn"""
    stage.worker()
    for number in count(1):
        proxy = stage.proxy(counting=True)
        proxy.lose(way, number)
        with stage.client(proxy) as client:
            calls = [ask(stage, client), tell(stage, client), ask(stage, client)]
        if proxy.armed:
            break
        stage.oracle.faults["loss"] += 1
        stage.until(partial(done, stage, calls))
    figures = stage.verdict()
    assert figures.errors == {}
    assert stage.done_once(figures)
    assert number > 5


@pytest.mark.parametrize("way", [rarely("up"), "down"])
def test_lost_by_worker(stage: Stage, way: Way) -> None:
    """One command of a worker, or the reply to it, is lost: each in its turn, from its start to its end"""

    def converse(number: int) -> bool:
        """Whether so many commands were needed."""
        proxy, queue = stage.proxy(counting=True), f"queue-{number}"
        proxy.lose(way, number)
        worker = stage.worker(proxy, queues=[queue])
        client = stage.client(queue=queue)
        ask(stage, client)
        stage.until(partial(done, stage, [tell(stage, client)]))
        ask(stage, client)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        stage.oracle.faults["loss"] += not proxy.armed
        return not proxy.armed

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for first in count(1, AT_ONCE):
            if not all(pool.map(converse, range(first, first + AT_ONCE))):
                break
    figures = stage.verdict()
    assert figures.errors == {}
    assert stage.done_once(figures)
    assert figures.faults["loss"] > 15
