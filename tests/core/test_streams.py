"""What the two ends of a stream count, and what they say to each other."""

from __future__ import annotations

from typing import Any

import pytest

from rpc.core.codecs import JSON, MSGPACK
from rpc.core.streams import (
    BATCH_BYTES,
    BATCH_ITEMS,
    CREDIT,
    CREDIT_BYTES,
    MOST,
    SEQ,
    SIZE,
    Receiving,
    Sending,
    credit_in,
    is_stream,
    number_in,
    thrown,
    to_throw,
)
from rpc.errors import SerializationError, StreamBroken
from rpc.transport import Message


def test_a_network_that_works_loses_nothing() -> None:
    receiving, sending = Receiving(4, 100), Sending(4, 100)
    taken = 0
    for _ in range(1000):
        while sending.has_room:
            sending.add(b"%08d." % sending.made)
        items = sending.batch()
        headers = Message(b"", sending.headers(items))
        again, size = receiving.feed(number_in(headers, SEQ), len(items), number_in(headers, SIZE))
        assert again == 0
        sending.taken(items)
        receiving.take(len(items), size)
        taken += len(items)
        assert receiving.renew()
        assert sending.grant(*credit_in(Message(b"", receiving.credit())))
    receiving.end(taken)
    assert taken == sending.made == 4000


def test_items_that_were_sent_and_have_not_come_break_the_stream() -> None:
    receiving = Receiving(10, 100)
    receiving.feed(0, 2, 2)
    receiving.expect(2)
    with pytest.raises(StreamBroken, match="items 2 to 2 "):
        receiving.expect(3)


def test_credit_is_given_again_at_half_of_the_items_or_of_the_bytes() -> None:
    receiving = Receiving(10, 100)
    receiving.take(4, 4)
    assert not receiving.renew()
    receiving.take(1, 1)
    assert receiving.renew()
    assert receiving.credit() == {CREDIT: "15", CREDIT_BYTES: "105"}
    receiving.take(1, 49)
    assert not receiving.renew()
    receiving.take(1, 1)
    assert receiving.renew()
    assert receiving.credit() == {CREDIT: "17", CREDIT_BYTES: "155"}


def test_credit_that_is_not_more_changes_nothing() -> None:
    sending = Sending(3, 100)
    assert not sending.grant(2, 50)
    assert not sending.grant(3, 100)
    assert sending.grant(4, 0)
    assert sending.grant(0, 200)
    assert sending.has_room


def test_what_is_collected_is_due_when_it_is_much_or_no_more_may_come() -> None:
    sending = Sending(2, 2**40)
    assert not sending.is_due
    sending.add(b"1")
    assert not sending.is_due
    sending.add(b"2")
    assert sending.is_due  # there is no more credit
    many = Sending(2**40, 2**40)
    for _ in range(BATCH_ITEMS - 1):
        many.add(b"1")
    assert not many.is_due
    many.add(b"1")
    assert many.is_due
    large = Sending(2**40, 2**40)
    large.add(b"1" * BATCH_BYTES)
    assert large.is_due


def test_a_message_carries_no_more_than_it_may_but_one_item() -> None:
    sending = Sending(100, 2**40, 100)
    for item in [b"1" * 30] * 4 + [b"2" * 500] + [b"3" * 30]:
        sending.add(item)
    assert sending.is_due
    batches = []
    while batch := sending.batch():
        batches.append((len(batch), sending.headers(batch)[SEQ], sending.headers(batch)[SIZE]))
        sending.taken(batch)
    assert batches == [(3, "0", "90"), (1, "3", "120"), (1, "4", "620"), (1, "5", "650")]
    assert (sending.sent, sending.unsent_bytes) == (sending.made, 0)


def test_a_message_that_may_have_left_does_not_change_with_what_is_collected_later() -> None:
    sending = Sending(10, 100)
    sending.add(b"1")
    batch = sending.batch()
    sending.add(b"2")
    assert (batch, sending.batch()) == ([b"1"], [b"1", b"2"])


