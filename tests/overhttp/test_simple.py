"""The simple style: rules, arguments in JSON, values back, errors that are errors."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest

from rpc import (
    AsyncRpcClient,
    BackendUnavailable,
    InvalidParams,
    MethodNotFound,
    RemoteError,
    RpcClient,
    RpcReceiver,
    RpcTimeout,
    SerializationError,
    SettingsError,
    Unauthorized,
)
from rpc.http import route
from rpc.settings import Settings

from .conftest import Serve


def helloworld(name: str, greeting: str = "Welcome") -> str:
    return f"{greeting} {name}"


@pytest.fixture
def client() -> Iterator[RpcClient]:
    with RpcClient(backend="memory://", timeout=20) as client:
        yield client


def receiver(**options: Any) -> RpcReceiver:
    return RpcReceiver(jobs={}, backend="http://127.0.0.1:0", concurrency=4, grace=1, **options)


def test_a_rule_is_called_like_a_function(serve: Serve, client: RpcClient) -> None:
    made = receiver()
    made.route("/helloworld")(helloworld)
    peer = client.at(serve(made).url)
    assert peer.helloworld("Mr. Developer") == "Welcome Mr. Developer"
    assert peer.send("/helloworld", "x", greeting="Hi") == "Hi x"
    assert peer.send("helloworld", name="x") == "Welcome x"


def test_a_rule_is_awaited(serve: Serve) -> None:
    made = receiver()
    made.route("helloworld")(helloworld)
    site = serve(made)

    async def program() -> list[Any]:
        async with AsyncRpcClient(backend="memory://", timeout=20) as client, client.at(site.host) as peer:
            return await asyncio.gather(*(peer.helloworld(str(number)) for number in range(20)))

    assert asyncio.run(program()) == [f"Welcome {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"name": "x"}, "Welcome x"),
        ({"args": ["x"], "kwargs": {"greeting": "Hi"}}, "Hi x"),
        ({"args": ["x"], "kwargs": {}}, "Welcome x"),
        ({"kwargs": {"name": "x"}}, "Welcome x"),
        (["x", "Hi"], "Hi x"),
    ],
)
def test_arguments_are_an_object_an_array_or_both(serve: Serve, body: Any, expected: str) -> None:
    assert serve(helloworld=helloworld).post("/helloworld", body) == (200, expected)


@pytest.mark.parametrize("token", ["a\nb", "a\r\nx-forged: 1", "\0", "ä"])
def test_what_would_end_a_line_of_the_head_is_refused_before_anything_is_sent(
    client: RpcClient, token: str
) -> None:
    with pytest.raises(ValueError, match=r"^a token for HTTP has printable characters of ASCII alone$"):
        client.at("http://127.0.0.1:1", token=token)
    with pytest.raises(ValueError, match=r"a method of HTTP is letters and '-', as GET, not 'GET / "):
        client.at("http://127.0.0.1:1").request(f"GET / HTTP/1.1\r\nx: {token}", "/hello")


def test_curl_is_a_client(serve: Serve) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    site = serve(helloworld=helloworld)
    command = ["curl", "-s", "-d", '{"name":"x"}', f"{site.url}/helloworld"]
    assert subprocess.run(command, capture_output=True, check=True, timeout=20).stdout == b'"Welcome x"'


VALUES = [2330, 5.138, True, False, None, "text", "", [1, [2]], [], {"a": {"b": [None]}}, {}, [1]]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_come_back_as_they_were(serve: Serve, client: RpcClient, value: Any) -> None:
    peer = client.at(serve(echo=lambda it: it, constant=lambda: value).url)
    for back in peer.echo(value), peer.constant():
        assert back == value
        assert type(back) is type(value)


def test_several_values_are_unpacked(serve: Serve, client: RpcClient) -> None:
    peer = client.at(serve(three=lambda: (1, "b", None), one=lambda: (1,), none=lambda: ()).url)
    x, y, z = peer.three()
    assert (x, y, z) == (1, "b", None)
    assert (peer.one(), peer.none()) == ([1], [])


@dataclass
class Order:
    id: int
    items: list[Order]


class Plain:
    def __init__(self) -> None:
        self._secret = "secret"


def test_objects_are_those_that_travel_everywhere(serve: Serve, client: RpcClient) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    site = serve(order=lambda: Order(1, [Order(2, [])]), plain=Plain, cycle=lambda: cycle, echo=lambda it: it)
    peer = client.at(site.url)
    assert peer.order() == {"id": 1, "items": [{"id": 2, "items": []}]}
    assert peer.echo(Order(1, [])) == {"id": 1, "items": []}
    for wrong in "plain", "cycle":
        with pytest.raises(SerializationError) as refused:
            peer.send(wrong)
        assert "secret" not in str(refused.value)
    with pytest.raises(SerializationError, match="args"):
        peer.echo(Plain())


def test_errors_are_errors_and_each_is_another_one(serve: Serve, client: RpcClient) -> None:
    def fails() -> None:
        raise ValueError("no")

    async def late() -> None:
        await asyncio.sleep(60)

    site = serve(helloworld=helloworld, fails=fails, late=late)
    with client.at(site.url) as peer:
        with pytest.raises(MethodNotFound):
            peer.nosuch()
        with pytest.raises(InvalidParams, match="nosuch"):
            peer.helloworld("x", nosuch=1)
        with pytest.raises(RemoteError) as raised:
            peer.fails()
        assert (raised.value.type, raised.value.message) == ("ValueError", "no")
    with RpcClient(backend="memory://", timeout=0.5) as hasty, hasty.at(site.url) as peer:
        began = time.monotonic()
        with pytest.raises(RpcTimeout, match=r"within 0\.5 s"):
            peer.late()
        assert time.monotonic() - began < 20
    with (
        client.at("127.0.0.1:1?retry_for=0.1") as peer,
        pytest.raises(BackendUnavailable, match="nobody is reached"),
    ):
        peer.helloworld("x")


def test_statuses_of_others_are_errors_too(client: RpcClient) -> None:
    statuses = {404: MethodNotFound, 500: RemoteError, 503: BackendUnavailable}
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for status in statuses:
                caller, _ = listening.accept()
                with caller:
                    caller.recv(65536)
                    caller.sendall(
                        b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: 5\r\n\r\nsorry" % status
                    )

        thread = threading.Thread(target=serve)
        thread.start()
        with client.at(f"http://127.0.0.1:{listening.getsockname()[1]}") as peer:
            for status, kind in statuses.items():
                with pytest.raises(kind, match=f"{status}.*sorry"):
                    peer.anything()
        thread.join()


def test_a_hundred_calls_take_two_connections_at_most(
    serve: Serve, client: RpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve(helloworld=helloworld)
    made: list[Any] = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: made.append(a) or connect(*a, **k))
    with client.at(site.url) as peer:
        for number in range(100):
            peer.helloworld(str(number))
    assert 1 <= len(made) <= 2


def test_rules_have_variables_and_methods(serve: Serve, client: RpcClient) -> None:
    made = receiver()

    @made.route("/user/{n:int}", methods=("GET", "PUT"))
    def user(n: int, upper: bool = False, scale: float = 1.0) -> Any:
        return [n, upper, scale]

    @made.route("/file/{path:path}")
    def file(path: str) -> str:
        return path

    @made.route("/thing/{id:uuid}", methods=["DELETE"])
    def thing(id: UUID) -> str:
        return str(id)

    site = serve(made)
    with client.at(site.url) as peer:
        assert peer.request("GET", "/user/3") == [3, False, 1.0]
        assert peer.request("GET", "/user/3", upper=True, scale=2) == [3, True, 2.0]
        assert peer.request("PUT", "/user/4", upper=True) == [4, True, 1.0]
        assert peer.send("/file/a/b") == "a/b"
        id = UUID(int=5)
        assert peer.request("DELETE", f"/thing/{id}") == str(id)
        assert site.send("GET", "/user/x")[0] == 404
        assert site.send("GET", "/user/3?scale=big")[0] == 422
        status, headers, _ = site.send("POST", "/user/3")
        assert (status, headers["allow"]) == (405, "GET, PUT")
        with pytest.raises(InvalidParams, match="given in the URL"):
            peer.request("PUT", "/user/4", n=5)


def test_functions_and_methods_bring_their_rules_along(serve: Serve) -> None:
    from rpc import expose

    class Orders:
        name = "orders"

        @expose
        @route("/orders/{n:int}", methods=["GET"])
        def show(self, n: int) -> int:
            return n

    @route("hello/{name}", methods="GET")
    @route("hello")
    def hello(name: str) -> str:
        return f"hello {name}"

    made = RpcReceiver(services=[Orders()], jobs={"hello": hello}, backend="http://127.0.0.1:0", grace=1)
    site = serve(made)
    assert site.send("GET", "/orders/7")[2] == b"7"
    assert site.send("GET", "/hello/x")[2] == b'"hello x"'
    assert site.post("/hello", {"name": "y"}) == (200, "hello y")


def test_a_rule_that_is_none_is_said_at_once(serve: Serve) -> None:
    with pytest.raises(SettingsError, match="methods are some of GET"):
        route("/x", methods=["FETCH"])
    made = receiver()
    made.route("/x/{n:nosuch}")(helloworld)
    with pytest.raises(SettingsError, match="nosuch"):
        made.run()


def test_a_receiver_with_nothing_to_do_says_so() -> None:
    with pytest.raises(SettingsError, match="nothing to do"):
        receiver().run()


def count(most: int) -> Iterator[int]:
    yield from range(most)


def test_streams_are_lines_or_events(serve: Serve) -> None:
    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    site = serve(count=count, breaks=breaks, fails=lambda: 1 / 0)
    status, headers, body = site.send("POST", "/count", '{"most": 3}')
    assert (status, headers["content-type"], body) == (200, "application/x-ndjson", b"0\n1\n2\n")
    accept = {"accept": "text/event-stream"}
    _, headers, body = site.send("POST", "/count", "[2]", accept)
    assert (headers["content-type"], body) == ("text/event-stream", b"data: 0\n\ndata: 1\n\n")
    lines = site.send("POST", "/breaks")[2].splitlines()
    assert json.loads(lines[1])["error"]["data"]["type"] == "ValueError"
    assert b"event: error\n" in site.send("POST", "/breaks", headers=accept)[2]
    assert site.send("POST", "/fails", headers=accept)[0] == 500
    assert site.send("POST", "/count", '{"most": 0}')[2] == b""


def test_the_first_item_comes_before_the_last_is_made(serve: Serve) -> None:
    may_end = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        may_end.wait(20)
        yield 2

    import http.client

    connection = http.client.HTTPConnection(serve(slow=slow).host, timeout=20)
    connection.request("POST", "/slow")
    response = connection.getresponse()
    assert response.readline() == b"1\n"
    may_end.set()
    assert response.read() == b"2\n"
    connection.close()


def test_whoever_leaves_a_stream_ends_it(serve: Serve) -> None:
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    import http.client

    connection = http.client.HTTPConnection(serve(endless=endless).host, timeout=20)
    connection.request("POST", "/endless")
    response = connection.getresponse()
    assert response.readline() == b"1\n"
    response.close()
    connection.close()
    assert ended.wait(20)


def test_a_job_that_wants_a_token_is_done_for_no_other_one_whichever_way_it_is_called(
    serve: Serve, client: RpcClient
) -> None:
    done: list[str] = []
    made = receiver()

    @made.route("/pay/{to}", token=["new", "old"])
    def pay(to: str) -> str:
        done.append(to)
        return to

    @made.route("/rows", token="new")
    def rows() -> Iterator[int]:
        done.append("rows")
        yield 1

    site = serve(made)
    told = set()
    for token in None, "", "wrong", "NEW", "new ", "n" * 5000:
        peer, theirs = (
            client.at(site.url, token=token),
            client.at(f"{site.url}/rpc", style="jsonrpc", token=token),
        )
        calls = (
            lambda peer=peer: peer.send("/pay/x"),
            lambda peer=peer: peer.pay("x"),
            lambda peer=peer: peer.send("/rows"),
            lambda theirs=theirs: theirs.pay("x"),
        )
        for call in calls:
            if token == "new ":  # a header has no blanks at its end
                continue
            with pytest.raises(Unauthorized) as refused:
                call()
            told.add(str(refused.value))
    assert (len(told), done) == (1, [])
    with RpcClient(backend=site.url, timeout=20) as ours, pytest.raises(Unauthorized):
        ours.call_and_wait("pay", ["x"])
    assert site.send("POST", "/pay/x")[0] == 401
    for token in "new", "old":
        assert client.at(site.url, token=token).send(f"/pay/{token}") == token
        assert client.at(f"{site.url}/rpc", style="jsonrpc", token=token).pay("y") == "y"
    assert site.send("POST", "/rows", headers={"authorization": "bearer new"})[2] == b"1\n"
    assert done == ["new", "y", "old", "y", "rows"]


def test_a_stranger_is_not_told_which_jobs_there_are_behind_a_token(serve: Serve) -> None:
    settings = Settings(timeout=20, grace=1, tokens={"pay.*": {"token": "new", "rate": 0.001}})
    jobs = {"pay.refund": lambda to: to, "free": lambda: 1}
    made = RpcReceiver(jobs=jobs, backend="http://127.0.0.1:0", settings=settings)
    site, told = serve(made), set()
    for method in "POST", "GET", "PUT":
        for path in "/pay.refund", "/pay.nosuch", "/pay.refund?nosuch=1":
            for body in "{}", "[", "7":
                status, headers, answer = site.send(method, path, body)
                told.add((status, headers["www-authenticate"], answer))
    [(status, challenge, _)] = told
    assert (status, challenge) == (401, "Bearer")
    new = {"authorization": "Bearer new"}
    assert site.send("GET", "/pay.refund", headers=new)[0] == 405
    assert site.send("POST", "/pay.nosuch", headers=new)[0] == 404
    assert site.send("POST", "/nosuch")[0] == 404
    assert site.send("POST", "/free")[0] == 200
    assert site.send("POST", "/pay.refund", '["x"]', headers=new)[::2] == (200, b'"x"')  # nothing was counted
    status, headers, _ = site.send("POST", "/pay.refund", '["x"]', headers=new)
    assert (status, headers["retry-after"]) == (429, "1")


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server of somebody else, and what its requests are for."""
    targets: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            targets.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = json.dumps({"jsonrpc": "2.0", "result": 3, "id": body["id"]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing is to be read here."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", targets
        server.shutdown()
        thread.join(20)


@pytest.mark.parametrize(
    ("path", "target"), [("", "/"), ("/", "/"), ("/rpc", "/rpc"), ("/rpc/", "/rpc/"), ("?retry_for=1", "/")]
)
def test_json_rpc_goes_to_just_this_url(asked: tuple[str, list[str]], path: str, target: str) -> None:
    url, targets = asked

    async def program() -> None:
        async with AsyncRpcClient(backend="memory://", timeout=20) as client:
            assert await client.at(url + path, style="jsonrpc").add(1, 2) == 3

    with RpcClient(backend="memory://", timeout=20) as client:
        assert client.at(url + path, style="jsonrpc").add(1, 2) == 3
    asyncio.run(program())
    assert targets == [target] * 2
