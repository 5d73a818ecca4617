"""What a watch of services tells if this process, its broker, or its callback is not as it should be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from in_memory import LONG, until

from rpc import RpcClient, ServiceChange, ServiceInfo
from rpc.backends import backend_from_url
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.core.registry import SIGN
from rpc.registry.announcing import SIGNS
from rpc.registry.watching import Watch

EVERY = 60.0
"""Seconds between two signs of life, on a clock that the test sets."""


class Scene:
    """Somebody who watches, what is told, and services of which there are signs of life alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self.told, self._later = f"memory://{uuid4().hex}", SimpleQueue[ServiceChange](), 0.0
        self._backend = backend_from_url(self.url)
        self._beats = 0
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self._later)
        for module in ("lookup", "watching"):
            monkeypatch.setattr(f"rpc.registry.{module}.time", clock)

    def later(self, seconds: float, watch: Watch) -> None:
        """Once the watch rests."""
        until(lambda: watch._changed._waiters)  # type: ignore[attr-defined]
        self._later += seconds

    def sign(self, instance: str, **said: Any) -> None:
        self._beats += 1
        sign = ServiceInfo(
            domain="math", type="calc", id=instance, version="1.0.0", instance=instance, epoch=1.0,
            beat=self._beats, interval=EVERY, host="h", pid=1, started=1.0,
        )  # fmt: skip
        sign = msgspec.structs.replace(sign, **said)
        message = call_message(uuid4().hex, SIGN, sign, Writing(JSON), ttl=None, replies=False)
        self._backend.send(SIGNS, message)

    def next(self) -> tuple[str, str]:
        change = self.told.get(timeout=LONG)
        return change.kind, change.service.instance


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


@pytest.fixture
def client(scene: Scene) -> Iterator[RpcClient]:
    with RpcClient(backend=scene.url, timeout=LONG) as client:
        yield client


def test_who_was_stopped_tells_of_nobody_that_he_is_down(scene: Scene, client: RpcClient) -> None:
    """The signs that were given meanwhile are still to be read. Who gives none afterwards is down."""
    watch = client.watch_services(scene.told.put)
    scene.sign("a")
    assert scene.next() == ("up", "a")
    scene.later(10 * EVERY, watch)
    scene.sign("b")
    scene.sign("b", beat=-1)
    assert [scene.next(), scene.next()] == [("up", "b"), ("down", "b")]
    told = []
    for version in ("1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0"):
        scene.later(0.9 * EVERY, watch)
        scene.sign("c", version=version)
        told.append(scene.next())
    assert told.count(("down", "a")) == 1


def test_who_is_known_stays_known_while_the_broker_is_away(scene: Scene, client: RpcClient) -> None:
    """Nothing is told of them, and what they do cannot be known."""
    with client.watch_services(scene.told.put) as watch:
        scene.sign("a")
        assert scene.next() == ("up", "a")
        watch._reached(connected=False)
        scene.later(10 * EVERY, watch)
        assert [each.instance for each in watch.services()] == ["a"]
        watch._reached(connected=True)
        assert [each.instance for each in watch.services()] == ["a"]
    assert scene.told.empty()