def test_more_items_than_there_is_credit_for_break_the_stream() -> None:
    receiving = Receiving(2, 100)
    receiving.feed(0, 2, 2)
    with pytest.raises(StreamBroken, match="more items than"):
        receiving.feed(2, 1, 3)


@pytest.mark.parametrize("received", [0, 3])
@pytest.mark.parametrize("total", [1, 2, 4, 2**62])
def test_an_end_after_another_number_of_items_breaks_the_stream(received: int, total: int) -> None:
    receiving = Receiving(10)
    receiving.feed(0, received, received)
    with pytest.raises(StreamBroken):
        receiving.end(total)


NO_NUMBERS = ["", " 1", "-1", "+1", "1.0", "1e3", "0x1", "²", "٣", "1_0", "9" * 20, "nan", "one", "1\n"]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_header_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(SerializationError, match="seq header"):
        number_in(Message(b"", {SEQ: text}), SEQ)
    if text:
        with pytest.raises(SerializationError):
            number_in(Message(b"", {SEQ: text}), SEQ, 7)
        with pytest.raises(SerializationError):
            credit_in(Message(b"", {CREDIT: "1", CREDIT_BYTES: text}))
    with pytest.raises(SerializationError):
        credit_in(Message(b"", {CREDIT: text}))


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), ("9" * 19, MOST), (str(MOST), MOST)])
def test_numbers_are_read_and_have_a_most(text: str, number: int) -> None:
    assert number_in(Message(b"", {SEQ: text}), SEQ) == number


def test_a_number_that_is_missing_is_its_default() -> None:
    assert number_in(Message(b"", {}), SEQ, 7) == 7
    with pytest.raises(SerializationError):
        number_in(Message(b"", {}), SEQ)
    assert credit_in(Message(b"", {})) == (0, 0)
    assert credit_in(Message(b"", {CREDIT: "3"})) == (3, MOST)
    assert is_stream({CREDIT: "0"})
    assert not is_stream({CREDIT_BYTES: "1"})


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "error",
    [
        *(
            TypeError("spam"),
            ValueError(),
            KeyError("x"),
            KeyError("'x'"),
            OSError(2, "none"),
            LookupError("a", "b"),
        ),
        *(StopIteration("s"), StopAsyncIteration(), ZeroDivisionError("division by zero"), Exception("ü€")),
    ],
    ids=repr,
)
def test_a_thrown_exception_arrives_with_its_type_and_its_text(error: Exception, codec: Any) -> None:
    raised = to_throw(thrown(error, codec), codec)
    assert type(raised) is type(error)
    assert str(raised) == str(error)


class OwnError(ValueError):
    pass


class Shadow(Exception):
    pass


Shadow.__name__ = "ValueError"


@pytest.mark.parametrize(
    "error", [OwnError("x"), Shadow("x"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr
)
def test_only_built_in_exceptions_are_thrown(error: BaseException) -> None:
    with pytest.raises(TypeError, match="only built-in exceptions"):
        thrown(error, JSON)


@pytest.mark.parametrize(
    "told",
    [
        *(None, 1, "TypeError", [], {}, {"type": None}, {"type": 3}, {"type": "print"}, {"type": "int"}),
        *({"type": "KeyboardInterrupt"}, {"type": "SystemExit"}, {"type": "GeneratorExit"}),
        *({"type": "BaseException"}, {"type": "__import__"}, {"type": "OwnError"}, {"type": "os.error"}),
        {"type": ["TypeError"]},
    ],
    ids=repr,
)
def test_what_is_no_exception_is_not_thrown(told: Any) -> None:
    with pytest.raises(SerializationError):
        to_throw(JSON.encode(told), JSON)
    with pytest.raises(SerializationError):
        to_throw(b"\xff", JSON)


def test_an_exception_that_takes_more_than_a_text_is_told_of_by_another_one() -> None:
    raised = to_throw(thrown(UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), JSON), JSON)
    assert type(raised) is RuntimeError
    assert str(raised).startswith("UnicodeDecodeError: ")
