"""The rhythm of signs of life, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count, pairwise
from typing import Any, cast

import pytest

from rpc.core.codecs import ACCEPTED
from rpc.core.protocol import decode_call
from rpc.core.registry import MISSED, Registry, ServiceInfo, Wanted, read_sign
from rpc.errors import BackendUnavailable
from rpc.identity import Identity
from rpc.registry import announcing
from rpc.registry.announcing import SIGNS, Announcer
from rpc.transport import Address, Backend, Message

SHOP = Identity(domain="shop", type="orders", id="eu", version="1.4.0")


class Clock:
    """In place of a DelayQueue."""

    def __init__(self, name: str) -> None:
        self.now, self._count = 0.0, count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def __call__(self, seconds: float, action: Callable[[], None]) -> bool:
        heappush(self._due, (self.now + seconds, next(self._count), action))
        return True

    def end(self) -> None:
        self._due.clear()

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heappop(self._due)
            action()
        self.now = until


class Wire:
    """A backend that writes down what is sent, and when."""

    features = frozenset({"topics"})

    def __init__(self) -> None:
        self.clock = Clock("")
        self.heard: list[tuple[float, ServiceInfo]] = []
        self.is_away = False

    def send(self, to: Address, message: Message) -> None:
        if self.is_away:
            raise BackendUnavailable("away")
        assert to == SIGNS
        self.heard.append((self.clock.now, read_sign(decode_call(*ACCEPTED.opened(message)).params)))


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(announcing, "DelayQueue", lambda name: wire.clock)
    return wire


def announcer(wire: Wire, stopped: Callable[[], bool] = lambda: False) -> Announcer:
    about: dict[str, Any] = {"schema": lambda: "s", "slots": lambda: {"threads": (1, 4)}, "stopped": stopped}
    found = Announcer(cast("Backend", wire), SHOP, "i", 1.0, **about)
    found.start()
    return found


def test_a_sign_is_given_at_once_and_then_each_interval_and_a_last_one(wire: Wire) -> None:
    signs = announcer(wire)
    signs.begin()
    wire.clock.run(60.0)
    times = [at for at, _ in wire.heard]
    assert times[0] == 0.0
    assert all(0.8 <= after - before <= 1.2 for before, after in pairwise(times))
    assert times[-1] > 58.5
    told = wire.heard[-1][1]
    assert (told.domain, told.type, told.id, told.version, told.instance) == (
        *("shop", "orders", "eu", "1.4.0"),
        "i",
    )
    assert told.host
    assert told.pid > 0
    assert told.started > 0
    assert told.interval == 1.0
    assert (told.running, told.capacity) == (1, 4)
    signs.end(is_heard=True)
    assert wire.heard[-1][1].beat == -1
    wire.clock.run(90.0)
    assert wire.heard[-1][0] == 60.0


def test_by_these_signs_it_is_up_until_three_intervals_are_missed(wire: Wire) -> None:
    signs, table = announcer(wire), Registry()
    signs.begin()
    wire.clock.run(20.0)
    for at, sign in wire.heard:
        assert table.expire(at) == []  # it never looks dead between two
        table.hear(sign, at)
    last = wire.heard[-1][0]
    assert table.services(last + MISSED - 0.01, Wanted()) != []
    assert [each.kind for each in table.expire(last + MISSED)] == ["down"]


def test_a_sign_that_could_not_be_given_does_not_end_the_rhythm(wire: Wire) -> None:
    signs = announcer(wire)
    wire.is_away = True
    signs.begin()
    wire.clock.run(5.0)
    wire.is_away = False
    wire.clock.run(10.0)
    assert 5 <= len(wire.heard) <= 6


def test_a_connection_that_is_there_again_is_told_at_once_and_there_is_one_rhythm(wire: Wire) -> None:
    signs = announcer(wire)
    signs.begin()
    wire.clock.run(0.5)
    signs.begin()
    wire.clock.run(10.5)
    assert [at for at, _ in wire.heard][:2] == [0.0, 0.5]
    assert len(wire.heard) <= 1 + 1 + 12


def test_who_takes_nothing_new_says_so_at_the_next_sign(wire: Wire) -> None:
    stopped: list[bool] = []
    signs = announcer(wire, lambda: bool(stopped))
    signs.begin()
    wire.clock.run(3.0)
    stopped.append(True)
    wire.clock.run(9.0)
    assert [sign.beat for _, sign in wire.heard][-1] == -1
    assert wire.heard[-1][0] <= 4.0
