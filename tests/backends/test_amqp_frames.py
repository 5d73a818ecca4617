"""Whatever is read and written without pamqp is what pamqp reads and writes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from pamqp import body, frame, header
from pamqp.commands import Basic, Channel
from pamqp.heartbeat import Heartbeat

from rpc.backends.amqp import frames as ours
from rpc.backends.amqp.messages import can_be_answered, message_of, properties_of
from rpc.backends.amqp.wire import LARGEST_BODY, Broken, Unreadable, Wire, frames, published
from rpc.transport import Message

END = b"\xce"
CHANNELS = st.integers(0, 65535)
SHORT = st.text(max_size=20) | st.sampled_from(["é" * 127, "x" * 255])
TEXT = SHORT | st.sampled_from(["é" * 128, "x" * 256, "\ud800"])
NAMES = st.text(max_size=9) | st.sampled_from(["é" * 64, "é" * 65, "timestamp_in_ms"])
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(timezone.utc))
VALUES = st.recursive(
    TEXT
    | st.integers(-(2**63), 2**63)
    | st.sampled_from([2**32 - 1, 2**32, 2**63 - 1])
    | st.none()
    | st.booleans()
    | st.floats(width=32, allow_nan=False)
    | st.binary(max_size=5).map(bytearray)
    | st.decimals(-9999, 9999, places=2)
    | TIMES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
STAMPED = st.dictionaries(st.text(max_size=9), SHORT | st.integers(2**40, 2**41), max_size=4)
USUAL = {
    **dict.fromkeys(["content_type", "correlation_id", "reply_to", "expiration", "message_type"], SHORT),
    "headers": STAMPED,
    "delivery_mode": st.integers(1, 2),
}
ANY = {
    **dict.fromkeys(USUAL, TEXT),
    **dict.fromkeys(["content_encoding", "message_id", "user_id", "app_id"], TEXT),
    "headers": st.dictionaries(NAMES, VALUES, max_size=4),
    "delivery_mode": st.integers(1, 2),
    "priority": st.integers(0, 9),
    "timestamp": TIMES,
}
NONSENSE = st.sampled_from([0, 300, -1, b"", b"x", False, [], {}, {1: "x"}, {"x": "x", 1: "x"}, "x"])


@st.composite
def properties(draw: Callable[..., Any], wild: bool = False) -> Any:
    kinds = ANY if wild else USUAL
    made = Basic.Properties(**draw(st.fixed_dictionaries({}, optional=kinds)))
    if wild and draw(st.booleans()):
        setattr(made, draw(st.sampled_from(list(kinds))), draw(NONSENSE))
    return made


def outcome(action: Callable[[], Any]) -> Any:
    """What it returns, or the type of what it raises."""
    try:
        return action()
    except Exception as error:
        return type(error)


def fields(thing: Any) -> Any:
    """Of a method or of properties, in a form that can be compared."""
    if not hasattr(thing, "attributes"):
        return thing
    return type(thing), [(name, repr(getattr(thing, name, "unset"))) for name in thing.attributes()]


def put(kind: int, content: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHI", kind, channel, len(content)) + content + END


# To bytes.


@settings(deadline=None)
@given(channel=CHANNELS, size=st.integers(0, 2**64), content=properties() | properties(wild=True))
@example(1, 5, Basic.Properties(correlation_id="x" * 256))
@example(1, 5, Basic.Properties(headers={"é" * 65: "cut"}, reply_to=""))
@example(1, 5, Basic.Properties(headers={"b": "", "a": 2**32 - 1}))
@example(1, 5, Basic.Properties(headers={"b": "", "a": 2**32}, app_id="x"))
@example(1, 5, Basic.Properties(headers={"b": "", "a": 2**32, "": "x"}))
def test_properties_are_written_as_pamqp_writes_them(channel: int, size: int, content: Any) -> None:
    written = outcome(lambda: ours.content_frame(channel, size, content))
    assert written == outcome(lambda: frame.marshal(header.ContentHeader(0, size, content), channel))


@given(channel=CHANNELS, tag=st.integers(-(2**63), 2**63 - 1))
def test_acknowledgements_are_written_as_pamqp_writes_them(channel: int, tag: int) -> None:
    assert ours.ack(tag, channel) == frame.marshal(Basic.Ack(tag), channel)


@given(channel=CHANNELS, part=st.binary())
def test_bodies_are_written_as_pamqp_writes_them(channel: int, part: bytes) -> None:
    assert ours.body_frame(channel, part) == frame.marshal(body.ContentBody(part), channel)


# From bytes.


class Deliver(Basic.Deliver):
    def validate(self) -> None:
        """Any name."""


@st.composite
def deliveries(draw: Callable[..., Any]) -> Any:
    names = [draw(st.text(max_size=60)) for _ in range(3)]
    return Deliver(names[0], draw(st.integers(0, 2**63 - 1)), draw(st.booleans()), *names[1:])


TAGS = st.integers(0, 2**63 - 1)
METHODS = (
    deliveries()
    | st.builds(Basic.Ack, TAGS, st.booleans())
    | st.builds(Basic.Nack, TAGS, st.booleans(), st.booleans())
    | st.builds(Basic.Return, st.integers(0, 999), st.text(max_size=60), st.just(""), st.text(max_size=60))
    | st.just(Channel.CloseOk())
)
CONTENTS = (properties() | properties(wild=True)).filter(
    lambda content: isinstance(outcome(content.marshal), bytes)
)


@st.composite
def spoilt(draw: Callable[..., Any], whole: st.SearchStrategy[bytes]) -> bytes:
    """Bits flipped, bytes gone, bytes too many; or nothing of it."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if draw(st.booleans()) and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        else:
            data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=5))
    return bytes(data)


