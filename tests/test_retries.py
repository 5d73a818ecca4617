"""Another attempt: when there is one, what it sees, and what becomes of what fails each time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
from in_memory import LONG, Flaky, Site, until

from rpc import (
    InvalidParams,
    RemoteError,
    Request,
    RpcReceiver,
    Unsupported,
    job,
    on,
)
from rpc.backends.memory import MemoryBackend
from rpc.core.jobs import MAX_BACKOFF, JobOptions
from rpc.transport import unpacked


@pytest.fixture
def site(any_url: str) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, any_url)


class WithoutDelays(MemoryBackend):
    features = MemoryBackend.features - {"delay"}


class Billing:
    name = "billing"

    @on("order.*", group="billing", durable=True, retries=1)
    def bill(self, event: Any) -> None: ...


RETRIED = Flaky(1).with_options(retries=1)


@pytest.mark.parametrize(
    ("offer", "name"),
    [({"jobs": {"flaky": RETRIED}}, "flaky"), ({"services": [Billing()]}, "billing.bill")],
    ids=["job", "durable listener"],
)
def test_retries_are_refused_where_the_broker_keeps_nothing_meanwhile(
    offer: Any, name: str, memory_url: str
) -> None:
    lacks = "retries=, but this backend has no feature 'delay'; redis:, .* and memory: have it"
    with pytest.raises(Unsupported, match=f"^{name} has {lacks}"):
        RpcReceiver(backend=WithoutDelays(memory_url), **offer)
    RpcReceiver(backend=WithoutDelays(memory_url), jobs={"flaky": Flaky(1)})
    jobs = {"a": RETRIED, "b": Flaky(1), "c": RETRIED}
    with pytest.raises(Unsupported, match=f"^a has {lacks}"):
        RpcReceiver(backend=WithoutDelays(memory_url), jobs=jobs)


# Pauses.


@pytest.mark.parametrize(
    ("attempt", "chance", "pause"),
    [(1, 0, 0.5), (2, 0, 1), (3, 0, 2), (4, 0, 4), (1, 1, 0.25), (3, 0.5, 1.5), (30, 0, MAX_BACKOFF)],
)
def test_the_pause_doubles_and_is_less_by_up_to_a_half(attempt: int, chance: float, pause: float) -> None:
    assert JobOptions(backoff=0.5).pause(attempt, chance) == pause


@pytest.mark.parametrize("attempt", [61, 10**9])
def test_the_pause_after_very_many_attempts_is_an_hour(attempt: int) -> None:
    assert JobOptions(backoff=1.0).pause(attempt, 0) == MAX_BACKOFF


def test_without_a_backoff_there_is_no_pause() -> None:
    assert JobOptions(backoff=0).pause(5, 0.3) == 0


# Retries.


@pytest.mark.parametrize("colour", ["function", "coroutine"])
def test_a_job_that_fails_is_tried_again_and_sees_which_attempt_it_is(site: Site, colour: str) -> None:
    flaky = Flaky(2)
    function = flaky.with_options(retries=2, backoff=0.02)
    site.serve({"flaky": function if colour == "function" else flaky.coroutine})
    assert site.client().call_and_wait("flaky").data == [1, 2, 3]
    assert site.letters() == []


def test_the_pauses_between_attempts_grow(site: Site) -> None:
    flaky = Flaky(3)
    site.serve({"flaky": flaky.with_options(retries=3, backoff=0.1)})
    site.client().call_and_wait("flaky")
    pauses = [after - before for before, after in pairwise(flaky.began)]
    assert all(pause >= 0.1 * 2**number / 2 for number, pause in enumerate(pauses))


def test_a_call_that_nobody_waits_for_is_tried_again_too(site: Site) -> None:
    flaky = Flaky(1)
    site.serve({"flaky": flaky.with_options(retries=1, backoff=0.01)})
    site.client().call("flaky")
    until(lambda: flaky.attempts == [1, 2])


@pytest.mark.parametrize("colour", ["function", "coroutine"])
def test_a_job_that_fails_each_time_is_a_dead_letter_and_its_caller_is_told(site: Site, colour: str) -> None:
    flaky = Flaky(9)
    function = flaky.with_options(retries=2, backoff=0.01)
    site.serve({"flaky": function if colour == "function" else flaky.coroutine})
    with pytest.raises(RemoteError, match="ConnectionError: not now"):
        site.client().call_and_wait("flaky", {"order": 17})
    assert flaky.attempts == [1, 2, 3]
    (letter,) = site.letters()
    assert letter.why == "ConnectionError: not now"
    assert b'"order":17' in unpacked(letter.frame).body


def test_a_revived_job_begins_anew(site: Site) -> None:
    flaky = Flaky(2)
    site.serve({"flaky": flaky.with_options(retries=1, backoff=0.01)})
    with pytest.raises(RemoteError):
        site.client().call_and_wait("flaky")
    (letter,) = site.letters()
    assert site.shelf().revive(letter)
    until(lambda: flaky.attempts == [1, 2, 1])


@pytest.mark.parametrize(("error", "attempts"), [(TimeoutError, 2), (KeyError, 1), (ConnectionResetError, 2)])
def test_only_what_retry_on_names_is_tried_again(
    site: Site, error: type[BaseException], attempts: int
) -> None:
    flaky = Flaky(9, error)
    options: dict[str, Any] = {"retry_on": (TimeoutError, ConnectionError), "backoff": 0.01}
    site.serve({"flaky": flaky.with_options(retries=1, **options)})
    with pytest.raises(RemoteError):
        site.client().call_and_wait("flaky")
    assert len(flaky.attempts) == attempts
    assert len(site.letters()) == attempts - 1


def test_what_another_attempt_would_not_mend_is_not_tried_again(site: Site) -> None:
    flaky = Flaky(9, InvalidParams)
    site.serve({"flaky": flaky.with_options(retries=3, backoff=0.01)})
    with pytest.raises(InvalidParams):
        site.client().call_and_wait("flaky")
    assert flaky.attempts == [1]


def test_a_handler_that_has_responded_is_not_tried_again(site: Site) -> None:
    attempts: list[int] = []

    @job(retries=3, backoff=0.01)
    def respond(request: Request) -> None:
        attempts.append(request.attempt)
        request.respond("early")
        raise ValueError

    site.serve({"respond": respond, "next": lambda: None})
    assert site.client().call_and_wait("respond").data == "early"
    site.client().call_and_wait("next")
    assert attempts == [1]
    assert site.letters() == []


def test_there_is_no_attempt_after_the_deadline_and_the_caller_learns_why_before_it(site: Site) -> None:
    flaky = Flaky(9)
    site.serve({"flaky": flaky.with_options(retries=9, backoff=20)})
    with pytest.raises(RemoteError, match="not now"):
        site.client().call_and_wait("flaky", timeout=5)
    assert flaky.attempts == [1]


def test_a_job_that_would_be_tried_again_is_not_when_its_caller_has_left(site: Site) -> None:
    begun, attempts = Event(), []

    @job(retries=9, backoff=0.01)
    def fail(request: Request) -> None:
        attempts.append(request.attempt)
        begun.set()
        until(lambda: request.cancelled)
        raise ValueError

    site.serve({"fail": fail, "next": lambda: None})
    future = site.client().submit("fail")
    assert begun.wait(LONG)
    assert future.cancel()
    site.client().call_and_wait("next")
    assert attempts == [1]


def test_a_caller_who_leaves_between_two_attempts_keeps_nobody_waiting(site: Site) -> None:
    flaky = Flaky(9)
    site.serve({"flaky": flaky.with_options(retries=9, backoff=1000), "next": lambda: None})
    future = site.client(timeout=None).submit("flaky")
    until(lambda: flaky.attempts)
    assert future.cancel()
    site.client().call_and_wait("next")
    assert flaky.attempts == [1]


def test_attempts_share_the_time_of_the_call(site: Site) -> None:
    deadlines: list[float] = []

    @job(retries=2, backoff=0.5)
    def fail(request: Request) -> None:
        assert request.deadline
        deadlines.append(request.deadline)
        time.sleep(0.3)  # it is time itself that is tested
        raise ValueError

    site.serve({"fail": fail})
    with pytest.raises(RemoteError):
        site.client().call_and_wait("fail")
    assert len(deadlines) == 3
    assert max(deadlines) - min(deadlines) < 2 * 0.3


@pytest.mark.parametrize("options", [
    {"retries": -1}, {"backoff": -0.1}, {"retry_on": "ValueError"}, {"retry_on": (ValueError, 5)},
    {"retry_on": int},
], ids=str)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"retries|retry_on|backoff"):
        job(**options)
