"""Items on their way: as they are encoded, compressed, limited and converted."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

import rpc.core.codecs
from rpc.core.compression import decompressed
from rpc.core.streams import INBOX, SEQ, UPLOAD
from rpc.errors import RpcError, SerializationError
from rpc.services import expose
from rpc.settings import Settings
from rpc.transport import STREAM, Message, inbox, queue

from .conftest import CLIENTS, Site
from .handlers import until
from .test_lost import opened

DEPTH = 100_000
DEEP = b"[" * DEPTH + b"]" * DEPTH
LIMIT = 20_000


@dataclass
class Point:
    x: int
    y: int = 0


class Points:
    name = "points"

    @expose
    def many(self, number: int) -> Any:
        for x in range(number):
            yield {"x": x}


@pytest.fixture(params=["sync", "async"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each body was compressed that came, to either side."""
    encodings: list[str] = []

    def noted(body: bytes, encoding: str, most: int | None) -> bytes:
        encodings.append(encoding)
        return decompressed(body, encoding, most)

    monkeypatch.setattr(rpc.core.codecs, "decompressed", noted)
    return encodings


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_large_items_are_compressed_both_ways(
    site: Site, how: str, encoding: str, compressed: list[str]
) -> None:
    if encoding == "zstd":
        pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    site.serve()
    a, large = {"sync": "", "async": "a"}[how], "x" * 30_000
    client = site.another(how, compress=f"{encoding}:1kB")
    assert [*client.stream(f"{a}large", {"number": 3, "size": 30_000})] == [
        f"{number:08d}".ljust(30_000, ".") for number in range(3)
    ]
    assert compressed == [encoding] * 3
    upload = client.stream(f"{a}total", items=[large])
    assert [*upload] == []
    assert upload.value == {"number": 1, "size": len(large)}
    assert compressed == [encoding] * 4
    with client.stream(f"{a}echo", {"value": 1}) as stream:
        assert next(stream) == 1
        assert stream.send(large) == large
    assert compressed == [encoding] * 6
    assert [*client.stream(f"{a}count", {"most": 5}, window=5)] == [*range(5)]
    assert compressed == [encoding] * 6  # those are small
    client.close()


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types", "pickle"])
def test_messages_are_as_large_as_they_may_be_and_no_larger(site: Site, how: str, codec: str) -> None:
    settings = Settings(max_message_bytes=LIMIT, accept=("json", "msgpack", "json+types", "pickle"))
    site.serve(settings=settings)
    a = {"sync": "", "async": "a"}[how]
    client = site.another(how, max_message_bytes=LIMIT, codec=codec)
    small = [f"{number:0100d}" for number in range(1000)]
    assert [*client.stream(f"{a}items", {"what": small[:100]}, window=500)] == small[:100]
    got = [*client.stream(f"{a}large", {"number": 1000, "size": 100}, window=1000)]
    assert [int(each.rstrip(".")) for each in got] == [*range(1000)]
    upload = client.stream(f"{a}total", items=small)
    assert [*upload] == []
    assert upload.value == {"number": 1000, "size": 100_000}
    with pytest.raises(SerializationError, match=f"more than {LIMIT}"):
        next(client.stream(f"{a}large", {"number": 1, "size": LIMIT}))
    with pytest.raises(SerializationError, match=f"more than {LIMIT}"):
        list(client.stream(f"{a}total", items=["x" * LIMIT]))
    until(lambda: not site.open)
    client.close()


def test_an_upload_that_the_worker_cannot_read_is_told_as_that(site: Site, how: str) -> None:
    site.serve(settings=Settings(max_message_bytes=LIMIT))
    client = site.client(how)
    with pytest.raises(SerializationError, match=f"more than {LIMIT}"):
        list(client.stream({"sync": "total", "async": "atotal"}[how], items=["x" * 2 * LIMIT]))
    until(lambda: not site.open)
    assert [*client.stream("count", {"most": 3})] == [0, 1, 2]


def test_each_item_is_converted(site: Site, how: str) -> None:
    site.serve(services=[Points()])
    client = site.client(how)
    a, what = {"sync": "", "async": "a"}[how], [{"x": 1}, {"x": 2, "y": 3}, {"x": "four"}, {"x": 5}]
    stream = client.stream(f"{a}items", {"what": what}, window=10, returns=Point)
    assert [next(stream), next(stream)] == [Point(1), Point(2, 3)]
    with pytest.raises(SerializationError, match=f"an item of '{a}items': Expected `int`"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    until(lambda: not site.open)
    with pytest.raises(ValueError, match="returns"):
        client.stream("count", returns=object())
    if how == "sync":
        points = client.services.points.many.options(returns=Point, window=5).stream(3)
        assert [*points] == [Point(0), Point(1), Point(2)]


@pytest.mark.parametrize("codec", ["json", "json+types", "msgpack"])
def test_what_is_nested_too_deeply_is_refused_and_costs_that_message(site: Site, codec: str) -> None:
    site.serve()
    client = site.client()
    deep = b"\x91" * DEPTH + b"\xc0" if codec == "msgpack" else DEEP
    about = {"content-type": f"application/{codec}"}
    replies = client.backend.request(
        queue("default"), Message(deep, {"id": (id := uuid4().hex), "reply-to": id, **about})
    )
    assert "nested" in json_of(replies.receive(30), codec)["error"]["message"]
    replies.close()

    replies, first = opened(site, "total", None, "1", **{UPLOAD: "1"})
    more = {"id": first.id, UPLOAD: "1", STREAM: "items", SEQ: "0", "size": "9"}
    client.backend.send(inbox(first.headers[INBOX]), Message(deep, {**more, **about}))
    last = replies.receive(30)
    while STREAM in last.headers:
        last = replies.receive(30)
    assert "nested" in json.loads(last.body)["error"]["message"]
    replies.close()

    stream = client.stream("count", {"most": 5})
    assert next(stream) == 0
    consumer = stream._consumer
    assert consumer is not None
    with pytest.raises(RpcError, match="nested"):
        consumer._hear(Message(deep, {STREAM: "items", SEQ: "1", "size": "9", **about}))
    assert [*stream] == [1, 2, 3, 4]
    until(lambda: not site.open)


def json_of(message: Message, codec: str) -> Any:
    return rpc.core.codecs.CODECS[codec].decode(message.body)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types", "pickle"])
def test_what_is_nested_too_deeply_to_be_sent_is_refused_here(shared: Site, how: str, codec: str) -> None:
    deep: list[Any] = []
    for _ in range(DEPTH):
        deep = [deep]
    client = CLIENTS[how](backend=shared.url, codec=codec)
    with pytest.raises(SerializationError, match="nested"):
        client.stream("echo", {"value": deep})
    if codec != "pickle":  # which the worker does not accept
        with pytest.raises(SerializationError, match="nested"):
            list(client.stream("total", items=[deep]))
    client.close()