def read_by_pamqp(kind: int, content: bytes) -> Any:
    read: Any = frame.unmarshal(put(kind, content))[2]
    return fields(read) if kind == ours.METHOD else (read.body_size, fields(read.properties))


def read_by_us(kind: int, content: bytes) -> Any:
    data = b"before" + put(kind, content) + b"after"
    end = 13 + len(content)
    if kind == ours.METHOD:
        return fields(ours.method_of(data, 13, end))
    size, properties = ours.content_of(data, 13, end)
    return size, fields(properties)


@settings(deadline=None)
@given(content=spoilt(METHODS.map(lambda method: frame.marshal(method, 1)[7:-1])))
@example(content=b"\0<\0<" + b"\0" * 12)
@example(content=b"\0<\0<" + b"\0" * 11)
@example(content=b"\0<\0<\1\xff" + b"\0" * 11)
@example(content=b"\0<\0P" + b"\xff" * 9)
@example(content=b"\0<\0P" + b"\0" * 10)
def test_methods_are_read_as_pamqp_reads_them(content: bytes) -> None:
    assert outcome(lambda: read_by_us(1, content)) == outcome(lambda: read_by_pamqp(1, content))


FIELDS_FOLLOW = b"\0<" + b"\0" * 10 + b"\x20\0"


@settings(deadline=None)
@given(
    content=spoilt(CONTENTS.map(lambda content: frame.marshal(header.ContentHeader(0, 5, content), 1)[7:-1]))
)
@example(content=FIELDS_FOLLOW + b"\0\0\0\7\1xI\0\0\0\1")
@example(content=FIELDS_FOLLOW + b"\0\0\0\x08\1xS\0\0\0\1\xff")
@example(content=FIELDS_FOLLOW + b"\0\0\0\x08\1xS\0\0\0\2x")
@example(content=FIELDS_FOLLOW + b"\0\0\0\x0b\1xl" + b"\xff" * 8)
@example(content=FIELDS_FOLLOW + b"\0\0\0\x0b\1xT" + b"\xff" * 8)
@example(content=FIELDS_FOLLOW + b"\xff\xff\xff\xff")
def test_properties_are_read_as_pamqp_reads_them(content: bytes) -> None:
    assume(not content[13:14] or content[13] & 1 == 0)  # else there are more flags
    assert outcome(lambda: read_by_us(2, content)) == outcome(lambda: read_by_pamqp(2, content))


