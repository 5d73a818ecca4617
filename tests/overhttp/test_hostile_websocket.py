"""What makes no sense on a WebSocket, is too much, or comes too slowly, ends it, and nothing else."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from rpc.backends.http import protocol
from rpc.backends.http.upgraded import BoundedSocket
from rpc.backends.http.wire import METHOD, TARGET, numbered
from rpc.testing.site import eventually

from .conftest import PATIENCE, Serve, Site

RPC, OURS = "/rpc", "/_rpc/socket"


@pytest.fixture
def site(serve: Serve) -> Site:
    return serve(echo=lambda value: value)


def opened(site: Site, path: str = RPC, **options: Any) -> ClientConnection:
    return connect(f"ws://{site.host}{path}", compression=None, **options)


def code(talk: ClientConnection) -> int | None:
    """With which it is closed."""
    try:
        while True:
            talk.recv(timeout=PATIENCE)
    except ConnectionClosed:
        return talk.protocol.close_code


def is_served(site: Site) -> bool:
    with opened(site) as talk:
        talk.send('{"jsonrpc": "2.0", "method": "echo", "params": [1], "id": 1}')
        return bool(json.loads(talk.recv(timeout=PATIENCE))["result"] == 1)


def frame(opcode: int, body: bytes, *, fin: bool = True, claimed: int | None = None) -> bytes:
    """One of https://www.rfc-editor.org/rfc/rfc6455#section-5.2, masked with zeros."""
    length = len(body) if claimed is None else claimed
    return bytes([(0x80 if fin else 0) | opcode, 0xFF]) + struct.pack("!Q", length) + b"\0\0\0\0" + body


TEXT, BINARY, CONTINUED, PING = 1, 2, 0, 9
HALF = frame(TEXT, b"[", claimed=100)


@pytest.mark.parametrize(
    ("path", "sent", "expected"),
    [
        (RPC, frame(BINARY, b"{}"), 1003),
        (RPC, frame(TEXT, b"\xff\xfe"), 1007),
        (RPC, frame(CONTINUED, b"x"), 1002),
        (RPC, frame(3, b"x"), 1002),
        (RPC, b"\x81\x01x", 1002),  # not masked
        (RPC, frame(PING, b"x" * 126), 1002),
        (RPC, frame(TEXT, b"", claimed=2**63 - 1), 1009),
        (RPC, frame(TEXT, b" " * (16 * 1024 * 1024 + 1)), 1009),
        (RPC, frame(TEXT, b" " * (9 * 2**20), fin=False) + frame(CONTINUED, b" " * (9 * 2**20)), 1009),
        (OURS, frame(TEXT, b"{}"), 1003),
        (OURS, frame(BINARY, b""), 1003),
        (OURS, frame(BINARY, b"\0\0\0\1\0\1\x80"), 1003),
        (OURS, frame(BINARY, numbered(1, b"", {METHOD: "GET", TARGET: "/health"})), 1003),
        (OURS, frame(BINARY, numbered(1, b"", {METHOD: "POST"})), 1003),
        (OURS, frame(BINARY, b"", claimed=2**40), 1009),
    ],
    ids=map(str, range(15)),  # else they would be as long as what is sent
)
def test_what_makes_no_sense_ends_the_connection(site: Site, path: str, sent: bytes, expected: int) -> None:
    with opened(site, path) as talk:
        with suppress(OSError):
            talk.socket.sendall(sent)
        assert code(talk) in (expected, 1006)  # what was sent on may break it before that is read
    assert is_served(site)


