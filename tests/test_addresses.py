"""The three kinds of address."""

from __future__ import annotations

import pytest

from rpc.transport import Address, inbox, queue, topic


@pytest.mark.parametrize(("address", "text"), [
    (queue("default"), "queue default"), (inbox("5f-A.b_c"), "inbox 5f-A.b_c"), (topic("news"), "topic news"),
    (topic("news", "readers"), "topic news (group readers)"), (queue("a" * 128), "queue " + "a" * 128),
], ids=str)  # fmt: skip
def test_an_address_says_what_it_is(address, text):
    assert str(address) == text


def test_addresses_are_equal_when_all_their_parts_are():
    assert {queue("a"), queue("a")} == {Address("queue", "a")}
    assert len({queue("a"), queue("b"), inbox("a"), topic("a"), topic("a", "b")}) == 5


@pytest.mark.parametrize("name", ["", "a b", "-a", ".a", "a/b", "a:b", "a*", "a\n", "é", "a" * 129])
@pytest.mark.parametrize("make", [queue, inbox, topic, lambda name: topic("news", name)])
def test_a_name_that_some_broker_would_misread_is_refused(make, name):
    with pytest.raises(ValueError, match="letters, digits"):
        make(name)
