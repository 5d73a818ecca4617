"""The cases of tests/peers, put to each peer, over Redis and over HTTP."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import yaml

from rpc import transport
from rpc.backends import backend_from_url
from rpc.core.codecs import MAX_DEPTH
from rpc.testing import RedisServer
from rpc.transport import Backend, Message, Replies
from tests.peers.running import SECONDS, http_url, peer

FOLDER = Path(__file__).parent / "peers"
CASES = [
    pytest.param(case, id=f"{path.stem}-{case['case']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    for case in yaml.safe_load(path.read_text())
]
WITH_BROKER = [
    pytest.param(case, id=f"{path.stem}-{case['case']}")
    for path in sorted((FOLDER / "broker").glob("*.yaml"))
    for case in yaml.safe_load(path.read_text())
]
JSON_RPC = yaml.safe_load((FOLDER / "http" / "jsonrpc.yaml").read_text())

pytestmark = [pytest.mark.redis, pytest.mark.xdist_group("peers")]


@pytest.fixture(scope="module", params=["python on redis", "python on http", "node on redis", "node on http"])
def backend(
    request: pytest.FixtureRequest, rpc_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    kind, _, transport = request.param.split()
    url = f"{rpc_redis.url}?prefix=peers-{kind}" if transport == "redis" else http_url()
    with peer(kind, url, tmp_path_factory.mktemp(kind)):
        backend = backend_from_url(url)
        yield backend
        backend.close()


@pytest.mark.parametrize("case", WITH_BROKER)
@pytest.mark.parametrize("backend", ["python on redis", "node on redis"], indirect=True)
def test_a_peer_with_a_broker_answers_as_written(case: dict[str, Any], backend: Backend) -> None:
    _put(case, backend)


@pytest.mark.parametrize("case", CASES)
def test_a_peer_answers_as_written(case: dict[str, Any], backend: Backend) -> None:
    _put(case, backend)


def _put(case: dict[str, Any], backend: Backend) -> None:
    id = uuid4().hex
    body = bytes.fromhex(case["hex"]) if "hex" in case else case["body"].replace("$id", id).encode()
    headers = {"id": id, "reply-to": id, "ttl": str(SECONDS), **case.get("headers", {})}
    to = transport.topic(case["topic"]) if "topic" in case else transport.queue("default")
    replies = backend.request(to, Message(body, headers))
    try:
        inbox = ""
        for step in case["steps"]:
            if "say" in step:
                _say(backend, inbox, id, **step["say"])
            else:
                inbox = _hear(replies, id, step["hear"]).get("inbox", inbox)
    finally:
        replies.close()


def _say(backend: Backend, inbox: str, id: str, headers: dict[str, str], body: str = "") -> None:
    said = {"id": id, "content-type": "application/json", **headers}
    backend.send(transport.inbox(inbox), Message(body.replace("$id", id).encode(), said))


def _hear(replies: Replies, id: str, expected: dict[str, Any]) -> dict[str, str]:
    reply = replies.receive(SECONDS)
    heard = dict(reply.headers)
    for name, value in expected.get("headers", {}).items():
        assert heard.get(name) == (id if value == "$id" else value), (name, heard, reply.body)
    if expected.keys() & {"result", "members", "error"}:
        is_json = heard.get("content-type") != "application/msgpack"
        told = json.loads(reply.body) if is_json else msgspec.msgpack.decode(reply.body)
        if "members" in expected:
            assert {*expected["members"]} <= {*told["result"]}, told
        else:
            assert told.get("result") == expected.get("result"), told
        for name, value in expected.get("error", {}).items():
            found = told["error"]["data"]["type"] if name == "type" else told["error"][name]
            assert found in value if isinstance(value, list) else found == value, told
        assert ("error" in told) == ("error" in expected), told
    return heard


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json+types", "application/msgpack"]
)
def test_a_peer_takes_what_is_nested_so_deeply_and_no_more(content_type: str, backend: Backend) -> None:
    for depth, is_refused in (MAX_DEPTH - 1, False), (MAX_DEPTH, True):  # the call is an object around it
        id = uuid4().hex
        params = reduce(lambda inner, _: [inner], range(depth - 1), [])
        call = {"jsonrpc": "2.0", "id": id, "method": "total", "params": params}
        body = (msgspec.msgpack if content_type == "application/msgpack" else msgspec.json).encode(call)
        headers = {"id": id, "reply-to": id, "ttl": str(SECONDS), "content-type": content_type}
        replies = backend.request(transport.queue("default"), Message(body, headers))
        try:
            told = replies.receive(SECONDS).body
        finally:
            replies.close()
        assert (f"{MAX_DEPTH}".encode() in told) == is_refused, told


@pytest.fixture(scope="module", params=["python", "node"])
def http_peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = http_url()
    with peer(request.param, url, tmp_path_factory.mktemp(request.param)):
        yield url


@pytest.mark.parametrize("case", JSON_RPC, ids=[case["case"] for case in JSON_RPC])
def test_a_peer_speaks_json_rpc_over_http(case: dict[str, Any], http_peer: str) -> None:
    headers = {"content-type": "application/json", **case.get("headers", {})}
    posted = urllib.request.Request(f"{http_peer}/rpc", case["post"].encode(), headers, method="POST")
    with urllib.request.urlopen(posted, timeout=SECONDS) as answer:
        body = answer.read()
    assert answer.status == (204 if case["answer"] is None else 200)
    answers = json.loads(body) if body else None
    for each in answers if isinstance(answers, list) else [answers or {}]:
        each.get("error", {}).pop("data", None)
    assert answers == case["answer"]


def test_what_is_nested_deeply_does_no_harm(http_peer: str) -> None:
    for depth in 1000, 100_000:
        nested = (
            b'{"jsonrpc": "2.0", "method": "echo", "id": 1, "params": ' + b"[" * depth + b"]" * depth + b"}"
        )
        posted = urllib.request.Request(f"{http_peer}/rpc", nested, {"content-type": "application/json"})
        with urllib.request.urlopen(posted, timeout=SECONDS) as answer:
            assert answer.read().startswith(b'{"jsonrpc":"2.0"')  # nested too deeply for json.loads, too
