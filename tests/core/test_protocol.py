"""JSON-RPC objects in the bodies of messages: what is written, and what anybody may have written."""

from __future__ import annotations

import enum
from contextlib import suppress
from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc import RemoteError, RpcError, SerializationError, errors
from rpc.core.codecs import JSON, MSGPACK, SAFE
from rpc.core.protocol import (
    INVALID_REQUEST,
    PARSE_ERROR,
    Call,
    decode_call,
    decode_items,
    decode_reply,
    encode_call,
    encode_error,
    encode_result,
    remote_error,
)

with_both_codecs = pytest.mark.parametrize("codec", SAFE, ids=lambda codec: codec.name)
MEMBERS = ["method", "params", "kwargs", "result", "error", "code", "message", "data", "type", "traceback"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-40_000, 2**63) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS) | st.text(), inner),
)
BODIES = st.binary() | ANYTHING.map(JSON.encode) | ANYTHING.map(MSGPACK.encode)
ANY_TEXT = st.text(st.characters(exclude_categories=()))
CODED = [kind for kind in vars(errors).values() if isinstance(kind, type) and "code" in vars(kind)]
Red = enum.Enum("Red", "RED")


@with_both_codecs
@settings(deadline=None)
@given(body=BODIES)
def test_any_bytes_are_a_call_or_a_serialization_error(codec, body):
    try:
        call = decode_call(body, codec)
    except SerializationError:
        return
    assert isinstance(call.method, str)
    assert isinstance(call.params, dict | list | None)
    assert isinstance(call.kwargs, dict)


@with_both_codecs
@settings(deadline=None)
@given(body=BODIES)
@example(body=JSON.encode({"error": {"code": -32602, "message": "no", "data": 5}}))
@example(body=JSON.encode({"error": {"code": 10**40, "message": "", "data": {"type": 5, "traceback": []}}}))
@example(body=MSGPACK.encode({"error": {"code": True, "message": "", "data": {1: 2}}, b"": 1}))
def test_any_bytes_are_a_result_or_an_error_of_ours(codec, body):
    with suppress(RpcError):
        decode_reply(body, codec)


@pytest.mark.parametrize("body", [
    b"[]", b"null", b'"text"', b"{}", b'{"method": 1}', b'{"method": ""}', b'{"method": ["a"]}',
    b'{"method": "a", "params": 1}', b'{"method": "a", "params": "text"}', b'{"method": "a", "params": true}',
    b'{"method": "a", "kwargs": {"b": 1}}', b'{"method": "a", "params": {}, "kwargs": {"b": 1}}',
    b'{"method": "a", "params": [], "kwargs": [1]}', b'{"method": "a", "params": [], "kwargs": 1}',
])  # fmt: skip
def test_what_has_not_the_shape_of_a_call_is_told_from_what_cannot_be_read(body):
    for refused, code in (body, INVALID_REQUEST), (body[1:], PARSE_ERROR):
        with pytest.raises(SerializationError) as refusal:
            decode_call(refused, JSON)
        assert refusal.value.code == code


@with_both_codecs
@pytest.mark.parametrize(("data", "params"), [
    (None, None), ({}, {}), ([1], [1]), ((1, 2), [1, 2]), ({5}, [5]), (SimpleNamespace(a=1), {"a": 1}),
], ids=repr)  # fmt: skip
def test_data_that_is_encoded_as_an_array_or_an_object_arrives(codec, data, params):
    assert decode_call(encode_call(Call("add", data, {}), "7", codec), codec) == Call("add", params, {})


@with_both_codecs
@pytest.mark.parametrize(
    "data",
    ["text", b"bytes", bytearray(b"bytes"), 1, 1.5, True, Decimal(1), UUID(int=1), date(2030, 1, 1), Red.RED],
    ids=lambda data: type(data).__name__,
)
def test_data_that_is_neither_is_refused_before_it_is_sent(codec, data):
    with pytest.raises(SerializationError, match=type(data).__name__):
        encode_call(Call("add", data), "7", codec)