@pytest.mark.parametrize("more", [b"\0\0", b"\0\1\0\0", b"\0\1", b""])
def test_more_flags_than_there_are_properties_are_refused(more: bytes) -> None:
    with pytest.raises(ValueError, match="flags"):
        read_by_us(2, b"\0<" + b"\0" * 10 + b"\0\1" + more)


# Whole messages.


@st.composite
def messages(draw: Callable[..., Any]) -> bytes:
    channel, method = draw(st.integers(1, 2)), draw(METHODS)
    data = frame.marshal(method, channel)
    if isinstance(method, Basic.Deliver | Basic.Return):
        payload, room = draw(st.binary(max_size=300)), draw(st.integers(1, 99))
        data += frame.marshal(header.ContentHeader(0, len(payload), draw(CONTENTS)), channel)
        for at in range(0, len(payload), room):
            data += frame.marshal(body.ContentBody(payload[at : at + room]), channel)
    return data


def arrivals(*pieces: bytes) -> list[Any]:
    wire = Wire()
    return [
        (each.channel, fields(each.method), fields(each.properties), each.body)
        for piece in pieces
        for each in wire.feed(piece)
    ]


def arrivals_by_pamqp(data: bytes) -> list[Any]:
    """Of a message after the other."""
    found: list[Any] = []
    while data:
        used, channel, read = frame.unmarshal(data)
        data = data[used:]
        if isinstance(read, header.ContentHeader):
            found[-1][2] = fields(read.properties)
        elif isinstance(read, body.ContentBody):
            found[-1][3] += read.value
        elif not isinstance(read, Heartbeat):
            found.append([channel, fields(read), None, b""])
    return [tuple(each) for each in found]


HEARTBEATS = st.just(Heartbeat.marshal())


@settings(deadline=None)
@given(data=st.lists(messages() | HEARTBEATS, max_size=4).map(b"".join), cuts=st.lists(st.integers(0, 999)))
def test_messages_come_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(data)]
    pieces = [data[at:end] for at, end in zip([0, *ends], ends, strict=False)]
    assert arrivals(*pieces) == arrivals(data) == arrivals_by_pamqp(data)


@settings(deadline=None)
@given(data=spoilt(st.binary(max_size=50) | st.lists(messages(), max_size=3).map(b"".join)))
@example(data=put(3, b"x"))
@example(data=put(2, FIELDS_FOLLOW + b"\0\0\0\0"))
@example(data=put(8, b"x"))
@example(data=put(9, b"x"))
def test_whatever_comes_is_understood_or_refused(data: bytes) -> None:
    try:
        understood = arrivals(data)
    except Broken:
        return
    for _, method, content, payload in understood:
        assert content or not (payload or method[0] in (Basic.Deliver, Basic.Return))


DELIVER = frames(1, Basic.Deliver("c", 1, False, "", "k"))
IN_TABLES = b"F".join(struct.pack(">IB", 6 * left + 5, 0) for left in range(20_000, -1, -1)) + b"V"


