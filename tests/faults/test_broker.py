"""Redis crashes, is away, or has forgotten."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from .broker import Broker, Fsync, Redis
from .conftest import Pick, rarely
from .load import CALLERS, ask, load, meanwhile, tell
from .stage import Stage

LATE = 8.0
"""Seconds that a call may take longer than it is allowed to, while Redis does not answer."""


def timed_out_in_time(stage: Stage) -> bool:
    return all(
        call.done and call.done - call.sent < 0.5 + LATE for call in stage.oracle.calls if call.hurried
    )


@pytest.mark.parametrize("fsync", [rarely("everysec", only=["redis", "rq"]), "always"])
def test_crash(stage: Stage, pick: Pick, fsync: Fsync) -> None:
    """The broker is killed (SIGKILL) and started again, again and again; the append-only file of Redis is
    written every second, or always"""
    broker, resumed = stage.open(fsync), list[float]()
    for _ in range(2):
        stage.worker()
    client = stage.client()

    def crash() -> None:
        if len(resumed) == crashes:
            return
        broker.crash(pause=stage.dice.uniform(0, 0.5))
        back, known = time.monotonic(), len(stage.oracle.lines())
        stage.until(lambda: any(" begin " in line for line in stage.oracle.lines()[known:]))
        resumed.append(time.monotonic() - back)
        stage.oracle.faults[f"SIGKILL to {broker.name}"] += 1

    crashes, calls = pick(3, 10), pick(300, 5000)
    with (
        meanwhile(crash, every=0.3),
        meanwhile(lambda: ask(stage, client, hurried=True, timeout=0.5), every=0.05),
    ):
        while len(resumed) < crashes or len(stage.oracle.calls) < calls:
            load(stage, client, calls=100, unattended=0.2)
    if fsync == "always":  # else Redis may answer up to two seconds before it writes
        stage.verdict(errors=["RpcTimeout", "BackendUnavailable"])
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0
    assert stage.done_once(figures)
    assert timed_out_in_time(stage)
    assert statistics.median(resumed) < 2
    stage.oracle.note = f"work went on after {statistics.median(resumed):.2f} s, {max(resumed):.2f} s at most"


@pytest.mark.only("redis", "rq")
@pytest.mark.faults
def test_crash_without_a_file(stage: Stage, pick: Pick) -> None:
    """The same without an append-only file: what Redis had is lost, and callers are told"""
    broker = stage.open(None)
    for _ in range(2):
        stage.worker()
    client = stage.client()

    def crash() -> None:
        broker.crash()
        stage.oracle.faults["SIGKILL to Redis"] += 1

    with meanwhile(crash, every=0.7):
        load(stage, client, seconds=pick(2.0, 10.0), timeout=2.0, work=0.02)
    ask(stage, client)
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0
    assert set(figures.errors) <= {"RpcTimeout", "BackendUnavailable", "WorkerLost"}
    assert stage.oracle.calls[-1].outcome == "answered"
    assert figures.lost <= 8 * figures.faults["SIGKILL to Redis"]


@pytest.mark.only("redis", "rq")
def test_power_loss(stage: Stage, pick: Pick) -> None:
    """Redis is killed, and the last quarter of what it had written is lost, in the middle of a command"""
    broker, client = stage.open("always"), stage.client()
    for _ in range(pick(100, 1000)):
        tell(stage, client)
    broker.server.kill()
    [file] = [path for path in broker.directory.rglob("*.aof") if path.stat().st_size]
    with file.open("r+b") as log:
        log.truncate(file.stat().st_size * 3 // 4)
    stage.oracle.faults["truncated file"] += 1
    broker.server.restart()
    stage.worker()
    ask(stage, client)
    figures = stage.oracle.figures()
    assert figures.answered == 1
    assert figures.duplicated == 0
    assert 0 < figures.lost < figures.sent / 2
    assert figures.executed == figures.sent - figures.lost


def sleep(broker: Broker) -> None:
    assert isinstance(broker, Redis)
    broker.sleep(2 * broker.lease)


def freeze(broker: Broker) -> None:
    broker.freeze(2 * broker.lease)


def freeze_for_long(broker: Broker) -> None:
    broker.freeze(5 * broker.lease)


@pytest.mark.parametrize(
    "pause",
    [rarely(sleep, only=["redis", "rq"]), freeze, rarely(freeze_for_long)],
    ids=lambda it: it.__name__,
)
def test_pause(stage: Stage, pick: Pick, pause: Callable[[Broker], None]) -> None:
    """The broker does nothing (DEBUG SLEEP, SIGSTOP) for longer than the lease of its workers"""
    for _ in range(2):
        stage.worker()
    began: list[float] = []

    def pauses() -> None:
        began.append(time.monotonic())
        pause(stage.broker)
        stage.oracle.faults["pause"] += 1

    with meanwhile(pauses, every=0.5):
        load(stage, stage.client(), seconds=pick(2.0, 15.0))
    figures = stage.verdict()
    if stage.broker.outlasts_pauses:
        assert figures.duplicated == 0
    else:  # either end may take the connection for lost: what was under way then is done again, and no more
        again = stage.oracle.done_again()
        assert figures.duplicated <= CALLERS * len(began)
        assert [call for call in again if call.done and call.done < began[0]] == []


@pytest.mark.only("redis", "rq")
def test_flushed(stage: Stage, pick: Pick) -> None:
    """FLUSHALL: what Redis had is lost, callers are told, and the service goes on"""
    for _ in range(2):
        stage.worker()
    client = stage.client()

    def flush() -> None:
        stage.redis.admin.flushall()
        stage.oracle.faults["FLUSHALL"] += 1

    with meanwhile(flush, every=0.3):
        load(stage, client, seconds=pick(2.0, 10.0), timeout=1.0)
    ask(stage, client)
    figures = stage.oracle.figures()
    assert figures.wrong == figures.hung == 0
    assert set(figures.errors) <= {"RpcTimeout", "BackendUnavailable", "WorkerLost"}
    assert stage.oracle.calls[-1].outcome == "answered"


@pytest.mark.only("redis", "rq")
def test_scripts_flushed(stage: Stage, pick: Pick) -> None:
    """SCRIPT FLUSH, 20 times a second"""
    for _ in range(2):
        stage.worker()

    def flush() -> None:
        stage.redis.admin.script_flush()
        stage.oracle.faults["SCRIPT FLUSH"] += 1

    with meanwhile(flush, every=0.05):
        load(stage, stage.client(), seconds=pick(1.0, 10.0), unattended=0.2)
    assert stage.verdict().duplicated == 0


def test_clients_killed(stage: Stage, pick: Pick) -> None:
    """The broker ends all connections, ten times a second if it can"""
    for _ in range(2):
        stage.worker()

    def cut() -> None:
        stage.broker.cut()
        stage.oracle.faults["connections ended"] += 1

    with meanwhile(cut, every=0.1, sparing=stage):
        load(stage, stage.client(), seconds=pick(2.0, 15.0), unattended=0.2)
    assert stage.done_once(stage.verdict(errors=["BackendUnavailable"]))