@with_both_codecs
@pytest.mark.parametrize("result", [None, 0, [], {"error": None}])
def test_a_result_arrives_as_it_was_returned(codec, result):
    body = encode_result("7", result, codec)
    assert codec.decode(body) == {"jsonrpc": "2.0", "id": "7", "result": result}
    assert decode_reply(body, codec) == result


@pytest.mark.parametrize("body", [b"{}", b"[]", b"1", b'{"error": {"code": 1}}', b'{"error": "text"}'])
def test_what_has_neither_result_nor_error_is_no_reply(body):
    with pytest.raises(SerializationError, match="not a reply"):
        decode_reply(body, JSON)


@with_both_codecs
def test_an_error_is_no_items(codec):
    """Who takes items is told so: a handler must not wait for more of an upload."""
    with pytest.raises(SerializationError, match="not items, but an error: InvalidParams"):
        decode_items(encode_error("7", errors.InvalidParams("why"), codec), codec)


@with_both_codecs
@pytest.mark.parametrize("kind", [kind for kind in CODED if kind not in (RpcError, RemoteError)])
def test_an_error_of_ours_arrives_as_it_was_raised(codec, kind):
    with pytest.raises(kind, match=r"^why$") as raised:
        decode_reply(encode_error("7", kind("why"), codec), codec)
    assert type(raised.value) is kind


@pytest.mark.parametrize(("code", "kind"), [
    (PARSE_ERROR, SerializationError), (INVALID_REQUEST, SerializationError), (42, RemoteError),
])  # fmt: skip
def test_an_error_of_somebody_else_is_one_of_ours(code, kind):
    with pytest.raises(kind, match="why"):
        decode_reply(JSON.encode({"error": {"code": code, "message": "why"}}), JSON)


@with_both_codecs
@settings(deadline=None)
@given(kind=ANY_TEXT, message=ANY_TEXT, traceback=st.none() | ANY_TEXT, data=ANYTHING)
@example(kind="KeyError", message="'a'", traceback="line 1", data={"a": [1]})
def test_a_remote_error_arrives_with_all_it_has(codec, kind, message, traceback, data):
    with pytest.raises(RemoteError) as raised:
        decode_reply(encode_error("7", RemoteError(kind, message, data, traceback), codec), codec)

    sent = [text and text.encode("utf-8", "replace").decode() for text in (kind, message, traceback)]
    assert [raised.value.type, raised.value.message, raised.value.traceback] == sent
    assert codec.encode(raised.value.data) == codec.encode(data)


class Unreadable:
    def __getattribute__(self, name):
        raise RuntimeError("not now")


@with_both_codecs
@pytest.mark.parametrize(
    "make", [lambda: print, lambda: {print}, Unreadable], ids=["function", "set", "object"]
)
def test_data_of_an_error_that_cannot_be_encoded_is_left_out(codec, make):
    body = encode_error("7", RemoteError("KeyError", "why", make()), codec)
    with pytest.raises(RemoteError, match=r"^KeyError: why$") as raised:
        decode_reply(body, codec)
    assert raised.value.data is None


@with_both_codecs
def test_data_of_an_error_may_be_of_any_depth(codec):
    data = []
    for _ in range(1100):
        data = [data]
        assert encode_error("7", RemoteError("KeyError", "why", data), codec)


class Silent(BaseException):
    def __str__(self):
        raise SystemExit("while printing")


@pytest.mark.parametrize(("error", "message"), [
    (ValueError("why"), "why"), (ValueError(), ""), (ValueError("\ud800"), "?"),
    (Silent(), "(an error whose text cannot be had)"),
], ids=["text", "no text", "surrogate", "raises"])  # fmt: skip
def test_an_exception_becomes_its_type_and_text(error, message):
    remote = remote_error(error)
    assert (remote.type, remote.message) == (type(error).__name__, message)
