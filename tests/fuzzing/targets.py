"""What is fuzzed: functions of any bytes, which raise nothing. What a decoder says with an error of ours, or
with that of its protocol, is what it is for; anything else is a find."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import redis

from rpc.backends.amqp.messages import age_of, can_be_answered, message_of
from rpc.backends.amqp.wire import Arrival, Broken, Unreadable, Wire
from rpc.backends.http.wire import Answers, numbered_of
from rpc.backends.redis.aio_connection import AioConnection
from rpc.backends.redis.keys import Record
from rpc.backends.zeromq import wire as zeromq
from rpc.core import jsonrpc
from rpc.core.codecs import ACCEPTED
from rpc.core.conversation import decode_progress
from rpc.core.dispatch import Dispatcher
from rpc.core.events import decode_event
from rpc.core.jobs import jobs_from
from rpc.core.log_batches import Heard
from rpc.core.protocol import decode_call, decode_items, decode_reply
from rpc.core.registry import read_sign
from rpc.core.signing import Keys, SecretKey, check_message, check_reply, signed_message
from rpc.core.streams import (
    CREDIT,
    SEQ,
    SIZE,
    Receiving,
    Sending,
    credit_in,
    number_in,
    to_throw,
)
from rpc.errors import RpcError, SerializationError, StreamBroken, Unauthorized
from rpc.signing.backend import Signing
from rpc.signing.serving import Verified
from rpc.signing.signer import Signer
from rpc.transport import Message, packed, queue, unpacked

VECTORS = Path(__file__).parents[1] / "vectors"
KEYS = Keys({"k": SecretKey(b"a secret of thirty-two characters")})
NOW = 1_900_000_000.0
TO = queue("default")


def frame(data: bytes) -> None:
    """A frame, and what its headers say of it."""
    try:
        message = unpacked(data)
    except SerializationError:
        return
    assert unpacked(packed(message)) == message
    for name in ("ttl", "keep", "deliveries", "attempt"):
        with suppress(SerializationError):
            getattr(message, name)


def message(data: bytes) -> None:
    """A frame whose body is read as all that it may be."""
    try:
        read = unpacked(data)
        body, codec = ACCEPTED.opened(read)
    except SerializationError:
        return
    for decode in (decode_call, decode_items, to_throw):
        with suppress(SerializationError):
            decode(body, codec)
    with suppress(RpcError):  # the one that it carries
        decode_reply(body, codec)
    with suppress(RpcError):
        decode_progress(read)
    with suppress(RpcError):
        event = decode_event(read, ACCEPTED)
        with suppress(SerializationError):
            read_sign(event.data)
        list(Heard().entries(event))


class Delivery:
    """What a server hands over; keeps its last reply."""

    caller, cancelled, on_cancel, error = "", False, None, None

    def __init__(self, message: Message) -> None:
        self.message, self.to, self.ends = message, TO, 0

    def reply(self, message: Message) -> bool:
        packed(message)
        return True

    def finish(self, last: Message | None) -> None:
        self.ends += 1
        if last is not None:
            packed(last)

    def bury(self, why: str, last: Message | None) -> None:
        self.finish(last)

    def postpone(self, seconds: float, message: Message) -> None:
        assert seconds >= 0
        self.finish(message)

    def forbid_redelivery(self) -> None:
        """Nobody comes again."""


_dispatcher = Dispatcher(
    jobs_from({"add": lambda a, b=0: a, "echo": lambda value: value}),
    clock=time.monotonic,
    dice=random.random,
)


def dispatch(data: bytes) -> None:
    """A message that a worker has got: it ends once."""
    try:
        delivery = Delivery(unpacked(data))
    except SerializationError:
        return
    _dispatcher(delivery)  # type: ignore[arg-type]
    assert delivery.ends == 1, delivery.ends


def credit(data: bytes) -> None:
    """What the ends of a stream tell of their items."""
    try:
        read = unpacked(data)
    except SerializationError:
        return
    sending, receiving = Sending(1, 1000), Receiving(10, 1000)
    with suppress(SerializationError):
        sending.grant(*credit_in(read))
    sending.add(b"x" * 10)
    while sending.is_due:
        sending.taken(sending.batch())
    with suppress(SerializationError, StreamBroken):
        receiving.feed(number_in(read, SEQ), number_in(read, SIZE, 1), len(read.body))
        receiving.expect(number_in(read, SEQ))
        receiving.end(number_in(read, CREDIT, 0))
    told = Message(b"", receiving.credit())
    assert credit_in(told) >= (0, 0)


def json_rpc(data: bytes) -> None:
    """What others ask in JSON-RPC 2.0: what is refused is a response, what is asked a call."""
    asked, _ = jsonrpc.requests(data)
    for each in asked:
        if isinstance(each, jsonrpc.Asked):
            with suppress(SerializationError):
                decode_call(each.body("4f"), ACCEPTED.codec(None))
        else:
            json.loads(each.response)
    json.loads(jsonrpc.response(Message(data, {}), b"1"))


_GOOD = signed_message(KEYS, TO, Message(b"{}", {"id": "4f", "name": "add", "ttl": "30"}), NOW)


def signature(data: bytes) -> None:
    """What came for a good message: nothing but that message is verified, and none is handled that is not."""
    with suppress(SerializationError):
        read = unpacked(data)
        _forged(read)
    with suppress(UnicodeDecodeError):
        _forged(Message(_GOOD.body, {**_GOOD.headers, "signature": data.decode()}))


def _forged(read: Message) -> None:
    handled: list[Any] = []
    verified = Verified(Signer(Signing(KEYS, clock=lambda: NOW)), frozenset(), handled.append)
    verified(Delivery(read))  # type: ignore[arg-type]
    good = {name: value for name, value in _GOOD.headers.items() if name not in ("ttl", "signature")}
    here = {name: read.headers.get(name) for name in good}
    assert not handled or (read.body == _GOOD.body and here == good), read.headers
    for check in (
        lambda: check_message(KEYS, TO, read, NOW, 300.0),
        lambda: check_reply(KEYS, ("request", "4f", ""), read),
    ):
        with suppress(Unauthorized):
            check()


class _Loop:
    """What an AioConnection needs of an event loop."""

    def time(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class _Socket:
    """From which come these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def recv(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def resp(data: bytes) -> None:
    """Answers of Redis, in pieces: each is told, or the connection is given up."""
    answers: list[Any] = []
    lost: list[Exception] = []
    middle = len(data) // 2
    pieces = [piece for piece in (data[:middle], data[middle:]) if piece]
    connection: Any = object.__new__(AioConnection)
    running, asyncio.get_running_loop = asyncio.get_running_loop, _Loop  # type: ignore[assignment]
    try:
        socket = SimpleNamespace(_sock=_Socket(pieces), disconnect=lambda *_: None)
        connection.__init__(socket, {}, 0.0, lost.append)
    finally:
        asyncio.get_running_loop = running
    connection._expected.extend([answers.append] * 8)
    while not lost:
        connection._in_step(connection._read)
    assert len(lost) == 1
    assert isinstance(lost[0], redis.ConnectionError)


def record(data: bytes) -> None:
    """What lies in a list of Redis."""
    with suppress(SerializationError):
        found = Record.unpacked(data)
        assert Record.unpacked(found.packed()) == found


def amqp(data: bytes) -> None:
    """What RabbitMQ says: the same in one piece and in two, and each message that came can be read."""
    whole, halves = _arrivals([data]), _arrivals([data[: len(data) // 2], data[len(data) // 2 :]])
    assert [*map(_shown, whole)] == [*map(_shown, halves)]
    for arrival in whole:
        if arrival.properties is not None and not isinstance(arrival.properties, Unreadable):
            read = message_of(arrival.properties, arrival.body)
            age_of(arrival.properties)
            can_be_answered(str(arrival.properties.reply_to or ""))
            with suppress(SerializationError):
                packed(read)


def _arrivals(pieces: list[bytes]) -> list[Arrival]:
    """What came before the first nonsense."""
    wire, found = Wire(), list[Arrival]()
    with suppress(Broken):
        for piece in pieces:
            found += wire.feed(piece)
        return found
    return []


def _shown(arrival: Arrival) -> Any:
    return arrival.channel, dict(arrival.method), dict(arrival.properties or {}), arrival.body


def http(data: bytes) -> None:
    """An answer of HTTP with frames in it, and a message on a WebSocket."""
    with suppress(SerializationError):
        numbered_of(data)
    with suppress(SerializationError):
        answers = Answers()
        answers.feed(data)
        answers.frames()


def zmq(data: bytes) -> None:
    """What comes in a session of ZeroMQ."""
    for decode in (zeromq.message_in, zeromq.last_in, zeromq.number_in):
        with suppress(SerializationError):
            decode(data)


def _frames() -> Iterator[bytes]:
    vectors = json.loads((VECTORS / "frames.json").read_text())
    yield from (bytes.fromhex(each["frame"]) for each in vectors["frames"])
    yield from map(bytes.fromhex, vectors["not_frames"])
    bodies = json.loads((VECTORS / "bodies.json").read_text())
    for each in (each for kind in bodies.values() if isinstance(kind, list) for each in kind):
        for codec, of in (("json", str.encode), ("msgpack", bytes.fromhex)):
            if codec in each:
                headers = {"id": "4f", "content-type": f"application/{codec}", "credit": "9", "ttl": "3"}
                yield packed(Message(of(each[codec]), headers))
    for value in json.loads((VECTORS / "typed.json").read_text())["values"]:
        body = f'{{"jsonrpc":"2.0","id":"4f","method":"echo","params":[{value["json"]}]}}'
        yield packed(Message(body.encode(), {"id": "4f", "content-type": "application/json+types"}))
    yield packed(Message(b"[]", {"seq": "0", "size": "2", "credit": "3", "credit-bytes": "4"}))
    yield packed(_GOOD)


def _amqp() -> Iterator[bytes]:
    from pamqp.commands import Basic

    from rpc.backends.amqp.messages import properties_of
    from rpc.backends.amqp.wire import frames, published

    deliver = frames(1, Basic.Deliver("c", 1, False, "", "default"))
    message = Message(b"{}" * 9, {"id": "4f", "ttl": "3", "reply-to": "4f", "delay": "1"})
    content = published(1, "default", properties_of(message, "amq.rabbitmq.reply-to.x"), message.body, 4096)
    publish = len(published(1, "default", properties_of(message), b"", 4096)) - len(content)
    yield deliver + content[publish:]
    yield deliver + content[content.index(b"\x02", 1) :]


def seeds(name: str) -> list[bytes]:
    """Where a fuzzer begins."""
    some = list(_frames())
    match name:
        case "amqp":
            return list(_amqp())
        case "resp":
            return [
                b"$3\r\nabc\r\n",
                b"*2\r\n:1\r\n+OK\r\n",
                b"-ERR no\r\n",
                b"%1\r\n+a\r\n#t\r\n",
                b"*-1\r\n,1.5\r\n",
            ]
        case "record":
            return [Record("p", "4f", "", "", 3000, some[1], 5).packed(), b"1 w9+\nid\n\na.b\n3\nframe"]
        case "json_rpc":
            return [
                b'[{"jsonrpc":"2.0","method":"add","params":[1],"id":1}]',
                b'{"jsonrpc":"2.0","method":"a"}',
            ]
        case "http":
            return [
                b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n\0\0\0\x03" + some[0],
                b"\0\0\0\x01" + some[1],
            ]
        case "zmq":
            return [zeromq.message_data(1, TO, _GOOD), zeromq.last_data(1, 2, _GOOD), b"\0" * 8]
    return some


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (frame, message, dispatch, credit, json_rpc, signature, resp, record, amqp, http, zmq)
}
