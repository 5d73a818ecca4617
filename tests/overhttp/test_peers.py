"""Programs of others that speak JSON-RPC 2.0, as they are: they call us, and we call them."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpc import InvalidParams, MethodNotFound, RemoteError, RpcClient, RpcError

from .conftest import Serve, Site

pytestmark = pytest.mark.slow

PACKAGES = ("jayson@5.0.0", "json-rpc-2.0@1.8.1", "@open-rpc/client-js@2.1.0")
HERE = Path(__file__).parent
HEARD: list[str] = []


def add(a: int, b: int = 10) -> int:
    return a + b


def fails() -> None:
    raise ValueError("no")


def heard(word: str) -> None:
    HEARD.append(word)


@pytest.fixture
def site(serve: Serve) -> Site:
    HEARD.clear()
    return serve(add=add, fails=fails, heard=heard, echo=lambda value: value)


Calls = Callable[..., Any]


def expected_of_a_server(call: Calls) -> None:
    """Of whoever has `add` and `fails`."""
    assert call("add", 1, 2) == 3
    assert call("add", a=1, b=5) == 6
    with pytest.raises(MethodNotFound):
        call("nosuch")
    with pytest.raises(RpcError):
        call("fails")


@pytest.fixture
def calls() -> Iterator[Callable[[str], Calls]]:
    """Our client of another one's server at a URL."""
    with RpcClient(backend="memory://", timeout=20) as client:
        yield lambda url: client.at(url, style="jsonrpc").send


