"""What is too large, too deep, too much, or no sense at all, costs whoever sends it an answer, and nobody
else."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpc import RpcClient, RpcReceiver, SettingsError
from rpc.backends.http import protocol
from rpc.settings import Settings
from rpc.testing.site import eventually

from .conftest import Serve, Site

TOO_LARGE = 16 * 1024 * 1024 + 1


@pytest.fixture
def site(serve: Serve) -> Site:
    return serve(echo=lambda value: value)


def raw(site: Site, sent: bytes, *, then: bytes = b"") -> bytes:
    """What is answered to these bytes, until the connection is closed, or a second passes without any."""
    host, _, port = site.host.partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        try:
            caller.sendall(sent)
            while then:
                caller.sendall(then)
        except OSError:  # it had enough
            pass
        try:
            while b"\r\n\r\n" not in answer and (more := caller.recv(65536)):
                answer += more
        except OSError:
            pass
    return answer


def test_a_body_that_is_too_large_is_not_read(site: Site) -> None:
    for path in "/rpc", "/echo":
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {TOO_LARGE}\r\n\r\n"
        assert raw(site, head.encode()).startswith(b"HTTP/1.1 413 ")
    head = b"POST /_rpc/queue/default HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n"
    assert raw(site, head)[:12] in (b"HTTP/1.1 413", b"HTTP/1.1 400")


def test_chunks_without_an_end_are_not_read(site: Site) -> None:
    head = b"POST /rpc HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = raw(site, head, then=chunk)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # the answer may be lost with what we sent on
    assert site.rpc('{"jsonrpc":"2.0","method":"echo","params":[1],"id":1}')["result"] == 1


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"x-header: value\r\n" * 1000),
        (b"GET / HTTP/1.1\r\nx: ", b"y" * 10_000),
        (b"GET /", b"z" * 10_000),
    ],
    ids=["many", "one", "path"],
)
def test_headers_without_an_end_are_not_read(site: Site, begin: bytes, more: bytes) -> None:
    answer = raw(site, begin, then=more)
    assert answer == b"" or answer[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")
    assert site.send("GET", "/health")[0] == 200


LIMITED = "http://127.0.0.1:0?read_timeout=0.5&max_connections=8&max_per_address=4&keep_alive=0.5"
ELSEWHERE = ("127.0.0.2", 0)


@pytest.fixture
def limited(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(protocol, "LINGER", 0.1)
    return serve(url=LIMITED, echo=lambda value: value, hold=held)


async def held() -> str:
    import asyncio

    await asyncio.sleep(1.5)  # longer than anybody may be idle, or slow
    return "at last"


def connected(site: Site, source: tuple[str, int] | None = None) -> socket.socket:
    host, _, port = site.host.partition(":")
    return socket.create_connection((host, int(port)), timeout=20, source_address=source)


def told(caller: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    answer = b""
    with caller, suppress(ConnectionError):
        while more := caller.recv(65536):
            answer += more
    return answer


def is_served(site: Site) -> bool:
    """Whether somebody at another address gets an answer."""
    with connected(site, ELSEWHERE) as caller:
        caller.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\n[1]")
        return told(caller).endswith(b"\r\n\r\n1")


POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("begin", "answer"),
    [
        (b"", b"HTTP/1.1 408 "),
        (POST, b"HTTP/1.1 408 "),
        (POST + b"content-length: 100\r\n\r\n[", b"HTTP/1.1 408 "),
        (POST + b"transfer-encoding: chunked\r\n\r\n1\r\n[\r\n", b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea", b"HTTP/1.1 200 "),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200 "),
    ],
    ids=["nothing", "headers", "body", "chunks", "a second request", "idle"],
)
def test_a_connection_on_which_nothing_moves_is_closed(limited: Site, begin: bytes, answer: bytes) -> None:
    caller = connected(limited)
    caller.sendall(begin)
    assert told(caller).startswith(answer)


@pytest.mark.parametrize(
    "begin", [POST + b"x: ", POST + b"content-length: 100000\r\n\r\n["], ids=["headers", "body"]
)
def test_who_sends_drop_by_drop_is_cut_off_and_others_are_served(limited: Site, begin: bytes) -> None:
    slow = [connected(limited) for _ in range(4)]
    stopped = threading.Event()

    def drip() -> None:
        while not stopped.wait(0.05):
            for each in slow:
                with suppress(OSError):
                    each.sendall(b"1")

    for each in slow:
        each.sendall(begin)
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert is_served(limited)
        assert [told(each)[:12] for each in slow] == [b"HTTP/1.1 408"] * 4
    finally:
        stopped.set()
        thread.join()


def test_a_body_that_comes_in_pieces_but_not_too_slowly_is_taken(limited: Site) -> None:
    body = json.dumps(["x" * 4000]).encode()
    caller = connected(limited)
    caller.sendall(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
    for at in range(0, len(body), 400):  # it takes longer than `read_timeout`
        caller.sendall(body[at : at + 400])
        threading.Event().wait(0.1)
    assert told(caller).startswith(b"HTTP/1.1 200")


def test_whoever_waits_for_an_answer_is_not_idle(limited: Site) -> None:
    assert limited.post("/hold", {}) == (200, "at last")


def test_one_address_has_so_many_connections_and_others_are_served(limited: Site) -> None:
    mine = [connected(limited) for _ in range(4)]
    try:
        with connected(limited) as more:
            more.sendall(POST + b"content-length: 3\r\n\r\n[1]")
            answer = told(more)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in answer
        mine += [connected(limited) for _ in range(20)]  # those that are refused take nobody's place
        assert is_served(limited)
    finally:
        for each in mine:
            each.close()
    eventually(lambda: is_counted(limited, 0))
    assert limited.post("/echo", [2]) == (200, 2)


def test_all_together_have_so_many_connections(limited: Site) -> None:
    with ExitStack() as stack:
        for number in range(8):
            stack.enter_context(connected(limited, (f"127.0.0.{3 + number // 4}", 0)))
        eventually(lambda: is_counted(limited, 8))
        assert not is_served(limited)
    eventually(lambda: is_counted(limited, 0))
    assert is_served(limited)


def test_so_many_more_are_not_even_told(limited: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SPARE", 2)
    monkeypatch.setattr(protocol, "LINGER", 0.5)
    many = [connected(limited) for _ in range(20)]
    answers = [told(each)[:12] for each in many]
    assert answers == [b"HTTP/1.1 408"] * 4 + [b"HTTP/1.1 503"] * 2 + [b""] * 14
    eventually(lambda: is_counted(limited, 0))


def is_counted(site: Site, open: int) -> bool:
    backend: Any = site.receiver.backend
    counted: int = backend.bounds.open
    return counted == open


def test_our_client_waits_until_there_is_room(limited: Site) -> None:
    mine = [connected(limited) for _ in range(4)]  # until they are too slow
    try:
        with RpcClient(backend=limited.url, timeout=20) as client:
            assert client.call_and_wait("echo", [3]).data == 3
    finally:
        for each in mine:
            each.close()


def test_requests_that_are_sent_ahead_have_an_end(limited: Site) -> None:
    ahead = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    caller = connected(limited)
    caller.sendall(ahead * 20)
    assert told(caller).count(b"HTTP/1.1 200 ") == 20
    caller = connected(limited)
    caller.sendall(POST.replace(b"echo", b"hold") + b"content-length: 2\r\n\r\n{}" + ahead * 1000)
    answer = told(caller)
    assert b"HTTP/1.1 200" not in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert is_served(limited)


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=["zeros", "version", "length", "tls"],
)
def test_what_is_no_http_ends_the_connection(limited: Site, junk: bytes) -> None:
    caller = connected(limited)
    caller.sendall(junk)
    assert told(caller)[:12] in (b"HTTP/1.1 400", b"")
    assert is_served(limited)


@pytest.mark.parametrize(
    "option", ["max_connections=-1", "max_per_address=-1", "read_timeout=0", "keep_alive=-1"]
)
def test_bounds_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(SettingsError, match=option.partition("=")[0]):
        RpcClient(backend=f"http://127.0.0.1:1?{option}")


def test_a_batch_has_an_end(site: Site) -> None:
    call = '{"jsonrpc":"2.0","method":"echo","params":[1],"id":1}'
    assert len(site.rpc("[" + ",".join([call] * 1000) + "]")) == 1000
    refused = site.rpc("[" + ",".join([call] * 1001) + "]")["error"]
    assert (refused["code"], refused["data"]) == (-32600, "a batch has at most 1000 requests")


@pytest.mark.parametrize(
    "deep",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000],
    ids=["array", "object", "closed"],
)
def test_what_is_nested_too_deeply_is_refused(site: Site, deep: str) -> None:
    assert site.rpc(deep)["error"]["code"] == -32700
    assert site.send("POST", "/echo", deep)[0] == 400
    call = f'{{"jsonrpc":"2.0","method":"echo","params":{deep},"id":1}}'
    assert site.rpc(call)["error"]["code"] == -32700


def test_one_address_has_so_many_streams_at_a_time(serve: Serve) -> None:
    may_end = threading.Event()

    async def endless() -> Any:
        import asyncio

        yield 1
        await asyncio.to_thread(may_end.wait, 20)

    settings = Settings(streams_per_client=3)
    site = serve(RpcReceiver(jobs={"endless": endless}, backend="http://127.0.0.1:0", settings=settings))
    with ExitStack() as stack:
        for _ in range(3):
            connection = http.client.HTTPConnection(site.host, timeout=20)
            stack.callback(connection.close)
            connection.request("POST", "/endless")
            response = stack.enter_context(connection.getresponse())
            assert response.readline() == b"1\n"
        status, _, body = site.send("POST", "/endless")
        assert (status, json.loads(body)["error"]["code"]) == (429, -32005)
        may_end.set()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JUNK,
        "method": st.sampled_from(["echo", "nosuch", "a.b", "rpc.x", ""]) | JUNK,
        "params": JUNK,
        "kwargs": JUNK,
        "id": st.integers() | st.text(max_size=8) | JUNK,
    },
)
BODIES = st.one_of(
    st.binary(max_size=200),
    JUNK.map(lambda it: json.dumps(it).encode()),
    MEMBERS.map(lambda it: json.dumps(it).encode()),
    st.lists(MEMBERS | JUNK, max_size=5).map(lambda it: json.dumps(it).encode()),
    MEMBERS.map(lambda it: json.dumps(it).encode()[:-1]),
)


SERVE = """
from rpc import RpcReceiver

