"""The test vectors of docs/protocol.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rpc import errors
from rpc.core.codecs import JSON, MSGPACK
from rpc.core.protocol import Call, decode_call, decode_reply, encode_call, encode_result
from rpc.transport import Message, packed, unpacked

VECTORS = Path(__file__).parent.parent / "vectors"
BODIES = json.loads((VECTORS / "bodies.json").read_text())
FRAMES = json.loads((VECTORS / "frames.json").read_text())


@pytest.mark.parametrize("vector", BODIES["calls"], ids=lambda vector: vector["json"])
def test_a_call_is_encoded_and_decoded_as_written(vector: dict[str, Any]) -> None:
    call = Call(vector["method"], vector["params"], vector["kwargs"])
    for codec, body in (JSON, vector["json"].encode()), (MSGPACK, bytes.fromhex(vector["msgpack"])):
        assert encode_call(call, vector["id"], codec) == body
        assert decode_call(body, codec) == Call(call.method, call.params, call.kwargs or {})


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


@pytest.mark.parametrize("vector", FRAMES["frames"], ids=lambda vector: vector["frame"])
def test_a_frame_is_packed_and_unpacked_as_written(vector: dict[str, Any]) -> None:
    message, frame = Message(bytes.fromhex(vector["body"]), vector["headers"]), bytes.fromhex(vector["frame"])
    assert packed(message) == frame
    assert unpacked(frame) == message


@pytest.mark.parametrize("frame", FRAMES["not_frames"])
def test_what_is_no_frame_is_refused(frame: str) -> None:
    with pytest.raises(errors.SerializationError):
        unpacked(bytes.fromhex(frame))
