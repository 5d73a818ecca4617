"""Streams whose connections are cut, and whose broker is killed and started again: they go on, or say that
they are broken; no item is wrong, missing or there twice, and nobody hangs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc.errors import BackendUnavailable, StreamBroken, WorkerLost
from tests.conftest import BROKERS
from tests.faults.broker import Broker, Redis
from tests.faults.proxy import Proxy

from .conftest import Site, slow
from .handlers import PATIENCE, until

pytestmark = pytest.mark.timeout(300)
IDLE, IDLE_IF_KILLED = 6.0, 45.0
"""Seconds of the idle limit; longer than RabbitMQ takes to start again. What was lost is noticed after a
third of it at the latest, and that a consumer is gone after all of it."""
MANY, FIRST = 300, 50
"""Items; after how many of them something strikes for the first time."""
SCHEMES = {"redis": "redis://", "rq": "rq+redis://"}


class Broken:
    """A broker behind a proxy for callers and one for workers."""

    def __init__(self, kind: str, broker: Broker, directory: Path, idle: float) -> None:
        self.broker, self._idle = broker, idle
        self.front, self.back = (Proxy(broker.port, random.Random(0)) for _ in range(2))
        self.site = Site(kind, self.url(self.front), directory)

    def url(self, via: Proxy) -> str:
        return self.broker.url("127.0.0.1", via.port, lease=2.0, max_deliveries=9)

    def spawn(self) -> None:
        self.site.spawn(idle=self._idle, url=self.url(self.back))

    def close(self) -> None:
        self.site.close()
        for proxy in self.front, self.back:
            proxy.close()
        self.broker.close()

    def cut_callers(self) -> None:
        self.front.cut()

    def cut_workers(self) -> None:
        self.back.cut()

    def keep_callers_out(self) -> None:
        """For longer than they wait for a message at a time, and not as long as the idle limit."""
        self.front.refusing = True
        self.front.cut()
        time.sleep(self._idle / 2.5)  # it is time itself that is tested
        self.front.heal()

    def crash(self) -> None:
        self.broker.crash()


@pytest.fixture(params=[slow(each) for each in BROKERS])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broken]:
    (tmp_path / "broker").mkdir()
    is_slow = request.param == "amqp" and request.getfixturevalue("strike") is Broken.crash
    broker, idle = _broker(request, tmp_path / "broker"), IDLE_IF_KILLED if is_slow else IDLE
    broken = Broken(request.param, broker, tmp_path, idle)
    yield broken
    broken.close()


def _broker(request: pytest.FixtureRequest, directory: Path) -> Broker:
    """A test's own; but a RabbitMQ that is not killed is one for all."""
    if request.param in SCHEMES:
        return Redis(directory, "always", SCHEMES[request.param])
    from tests.faults.rabbit import Rabbit
    from tests.rabbit import Node

    if request.getfixturevalue("strike") is Broken.crash:
        return Rabbit.alone(Node(directory))
    node = request.getfixturevalue("rabbit_node")
    return Rabbit(node, node.vhost("default"))


FAULTS: list[Callable[[Broken], None]] = [
    Broken.cut_callers,
    Broken.cut_workers,
    Broken.keep_callers_out,
    Broken.crash,
]
of_each_fault = pytest.mark.parametrize("strike", FAULTS, ids=lambda it: it.__name__)


def taken(stream: Any, strike: Callable[[], None]) -> tuple[list[Any], Exception | None]:
    """The items of a stream, which something strikes twice; and what broke it."""
    items: list[Any] = []
    try:
        for item in stream:
            items.append(item)
            if len(items) in (FIRST, 4 * FIRST):
                strike()
    except (StreamBroken, WorkerLost) as error:
        return items, error
    return items, None


@pytest.mark.parametrize(("how", "a", "window"), [("sync", "", 1), ("async", "a", 40)])
@of_each_fault
def test_a_stream_goes_on_or_says_that_it_is_broken(
    broken: Broken, name: str, how: str, a: str, window: int, strike: Callable[[Broken], None]
) -> None:
    for _ in range(2):
        broken.spawn()
    stream = broken.site.client(how).stream(f"{a}count", {"most": MANY, "name": name}, window=window)
    items, error = taken(stream, lambda: strike(broken))
    assert items == [*range(len(items))]
    assert len(items) >= FIRST
    assert error or len(items) == MANY
    until(lambda: broken.site.lines(f"{name} ends"), seconds=IDLE_IF_KILLED + PATIENCE)
    assert len(broken.site.lines(f"{name} begins")) == 1, "it was begun behind the consumer's back"


@pytest.mark.parametrize(("a", "window"), [("a", 1), ("", 40)])
@of_each_fault
def test_a_stream_that_can_be_resumed_comes_to_its_end(
    broken: Broken, a: str, window: int, strike: Callable[[Broken], None]
) -> None:
    for _ in range(2):
        broken.spawn()
    data = {"most": MANY, "deadly": []}
    stream = broken.site.client().stream(f"{a}killer", data, window=window, resume=True)
    assert taken(stream, lambda: strike(broken)) == ([*range(MANY)], None)


@of_each_fault
def test_an_upload_goes_on_or_says_that_it_is_broken(
    broken: Broken, strike: Callable[[Broken], None]
) -> None:
    def items() -> Iterator[str]:
        for number in range(5 * MANY):
            if number == MANY:
                strike(broken)
            yield "x" * 10

    broken.spawn()
    stream = broken.site.client().stream("total", items=items())
    try:
        nothing, error = taken(stream, lambda: None)
    except BackendUnavailable:  # for longer than sending is tried
        assert broken.site.kind == "amqp"
        assert strike in (Broken.crash, Broken.keep_callers_out)
        return
    assert nothing == []
    assert error or stream.value == {"number": 5 * MANY, "size": 50 * MANY}
