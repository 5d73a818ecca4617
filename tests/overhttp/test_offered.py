"""What a worker tells of itself, and applications that it is a part of."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
import uvicorn

from rpc import AsyncRpcClient, RpcClient, RpcError, RpcReceiver, SettingsError, Unsupported
from rpc.http import asgi_app
from rpc.settings import Settings

from .conftest import PATIENCE, Serve


def add(a: int, b: int = 10) -> int:
    """The sum."""
    return a + b


async def where() -> str:
    return threading.current_thread().name


def test_it_tells_whether_it_is_well(serve: Serve) -> None:
    site = serve(add=add)
    status, _, body = site.send("GET", "/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    assert site.send("HEAD", "/health")[2] == b""


def test_it_describes_its_jobs_as_openrpc(serve: Serve) -> None:
    site = serve(add=add)
    status, _, body = site.send("GET", "/openrpc.json")
    document = json.loads(body)
    assert (status, [each["name"] for each in document["methods"]]) == (200, ["add"])
    assert site.rpc('{"jsonrpc":"2.0","method":"rpc.discover","id":1}')["result"] == document


def test_the_page_cannot_be_broken_out_of(serve: Serve) -> None:
    """What a browser makes of it is in `test_page`."""

    def odd(text: str = "</script><script>alert(1)</script><!--") -> str:
        return text

    site = serve(add=add, odd=odd)
    status, headers, body = site.send("GET", "/")
    page = body.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.count("</script>") == 2  # its own
    assert "<!--" not in page
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    assert json.loads(found[1])["document"] == site.receiver.discover()
    policy = headers["content-security-policy"]
    for tag in "script", "style":
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_our_clients_find_out_what_it_offers(serve: Serve) -> None:
    site = serve(add=add)
    with RpcClient(backend=site.url, timeout=PATIENCE) as client:
        (worker,) = client.describe()
        assert worker.id == site.receiver.id
        with pytest.raises(Unsupported, match="topics"):
            client.publish("event")

    async def program() -> list[Any]:
        async with AsyncRpcClient(backend=f"{site.url},127.0.0.1:1", timeout=PATIENCE) as client:
            return await client.describe()

    assert [each.id for each in asyncio.run(program())] == [worker.id]


def test_a_thousand_requests_are_open_at_a_time_in_a_few_threads(serve: Serve) -> None:
    many, open_now, all_open = 1000, [0], asyncio.Event()

    async def waits(n: int) -> int:
        open_now[0] += 1
        if open_now[0] == many:
            threads.append(len({*threading.enumerate()} - before) - 1)  # that which calls run()
            all_open.set()
        await all_open.wait()
        return n

    before = {*threading.enumerate()}
    receiver = RpcReceiver(
        jobs={"waits": waits}, backend="http://127.0.0.1:0", concurrency=8, coroutines=2000, grace=1
    )
    site = serve(receiver)
    threads: list[int] = []

    async def program() -> list[Any]:
        async with AsyncRpcClient(backend=site.url, timeout=60) as client:
            calls = [client.submit("waits", {"n": n}) for n in range(many)]
            return [response.data for response in await asyncio.gather(*calls)]

    assert asyncio.run(program()) == list(range(many))
    assert threads[0] <= 12


class Served:
    """An ASGI application, in a thread."""

    def __init__(self, app: Any, lifespan: str = "auto") -> None:
        config = uvicorn.Config(app, port=0, log_config=None, lifespan=lifespan)  # type: ignore[arg-type]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="application")

    def __enter__(self) -> str:
        self._thread.start()
        while not (self._server.started and self._server.servers):
            assert self._thread.is_alive()
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def receiver() -> RpcReceiver:
    made = RpcReceiver(jobs={"add": add, "where": where}, backend="http:", concurrency=2, grace=1)

    @made.route("/twice/{n:int}", methods=["GET"])
    def twice(n: int) -> int:
        return 2 * n

    return made


@pytest.fixture
def client() -> Iterator[RpcClient]:
    with RpcClient(backend="memory://", timeout=PATIENCE) as client:
        yield client


def works(client: RpcClient, host: str, prefix: str = "") -> None:
    peer = client.at(f"{host}{prefix}")
    assert peer.add(1, 2) == 3
    assert peer.where() == "application"  # coroutines run in the application's loop
    assert peer.request("GET", "/twice/4") == 8
    assert client.at(f"{host}{prefix}/rpc", style="jsonrpc").add(1, b=2) == 3
    with RpcClient(backend=f"http://{host}{prefix}", timeout=PATIENCE) as ours:
        assert ours.call_and_wait("add", [3, 4]).data == 7


def test_alone_in_any_asgi_server(client: RpcClient) -> None:
    with Served(asgi_app(receiver()), "on") as host:
        works(client, host)


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_mounted_in_an_application(client: RpcClient, framework: str) -> None:
    jobs = asgi_app(receiver())

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield
        await jobs.stop()

    if framework == "fastapi":
        from fastapi import FastAPI

        app: Any = FastAPI(lifespan=lifespan)
    else:
        from starlette.applications import Starlette

        app = Starlette(lifespan=lifespan)
    app.mount("/jobs", jobs)
    with Served(app) as host:
        works(client, host, "/jobs")


def test_only_a_receiver_that_is_reached_over_http_can_be_mounted() -> None:
    with pytest.raises(SettingsError, match='"http:"'):
        asgi_app(RpcReceiver(jobs={"add": add}, backend="memory://"))


def test_a_worker_with_keys_does_nothing_that_is_not_signed(serve: Serve) -> None:
    done: list[int] = []

    def add(a: int, b: int) -> int:
        done.append(a)
        return a + b

    keys = Settings(signing_keys={"key": "a secret of more than thirty-two characters"}, grace=1, timeout=2)
    made = RpcReceiver(jobs={"add": add}, backend="http://127.0.0.1:0", settings=keys)
    site = serve(made)
    with RpcClient(backend=site.url, settings=keys) as ours:
        assert ours.call_and_wait("add", [1, 2]).data == 3
        assert "error" in site.rpc('{"jsonrpc":"2.0","method":"add","params":[5,6],"id":1}')
        assert site.send("POST", "/add", "[7,8]")[0] >= 400
    with RpcClient(backend=site.url, timeout=2) as stranger, pytest.raises(RpcError):
        stranger.call_and_wait("add", [9, 9])
    assert site.send("GET", "/health")[0] == 200
    assert done == [1]
