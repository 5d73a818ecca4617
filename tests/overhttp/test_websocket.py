"""JSON-RPC 2.0 on one WebSocket, as a client of somebody else's speaks it: websockets."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from rpc import RpcReceiver
from rpc.errors import Cancelled, InvalidParams, QueueFull, Unauthorized
from rpc.http import texts
from rpc.settings import Settings
from rpc.testing.site import eventually

from .conftest import PATIENCE, Serve, Site
from .test_jsonrpc import EXAMPLES, HEARD, get_data, subtract, total, update

CLOSED: list[Any] = []


def count(most: int) -> Iterator[int]:
    try:
        yield from range(most)
    finally:
        CLOSED.append(most)


def talk() -> Iterator[Any]:
    said: Any = "begun"
    while True:
        try:
            said = yield said
        except ValueError as error:
            said = f"caught {error}"


async def added(request: Any) -> AsyncIterator[Any]:
    sum = 0
    async for number in request.items:
        sum += number
    yield sum


async def forever() -> None:
    CLOSED.append("begun")
    try:
        await asyncio.sleep(600)
    finally:
        CLOSED.append("ended")


@pytest.fixture
def site(serve: Serve) -> Site:
    HEARD.clear()
    CLOSED.clear()
    own = {"count": count, "talk": talk, "added": added, "forever": forever, "echo": lambda value: value}
    spec = {"subtract": subtract, "sum": total, "get_data": get_data}
    return serve(update=update, notify_hello=update, notify_sum=update, **own, **spec)


class Talk:
    """One connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def call(self, id: Any, method: str, params: Any) -> None:
        self.socket.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": id}))

    def tell(self, method: str, params: Any) -> None:
        self.socket.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))

    def hear(self) -> Any:
        return json.loads(self.socket.recv(timeout=PATIENCE))

    def items(self, count: int) -> list[Any]:
        """The next so many, each of which is told in a notification."""
        told = [self.hear() for _ in range(count)]
        assert {each["method"] for each in told} == {"rpc.items"}
        return [item for each in told for item in each["params"]["items"]]


@pytest.fixture
def talk_to(site: Site) -> Iterator[Talk]:
    with connect(f"ws://{site.host}/rpc", max_size=None) as socket:
        yield Talk(socket)


def test_the_examples_of_the_specification_on_one_connection(talk_to: Talk) -> None:
    for sent, expected in EXAMPLES.values():
        talk_to.socket.send(sent)
        if expected is not None:
            assert talk_to.hear() == expected
    talk_to.call(7, "echo", ["the last"])
    assert talk_to.hear() == {"jsonrpc": "2.0", "result": "the last", "id": 7}
    eventually(lambda: {(1, 2, 3, 4, 5), (1, 2, 4), (7,)} <= {*HEARD})


def test_responses_come_when_they_are_there(serve: Serve) -> None:
    go = threading.Event()
    site = serve(slow=lambda: go.wait(PATIENCE), fast=lambda: go.set())
    with connect(f"ws://{site.host}/rpc") as socket:
        both = Talk(socket)
        both.call(1, "slow", [])
        both.call(2, "fast", [])
        assert {each["id"]: each["result"] for each in (both.hear(), both.hear())} == {1: True, 2: None}


def test_a_thousand_requests_are_open_at_once(serve: Serve) -> None:
    """On one connection, of a worker with few threads."""
    come, most = [], []
    all_there = asyncio.Event()
    before = threading.active_count()

    async def meet(number: int) -> int:
        come.append(number)
        if len(come) == 1000:
            most.append(threading.active_count())
            all_there.set()
        await all_there.wait()
        return number

    settings = Settings(timeout=60, grace=1, coroutines=1000)
    options: dict[str, Any] = {"concurrency": 4, "settings": settings}
    site = serve(RpcReceiver(jobs={"meet": meet}, backend="http://127.0.0.1:0", **options))
    with connect(f"ws://{site.host}/rpc") as socket:
        meeting = Talk(socket)
        for number in range(1000):
            meeting.call(number, "meet", [number])
        answers = [meeting.hear() for _ in range(1000)]
    assert sorted(each["result"] for each in answers) == [*range(1000)]
    assert all(each["result"] == each["id"] for each in answers)
    assert most[0] - before <= 12


# Streams


