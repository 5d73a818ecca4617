"""Messages, and the compact frame that carries them where a transport has no headers."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rpc import SerializationError
from rpc.transport import MAX_HEADER_BYTES, MAX_HEADERS, Message, packed, unpacked

TOO_MANY = {str(number): "" for number in range(MAX_HEADERS + 1)}


def framed(headers):
    return len(headers).to_bytes(2, "big") + headers


@settings(deadline=None)
@given(st.binary(), st.dictionaries(st.text(), st.text(), max_size=MAX_HEADERS))
@example(b"body", {"a": "x" * (MAX_HEADER_BYTES - 6)}).via("the largest headers")
def test_a_message_survives_its_frame(body, headers):
    assume(len(msgspec.msgpack.encode(headers)) <= MAX_HEADER_BYTES)
    assert unpacked(packed(Message(body, headers))) == Message(body, headers)


@settings(deadline=None)
@given(st.binary() | st.binary().map(framed))
@example(framed(b"\x81\xa1\xff\xa1a")).via("a header that is no UTF-8")
@example(framed(b"\x81\x01\xa1a")).via("a header whose name is a number")
@example(framed(msgspec.msgpack.encode(TOO_MANY))).via("too many headers")
def test_any_bytes_are_a_message_that_can_be_sent_on_or_a_serialization_error(frame):
    try:
        message = unpacked(frame)
    except SerializationError:
        return
    assert unpacked(packed(message)) == message


@pytest.mark.parametrize("headers", [{"a": "x" * MAX_HEADER_BYTES}, TOO_MANY, {"a": "\ud800"}], ids=repr)
def test_headers_that_cannot_be_framed_are_refused(headers):
    with pytest.raises(SerializationError):
        packed(Message(b"", headers))


@pytest.mark.parametrize(("headers", "ttl"), [({}, None), ({"ttl": "1.5"}, 1.5), ({"ttl": "-2"}, -2.0)])
def test_the_ttl_is_seconds_if_there_is_one(headers, ttl):
    assert Message(headers=headers).ttl == ttl


@pytest.mark.parametrize("header", ["nan", "-inf", "", "soon", "1e999", "9" * 5000])
def test_a_ttl_that_is_no_number_of_seconds_is_refused(header):
    with pytest.raises(SerializationError, match="ttl"):
        _ = Message(headers={"ttl": header}).ttl


@pytest.mark.parametrize("header", ["", "often", "-1", "1.5", "²", "9" * 5000])
def test_deliveries_are_counted_and_nonsense_is_the_first(header):
    assert [Message().deliveries, Message().replace(deliveries=3).deliveries] == [1, 3]
    assert Message(headers={"deliveries": header}).deliveries == 1


def test_a_message_is_changed_by_making_another_one():
    message = Message(b"body", {"id": "1", "reply-to": "2", "x": "3"})

    changed = message.replace(reply_to=None, ttl=0.5, x="4", absent=None)

    assert changed == Message(b"body", {"id": "1", "ttl": "0.5", "x": "4"})
    assert message == Message(b"body", {"id": "1", "reply-to": "2", "x": "3"})
    assert [message.id, message.reply_to, Message().id, changed.reply_to] == ["1", "2", "", None]


def test_neither_body_nor_headers_are_printed():
    printed = repr(Message(b"password", {"id": "id-1", "token": "secret"}))
    assert "id-1" in printed
    assert "password" not in printed
    assert "secret" not in printed
