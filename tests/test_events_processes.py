"""Events and singleton timers between worker processes, on real servers."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis
from event_workers import PATIENCE, Billing, Busy, Clock, Crew, Flaky, Loud, Team, until

from rpc.core.jobs import JobOptions
from rpc.events import Subscription
from rpc.inspection import DeadLetters
from rpc.testing import RedisServer
from rpc.transport import topic

ON = {
    "redis": pytest.param("redis", marks=pytest.mark.redis),
    "rq": pytest.param("rq", marks=[pytest.mark.redis, pytest.mark.slow]),
    "amqp": pytest.param("amqp", marks=[pytest.mark.xdist_group("rabbit_node"), pytest.mark.slow]),
}
BILLING = Subscription("boom", "billing", True, JobOptions()).address()
FLAKY = Subscription("boom", "flaky", True, JobOptions()).address()


@pytest.fixture
def admin(rpc_redis: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.flushall()
        yield admin


@pytest.fixture(params=ON.values())
def crew(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crew]:
    if request.param == "amqp":
        url = request.getfixturevalue("rabbit_node").empty()
    else:
        request.getfixturevalue("admin")
        url = f"{'rq+' * (request.param == 'rq')}{request.getfixturevalue('rpc_redis').url}"
    crew = Crew(url, tmp_path)
    yield crew
    crew.close()


def only(*backends: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("crew", [ON[each] for each in backends], indirect=True)


def ends(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE)


def numbers(crew: Crew, verb: str) -> Counter[str]:
    """Of the events of which this was written down."""
    return Counter(line.split()[2] for line in crew.lines() if f" {verb} " in line)


# Events.


def test_each_handler_hears_an_event_once_in_each_process(crew: Crew) -> None:
    for name in "abc":
        crew.start(name, Loud)
    for n in range(20):
        crew.publish(n)
    wanted = {f"{name} {kind} {n}" for name in "abc" for kind in ("first", "second") for n in range(20)}
    until(lambda: wanted <= {*crew.lines()})
    crew.publish(20)
    until(lambda: len(crew.lines(" 20")) == 6)
    assert Counter(crew.lines("first", *map(str, range(20)))).most_common(1)[0][1] == 1
    for name in "abc":
        heard = [line for line in crew.lines() if line.startswith(f"{name} first")]
        assert heard == [f"{name} first {n}" for n in range(21)], "in the order in which they were published"


def test_a_group_hears_an_event_once_in_all(crew: Crew) -> None:
    for name in "abc":
        crew.start(name, Team)
    for n in range(30):
        crew.publish(n)
        until(lambda n=n: len(crew.lines(f" alone {n}")) == 3 and crew.lines(f" hears {n}"))
    assert sorted(line.split()[2] for line in crew.lines() if " hears " in line) == sorted(
        map(str, range(30))
    )


def test_a_group_that_nobody_served_does_not_hear_what_came_meanwhile(
    crew: Crew, request: pytest.FixtureRequest
) -> None:
    first = crew.start("a", Team)
    crew.publish(1)
    until(lambda: crew.lines("hears 1"))
    assert ends(first) == 0
    crew.publish(2)
    if not crew.url.startswith("amqp"):  # there, a group is empty as soon as its last member has left
        admin = request.getfixturevalue("admin")
        until(lambda: not admin.keys("rpc:members:*"))
    crew.start("b", Team)
    crew.publish(3)
    until(lambda: crew.lines("hears 3"))
    assert not crew.lines(" 2")


@pytest.mark.slow
def test_an_event_that_kills_a_worker_in_the_listener_of_a_group_kills_no_other(crew: Crew) -> None:
    workers = [crew.start(name, Team) for name in "ab"]
    crew.publish(1, deadly=True)
    until(lambda: any(worker.poll() is not None for worker in workers))
    crew.publish(2)
    until(lambda: crew.lines("hears 2"))
    assert sorted(worker.poll() is None for worker in workers) == [False, True]


@pytest.mark.slow
def test_a_slow_call_and_a_slow_listener_do_not_delay_an_event(crew: Crew) -> None:
    crew.start("a", Busy)
    call = crew.client.submit("busy.hold")
    until(lambda: crew.lines("holds"))
    crew.publish(1)
    until(lambda: crew.lines("hears 1"))
    crew.client.publish("slow")
    until(lambda: crew.lines("lingers"))
    crew.publish(2)
    until(lambda: crew.lines("hears 2"))
    assert crew.client.describe(), "it says what it is, too"
    assert not crew.lines("held")
    crew.allow("go on")
    call.result(PATIENCE)


@pytest.mark.slow
def test_nobody_listens_and_nothing_happens(crew: Crew) -> None:
    crew.client.publish("silence")
    crew.start("a", Busy)
    crew.client.publish("silence")
    crew.publish(1)
    until(lambda: crew.lines("hears 1"))


# Durable ones.


def test_a_durable_group_hears_what_was_published_while_it_was_down(crew: Crew) -> None:
    assert ends(crew.start("a", Billing)) == 0
    for n in range(10):
        crew.publish(n)
    crew.start("b", Billing)
    until(lambda: len(crew.lines(*(f"bills {n}" for n in range(10)))) == 10)
    assert crew.lines(*(f"bills {n}" for n in range(10))) == [f"b bills {n}" for n in range(10)]


def test_a_durable_group_hears_an_event_once_in_all(crew: Crew) -> None:
    for name in "abc":
        crew.start(name, Billing)
    for n in range(30):
        crew.publish(n)
    until(lambda: len([line for line in crew.lines() if " bills " in line]) >= 30)
    crew.publish(30)
    until(lambda: crew.lines("bills 30"))
    assert Counter(line.split()[2] for line in crew.lines() if " bills " in line) == Counter(
        map(str, range(31))
    )


@pytest.mark.slow
def test_an_event_whose_worker_is_killed_in_the_listener_is_heard_again(crew: Crew) -> None:
    doomed = crew.start("a", Billing)
    crew.publish(1, deadly=True)
    assert doomed.wait(PATIENCE) == -signal.SIGKILL
    crew.allow("spared")
    crew.start("b", Billing)
    until(lambda: crew.lines("bills 1"))
    assert crew.lines("begins 1") == ["a begins 1", "b begins 1"]


@only("redis", "amqp")  # on rq they are failed jobs
def test_a_durable_listener_that_fails_is_tried_again_and_ends_as_a_dead_letter(crew: Crew) -> None:
    crew.start("a", Flaky)
    for n in range(1, 4):
        crew.publish(n)
    until(lambda: len(crew.lines("tries 1", "tries 3")) == 6)
    shelf = cast("DeadLetters", crew.client.backend)
    dead = FLAKY.subscription_queue.name
    until(lambda: len(shelf.dead_letters(dead)) == 2)
    letters = shelf.dead_letters(dead)
    assert {letter.why for letter in letters} == {"ConnectionError: each time"}
    assert len(crew.lines("tries 2")) == 1
    assert shelf.revive(letters[0])
    until(lambda: len(crew.lines("tries 1", "tries 3")) == 9)


@pytest.mark.slow
@only("redis", "rq")
def test_what_redis_forgot_is_registered_again(crew: Crew, admin: redis.Redis) -> None:
    crew.start("a", Billing)
    admin.flushall()
    admin.client_kill_filter(_type="normal", skipme=True)
    until(lambda: admin.zcard("rpc:subscriptions:{boom}"))
    crew.publish(1)
    until(lambda: crew.lines("bills 1"))


@pytest.mark.slow
@only("redis", "rq")
def test_a_group_and_a_listener_go_on_after_redis_lost_their_stream(crew: Crew, admin: redis.Redis) -> None:
    crew.start("a", Team)
    crew.publish(1)
    until(lambda: crew.lines("alone 1") and crew.lines("hears 1"))
    admin.flushall()
    crew.publish(2)
    until(lambda: crew.lines("alone 2") and crew.lines("hears 2"))
    assert len(crew.lines(" 2")) == 2


@pytest.mark.slow
def test_what_is_forgotten_is_not_kept(crew: Crew, admin: redis.Redis) -> None:
    assert ends(crew.start("a", Billing)) == 0
    crew.publish(1)
    crew.client.backend.unsubscribe(BILLING)  # type: ignore[attr-defined]
    crew.publish(2)
    crew.start("b", Billing)
    crew.publish(3)
    until(lambda: crew.lines("bills 3"))
    assert not crew.lines(" 1", " 2")
    assert topic("boom", BILLING.group, durable=True) == BILLING


# Timers.


def ticked(crew: Crew) -> list[str]:
    """Who has ticked, the last one last."""
    return [line.split()[0] for line in crew.lines("ticks")]


@pytest.mark.slow
def test_a_singleton_ticks_on_one_worker_and_on_another_one_when_that_dies(crew: Crew) -> None:
    workers = {name: crew.start(name, Clock) for name in "abc"}
    until(lambda: len(ticked(crew)) > 10)
    (holder,) = {*ticked(crew)}
    workers.pop(holder).kill()
    known = len(ticked(crew))
    until(lambda: len(ticked(crew)) > known + 10)
    (heir,) = {*ticked(crew)[known + 1 :]} - {holder}
    assert heir in workers


@pytest.mark.slow
def test_a_worker_that_stops_gives_its_singleton_away_though_a_job_of_it_still_runs(crew: Crew) -> None:
    first = crew.start("a", Clock, lease=600)  # only what is given away can be had
    until(lambda: ticked(crew))
    call = crew.client.submit("clock.hold")
    until(lambda: crew.lines("holds"))
    crew.start("b", Clock, lease=600)
    first.send_signal(signal.SIGTERM)
    until(lambda: "b" in ticked(crew))
    assert first.poll() is None, "its job still runs"
    crew.allow("go on")
    call.result(PATIENCE)
    assert first.wait(PATIENCE) == 0


@pytest.mark.slow
def test_a_tick_that_is_longer_than_the_lease_keeps_its_lock_also_while_its_worker_stops(crew: Crew) -> None:
    first = crew.start("a", Clock)
    until(lambda: ticked(crew))
    crew.allow("hold a")
    until(lambda: crew.lines("stays"))
    crew.start("b", Clock)
    first.send_signal(signal.SIGTERM)
    time.sleep(2.5)  # it is time itself that is tested: more than two leases
    assert "b" not in ticked(crew)
    crew.allow("go on")
    until(lambda: "b" in ticked(crew))
    assert first.wait(PATIENCE) == 0
    order = [line for line in crew.lines("leaves", "b ticks")]
    assert order[0] == "a leaves"


@pytest.mark.slow
def test_a_frozen_worker_loses_its_singleton_and_does_not_tick_beside_the_new_one(crew: Crew) -> None:
    frozen = crew.start("a", Clock)
    until(lambda: ticked(crew))
    crew.start("b", Clock)
    frozen.send_signal(signal.SIGSTOP)
    until(lambda: "b" in ticked(crew))
    frozen.send_signal(signal.SIGCONT)
    known = len(ticked(crew))
    until(lambda: len(ticked(crew)) > known + 40)
    assert ticked(crew)[known:].count("a") <= 1, "the tick that it was in"
