"""The same state machine plays with each backend"""

from __future__ import annotations

import logging
from functools import partial
from multiprocessing.connection import Listener
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from rpc.backends import backend_from_url
from rpc.transport import Message, queue

from .conftest import Pick
from .model import MAX_DELIVERIES, Model
from .nursery import PATIENCE
from .plan import Plan
from .stage import Stage
from .steps import in_process, in_thread


def play(stage: Stage, plan: Plan, backend: Any, hire: Any, examples: int, **rules: int) -> None:
    known = {"backend": backend, "hire": staticmethod(hire), "oracle": stage.oracle, **rules}
    machine = seed(plan.seed)(type("Played", (Model,), known))
    phases = [Phase.generate, Phase.shrink] if plan.long else [Phase.generate]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
    figures = stage.verdict(errors=["withdrawn", "expired", "WorkerLost"])
    assert figures.executed > examples


def test_model_in_memory(stage: Stage, plan: Plan, pick: Pick, caplog: pytest.LogCaptureFixture) -> None:
    """Messages are sent, withdrawn, handled in steps, and expire, in any order: in memory"""
    caplog.set_level(logging.CRITICAL)
    url = f"memory://{uuid4().hex}"
    play(stage, plan, backend_from_url(url), partial(in_thread, url), pick(20, 300))


@pytest.mark.only("redis")
def test_model_on_redis(stage: Stage, plan: Plan, pick: Pick) -> None:
    """The same on Redis, where receivers are killed, too, and hand back what they hold, and messages are sent
    twice"""
    url = stage.url(max_deliveries=MAX_DELIVERIES)
    backend = backend_from_url(url)
    with Listener(str(stage.directory / "s")) as listener:
        hire = lambda name: in_process(stage.spawn, url, name, listener)  # noqa: E731
        play(stage, plan, backend, hire, pick(10, 100), deaths_allowed=pick(1, 3), ahead=64)
    backend.close()


@pytest.mark.only("redis")
def test_fewer_parts(stage: Stage) -> None:
    """A receiver replies in two parts and is gone; the next one says all at once, and that is heard"""
    url, name = stage.url(), "q"
    backend = backend_from_url(url)
    with Listener(str(stage.directory / "s")) as listener:
        replies = backend.request(queue(name), Message(b"", {"id": "x", "reply-to": "x", "ttl": "60"}))
        first = in_process(stage.spawn, url, name, listener)
        assert first.next_event() == ("holds", "x", 1)
        for _ in range(2):
            first.order("part", b"part")
            assert replies.receive(PATIENCE).body == b"part"
        first.order("leave")
        second = in_process(stage.spawn, url, name, listener)
        assert second.next_event() == ("holds", "x", 1)
        second.order("finish", b"all")
        assert replies.receive(PATIENCE).body == b"all"
    backend.close()
