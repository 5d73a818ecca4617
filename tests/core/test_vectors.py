"""The test vectors of docs/protocol.md."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from rpc import SerializationError, errors
from rpc.core import known
from rpc.core.codecs import ACCEPTED, JSON, MSGPACK, TYPED, Codec
from rpc.core.events import decode_event
from rpc.core.log_batches import Heard, Sender, batch_body
from rpc.core.log_entries import LogEntry, encoded
from rpc.core.protocol import Call, decode_call, decode_reply, encode_call, encode_result
from rpc.transport import Message, packed, unpacked

VECTORS = Path(__file__).parent.parent / "vectors"
BODIES = json.loads((VECTORS / "bodies.json").read_text())
FRAMES = json.loads((VECTORS / "frames.json").read_text())
LOGS = json.loads((VECTORS / "logs.json").read_text())
TYPED_VALUES = json.loads((VECTORS / "typed.json").read_text())


class Size(enum.Enum):
    SMALL = "small"


@dataclass
class Order:
    item: str
    price: Decimal
    size: Size


PYTHON = {
    each.__name__: each for each in (Decimal, Order, Path, Size, UUID, date, datetime, time, timedelta)
} | {each.__name__: each for each in (timezone, ip_address, ip_interface, ip_network)}
"""What the values are written in."""


@pytest.mark.parametrize("vector", BODIES["calls"], ids=lambda vector: vector["json"])
def test_a_call_is_encoded_and_decoded_as_written(vector: dict[str, Any]) -> None:
    call = Call(vector["method"], vector["params"], vector["kwargs"])
    for codec, body in (JSON, vector["json"].encode()), (MSGPACK, bytes.fromhex(vector["msgpack"])):
        assert encode_call(call, vector["id"], codec) == body
        assert decode_call(body, codec) == Call(call.method, call.params, call.kwargs or {})


@pytest.mark.parametrize("codec", [JSON, MSGPACK, TYPED], ids=lambda codec: codec.name)
@pytest.mark.parametrize("kind", ["arrays", "objects"])
def test_a_body_is_nested_so_deeply_and_no_more(codec: Codec, kind: str) -> None:
    most, is_packed = BODIES["nested"]["most"], codec is MSGPACK
    begin, end = {
        ("arrays", False): (b"[", b"]"),
        ("objects", False): (b'{"a":', b"}"),
        ("arrays", True): (b"\x91", b""),
        ("objects", True): (b"\x81\xa1a", b""),
    }[kind, is_packed]
    scalar, empty = (b"\x01", b"\x90") if is_packed else (b"1", b"[]")
    beside = (b"\x92" + b"\x90", b"") if is_packed else (b"[[],", b"]")  # brackets that are no depth
    for depth, inner in (most, scalar), (most - 1, empty):
        codec.decode(begin * depth + inner + end * depth)
        codec.decode(beside[0] + begin * (depth - 1) + inner + end * (depth - 1) + beside[1])
        with pytest.raises(SerializationError, match=f"nested more deeply than {most}"):
            codec.decode(begin * (depth + 1) + inner + end * (depth + 1))
    wide = b"\xdc\x03\xe8" + b"\x90" * 1000 if is_packed else b"[" + b",".join([b"[]"] * 1000) + b"]"
    assert codec.decode(wide) == [[]] * 1000


@pytest.mark.parametrize("vector", BODIES["results"], ids=lambda vector: vector["json"])
def test_a_result_is_encoded_and_decoded_as_written(vector: dict[str, Any]) -> None:
    for codec, body in (JSON, vector["json"].encode()), (MSGPACK, bytes.fromhex(vector["msgpack"])):
        assert encode_result(vector["id"], vector["result"], codec) == body
        assert decode_reply(body, codec) == vector["result"]


@pytest.mark.parametrize("vector", BODIES["errors"], ids=lambda vector: vector["json"])
def test_an_error_is_raised_as_written(vector: dict[str, Any]) -> None:
    with pytest.raises(getattr(errors, vector["raises"])) as caught:
        decode_reply(vector["json"].encode(), JSON)
    assert vector["message"] in str(caught.value)


@pytest.mark.parametrize("vector", TYPED_VALUES["values"], ids=lambda vector: vector["json"])
def test_a_value_keeps_its_type_as_written(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_by_name", {"shop.Order": Order, "shop.Size": Size})
    monkeypatch.setattr(known, "_names", {Order: "shop.Order", Size: "shop.Size"})
    value = eval(vector["python"], dict(PYTHON))
    assert TYPED.encode(value) == vector["json"].encode()
    decoded = TYPED.decode(vector["json"].encode())
    assert (type(decoded), repr(decoded)) == (type(value), repr(value))


@pytest.mark.parametrize("body", TYPED_VALUES["not_values"])
def test_what_keeps_no_type_is_refused(body: str) -> None:
    with pytest.raises(errors.SerializationError):
        TYPED.decode(body.encode())


@pytest.mark.parametrize("vector", TYPED_VALUES["compressed"], ids=lambda vector: vector["encoding"])
def test_a_body_is_decompressed_as_written(vector: dict[str, Any]) -> None:
    message = Message(bytes.fromhex(vector["body"]), {"content-encoding": vector["encoding"]})
    assert ACCEPTED.value(message) == vector["value"]


@pytest.mark.parametrize("vector", FRAMES["frames"], ids=lambda vector: vector["frame"])
def test_a_frame_is_packed_and_unpacked_as_written(vector: dict[str, Any]) -> None:
    message, frame = Message(bytes.fromhex(vector["body"]), vector["headers"]), bytes.fromhex(vector["frame"])
    assert packed(message) == frame
    assert unpacked(frame) == message


@pytest.mark.parametrize("frame", FRAMES["not_frames"])
def test_what_is_no_frame_is_refused(frame: str) -> None:
    with pytest.raises(errors.SerializationError):
        unpacked(bytes.fromhex(frame))


@pytest.mark.parametrize("vector", LOGS, ids=lambda vector: vector["entries"][-1]["message"])
def test_log_records_are_encoded_and_decoded_as_written(vector: dict[str, Any]) -> None:
    sender, entries = (
        msgspec.convert(vector["sender"], Sender),
        msgspec.convert(vector["entries"], list[LogEntry]),
    )
    none = {"process": "", "pid": 0, "host": "", "service": "", "version": ""}
    records = [
        encoded(msgspec.structs.replace(each, **none)) for each in entries if each.logger != "rpc.logs"
    ]
    message = Message(vector["json"].encode(), vector["headers"])
    assert batch_body(vector["id"], sender, vector["first"], vector["dropped"], records) == message.body
    assert list(Heard().entries(decode_event(message, ACCEPTED))) == entries
