"""Timers: when they tick, given the time; and that they do, on memory. Between processes in
test_events_processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from in_memory import LONG, until

from rpc import RpcReceiver, SettingsError, Unsupported, cron, every, on
from rpc.backends.memory import MemoryBackend
from rpc.errors import BackendUnavailable
from rpc.ticker import SET_BACK, Ticker
from rpc.timers import Cron, Every, Ticking, Timer, timers_in

BERLIN = ZoneInfo("Europe/Berlin")

# When.


@pytest.mark.parametrize(("now", "due"), [
    (100, 105), (100.2, 105), (104.9, 105), (105, 110), (112, 115), (1000.5, 1005), (99, 105),
])  # fmt: skip
def test_the_rate_is_fixed_and_what_is_missed_is_left_out(now: float, due: float) -> None:
    assert Every(5).after(100, now) == due


def test_the_first_tick_is_after_that_time() -> None:
    assert Every(0.5).after(100, 100) == 100.5


def test_a_rate_does_not_drift() -> None:
    due = 0.0
    for tick in range(1, 10_001):
        due = Every(0.25).after(due, due + 0.125)
        assert due == tick * 0.25


def at(text: str, zone: Any = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def ticks(schedule: Cron, start: float, number: int) -> list[str]:
    """When it ticks, in Berlin, if each tick is in time."""
    due, found = start, []
    for _ in range(number):
        due = schedule.after(due, due)
        found.append(datetime.fromtimestamp(due, BERLIN).isoformat())
    return found


@pytest.mark.parametrize(("expression", "start", "expected"), [
    ("*/5 * * * *", "2026-06-01T11:58:30", ["12:00", "12:05", "12:10"]),
    ("0 9 * * MON-FRI", "2026-06-05T10:00", ["2026-06-08T09:00", "2026-06-09T09:00"]),
    ("30 8 1 * *", "2026-01-15T00:00", ["2026-02-01T08:30", "2026-03-01T08:30"]),
    ("0 0 29 2 *", "2026-01-01T00:00", ["2028-02-29T00:00"]),
], ids=str)  # fmt: skip
def test_cron_has_it_as_crontab_does(expression: str, start: str, expected: list[str]) -> None:
    found = ticks(Cron(expression, BERLIN), at(start), len(expected))
    assert all(wanted in each for wanted, each in zip(expected, found, strict=True)), found


def test_cron_goes_by_its_zone() -> None:
    daily = Cron("0 12 * * *", ZoneInfo("America/New_York"))
    assert daily.after(0, at("2026-06-01T00:00", timezone.utc)) == at("2026-06-01T16:00", timezone.utc)
    assert daily.after(0, at("2026-12-01T00:00", timezone.utc)) == at("2026-12-01T17:00", timezone.utc)


def test_cron_keeps_its_hour_when_the_clocks_change() -> None:
    daily = Cron("0 9 * * *", BERLIN)
    assert ticks(daily, at("2026-03-28T10:00"), 2) == [
        "2026-03-29T09:00:00+02:00",
        "2026-03-30T09:00:00+02:00",
    ]
    assert ticks(daily, at("2026-10-24T10:00"), 2) == [
        "2026-10-25T09:00:00+01:00",
        "2026-10-26T09:00:00+01:00",
    ]


def test_cron_ticks_once_at_an_hour_that_there_is_not_and_at_one_that_there_is_twice() -> None:
    daily = Cron("30 2 * * *", BERLIN)
    in_spring = ticks(daily, at("2026-03-28T12:00"), 2)
    assert [each[:10] for each in in_spring] == ["2026-03-29", "2026-03-30"]
    in_autumn = ticks(daily, at("2026-10-24T12:00"), 2)
    assert [each[:10] for each in in_autumn] == ["2026-10-25", "2026-10-26"]


def test_cron_that_ticks_all_the_time_does_so_through_the_night_of_the_change() -> None:
    often, start = Cron("*/30 * * * *", BERLIN), at("2026-10-25T00:45")
    due = [start]
    for _ in range(8):
        due.append(often.after(due[-1], due[-1]))
    assert {after - before for before, after in pairwise(due[1:])} == {1800.0}


@pytest.fixture
def zone_of_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


def test_local_time_is_that_of_the_machine(zone_of_machine: Callable[[str], None]) -> None:
    zone_of_machine("Asia/Tokyo")
    due = Cron("0 12 * * *", None).after(0, at("2026-06-01T00:00", timezone.utc))
    assert due == at("2026-06-01T03:00", timezone.utc)


@pytest.mark.parametrize("start", [
    "2026-03-28T08:00", "2026-03-29T01:45", "2026-10-24T08:00", "2026-10-25T01:45", "2026-12-31T23:59",
])  # fmt: skip
@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize(
    "expression", ["0 9 * * *", "30 2 * * *", "*/20 * * * *", "15 * * * *", "7 0 2,3 * * *"]
)
def test_its_clocks_change_as_those_of_its_zone_do(
    expression: str, name: str, start: str, zone_of_machine: Callable[[str], None]
) -> None:
    zone_of_machine(name)
    zone = ZoneInfo(name)
    local = named = at(start, zone)
    for _ in range(12):
        local, named = Cron(expression, None).after(local, local), Cron(expression, zone).after(named, named)
        assert local == named


def test_cron_makes_up_for_nothing_but_is_not_late_twice() -> None:
    hourly = Cron("0 * * * *", BERLIN)
    assert hourly.after(at("2026-06-01T12:00"), at("2026-06-01T17:30")) == at("2026-06-01T18:00")


# Refused.


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_no_time_is_no_rate(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        every(seconds=seconds)


@pytest.mark.parametrize("expression", ["", "*", "61 * * * *", "0 0 30 2 *", "@daily", "a b c d e", None, 5])
def test_what_is_no_crontab_expression_is_refused(expression: Any) -> None:
    with pytest.raises(ValueError, match="no crontab expression"):
        cron(expression)


def test_a_zone_is_no_name() -> None:
    with pytest.raises(ValueError, match="ZoneInfo"):
        cron("* * * * *", zone="Europe/Berlin")  # type: ignore[arg-type]


def test_without_the_extra_cron_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(Unsupported, match=r"jobrpc\[cron\]"):
        cron("* * * * *")


def test_what_ticks_has_no_arguments() -> None:
    with pytest.raises(SettingsError, match="timer tick: it is called without arguments"):
        timers_in([("tick", every(seconds=1)(lambda who: None))])


def test_a_function_may_have_several_timers_and_optional_arguments() -> None:
    @every(seconds=1)
    @cron("0 * * * *")
    def tick(who: str = "me", *more: Any, **named: Any) -> None: ...

    assert [each.name for each in timers_in([("tick", tick)])] == ["tick", "tick.1"]


def test_a_singleton_needs_locks() -> None:
    class Bare(MemoryBackend):
        features = frozenset({"topics"})

    with pytest.raises(Unsupported, match="needs locks, but this backend has no feature 'locks'"):
        RpcReceiver(services=[every(seconds=1, singleton=True)(lambda: None)], backend=Bare())


class Invoices:
    @every(seconds=3600, singleton=True)
    def tick(self) -> None: ...


class Backups:
    @every(seconds=3600, singleton=True)
    def tick(self) -> None: ...


@every(seconds=1)
def noon() -> None: ...


def test_singletons_of_nameless_classes_are_not_taken_for_one_another() -> None:
    """By the name that a timer is told by, its lock is known."""
    found = [
        RpcReceiver(services=[each], backend="memory://nameless").describe().timers
        for each in (Invoices, Backups, noon)
    ]
    names = [name for timers in found for name in timers]
    assert names == [
        "test_timers.Invoices.tick",
        "test_timers.Backups.tick",
        "test_timers.noon",
    ]


# Ticks.


class Step:
    """A schedule whose time the test sets."""

    def __init__(self, *later: float) -> None:
        self.now, self.asked = 1e6, list[tuple[float, float]]()

    def clock(self) -> float:
        return self.now

    def after(self, due: float, now: float) -> float:
        self.asked.append((due, now))
        return now + 100


class Tower:
    """Tickers, which end with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self.url, self._stack = f"memory://{uuid4().hex}", stack
        self.ticked: list[str] = []

    def start(
        self, tick: Callable[[], Any], schedule: Any, *, singleton: bool = False, backend: Any = None
    ) -> Ticker:
        ticking = Ticking("tick", tick, Timer(schedule, singleton))
        backend = backend or MemoryBackend(self.url)
        ticker = Ticker([ticking], backend, lease=0.2, run=lambda it: None, stopped=lambda: False)
        ticker.start()
        self._stack.callback(ticker.end)
        return ticker

    def note(self, text: str) -> Callable[[], None]:
        return lambda: self.ticked.append(text)