def test_text_that_is_no_json_is_an_error_and_no_more(site: Site) -> None:
    with opened(site) as talk:
        for sent in "", "{", "\0", "[" * 100_000, '{"jsonrpc": "2.0", "id": 1e999}':
            talk.send(sent)
            assert json.loads(talk.recv(timeout=PATIENCE))["error"]["code"] in (-32700, -32600)
        talk.send('{"jsonrpc": "2.0", "method": "echo", "params": [1], "id": 1}')
        assert json.loads(talk.recv(timeout=PATIENCE))["result"] == 1


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_junk_costs_a_connection_at_most(site: Site, data: st.DataObject) -> None:
    one = st.builds(frame, st.integers(0, 15), st.binary(max_size=200), fin=st.booleans())
    call = st.builds(
        lambda name, params: json.dumps({"jsonrpc": "2.0", "id": 1, "method": name, "params": params}),
        st.sampled_from(["rpc.stream", "rpc.cancel", "rpc.credit", "rpc.send", "rpc.throw", "rpc.upload"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["id", "method", "more", "items", "type", "token"]), inner)
            ),
        ),
    ).map(lambda text: frame(TEXT, text.encode()))
    with opened(site, data.draw(st.sampled_from([RPC, OURS]))) as talk, suppress(OSError):
        for sent in data.draw(st.lists(one | call | st.binary(max_size=50), max_size=8)):
            talk.socket.sendall(sent)
    assert is_served(site)


LIMITED = "http://127.0.0.1:0?read_timeout=0.5&max_connections=8&max_per_address=4&keep_alive=0.5"


@pytest.fixture
def limited(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(protocol, "LINGER", 0.1)
    return serve(url=LIMITED, echo=lambda value: value)


@pytest.mark.parametrize("path", [RPC, OURS])
@pytest.mark.parametrize(
    "begin", [HALF, HALF[:1], frame(TEXT, b"[", fin=False)], ids=["half", "a byte", "a part"]
)
def test_a_message_that_does_not_end_ends_the_connection(limited: Site, path: str, begin: bytes) -> None:
    with opened(limited, path) as talk:
        talk.socket.sendall(begin)
        assert code(talk) == 1008


def test_drop_by_drop_is_too_slow(limited: Site) -> None:
    with opened(limited) as talk:
        talk.socket.sendall(frame(TEXT, b"", claimed=10_000))

        def dropped() -> bool:
            try:
                talk.socket.sendall(b" ")
            except OSError:
                return True
            return False

        eventually(dropped)
        assert code(talk) in (1008, 1006)


def handshake(site: Site) -> socket.socket:
    """A connection whose other end reads and says nothing by itself."""
    host, _, port = site.host.partition(":")
    made = socket.create_connection((host, int(port)), timeout=PATIENCE)
    made.sendall(
        b"GET /rpc HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert made.recv(12) == b"HTTP/1.1 101"
    return made


@pytest.mark.slow
def test_whoever_answers_no_ping_is_gone(limited: Site) -> None:
    with handshake(limited) as silent:
        while silent.recv(65536):
            pass
    with opened(limited) as talk:  # who does is not, however long nothing is said
        time.sleep(2.0)
        talk.send("[]")
        assert json.loads(talk.recv(timeout=PATIENCE))["error"]["code"] == -32600


def test_they_count_as_connections_until_their_end(limited: Site) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(opened(limited))
        assert limited.receiver.backend.bounds.open == 4
        with pytest.raises(InvalidStatus, match="503"):
            opened(limited)
    eventually(lambda: limited.receiver.backend.bounds.open == 0)
    assert is_served(limited)


CALL = json.dumps({"jsonrpc": "2.0", "method": "echo", "params": ["x" * 10_000], "id": 1}).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [frame(TEXT, CALL), b"\x89\xfd\0\0\0\0" + b"x" * 125], ids=["calls", "pings"]
)
def test_for_whoever_reads_nothing_little_is_kept(
    site: Site, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[BoundedSocket] = []
    began = BoundedSocket.connection_made
    monkeypatch.setattr(
        BoundedSocket, "connection_made", lambda self, to: made.append(self) or began(self, to)
    )
    many, left = sent * (65536 // len(sent) + 1), 12 * 2**20  # the kernel keeps some of it
    with handshake(site) as deaf:
        deaf.settimeout(2.0)
        with suppress(OSError):  # it takes no more
            while left > 0:
                deaf.sendall(many)
                left -= len(many)
        assert made[0].transport.get_write_buffer_size() < 2**20
        assert is_served(site)
