"""What the two ends of a stream count, joined by a network that does what networks do."""

from __future__ import annotations

from copy import deepcopy
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

from rpc.core.streams import SEQ, SIZE, Receiving, Sending, credit_in, number_in
from rpc.errors import StreamBroken
from rpc.transport import Message

SENT = "sent"
LARGEST = 60
"""Bytes of an item."""


def encoded(number: int, size: int) -> bytes:
    return b"%08d" % number + b" " * size


class Ends:
    """A producer and a consumer, and what is on its way between them."""

    def __init__(self, window: int, size: int, most: int | None) -> None:
        self.window, self.size = window, size
        self.receiving = Receiving(window, size)
        self.sending = Sending(*credit_in(Message(b"", self.receiving.credit())), most)
        self.to_consumer: list[tuple[dict[str, str], list[bytes]]] = []
        self.to_producer: list[dict[str, str]] = []
        self.arrived: list[tuple[list[bytes], int]] = []
        """Items, and what is credited for them once they are taken."""
        self.taken: list[bytes] = []
        self.is_ended = self.is_broken = self.is_complete = False

    def make(self, size: int) -> None:
        self.sending.add(encoded(self.sending.made, size))

    def hear_credit(self, headers: dict[str, str]) -> None:
        self.sending.grant(*credit_in(Message(b"", headers)))

    def hear_items(self, headers: dict[str, str], items: list[bytes]) -> None:
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

    def take(self) -> None:
        items, size = self.arrived[0]
        self.taken.append(items.pop(0))
        self.receiving.take(1, 0 if items else size)
        if not items:
            self.arrived.pop(0)
        if self.receiving.renew():
            self.to_producer.append(self.receiving.credit())

    def take_all(self) -> None:
        while self.arrived:
            self.take()

    def are_in_order(self) -> bool:
        return [int(item) for item in self.taken] == list(range(len(self.taken)))

    def flow(self) -> None:
        """A network that works carries everything, and a sign of life."""
        while batch := self.sending.batch():
            self.hear_items(self.sending.headers(batch), batch)
            self.sending.taken(batch)
        self.hear_items({SENT: str(self.sending.sent)}, [])
        self.take_all()
        self.hear_credit(self.receiving.credit())


class Network(RuleBasedStateMachine):
    """What either end says may come late, twice, in another order, or never.

    Nothing is asserted in `teardown`: it runs also where Hypothesis stops a run within a draw, and what it
    raised then would hide that from Hypothesis, which takes the draws for inconsistent."""

    @initialize(window=st.integers(1, 6), size=st.integers(1, 150), most=st.none() | st.integers(1, 150))
    def open(self, window: int, size: int, most: int | None) -> None:
        self.ends = Ends(window, size, most)

    # The producer.

    @precondition(lambda self: not self.ends.is_ended and self.ends.sending.has_room)
    @rule(size=st.integers(0, LARGEST - 8))
    def make(self, size: int) -> None:
        self.ends.make(size)

    @precondition(lambda self: not self.ends.is_ended and self.ends.sending.unsent)
    @rule(leaves=st.booleans(), is_known=st.booleans())
    def flush(self, leaves: bool, is_known: bool) -> None:
        """If it is not known to have left it is sent again, with more."""
        sending = self.ends.sending
        batch = sending.batch()
        if leaves:
            self.ends.to_consumer.append((sending.headers(batch), batch))
        if is_known:
            sending.taken(batch)

    @precondition(lambda self: not (self.ends.is_ended or self.ends.sending.unsent))
    @rule()
    def end(self) -> None:
        self.ends.is_ended = True
        self.ends.to_consumer.append(({SEQ: str(self.ends.sending.made)}, []))

    @precondition(lambda self: self.ends.to_producer)
    @rule(data=st.data(), again=st.booleans())
    def hear_credit(self, data: st.DataObject, again: bool) -> None:
        self.ends.hear_credit(self._one(self.ends.to_producer, data, again))

    @precondition(lambda self: self.ends.to_producer)
    @rule(data=st.data())
    def lose_credit(self, data: st.DataObject) -> None:
        self._one(self.ends.to_producer, data, again=False)

    # The consumer.

    @precondition(lambda self: self.ends.to_consumer)
    @rule(data=st.data(), again=st.booleans())
    def hear_items(self, data: st.DataObject, again: bool) -> None:
        self.ends.hear_items(*self._one(self.ends.to_consumer, data, again))

    @precondition(lambda self: self.ends.to_consumer)
    @rule(data=st.data())
    def lose_items(self, data: st.DataObject) -> None:
        self._one(self.ends.to_consumer, data, again=False)

    @precondition(lambda self: self.ends.arrived)
    @rule()
    def take(self) -> None:
        self.ends.take()

    @rule()
    def say_credit(self) -> None:
        self.ends.to_producer.append(self.ends.receiving.credit())

    # What must hold.

    @invariant()
    def the_right_items_come_in_order(self) -> None:
        assert self.ends.are_in_order()

    @invariant()
    def no_more_is_on_its_way_than_the_window(self) -> None:
        sending, window = self.ends.sending, self.ends.window
        arrived = sum(len(items) for items, _ in self.ends.arrived)
        assert sending.made - len(self.ends.taken) <= window
        assert arrived + sending.made - self.ends.receiving.received <= window

    @invariant()
    def no_more_waits_to_be_sent_than_the_window_and_a_message(self) -> None:
        # A message that left, and is not known to have left, waits still when its items were taken and
        # credited; those after it have not left.
        sending = self.ends.sending
        assert len(sending.unsent) <= self.ends.window + len(sending.batch())

    @invariant()
    def no_more_bytes_are_on_their_way_than_the_window_and_an_item(self) -> None:
        # What was taken of a message counts with its last item: so much less may be on its way, not more.
        on_their_way = self.ends.sending.made_bytes - sum(map(len, self.ends.taken))
        assert on_their_way < self.ends.size + LARGEST

    @invariant()
    def if_the_network_works_again_there_is_an_end(self) -> None:
        """Nothing is missing if it is a good one."""
        ends = deepcopy(self.ends)
        for headers, items in ends.to_consumer:
            ends.hear_items(headers, items)
        wanted = ends.sending.made + 3 * ends.window
        while not (ends.is_ended or ends.sending.made == wanted):
            if ends.sending.has_room:
                ends.make(1)
                continue
            ends.flow()
            if ends.is_broken:
                return
            assert ends.sending.has_room, "it hangs"
        ends.flow()
        ends.hear_items({SEQ: str(ends.sending.made)}, [])
        ends.take_all()
        assert ends.are_in_order()
        assert ends.is_broken or len(ends.taken) == ends.sending.made

    def _one(self, messages: list[Any], data: st.DataObject, again: bool) -> Any:
        index = data.draw(st.integers(0, len(messages) - 1))
        return messages[index] if again else messages.pop(index)


@pytest.mark.slow
def test_the_right_items_in_order_or_a_clean_end_whatever_the_network_does() -> None:
    run_state_machine_as_test(
        Network, settings=settings(max_examples=100, stateful_step_count=30, deadline=None)
    )
