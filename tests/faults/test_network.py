"""The network delays, swallows, garbles and forgets."""

from __future__ import annotations

import time

import pytest

from .conftest import Last, Pick, rarely
from .load import ask, load, meanwhile
from .proxy import Proxy, Way
from .stage import Stage

NOTICED = 12.0
"""Seconds within which a connection that went dead is noticed, replaced, and a call on it answered."""


def both(stage: Stage) -> tuple[Proxy, Proxy]:
    return stage.front, stage.back


@pytest.mark.faults
def test_latency(stage: Stage, pick: Pick) -> None:
    """Each chunk takes 50 to 150 ms, on each way"""
    for proxy in both(stage):
        proxy.delay, proxy.jitter = 0.1, 0.05
    for _ in range(2):
        stage.worker(stage.back)
    load(stage, stage.client(stage.front), calls=pick(24, 400), threads=8)
    assert stage.done_once(stage.verdict())


@pytest.mark.parametrize(
    ("whose", "way"),
    [rarely("callers", "up"), ("callers", "down"), ("workers", "up"), rarely("workers", "down")],
)
def test_black_hole(stage: Stage, last: Last, whose: str, way: Way) -> None:
    """Commands, or replies, of callers, or of workers, disappear for 1.5 s; then the connections are reset"""
    for _ in range(2):
        stage.worker(stage.back)
    proxy = stage.front if whose == "callers" else stage.back

    def swallow() -> None:
        proxy.holes.add(way)
        stage.oracle.faults["black hole"] += 1
        time.sleep(1.5)
        proxy.heal()

    with meanwhile(swallow, every=0.7, sparing=stage):
        load(stage, stage.client(stage.front), seconds=last(1.0, 10.0), unattended=0.2)
    figures = stage.verdict()
    assert figures.answered > 0


@pytest.mark.parametrize("way", [rarely("up"), "down"])
def test_black_hole_without_end(stage: Stage, way: Way) -> None:
    """The same for ever: a call ends at its timeout, or a little later"""
    stage.worker()
    client = stage.client(stage.front)
    ask(stage, client)
    stage.front.holes.add(way)
    stage.oracle.faults["black hole"] += 1
    call = ask(stage, client, hurried=True, timeout=1.0)
    assert call.outcome in ("RpcTimeout", "BackendUnavailable")
    assert call.done
    assert call.done - call.sent < 1 + NOTICED
    stage.front.heal()
    ask(stage, client)
    stage.verdict(errors=["RpcTimeout", "BackendUnavailable"])


@pytest.mark.parametrize("whose", [rarely("callers"), "workers"])
def test_slow_drip(stage: Stage, pick: Pick, whose: str) -> None:
    """Bytes arrive one by one, 200 in a second, for two seconds; then the network is well"""
    for _ in range(2):
        stage.worker(stage.back)
    proxy = stage.front if whose == "callers" else stage.back

    def drip() -> None:
        proxy.drip = 0.005
        stage.oracle.faults["drip"] += 1
        time.sleep(2)
        proxy.heal()

    with meanwhile(drip, every=0.3, sparing=stage):
        load(stage, stage.client(stage.front), seconds=pick(2.0, 10.0))
    stage.verdict()


@pytest.mark.faults
def test_refused(stage: Stage, pick: Pick) -> None:
    """Connections are reset, and refused for some seconds: nobody storms, and all goes on after that"""
    for _ in range(2):
        stage.worker(url=stage.url(stage.back, lease=10))
    client, seconds = stage.client(stage.front), pick(3.0, 20.0)
    ask(stage, client)
    for proxy in both(stage):
        proxy.refusing = True
        proxy.cut()
    before = sum(proxy.opened for proxy in both(stage))
    stage.oracle.faults["refusal"] += 1
    with meanwhile(lambda: ask(stage, client, hurried=True, timeout=1.0)):
        time.sleep(seconds)  # it is time itself that is tested
        attempts = sum(proxy.opened for proxy in both(stage)) - before
        for proxy in both(stage):
            proxy.heal()
    load(stage, client, calls=20)
    stage.verdict(errors=["BackendUnavailable", "RpcTimeout"])
    stage.oracle.note = f"{attempts / seconds:.0f} attempts to connect in a second, of 2 workers and a caller"
    assert attempts / seconds < 50


@pytest.mark.parametrize("whose", [rarely("callers"), "workers"])
def test_half_open(stage: Stage, whose: str) -> None:
    """Connections have died while they were idle, and neither end was told"""
    stage.worker(stage.back)
    client = stage.client(stage.front)
    ask(stage, client)
    stage.idle()
    (stage.front if whose == "callers" else stage.back).freeze()
    stage.oracle.faults["half-open"] += 1
    call = ask(stage, client)
    figures = stage.verdict()
    assert figures.answered == 2
    assert call.done
    assert call.done - call.sent < NOTICED


@pytest.mark.faults
@pytest.mark.parametrize("whose", ["callers", "workers"])
def test_late_copy(stage: Stage, whose: str) -> None:
    """What was sent on a connection that was given up arrives after all, when it was sent again and done"""
    stage.worker(stage.back)
    client = stage.client(stage.front)
    ask(stage, client)
    stage.idle()
    proxy = stage.front if whose == "callers" else stage.back
    proxy.stall()
    stage.oracle.faults["late copy"] += 1
    ask(stage, client)
    proxy.heal()
    load(stage, client, calls=50)
    figures = stage.verdict()
    if whose == "callers" and stage.scheme == "redis://":  # plain commands send it, which cannot look
        assert figures.duplicated <= 1
    else:
        assert stage.done_once(figures)


@pytest.mark.only("redis", "rq")  # RabbitMQ has no time of a message but from its arrival on
@pytest.mark.faults
def test_late_request(stage: Stage) -> None:
    """What was sent arrives when its caller has stopped waiting: it is not done any more"""
    stage.worker()
    client = stage.client(stage.front)
    ask(stage, client)
    stage.front.stall()
    stage.oracle.faults["late request"] += 1
    ask(stage, client, hurried=True, timeout=0.5)
    stage.front.heal()
    load(stage, client, calls=50)
    stage.idle()
    assert stage.verdict(errors=["RpcTimeout", "BackendUnavailable"]).executed == 51


@pytest.mark.parametrize(
    ("whose", "way"),
    [rarely("callers", "up"), ("callers", "down"), ("workers", "up"), rarely("workers", "down")],
)
def test_garbled(stage: Stage, pick: Pick, whose: str, way: Way) -> None:
    """A chunk on its way to Redis, or from it, arrives as other bytes"""
    for _ in range(2):
        stage.worker(stage.back)
    client = stage.client(stage.front)
    ask(stage, client)
    for _ in range(pick(2, 20)):
        (stage.front if whose == "callers" else stage.back).garble(way)
        stage.oracle.faults["garbled chunk"] += 1
        load(stage, client, calls=50, unattended=0.2)
    figures = stage.verdict()
    assert figures.duplicated <= figures.faults["garbled chunk"]