def test_a_stream_comes_as_far_as_there_is_credit(talk_to: Talk) -> None:
    talk_to.call("s", "rpc.stream", {"method": "count", "params": {"most": 5}, "credit": 2})
    assert talk_to.items(2) == [0, 1]
    talk_to.call(1, "echo", ["nothing came between"])
    assert talk_to.hear()["id"] == 1
    talk_to.tell("rpc.credit", {"id": "s", "more": 10})
    assert talk_to.items(3) == [2, 3, 4]
    assert talk_to.hear() == {"jsonrpc": "2.0", "result": None, "id": "s"}
    assert CLOSED == [5]


def test_several_streams_share_a_connection(talk_to: Talk) -> None:
    for id in range(3):
        talk_to.call(id, "rpc.stream", {"method": "count", "params": [10 * (id + 1)], "credit": 100})
    told = [talk_to.hear() for _ in range(10 + 20 + 30 + 3)]
    for id in range(3):
        items = [each["params"]["items"][0] for each in told if each.get("params", {}).get("id") == id]
        assert items == [*range(10 * (id + 1))]
    assert sorted(each["id"] for each in told if "result" in each) == [0, 1, 2]


def test_a_stream_in_lock_step_is_talked_to(talk_to: Talk) -> None:
    talk_to.call(1, "rpc.stream", {"method": "talk"})
    assert talk_to.items(1) == ["begun"]
    talk_to.tell("rpc.send", {"id": 1, "value": {"any": ["value"]}})
    assert talk_to.items(1) == [{"any": ["value"]}]
    talk_to.tell("rpc.throw", {"id": 1, "type": "ValueError", "message": "spam"})
    assert talk_to.items(1) == ["caught spam"]
    talk_to.tell("rpc.throw", {"id": 1, "type": "KeyError", "message": "not caught"})
    error = talk_to.hear()["error"]
    assert (error["code"], error["data"]) == (-32000, {"type": "KeyError"})


def test_items_are_uploaded(talk_to: Talk) -> None:
    talk_to.call(1, "rpc.stream", {"method": "added", "upload": True})
    sent, room = 0, 64
    while sent < 500:
        if not room:
            told = talk_to.hear()
            assert told["method"] == "rpc.credit"
            room += told["params"]["more"]
        many = min(room, 500 - sent)
        talk_to.tell("rpc.upload", {"id": 1, "items": [1] * many, "last": sent + many == 500})
        sent, room = sent + many, room - many
    heard = [talk_to.hear()]
    while heard[-1].get("method") == "rpc.credit":
        heard.append(talk_to.hear())
    assert heard[-1]["params"]["items"] == [500]


def test_more_than_there_is_credit_for_is_not_uploaded(talk_to: Talk) -> None:
    talk_to.call(1, "rpc.stream", {"method": "added", "upload": True})
    talk_to.call(2, "rpc.upload", {"id": 1, "items": [1] * 65})
    assert talk_to.hear()["error"]["code"] == InvalidParams.code


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, InvalidParams.code),
        ([1], InvalidParams.code),
        ({"method": "count", "credit": 0, "params": [1]}, InvalidParams.code),
        ({"method": "count", "kwargs": {"most": 1}}, InvalidParams.code),
        ({"method": "count", "params": [1, 2, 3]}, InvalidParams.code),
        ({"method": "no name", "params": [1]}, InvalidParams.code),
        ({"method": "nosuch"}, -32601),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(talk_to: Talk, params: Any, code: int) -> None:
    talk_to.call(1, "rpc.stream", params)
    assert talk_to.hear()["error"]["code"] == code


def test_what_is_said_to_nobody_is_answered_if_that_is_wanted(talk_to: Talk) -> None:
    for method in "rpc.credit", "rpc.send", "rpc.throw", "rpc.upload", "rpc.cancel":
        talk_to.tell(method, {"id": 9})
        talk_to.call(method, method, {"id": 9})
        assert talk_to.hear() == {"jsonrpc": "2.0", "result": False, "id": method}
        talk_to.call(1, method, {})
        assert talk_to.hear()["error"]["code"] == InvalidParams.code


# The end


def test_a_call_is_cancelled(talk_to: Talk) -> None:
    talk_to.call(1, "forever", [])
    eventually(lambda: CLOSED == ["begun"])
    talk_to.call(2, "rpc.cancel", {"id": 1})
    told = {each["id"]: each for each in (talk_to.hear(), talk_to.hear())}
    assert (told[1]["error"]["code"], told[2]["result"]) == (Cancelled.code, True)
    eventually(lambda: CLOSED == ["begun", "ended"])


