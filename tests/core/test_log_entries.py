"""What is said of a log record, and what whoever listens makes of it."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import date
from typing import Any

import msgspec
import pytest

from rpc import SerializationError
from rpc.core.codecs import ACCEPTED
from rpc.core.events import decode_event
from rpc.core.log_batches import Heard, Sender, batch_body, level_number, wanted_entries
from rpc.core.log_entries import LONGEST, LogEntry, encoded, entry_of
from rpc.identity import Identity
from rpc.transport import Message

SENDER = Sender("a" * 32, "here", 17, "MainProcess")


class Odd:
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


def heard(message: Message, by: Heard | None = None) -> list[LogEntry]:
    return list((by or Heard()).entries(decode_event(message, ACCEPTED)))


def headers_of(**parts: str) -> dict[str, str]:
    return {f"x-{name}": text for name, text in Identity(**parts).headers.items()}


def record(message: Any, *args: Any, error: BaseException | None = None, **more: Any) -> logging.LogRecord:
    about = error and (type(error), error, error.__traceback__)
    made = logging.LogRecord("shop.orders", logging.ERROR, "/srv/shop.py", 12, message, args, about, "place")
    vars(made).update(more)
    return made


def there_and_back(made: logging.LogRecord) -> LogEntry:
    body = batch_body("1", SENDER, 0, 0, [encoded(entry_of(made, "", "", time.time))])
    (entry,) = heard(Message(body))
    return entry


def batch(first: int, *messages: str, dropped: int = 0, sender: Sender = SENDER, **headers: str) -> Message:
    records = [encoded(entry_of(record(each), "", "", time.time)) for each in messages]
    return Message(batch_body("1", sender, first, dropped, records), headers)


def test_a_record_arrives_with_all_that_it_had() -> None:
    made = record("order %d of %s", 17, "Ann", colour="red", stack_info="Stack")
    body = batch_body(
        "1", SENDER, 0, 0, [encoded(entry_of(made, "r1", f"00-{'f' * 32}-{'a' * 16}-01", time.time))]
    )
    (entry,) = heard(Message(body, headers_of(domain="shop", type="orders", id="a", version="1.2.3")))
    assert entry == LogEntry(
        time=made.created,
        level="ERROR",
        level_number=40,
        logger="shop.orders",
        message="order 17 of Ann",
        template="order %d of %s",
        args=[17, "Ann"],
        stack="Stack",
        path="/srv/shop.py",
        line=12,
        function="place",
        thread="MainThread",
        request_id="r1",
        trace_id="f" * 32,
        extra={"colour": "red"},
        process="MainProcess",
        pid=17,
        host="here",
        service="shop.orders.a",
        version="1.2.3",
    )


@pytest.mark.parametrize(("arguments", "wire"), [
    ((1, 2.5, None, True, "x"), [1, 2.5, None, True, "x"]),
    (([1, {"a": 2}], date(2030, 1, 31)), [[1, {"a": 2}], "2030-01-31"]),
    (({1, 2}, (3,)), [[1, 2], [3]]),
    ((10**40, {"a": 10**40}), [10**40, {"a": 10**40}]),
], ids=str)  # fmt: skip
def test_arguments_arrive_as_values(arguments: tuple[Any, ...], wire: list[Any]) -> None:
    entry = there_and_back(record("%s " * len(arguments), *arguments))
    assert json.loads(json.dumps(entry.args)) == wire or entry.args == [str(each) for each in arguments]
    assert entry.problem == ""


def test_named_arguments_and_those_that_cannot_be_encoded() -> None:
    entry = there_and_back(record("%(a)s %(b)s", {"a": 1, "b": sys}))
    assert entry.args == {"a": 1, "b": str(sys)}
    assert entry.message == f"1 {sys}"


def test_what_changes_later_arrives_as_it_was() -> None:
    items = [1]
    entry = entry_of(record("%s", items, extra_items=items), "", "", time.time)
    items.append(2)
    decoded = json.loads(encoded(entry))
    assert (decoded["message"], decoded["args"], decoded["extra"]) == ("[1]", [[1]], {"extra_items": [1]})


@pytest.mark.parametrize("argument", [5, "x", [1]], ids=str)
def test_an_argument_that_is_no_tuple(argument: Any) -> None:
    made = record("%s")
    made.args = argument
    assert there_and_back(made).args == [argument]


@pytest.mark.parametrize("depth", [1, 60, 500, 990, 5000])
def test_what_is_nested_too_deeply_is_a_text(depth: int) -> None:
    value: list[Any] = [["[", "\\"]] * 100
    for _ in range(depth):
        value = [value]
    entry = there_and_back(record("it has %d", 1, value=value))
    assert (entry.message, entry.problem) == ("it has 1", "")
    assert isinstance(entry.extra["value"], list) == (depth < 63)


def test_an_exception_arrives_with_its_traceback() -> None:
    try:
        try:
            _ = 1 / 0
        except ZeroDivisionError as inner:
            raise LookupError("no such order") from inner
    except LookupError as error:
        entry = there_and_back(record("it failed", error=error))
    assert entry.exception
    assert (entry.exception.type, entry.exception.message) == ("LookupError", "no such order")
    assert "ZeroDivisionError" in entry.exception.traceback
    assert "raise LookupError" in entry.exception.traceback


@pytest.mark.parametrize(("message", "arguments", "problem"), [
    ("%d", ("x",), "it could not be formatted: TypeError"),
    ("%s %s", (1,), "it could not be formatted: TypeError"),
    ("%s", (Odd(),), "it could not be formatted: ValueError: no"),
    (Odd(), (), "it could not be formatted: ValueError: no"),
], ids=["kind", "too few", "argument", "message"])  # fmt: skip
def test_what_cannot_be_formatted_arrives_as_far_as_it_can(
    message: Any, arguments: tuple[Any, ...], problem: str
) -> None:
    entry = there_and_back(record(message, *arguments))
    assert entry.problem.startswith(problem)
    assert entry.message == (message if isinstance(message, str) else "<Odd without a text: ValueError>")


@pytest.mark.parametrize("odd",
    ["\ud800", {"a": "\ud800"}, {"\ud800": [1, "\ud800"]}, [10**5000]],
    ids=["text", "member", "key", "number"])  # fmt: skip
def test_what_cannot_be_encoded_is_a_text(odd: Any) -> None:
    texts = "half \ud800", "\ud800"
    made = record(texts[0], odd="\ud800", threadName=texts[1], more=odd)
    entry = there_and_back(made)
    assert (entry.message, entry.thread, entry.extra["odd"]) == ("half \\ud800", "\\ud800", "\\ud800")


def test_what_is_too_long_is_shortened_and_says_so() -> None:
    made = record("x" * 10 * LONGEST, extra_text="y" * LONGEST, stack_info="z" * LONGEST)
    assert len(encoded(entry_of(made, "", "", time.time))) < LONGEST
    entry = there_and_back(made)
    assert entry.message.startswith("xxx")
    assert entry.problem.startswith("it was shortened, as it had ")


def test_the_record_of_an_entry_can_be_handled_here() -> None:
    try:
        _ = {}["order"]
    except LookupError as error:
        came = there_and_back(record("order %d", 17, error=error, colour="red", name="nice try")).to_record()
    form = logging.Formatter(
        "%(levelname)s %(name)s %(process)d@%(host)s %(module)s:%(lineno)d %(colour)s %(message)s"
    )
    text = form.format(came)
    assert text.startswith("ERROR nice try 17@here shop:12 red order 17\nTraceback")
    assert text.endswith("KeyError: 'order'")


# Several.


@pytest.mark.parametrize("name", ["exc_info", "getMessage", "relativeCreated", "__class__"])
def test_no_extra_of_another_process_makes_a_record_that_cannot_be_handled(name: str) -> None:
    forged = msgspec.structs.replace(there_and_back(record("hello")), extra={name: "x", "place": "Rome"})
    text = logging.Formatter("%(message)s from %(place)s after %(relativeCreated)d").format(
        forged.to_record()
    )
    assert text.startswith("hello from Rome after ")


def test_each_record_arrives_once_and_what_is_missing_is_told() -> None:
    all_heard, other = Heard(), Sender("b" * 32, "there", 18, "MainProcess")
    messages = [
        batch(0, "a", "b"),
        batch(0, "a", "b"),
        batch(0, "x", sender=other),
        batch(2, "c", dropped=3),
        batch(5, "f"),
        batch(6, "g"),
    ]
    said = [(each.message, each.pid) for message in messages for each in heard(message, all_heard)]
    assert said == [
        ("a", 17),
        ("b", 17),
        ("x", 18),
        ("3 log records were dropped by their process, whose buffer was full", 17),
        ("c", 17),
        ("2 log records were lost on their way", 17),
        ("f", 17),
        ("g", 17),
    ]


def test_whoever_comes_late_misses_nothing_that_he_would_know_of() -> None:
    assert [each.message for each in heard(batch(1000, "a"))] == ["a"]


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b'{"method": "rpc.logs"}',
    b'{"method": "rpc.logs", "params": {"records": []}}',
    b'{"method": "rpc.logs", "params": [1]}', b"[" * 5000,
], ids=lambda body: body[:40].decode() or "-")  # fmt: skip
def test_what_is_no_batch_is_an_error(body: bytes) -> None:
    with pytest.raises(SerializationError):
        heard(Message(body))


def test_a_record_that_is_none_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    good = encoded(entry_of(record("good"), "", "", time.time))
    start = b'{"time": 1, "level": "INFO", "level_number": 20, "logger": "x", "message": "x", '
    odd = [b'{"time": "x"}', b"7", start + b'"line": -1}', start + b'"line": 1e300}']
    assert heard(Message(batch_body("1", SENDER, 0, 0, [start + b'"line": 7}'])))[0].line == 7
    body = batch_body("1", SENDER, 0, 0, [*odd, good])
    assert [entry.message for entry in heard(Message(body))] == ["good"]
    assert caplog.text.count("refused a log record") == len(odd)


@pytest.mark.parametrize(("identity", "service"), [
    ({}, ""),
    ({"domain": "shop"}, "shop"),
    ({"type": "orders"}, "default.orders.default"),
    ({"domain": "shop", "type": "orders", "id": "a", "version": "1.0.0"}, "shop.orders.a"),
], ids=str)  # fmt: skip
def test_the_service_is_what_is_set_of_it(identity: dict[str, str], service: str) -> None:
    (entry,) = heard(batch(0, "a", **headers_of(**identity)))
    version = identity.get("version", "0.0.0" if "type" in identity else "")
    assert (entry.service, entry.version) == (service, version)


# What is wanted.


@pytest.mark.parametrize(("level", "logger", "service", "is_wanted"), [
    (None, None, None, True),
    ("error", None, None, True),
    (40, None, None, True),
    ("critical", None, None, False),
    (None, "shop", None, True),
    (None, "shop.orders", None, True),
    (None, "shop.order", None, False),
    (None, "*.orders", None, True),
    (None, "sho", None, False),
    (None, None, "shop.*", True),
    (None, None, "shop.orders.a", True),
    (None, None, "shop", False),
    ("warning", "shop", "shop.orders.*", True),
], ids=str)  # fmt: skip
def test_filters(level: str | int | None, logger: str | None, service: str | None, is_wanted: bool) -> None:
    (entry,) = heard(batch(0, "a", **headers_of(domain="shop", type="orders", id="a")))
    assert wanted_entries(level, service, logger)(entry) == is_wanted


def test_what_is_missing_is_wanted_whatever_its_level() -> None:
    missing, _ = heard(batch(0, "a", dropped=1))
    assert wanted_entries("critical", None, "shop")(missing)
    assert not wanted_entries("critical", "shop.*", "shop")(missing)


@pytest.mark.parametrize("level", ["loud", "", True, None])
def test_what_is_no_level(level: Any) -> None:
    with pytest.raises(ValueError, match="is no level"):
        level_number(level)