@pytest.fixture
def answering() -> Iterator[Callable[[Callable[[str], str]], str]]:
    """The URL of a server of HTTP that answers with what a function makes of a body."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str], str]) -> str:
        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["content-length"])).decode()
                body = answer(sent).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/rpc"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_our_own_client(site: Site, calls: Callable[[str], Calls]) -> None:
    call = calls(f"{site.url}/rpc")
    expected_of_a_server(call)
    assert call("add", 1, b=4) == 5
    with pytest.raises(InvalidParams):
        call("add", "x")
    with pytest.raises(RemoteError) as raised:
        call("fails")
    assert raised.value.type == "ValueError"


def test_pjrpc_calls_us(site: Site) -> None:
    aiohttp = pytest.importorskip("pjrpc.client.backend.aiohttp", reason="needs pjrpc")
    import pjrpc

    async def program() -> None:
        async with aiohttp.Client(f"{site.url}/rpc") as client:
            assert await client("add", 1, 2) == 3
            assert await client.proxy.add(a=1, b=5) == 6
            await client.notify("heard", "pjrpc")
            with pytest.raises(pjrpc.client.exceptions.MethodNotFoundError):
                await client("nosuch")
            with pytest.raises(pjrpc.client.exceptions.InvalidParamsError):
                await client("add", "x")
            async with client.batch() as batch:
                batch("add", 1, 2)
                batch("add", 3, 4)
            assert tuple(batch.get_results()) == (3, 7)

    asyncio.run(program())
    assert HEARD == ["pjrpc"]


def pjrpc_answer() -> Callable[[str], str]:
    server = pytest.importorskip("pjrpc.server", reason="needs pjrpc")
    dispatcher = server.Dispatcher()
    for method in add, fails, echo, fail:
        dispatcher.registry.add_method(method)

    def answer(sent: str) -> str:
        found = dispatcher.dispatch(sent, None)
        return str(found[0]) if found else ""

    return answer


def test_we_call_pjrpc(answering: Callable[..., str], calls: Callable[[str], Calls]) -> None:
    expected_of_a_server(calls(answering(pjrpc_answer())))


def test_jsonrpcclient_calls_us(site: Site) -> None:
    theirs = pytest.importorskip("jsonrpcclient", reason="needs jsonrpcclient")

    def answered(request: Any) -> Any:
        connection = http.client.HTTPConnection(site.host, timeout=20)
        connection.request("POST", "/rpc", json.dumps(request), {"content-type": "application/json"})
        answer = connection.getresponse().read()
        connection.close()
        return theirs.parse(json.loads(answer)) if answer else None

    assert answered(theirs.request("add", params=(1, 2))).result == 3
    assert answered(theirs.request("add", params={"a": 1, "b": 5})).result == 6
    assert answered(theirs.request("nosuch")).code == -32601
    assert answered(theirs.notification("heard", params=["jsonrpcclient"])) is None
    several = [theirs.request_uuid("add", params=(1, 2)), theirs.request_hex("fails")]
    ok, error = answered(several)
    assert (ok.result, error.message) == (3, "no")


def test_ajsonrpc_calls_us(site: Site) -> None:
    core = pytest.importorskip("ajsonrpc.core", reason="needs ajsonrpc")
    request = core.JSONRPC20Request(method="add", params=[1, 2], id=7)
    assert site.rpc(json.dumps(request.body)) == core.JSONRPC20Response(result=3, id=7).body
    batch = core.JSONRPC20BatchRequest(
        [request, core.JSONRPC20Request(method="add", params={"a": 1}, id="x")]
    )
    assert [each["result"] for each in site.rpc(json.dumps(batch.body))] == [3, 11]


def ajsonrpc_answer() -> Callable[[str], str]:
    manager = pytest.importorskip("ajsonrpc.manager", reason="needs ajsonrpc")
    from ajsonrpc.dispatcher import Dispatcher

    dispatcher = Dispatcher()
    for method in add, fails, echo, fail:
        dispatcher[method.__name__] = method
    theirs = manager.AsyncJSONRPCResponseManager(dispatcher)

    def answer(sent: str) -> str:
        found = asyncio.run(theirs.get_response_for_payload(sent))
        return json.dumps(found.body) if found else ""

    return answer


def test_we_call_ajsonrpc(answering: Callable[..., str], calls: Callable[[str], Calls]) -> None:
    expected_of_a_server(calls(answering(ajsonrpc_answer())))


def echo(value: Any) -> Any:
    return value


def fail(text: str) -> None:
    raise ValueError(text)


CASES = yaml.safe_load((HERE.parent / "peers" / "http" / "jsonrpc.yaml").read_text())
KEPT = [case for case in CASES if "secret" not in case["post"]]
"""Without what is ours alone."""
NO_ID, RAISED = "parameters that do not fit", "what the handler raised"
DEPARTS = {
    "pjrpc": {NO_ID, RAISED, "a batch of what is no request", "a batch", "a batch of notifications"},
    "ajsonrpc": {NO_ID, RAISED},
    "jayson": {NO_ID, "what is no JSON", "a batch that is cut off"},
    "json-rpc-2.0": {NO_ID, RAISED, "what is no request"},
}
"""Cases in which a peer departs from the specification, or from our code for what is raised: some take an id
that is null for a notification, and a fractional one for none."""
written = pytest.mark.parametrize("case", KEPT, ids=[case["case"] for case in KEPT])


def departing(request: pytest.FixtureRequest, peer: str, case: dict[str, Any]) -> None:
    """If it does, it is to be known that it still does."""
    if case["case"] in DEPARTS[peer]:
        request.applymarker(pytest.mark.xfail(reason=f"{peer} departs from the specification", strict=True))


def put(case: dict[str, Any], url: str) -> None:
    """A case of tests/peers to somebody else, who has texts of his own for errors."""
    posted = urllib.request.Request(
        url, case["post"].encode(), {"content-type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(posted, timeout=60) as answer:
            body = answer.read()
    except urllib.error.HTTPError as refused:  # some have a status for what is wrong
        with refused:
            body = refused.read()
    assert outline(json.loads(body) if body else None) == outline(case["answer"])


def outline(answer: Any) -> Any:
    """Without the texts of errors."""
    if isinstance(answer, list):
        return [outline(each) for each in answer]
    if not answer or "error" not in answer:
        return answer
    return {**answer, "error": answer["error"]["code"]}


@written
@pytest.mark.parametrize("peer", ["pjrpc", "ajsonrpc"])
def test_those_of_pypi_answer_as_written(
    case: dict[str, Any], peer: str, answering: Callable[..., str], request: pytest.FixtureRequest
) -> None:
    departing(request, peer, case)
    put(case, answering({"pjrpc": pjrpc_answer, "ajsonrpc": ajsonrpc_answer}[peer]()))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of npm."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    if done.returncode:
        pytest.skip(f"needs a registry of npm: {done.stderr[-200:]}")
    shutil.copy(HERE / "peers.mjs", folder)
    return folder


@pytest.mark.parametrize("peer", ["jayson", "json-rpc-2.0", "@open-rpc/client-js"])
def test_those_of_npm_call_us(node: Path, site: Site, peer: str) -> None:
    command = ["node", "peers.mjs", "call", peer, f"{site.url}/rpc"]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"positional": 3, "named": 6, "missing": -32601, "failed": "no"}


@pytest.fixture(scope="module", params=["jayson", "json-rpc-2.0"])
def served_by_npm(request: pytest.FixtureRequest, node: Path) -> Iterator[tuple[str, str]]:
    """The name and the URL of one of npm's servers."""
    command = ["node", "peers.mjs", "serve", request.param]
    with subprocess.Popen(command, cwd=node, stdout=subprocess.PIPE, text=True, stderr=sys.stderr) as server:
        try:
            assert server.stdout
            yield request.param, f"http://127.0.0.1:{int(server.stdout.readline())}/rpc"
        finally:
            server.kill()


def test_we_call_those_of_npm(served_by_npm: tuple[str, str], calls: Callable[[str], Calls]) -> None:
    expected_of_a_server(calls(served_by_npm[1]))


@written
def test_those_of_npm_answer_as_written(
    case: dict[str, Any], served_by_npm: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    peer, url = served_by_npm
    departing(request, peer, case)
    put(case, url)
