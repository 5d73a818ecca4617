"""The caller's end: what is asked, how long it waits, and what a reply means."""

from __future__ import annotations

from uuid import uuid4

import pytest

from rpc import Response, RpcTimeout, SerializationError, WorkerLost
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON, MSGPACK
from rpc.core.conversation import Conversation, call_message
from rpc.core.protocol import decode_call, encode_result
from rpc.transport import LOST, Message

with_both_codecs = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])


def asked(name="add", data=None, codec=JSON, *, ttl=None, replies=True, most=None):
    return call_message(uuid4().hex, name, data, Writing(codec, most), ttl=ttl, replies=replies)


def waiting(timeout=2.0):
    return Conversation(asked(), "add", timeout, 100.0)


@with_both_codecs
def test_a_call_says_what_it_wants_and_how_to_read_it(codec):
    message = asked("add", {"a": 1}, codec, ttl=1.5)

    assert decode_call(message.body, codec).params == {"a": 1}
    headers = {"content-type": codec.content_type, "name": "add", "ttl": "1.500"}
    assert message.headers == {"id": message.id, "reply-to": message.id, **headers}


def test_a_call_that_nobody_waits_for_has_an_id_of_its_own_and_no_way_back():
    messages = [asked(replies=False) for _ in range(100)]
    assert len({message.id for message in messages}) == 100
    assert {(message.reply_to, message.ttl) for message in messages} == {(None, None)}


@pytest.mark.parametrize("name", ["", "../add", "a b", "add\n", "1", "a" * 129])
def test_a_name_that_cannot_be_mapped_is_not_sent(name):
    with pytest.raises(ValueError, match="is no job name"):
        asked(name)


def test_a_request_may_be_that_large_and_no_larger():
    size = len(asked(data=["x"]).body)
    assert asked(data=["x"], most=size)
    with pytest.raises(SerializationError, match=f"{size + 1} bytes: more than {size}"):
        asked(data=["xx"], most=size)


@pytest.mark.parametrize(
    ("timeout", "now", "left"), [(2.0, 100.0, 2.0), (2.0, 101.5, 0.5), (None, 1e9, None)]
)
def test_time_runs_out_from_the_moment_of_asking(timeout, now, left):
    assert waiting(timeout).remaining(now) == left


@pytest.mark.parametrize("now", [102.0, 500.0])
def test_a_wait_ends_at_its_timeout(now):
    with pytest.raises(RpcTimeout):
        waiting().remaining(now)
    assert str(waiting().timed_out(now)) == "'add' was not answered within 2 s"
    assert str(waiting(0.25).timed_out(now, "nobody is there")).endswith("within 0.25 s: nobody is there")


@pytest.mark.parametrize("timeout", [2.0, None])
def test_a_wait_that_ends_before_its_time_does_not_say_that_this_was_up(timeout):
    assert str(waiting(timeout).timed_out(100.5)) == "'add' was not answered"
    assert str(waiting(timeout).timed_out(100.5, "why")) == "'add' was not answered: why"


@with_both_codecs
def test_a_reply_becomes_the_response_to_its_request(codec):
    conversation = waiting()
    reply = Message(encode_result("1", [5], codec), {"id": "1", "content-type": codec.content_type})
    assert conversation.feed(reply) == Response([5], conversation.request.id, conversation.request.reply_to)


@pytest.mark.parametrize(("body", "headers", "error"), [
    (b"", {LOST: "killed by signal 9"}, WorkerLost), (b"garbage", {}, SerializationError),
    (encode_result("1", 5, MSGPACK), {}, SerializationError),
    (b"{}", {"content-type": "application/x-python-pickle"}, SerializationError),
], ids=["worker lost", "garbage", "another codec", "unknown codec"])  # fmt: skip
def test_a_reply_that_brings_no_result_is_an_error(body, headers, error):
    with pytest.raises(error, match=headers.get(LOST)):
        waiting().feed(Message(body, headers))