def test_a_call_is_cancelled_before_it_began(talk_to: Talk) -> None:
    call = '{"jsonrpc": "2.0", "method": "%s", "params": %s, "id": %d}'
    talk_to.socket.send(f"[{call % ('forever', [], 1)}, {call % ('rpc.cancel', json.dumps({'id': 1}), 2)}]")
    first, second = talk_to.hear()
    assert (first["error"]["code"], second["result"]) == (Cancelled.code, True)


def test_a_stream_is_cancelled(talk_to: Talk) -> None:
    talk_to.call(1, "rpc.stream", {"method": "count", "params": [100]})
    assert talk_to.items(1) == [0]
    talk_to.tell("rpc.cancel", {"id": 1})
    assert talk_to.hear()["error"]["code"] == Cancelled.code
    eventually(lambda: CLOSED == [100])


@pytest.mark.parametrize("is_polite", [True, False])
def test_whoever_leaves_cancels_all_that_is_open(site: Site, is_polite: bool) -> None:
    with connect(f"ws://{site.host}/rpc") as socket:
        leaving = Talk(socket)
        leaving.call(1, "rpc.stream", {"method": "count", "params": [100]})
        assert leaving.items(1) == [0]
        leaving.call(2, "forever", [])
        eventually(lambda: CLOSED == ["begun"])
        if not is_polite:
            socket.socket.close()
    eventually(lambda: sorted(map(str, CLOSED)) == ["100", "begun", "ended"])


# Who may


def refused(url: str, **headers: str) -> int:
    """The status with which a connection is."""
    with pytest.raises(InvalidStatus) as raised, connect(url, additional_headers=headers):
        pass
    return int(raised.value.response.status_code)


def test_pages_of_other_sites_may_not_open_it(site: Site) -> None:
    url = f"ws://{site.host}/rpc"
    for origin in "http://evil.example", "null", f"http://{site.host}.evil.example", "":
        assert refused(url, origin=origin) == 403
    assert refused(url, origin="http://evil.example", **{"sec-fetch-site": "same-origin"}) == 403
    assert refused(f"ws://{site.host}/_rpc/socket", origin=site.url) == 403
    with connect(url, additional_headers={"origin": site.url}) as socket:
        socket.send(EXAMPLES["positional parameters"][0])
        assert json.loads(socket.recv(timeout=PATIENCE))["result"] == 19


def test_elsewhere_there_is_none(site: Site) -> None:
    for path in "/", "/echo", "/_rpc/queue/default", "/health":
        assert refused(f"ws://{site.host}{path}") == 403
    assert refused(f"ws://{site.host}/rpc", **{"x-rpc-timeout": "soon"}) == 403


def test_a_token_is_shown_in_a_header_or_later(serve: Serve) -> None:
    settings = Settings(timeout=PATIENCE, grace=1, tokens={"echo": "open sesame"})
    jobs = {"echo": lambda value: value}
    site = serve(RpcReceiver(jobs=jobs, backend="http://127.0.0.1:0", settings=settings))
    url = f"ws://{site.host}/rpc"
    with connect(url) as socket:
        stranger = Talk(socket)
        for shown in "", "wrong":
            stranger.call(0, "rpc.token", {"token": shown})
            assert stranger.hear()["result"] is True  # whether it is good is not told
            stranger.call(1, "echo", [1])
            assert stranger.hear()["error"]["code"] == Unauthorized.code
        stranger.tell("rpc.token", {"token": "open sesame"})
        stranger.call(2, "echo", [2])
        assert stranger.hear()["result"] == 2
    with connect(url, additional_headers={"authorization": "Bearer open sesame"}) as socket:
        Talk(socket).call(3, "echo", [3])
        assert Talk(socket).hear()["result"] == 3


def test_there_is_an_end_to_what_is_open(site: Site, talk_to: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_OPEN", 10)
    monkeypatch.setattr(site.receiver.stream_limit, "most", 2)
    for id in range(3):
        talk_to.call(id, "rpc.stream", {"method": "count", "params": [100]})
    told = [talk_to.hear() for _ in range(3)]
    assert [each["error"]["code"] for each in told if "error" in each] == [QueueFull.code]
    batch = [{"jsonrpc": "2.0", "method": "echo", "params": [1], "id": id} for id in range(20, 40)]
    talk_to.socket.send(json.dumps(batch))
    assert {each["error"]["code"] for each in talk_to.hear()} == {QueueFull.code}
    talk_to.call(50, "echo", [50])
    assert talk_to.hear()["result"] == 50
