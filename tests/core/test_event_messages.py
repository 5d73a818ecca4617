"""Events on the wire."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rpc import Event, SerializationError
from rpc.core.bodies import Writing
from rpc.core.codecs import ACCEPTED, JSON, MSGPACK, TYPED, Accepted
from rpc.core.events import NOTHING, decode_event, event_message, header_parts
from rpc.core.filters import Filter
from rpc.transport import Message, packed, unpacked

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "events.json").read_text())


@dataclass
class Order:
    number: int


def travelled(data: Any, codec: Any = JSON, most: int | None = None) -> Any:
    message = event_message("id", "order.created", data, {}, Writing(codec, most))
    event = decode_event(unpacked(packed(message)), ACCEPTED)
    assert (event.topic, event.id) == ("order.created", "id")
    return event.data


@pytest.mark.parametrize("codec", [JSON, MSGPACK, TYPED], ids=lambda codec: codec.name)
@pytest.mark.parametrize(
    "value",
    [{"a": 1}, {}, [1, "b"], [], "text", "", 17, 1.5, True, None, b"\x00\xff", b""],
)
def test_any_value_arrives_as_it_is(codec: Any, value: Any) -> None:
    arrived = travelled(value, codec)
    assert (arrived, type(arrived)) == (value, type(value))


@pytest.mark.parametrize(
    ("data", "arrives"),
    [
        (NOTHING, {}),
        (Order(1), {"number": 1}),
        ((1, 2), [1, 2]),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
    ],
)
def test_what_has_a_form_arrives_in_it(data: Any, arrives: Any) -> None:
    for codec in JSON, MSGPACK, TYPED:
        arrived = travelled(data, codec)
        assert (arrived, type(arrived)) == (arrives, type(arrives))


def test_a_codec_that_keeps_types_keeps_those_of_values() -> None:
    assert travelled(Decimal("1.5"), TYPED) == Decimal("1.5")


def test_what_cannot_travel_is_an_error_that_says_where() -> None:
    with pytest.raises(SerializationError, match=r"^data\.a\[0\]: .*object"):
        travelled({"a": [object()]})
    with pytest.raises(SerializationError, match="object"):
        travelled(object())
    with pytest.raises(SerializationError, match="the event has 5 bytes: more than 4"):
        travelled(b"12345", most=4)


def test_a_header_has_its_type_again_and_the_dict_is_left_alone() -> None:
    headers = {"text": "1", "n": 1, "f": 1.0, "yes": True, "x-mine": "2", "größe": "ü", "big": -(2**63)}
    before = dict(headers)
    texts, others = header_parts(headers)
    message = event_message("id", "order", {}, {**texts, **others}, Writing(JSON))
    found = decode_event(unpacked(packed(message)), ACCEPTED).headers
    assert (found, {name: type(each) for name, each in found.items()}) == (
        before,
        {name: type(each) for name, each in before.items()},
    )
    assert headers == before


@pytest.mark.parametrize(
    "value",
    [None, [], b"x", float("nan"), 2**63, pytest.param(object(), id="object")],
)
def test_what_is_no_header_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="header 'a' is a str"):
        header_parts({"a": value})


@pytest.mark.parametrize("typed", ["", "[]", '{"a":null}', '{"a":[]}', "{", '{"a":{}}', "[" * 5000])
def test_headers_that_cannot_be_read_are_an_error(typed: str) -> None:
    message = Message(b'{"method":"order"}', {"typed-headers": typed})
    with pytest.raises(SerializationError, match="typed-headers"):
        decode_event(message, ACCEPTED)


def test_bytes_have_the_limit_of_all_bodies() -> None:
    message = event_message("id", "order", b"12345", {}, Writing(JSON))
    with pytest.raises(SerializationError, match="more than 4"):
        decode_event(message, Accepted(most=4))


def test_bytes_are_for_events_alone() -> None:
    message = event_message("id", "order", b"12345", {}, Writing(JSON))
    with pytest.raises(SerializationError, match="'application/octet-stream' is not accepted here"):
        ACCEPTED.opened(message)


@pytest.mark.parametrize("vector", VECTORS["events"], ids=str)
def test_an_event_is_encoded_and_decoded_as_written(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"]) if "bytes" in vector else vector["data"]
    written = vector["message"]
    body = bytes.fromhex(written["body_hex"]) if "body_hex" in written else written["body"].encode()
    texts, others = header_parts(vector["headers"])
    message = event_message("4f", vector["topic"], data, {**texts, **others}, Writing(JSON))
    assert (message.body, message.headers) == (body, written["headers"])
    assert decode_event(message, ACCEPTED) == Event(vector["topic"], data, vector["headers"], "4f")


@pytest.mark.parametrize("vector", VECTORS["filters"], ids=str)
def test_a_filter_has_the_digest_that_is_written(vector: dict[str, Any]) -> None:
    assert Filter.of(vector["headers"], vector["match"]).digest == vector["digest"]
