"""What the two ends of a stream count, joined by a network that does what networks do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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

SENT = "sent"
LARGEST = 60
"""Bytes of an item."""


def encoded(number: int, size: int) -> bytes:
    return b"%08d" % number + b" " * size


class Ends(RuleBasedStateMachine):
    """A producer and a consumer. What either says may come late, twice, in another order, or never."""

    @initialize(window=st.integers(1, 6), size=st.integers(1, 150))
    def open(self, window: int, size: int) -> None:
        self.window, self.size = window, size
        self.receiving = Receiving(window, size)
        self.sending = Sending(*credit_in(Message(b"", self.receiving.credit())))
        self.to_consumer: list[tuple[dict[str, str], list[bytes]]] = []
        self.to_producer: list[dict[str, str]] = []
        self.arrived: list[tuple[list[bytes], int]] = []
        """Items, and what is credited for them once they are taken."""
        self.taken: list[bytes] = []
        self.is_ended = self.is_broken = self.is_complete = False

    # The producer.

    @precondition(lambda self: not self.is_ended and self.sending.has_room)
    @rule(size=st.integers(0, LARGEST - 8))
    def make(self, size: int) -> None:
        self.sending.add(encoded(self.sending.made, size))

    @precondition(lambda self: not self.is_ended and self.sending.unsent)
    @rule(leaves=st.booleans(), is_known=st.booleans())
    def flush(self, leaves: bool, is_known: bool) -> None:
        """If it is not known to have left it is sent again, with more."""
        if leaves:
            self.to_consumer.append((self.sending.headers(), self.sending.unsent[:]))
        if is_known:
            self.sending.taken()

    @precondition(lambda self: not (self.is_ended or self.sending.unsent))
    @rule()
    def end(self) -> None:
        self.is_ended = True
        self.to_consumer.append(({SEQ: str(self.sending.made)}, []))

    @precondition(lambda self: self.to_producer)
    @rule(data=st.data(), again=st.booleans())
    def hear_credit(self, data: st.DataObject, again: bool) -> None:
        headers = self._one(self.to_producer, data, again)
        self.sending.grant(*credit_in(Message(b"", headers)))

    @precondition(lambda self: self.to_producer)
    @rule(data=st.data())
    def lose_credit(self, data: st.DataObject) -> None:
        self._one(self.to_producer, data, again=False)

    # The consumer.

    @precondition(lambda self: self.to_consumer)
    @rule(data=st.data(), again=st.booleans())
    def hear_items(self, data: st.DataObject, again: bool) -> None:
        self._arrive(*self._one(self.to_consumer, data, again))

    @precondition(lambda self: self.to_consumer)
    @rule(data=st.data())
    def lose_items(self, data: st.DataObject) -> None:
        self._one(self.to_consumer, data, again=False)

    @precondition(lambda self: self.arrived)
    @rule()
    def take(self) -> None:
        items, size = self.arrived[0]
        self.taken.append(items.pop(0))
        self.receiving.take(1, 0 if items else size)
        if not items:
            self.arrived.pop(0)
        if self.receiving.renew():
            self.say_credit()

    @rule()
    def say_credit(self) -> None:
        self.to_producer.append(self.receiving.credit())

    # What must hold.

    @invariant()
    def the_right_items_come_in_order(self) -> None:
        for number, item in enumerate(self.taken):
            assert int(item) == number

    @invariant()
    def no_more_is_on_its_way_than_the_window(self) -> None:
        sending = self.sending
        assert sending.made - len(self.taken) <= self.window
        assert len(sending.unsent) <= self.window
        assert sum(len(items) for items, _ in self.arrived) <= self.window
        in_use = sum(len(items) for items, _ in self.arrived) + sending.made - self.receiving.received
        assert in_use <= self.window

    @invariant()
    def no_more_bytes_are_on_their_way_than_the_window_and_an_item(self) -> None:
        # What was taken of a message counts with its last item: so much less may be on its way, not more.
        assert self.sending.made_bytes - sum(map(len, self.taken)) < self.size + LARGEST

    def teardown(self) -> None:
        """The network works again: there is an end, and nothing is missing if it is a good one."""
        if not hasattr(self, "receiving"):
            return
        late, self.to_consumer = self.to_consumer, []
        for headers, items in late:
            self._arrive(headers, items)
        wanted = self.sending.made + 3 * self.window
        while not (self.is_ended or self.sending.made == wanted):
            if self.sending.has_room:
                self.make(1)
                continue
            before = len(self.taken), self.sending.made
            self._flow()
            if self.is_broken:
                return
            assert (len(self.taken), self.sending.made) != before or self.sending.has_room, "it hangs"
        self._flow()
        self._arrive({SEQ: str(self.sending.made)}, [])
        self._take_all()
        self.the_right_items_come_in_order()
        assert self.is_broken or len(self.taken) == self.sending.made

    def _flow(self) -> None:
        if self.sending.unsent:
            self._arrive(self.sending.headers(), self.sending.unsent)
            self.sending.taken()
        self._arrive({SENT: str(self.sending.sent)}, [])  # a sign of life
        self._take_all()
        self.sending.grant(*credit_in(Message(b"", self.receiving.credit())))

    def _take_all(self) -> None:
        while self.arrived:
            self.take()

    def _arrive(self, headers: dict[str, str], items: list[bytes]) -> None:
        if self.is_broken or self.is_complete:
            return
        message = Message(b"", headers)
        try:
            if SIZE in headers:
                again, size = self.receiving.feed(
                    number_in(message, SEQ), len(items), number_in(message, SIZE)
                )
                if new := items[again:]:
                    self.arrived.append((new, size))
            elif SENT in headers:
                self.receiving.expect(number_in(message, SENT))
            else:
                self.receiving.end(number_in(message, SEQ))
                self.is_complete = True
        except StreamBroken:
            self.is_broken = True

    def _one(self, messages: list[Any], data: st.DataObject, again: bool) -> Any:
        index = data.draw(st.integers(0, len(messages) - 1))
        return messages[index] if again else messages.pop(index)


def test_the_right_items_in_order_or_a_clean_end_whatever_the_network_does() -> None:
    run_state_machine_as_test(
        Ends, settings=settings(max_examples=100, stateful_step_count=30, deadline=None)
    )


def test_a_network_that_works_loses_nothing() -> None:
    receiving, sending = Receiving(4, 100), Sending(4, 100)
    taken = 0
    for _ in range(1000):
        while sending.has_room:
            sending.add(encoded(sending.made, 1))
        headers, items = Message(b"", sending.headers()), sending.unsent
        again, size = receiving.feed(number_in(headers, SEQ), len(items), number_in(headers, SIZE))
        assert again == 0
        sending.taken()
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
