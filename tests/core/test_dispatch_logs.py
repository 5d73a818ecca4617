"""What a dispatcher logs of jobs that end, and of those that fail."""

from __future__ import annotations

import logging
import traceback

import pytest
from test_dispatch import Delivery, body, dispatcher_of

from rpc import Cancelled, InvalidParams, SerializationError, Unauthorized
from rpc.transport import Message


def handled(handler, data=None, **options):
    message = Message(body(params=data or []), {"id": "i", "reply-to": "here"})
    dispatcher_of(handler, **options)(Delivery(message))


def lines(caplog):
    return [(record.levelname, record.getMessage(), bool(record.exc_info)) for record in caplog.records]


def raising(error):
    def work():
        raise error

    return work


def test_a_job_that_ended_has_a_line_if_that_is_wanted(caplog):
    times = iter([1.0, 1.25])
    with caplog.at_level(logging.INFO, "rpc.jobs"):
        handled(lambda a, b: a + b, [1, 2], clock=lambda: next(times))
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("rpc.jobs", "job 'work' (i) took 0.250 s: done")
    assert (record.job, record.id, record.seconds, record.outcome) == ("work", "i", 0.25, "done")


@pytest.mark.parametrize(
    ("error", "outcome"), [(ValueError("v"), "failed: ValueError"), (Cancelled("left"), "cancelled")]
)
def test_it_says_how_a_job_ended(error, outcome, caplog):
    with caplog.at_level(logging.INFO, "rpc.jobs"):
        handled(raising(error))
    assert [record.outcome for record in caplog.records if record.name == "rpc.jobs"] == [outcome]


def test_by_default_nobody_looks_at_the_clock():
    def clock():
        raise AssertionError

    handled(lambda: 1, clock=clock)


@pytest.mark.parametrize("error", [InvalidParams("no"), Unauthorized("no")])
def test_a_refusal_by_a_handler_is_one_warning(error, caplog):
    handled(raising(error))
    assert lines(caplog) == [("WARNING", f"job 'work' (i) refused: {type(error).__name__}: no", False)]


def test_a_refusal_before_the_handler_is_one_warning(caplog):
    handled(lambda: 1, [1])
    ((level, text, has_trace),) = lines(caplog)
    assert (level, has_trace) == ("WARNING", False)
    assert text.startswith("refused '' (i): InvalidParams: ")


def test_a_cancellation_is_no_error(caplog):
    with caplog.at_level(logging.INFO, "rpc.core"):
        handled(raising(Cancelled("left")))
    assert lines(caplog) == [("INFO", "job 'work' (i) was cancelled", False)]


def names_in(record):
    return [frame.f_code.co_name for frame, _ in traceback.walk_tb(record.exc_info[2])]


@pytest.mark.parametrize("colour", ["plain", "coroutine"])
def test_the_traceback_is_that_of_the_handler(colour, caplog):
    def inner():
        raise KeyError("k")

    def outer():
        inner()

    async def coroutine():
        outer()

    def middleware(request, call_next):
        return call_next(request)

    handled(coroutine if colour == "coroutine" else outer, middleware=[middleware])
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert names_in(record)[-2:] == ["outer", "inner"]
    assert len(names_in(record)) == (3 if colour == "coroutine" else 2)


def test_what_only_this_library_had_to_do_with_has_its_frames(caplog):
    handled(lambda: object())
    (record,) = caplog.records
    assert isinstance(record.exc_info[1], SerializationError)
    assert "result" in names_in(record)
