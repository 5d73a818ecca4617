"""JSON-RPC 2.0 to the letter: the examples of its specification, and what it says of the rest."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import pytest

from rpc import RpcTimeout
from rpc.testing.site import eventually

from .conftest import Serve, Site


def subtract(minuend: int, subtrahend: int) -> int:
    return minuend - subtrahend


def total(*numbers: int) -> int:
    return sum(numbers)


def get_data() -> list[Any]:
    return ["hello", 5]


HEARD: list[Any] = []


def update(*numbers: int) -> None:
    HEARD.append(numbers)


@pytest.fixture
def site(serve: Serve) -> Site:
    HEARD.clear()
    return serve(
        subtract=subtract,
        sum=total,
        get_data=get_data,
        update=update,
        notify_hello=update,
        notify_sum=update,
        echo=lambda value: value,
    )


PARSE = {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": None}
INVALID = {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None}
NOT_FOUND = {"code": -32601, "message": "Method not found"}

EXAMPLES = {
    "positional parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        {"jsonrpc": "2.0", "result": 19, "id": 1},
    ),
    "positional parameters, the other way round": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        {"jsonrpc": "2.0", "result": -19, "id": 2},
    ),
    "named parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        {"jsonrpc": "2.0", "result": 19, "id": 3},
    ),
    "named parameters, in another order": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        {"jsonrpc": "2.0", "result": 19, "id": 4},
    ),
    "a notification": ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    "a notification of what there is not": ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    "a method that there is not": (
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        {"jsonrpc": "2.0", "error": NOT_FOUND, "id": "1"},
    ),
    "invalid JSON": ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', PARSE),
    "an invalid request": ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', INVALID),
    "a batch of invalid JSON": (
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},{"jsonrpc": "2.0", "method"]',
        PARSE,
    ),
    "an empty array": ("[]", INVALID),
    "an invalid batch that is not empty": ("[1]", [INVALID]),
    "an invalid batch": ("[1,2,3]", [INVALID] * 3),
    "a batch": (
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        [
            {"jsonrpc": "2.0", "result": 7, "id": "1"},
            {"jsonrpc": "2.0", "result": 19, "id": "2"},
            INVALID,
            {"jsonrpc": "2.0", "error": NOT_FOUND, "id": "5"},
            {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"},
        ],
    ),
    "a batch of notifications": (
        """[
        {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
        ]""",
        None,
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_specification(site: Site, example: str) -> None:
    sent, expected = EXAMPLES[example]
    assert site.rpc(sent) == expected


def test_notifications_are_done(site: Site) -> None:
    assert site.rpc(EXAMPLES["a batch of notifications"][0]) is None
    eventually(lambda: sorted(HEARD) == [(1, 2, 4), (7,)])


@pytest.mark.parametrize("id", ['"x"', "0", "-7", "1.50", "1e3", "9" * 40, '""', '"\\u00e9"', '"é"', "null"])
def test_ids_come_back_as_they_were_written(site: Site, id: str) -> None:
    sent = f'{{"jsonrpc": "2.0", "method": "sum", "params": [1], "id": {id}}}'
    status, _, body = site.send("POST", "/rpc", sent)
    assert (status, body.decode()) == (200, f'{{"jsonrpc":"2.0","result":1,"id":{id}}}')


@pytest.mark.parametrize(
    ("sent", "id"),
    [
        ('{"jsonrpc": "2.0", "method": "sum", "id": {}}', None),
        ('{"jsonrpc": "2.0", "method": "sum", "id": [1]}', None),
        ('{"jsonrpc": "2.0", "method": "sum", "id": true}', None),
        ('{"jsonrpc": "1.0", "method": "sum", "id": 1}', 1),
        ('{"method": "sum", "params": [], "id": 1}', 1),
        ('{"jsonrpc": "2.0", "method": "sum", "params": 1, "id": 1}', 1),
        ('{"jsonrpc": "2.0", "method": "sum", "params": null, "id": 1}', 1),
        ('{"jsonrpc": "2.0", "params": [], "id": "a"}', "a"),
        ('{"jsonrpc": "2.0", "method": "sum", "params": {}, "kwargs": {}, "id": 1}', 1),
        ("3", None),
        ('"text"', None),
        ("null", None),
    ],
)
def test_what_is_no_request_is_refused(site: Site, sent: str, id: Any) -> None:
    assert site.rpc(sent) == {**INVALID, "id": id}


def test_positional_and_named_arguments_go_together(site: Site) -> None:
    sent = {"jsonrpc": "2.0", "method": "subtract", "params": [5], "kwargs": {"subtrahend": 2}, "id": 1}
    assert site.rpc(json.dumps(sent))["result"] == 3


def test_each_error_has_its_code(serve: Serve) -> None:
    def fails() -> None:
        raise KeyError("x")

    def late() -> None:
        raise RpcTimeout("too late")

    site = serve(subtract=subtract, fails=fails, late=late, unsendable=lambda: object())

    def error(method: str, params: Any) -> Any:
        sent = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
        return site.rpc(json.dumps(sent))["error"]

    wrong = error("subtract", [1])
    assert (wrong["code"], wrong["message"]) == (-32602, "Invalid params")
    assert "subtrahend" in wrong["data"]
    assert error("subtract", ["a", 1])["code"] == -32602
    assert error("fails", []) == {"code": -32000, "message": "'x'", "data": {"type": "KeyError"}}
    assert error("nosuch.method", [])["code"] == -32601
    assert error("unsendable", [])["code"] == -32006


def test_the_requests_of_a_batch_run_side_by_side(serve: Serve) -> None:
    together = threading.Barrier(3, timeout=20)
    site = serve(meet=lambda: together.wait() >= 0)
    call = '{"jsonrpc": "2.0", "method": "meet", "id": %d}'
    answers = site.rpc("[" + ",".join(call % number for number in range(3)) + "]")
    assert answers == [{"jsonrpc": "2.0", "result": True, "id": number} for number in range(3)]


def test_a_caller_waits_no_longer_than_it_says(serve: Serve) -> None:
    async def long() -> None:
        await asyncio.sleep(60)

    site = serve(long=long)
    sent = '{"jsonrpc": "2.0", "method": "long", "id": 1}'
    _, _, body = site.send("POST", "/rpc", sent, {"x-rpc-timeout": "0.1"})
    assert json.loads(body)["error"]["code"] == RpcTimeout.code
    assert site.send("POST", "/rpc", sent, {"x-rpc-timeout": "soon"})[0] == 400


def test_whoever_leaves_cancels_what_it_asked_for(serve: Serve) -> None:
    ended = threading.Event()
    begun = threading.Event()

    async def long() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    site = serve(long=long)
    host, _, port = site.host.partition(":")
    sent = b'[{"jsonrpc": "2.0", "method": "long", "id": 1}]'
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(sent), sent))
        assert begun.wait(20)
    assert ended.wait(20)


def test_other_methods_and_other_content_are_refused(site: Site) -> None:
    status, headers, _ = site.send("GET", "/rpc")
    assert (status, headers["allow"]) == (405, "POST")
    assert site.send("POST", "/rpc", "{}", {"content-type": "text/plain"})[0] == 415
    sent = EXAMPLES["positional parameters"][0]
    assert site.send("POST", "/rpc", sent, {"content-type": "application/json-rpc; charset=utf-8"})[0] == 200


def test_pages_of_other_sites_may_not_call(site: Site) -> None:
    sent = EXAMPLES["positional parameters"][0]
    assert site.send("POST", "/rpc", sent, {"origin": "http://evil.example"})[0] == 403
    assert site.send("POST", "/rpc", sent, {"sec-fetch-site": "cross-site"})[0] == 403
    assert site.send("POST", "/rpc", sent, {"origin": site.url, "sec-fetch-site": "same-origin"})[0] == 200
    assert site.send("POST", "/rpc", sent, {"origin": site.url})[0] == 200