@pytest.fixture
def tower() -> Iterator[Tower]:
    with ExitStack() as stack:
        yield Tower(stack)


def test_ticks_do_not_overlap_and_slow_ones_skip(tower: Tower) -> None:
    running, most, began = [0], [0], list[float]()

    def tick() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        began.append(schedule.clock())
        threading.Event().wait(0.025)  # longer than two of its times
        running[0] -= 1

    schedule = Every(0.01)
    tower.start(tick, schedule)
    until(lambda: len(began) > 5)
    assert most == [1]
    assert all(after - before >= 0.025 for before, after in pairwise(began))


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_one_that_raises_is_logged_and_called_again(
    tower: Tower, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def tick() -> None:
        tower.ticked.append("tick")
        raise error

    tower.start(tick, Every(0.005))
    until(lambda: len(tower.ticked) > 3)
    assert caplog.text.count("timer tick failed") >= 3


@pytest.mark.parametrize("error", [None, ValueError("no"), SystemExit(3)], ids=repr)
def test_a_coroutine_function_ticks_in_a_receiver(error: BaseException | None) -> None:
    ticked = []

    @every(seconds=0.005)
    async def tick() -> None:
        ticked.append(1)
        if error:
            raise error

    receiver = RpcReceiver(services=[tick], jobs={}, backend=f"memory://{uuid4().hex}")
    thread = threading.Thread(target=receiver.start, daemon=True)
    thread.start()
    until(lambda: len(ticked) > 3)
    receiver.stop()
    thread.join(LONG)
    assert not thread.is_alive()
    known = len(ticked)
    assert not any("rpc-timer" in each.name for each in threading.enumerate())
    assert len(ticked) == known


def test_a_clock_that_is_set_back_a_little_repeats_nothing(tower: Tower) -> None:
    schedule = Step()
    tower.start(tower.note("tick"), schedule, singleton=True)
    until(lambda: schedule.asked)
    schedule.now -= SET_BACK / 2
    asked = len(schedule.asked)
    threading.Event().wait(0.3)  # several looks at the clock
    assert (len(schedule.asked), tower.ticked) == (asked, [])


def test_a_clock_that_is_set_back_much_begins_anew(tower: Tower) -> None:
    schedule = Step()
    tower.start(tower.note("tick"), schedule, singleton=True)
    until(lambda: schedule.asked)
    schedule.now -= 10 * SET_BACK
    until(lambda: len(schedule.asked) == 2)
    assert tower.ticked == []
    schedule.now += 101
    until(lambda: tower.ticked == ["tick"])


def test_a_clock_that_is_set_forward_ticks_once(tower: Tower) -> None:
    schedule = Step()
    tower.start(tower.note("tick"), schedule, singleton=True)
    until(lambda: schedule.asked)
    schedule.now += 10 * SET_BACK
    until(lambda: len(schedule.asked) == 2)
    assert tower.ticked == ["tick"]
    assert schedule.asked[1] == (1e6 + 100, schedule.now)


# Singletons.


def test_a_singleton_ticks_on_one_and_after_its_end_on_another(tower: Tower) -> None:
    first = tower.start(tower.note("first"), Every(0.005), singleton=True)
    until(lambda: tower.ticked)
    tower.start(tower.note("second"), Every(0.005), singleton=True)
    until(lambda: len(tower.ticked) > 20)
    assert {*tower.ticked} == {"first"}
    first.end()
    until(lambda: "second" in tower.ticked)
    changed = tower.ticked.index("second")
    until(lambda: len(tower.ticked) > changed + 10)
    assert {*tower.ticked[changed:]} == {"second"}


def test_a_singleton_does_not_tick_while_its_broker_is_away(tower: Tower) -> None:
    class Away(MemoryBackend):
        away = False

        def acquire(self, name: str, owner: str, lease: float) -> bool:
            if self.away:
                raise BackendUnavailable("no broker")
            return super().acquire(name, owner, lease)

    backend = Away(tower.url)
    tower.start(tower.note("tick"), Every(0.005), singleton=True, backend=backend)
    until(lambda: tower.ticked)
    backend.away = True
    other = MemoryBackend(tower.url)
    until(lambda: other.acquire("timer.tick", "another", 60))
    known = len(tower.ticked)
    backend.away = False
    threading.Event().wait(0.1)  # twenty times
    assert len(tower.ticked) == known
    other.release("timer.tick", "another")
    until(lambda: len(tower.ticked) > known)


def test_a_tick_that_lasts_longer_than_the_lease_is_alone_also_at_the_end(tower: Tower) -> None:
    begun, released = threading.Event(), threading.Event()

    def tick() -> None:
        begun.set()
        assert released.wait(LONG)
        tower.ticked.append("first")

    first = tower.start(tick, Every(0.005), singleton=True)
    assert begun.wait(LONG)
    ending = threading.Thread(target=first.end)
    ending.start()
    tower.start(tower.note("second"), Every(0.005), singleton=True)
    threading.Event().wait(0.6)  # it is time itself that is tested: three leases
    assert tower.ticked == []
    released.set()
    until(lambda: "second" in tower.ticked)
    assert tower.ticked[0] == "first"
    ending.join(LONG)


# The end.

PROGRAM = """
import sys, time
from rpc import RpcReceiver, every, on

@every(seconds=0.01)
def tick():
    print("tick", flush=True)
    if "hang" in sys.argv:
        time.sleep(1000)

@every(seconds=3600)
def seldom(): ...

@on("boom")
def hear(data): ...

RpcReceiver(services=[tick, seldom, hear], jobs={}, backend="memory://", grace=0.2).start()
print("end")
"""


@pytest.mark.parametrize(("words", "last"), [([], "end"), (["hang"], "tick")], ids=["ticks", "hangs"])
def test_a_signal_ends_the_process_also_if_a_tick_hangs(tmp_path: Path, words: list[str], last: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, str(tmp_path / "program.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        assert process.stdout.readline() == "tick\n"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=LONG)
        assert process.returncode == 0
    assert (said or "tick\n").splitlines()[-1] == last


def test_nothing_but_timers_and_listeners_is_enough_to_serve() -> None:
    for only in every(seconds=5)(lambda: None), on("boom")(lambda data: None):
        receiver = RpcReceiver(services=[only], jobs={}, backend=f"memory://{uuid4().hex}")
        receiver.stop()
        receiver.start()