@pytest.mark.parametrize(
    "data",
    [
        DELIVER[:-1] + b"x",
        DELIVER + put(3, b"x"),
        DELIVER + frame.marshal(header.ContentHeader(0, 1, Basic.Properties()), 1) + put(3, b"xy"),
        DELIVER + put(2, b""),
        put(1, b""),
        put(8, b"x"),
        b"AMQP\0\0\x09\1",
        struct.pack(">BHIB", 1, 1, 2**17 + 1, 0),
    ],
    ids=[
        "no end",
        "no header",
        "too long",
        "empty header",
        "empty method",
        "heartbeat",
        "version",
        "large",
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(Broken):
        arrivals(data)


@pytest.mark.parametrize("header", [
    FIELDS_FOLLOW + IN_TABLES, b"\0<" + b"\0" * 9 + b"\5" + b"\0\x40" + b"\0\xff" * 4,
], ids=["deep", "year"])  # fmt: skip
def test_a_message_whose_properties_make_no_sense_is_empty(header: bytes) -> None:
    header = header[:4] + struct.pack(">Q", 5) + header[12:]
    found = Wire().feed(DELIVER + put(2, header) + put(3, b"hello"))
    assert [(type(each.properties), each.body) for each in found] == [(Unreadable, b"")]


ANNOUNCED = [LARGEST_BODY + 1, 2**29 + 1, 2**60, 2**64 - 1]


@pytest.mark.parametrize("size", ANNOUNCED)
def test_a_body_that_is_announced_too_large_is_not_kept_and_not_waited_for(size: int) -> None:
    wire = Wire()
    header = put(2, b"\0<\0\0" + struct.pack(">QH", size, 0))
    if size > 2**29:
        with pytest.raises(Broken, match="no bodies of"):
            wire.feed(DELIVER + header)
        return
    part = put(3, b"x" * 131_000)
    assert wire.feed(DELIVER + header) == []
    for _ in range(size // 131_000):
        assert wire.feed(part) == []
    (arrival,) = wire.feed(put(3, b"x" * (size % 131_000)))
    assert (type(arrival.properties), arrival.body) == (Unreadable, b"")


@pytest.mark.parametrize("length", [2**17 + 1, 2**32 - 1])
def test_a_frame_that_is_announced_too_large_is_not_waited_for(length: int) -> None:
    with pytest.raises(Broken):
        Wire().feed(struct.pack(">BHIB", 3, 1, length, 0))


def test_properties_that_are_too_large_are_not_looked_at() -> None:
    field = b"\1x" + b"S" + struct.pack(">I", 1) + b"y"
    many = field * 9000
    header = put(2, FIELDS_FOLLOW + struct.pack(">I", len(many)) + many)
    (arrival,) = Wire().feed(DELIVER + header)
    assert type(arrival.properties) is Unreadable


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("rpc:reply:x", True),
        ("theirs", True),
        ("amq.rabbitmq.reply-to.g1h2AA1yZXBseUA5MjQ4ODg0AABDnwAAAAVrCp2F.wEtIo+p0hEhC4kVU1pU2PQ==", True),
        ("amq.rabbitmq.reply-to.!!!.x", False),
        ("amq.rabbitmq.reply-to.aGVsbG8=.x", False),
        ("amq.rabbitmq.reply-to..", False),
        ("amq.rabbitmq.reply-to.g1g=.eA==", False),
        ("amq.rabbitmq.reply-to.g1h3.eA==", False),
        ("amq.rabbitmq.reply-to.g1h3/wA=.eA==", False),
        ("amq.rabbitmq.reply-to.a.b.c", False),
    ],
)
def test_what_is_no_name_that_rabbitmq_gave_is_not_answered(name: str, can: bool) -> None:
    assert can_be_answered(name) is can


def test_the_frames_of_a_call_need_no_pamqp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would do, but take several times as long."""
    message = Message(b"body", {"id": "1", "content-type": "application/json", "name": "add", "ttl": "5"})
    content = properties_of(message.replace(traceparent="00-1"), "amq.rabbitmq.reply-to")
    answer = DELIVER + frames(1, Basic.Ack(1), Basic.Nack(1))
    published(1, "key", content, b"body", 4096)
    monkeypatch.setattr(frame, "marshal", None)
    monkeypatch.setattr(frame, "unmarshal", None)
    publishing = published(1, "key", content, b"body", 4096)
    written = publishing[publishing.index(END) + 1 :]
    came = Wire().feed(answer[: len(DELIVER)] + written + answer[len(DELIVER) :])
    assert [type(each.method) for each in came] == [Basic.Deliver, Basic.Ack, Basic.Nack]
    assert message_of(came[0].properties, came[0].body).headers["traceparent"] == "00-1"