receiver = RpcReceiver(jobs={"echo": lambda value: value}, backend="http://127.0.0.1:0", grace=1)
receiver.run(arrived=lambda: print(receiver.backend.bound[0], flush=True))
"""


@pytest.fixture(scope="module")
def connection() -> Iterator[http.client.HTTPConnection]:
    """To a worker that is a process: Hypothesis minds whoever else takes random numbers in its own."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stdout
        made = http.client.HTTPConnection(worker.stdout.readline().strip(), timeout=20)
        yield made
        made.close()
        worker.terminate()
        assert worker.wait(20) == 0


def is_response(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found["jsonrpc"] == "2.0"
        and ("result" in found) != ("error" in found)
        and (found["id"] is None or type(found["id"]) in (int, float, str))
    )


@pytest.mark.slow
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(BODIES)
def test_whatever_is_posted_gets_responses_of_json_rpc(
    connection: http.client.HTTPConnection, body: bytes
) -> None:
    connection.request("POST", "/rpc", body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status == 204:
        assert not answer
        return
    assert response.status == 200
    found = json.loads(answer)
    assert all(map(is_response, found)) if isinstance(found, list) else is_response(found)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(["queue/default", "queue/x", "inbox/x", "topic/rpc", "cancel/x", "queue/", "x", ""]),
    st.binary(max_size=100),
)
def test_whatever_is_posted_where_our_clients_post_is_refused(
    connection: http.client.HTTPConnection, path: str, body: bytes
) -> None:
    connection.request("POST", f"/_rpc/{path}", body, {"content-type": "application/vnd.jobrpc"})
    response = connection.getresponse()
    response.read()
    assert response.status in (202, 400, 404)


def test_a_page_of_another_site_cannot_post_as_our_clients_do(site: Site) -> None:
    assert site.send("POST", "/_rpc/queue/default", b"x", {"content-type": "text/plain"})[0] == 415


def test_our_client_survives_a_server_that_makes_no_sense() -> None:
    answers = [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n\x00\x00\x00\x02\xff\xff\xff\xff",
    ]
    for answer in answers:
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def serve(answer: bytes = answer, listening: socket.socket = listening) -> None:
                caller, _ = listening.accept()
                with caller:
                    caller.recv(65536)
                    caller.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with (
                RpcClient(backend=url, timeout=20) as client,
                pytest.raises(ConnectionError, match="does not speak"),
            ):
                client.call_and_wait("echo")
            thread.join()
