"""The web examples: what their READMEs say to run, on a real Redis, asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import redis

from rpc import NoReceivers, RemoteError, RpcClient, RpcError, Unsupported, WorkerLost
from rpc.testing import RedisServer

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "web.md"
SECONDS = 40
LONG = str(SECONDS)  # a call's timeout, where none is expected
PRICES = {"tea": 250, "coffee": 400, "cake": 320}

Worker = Callable[..., RpcClient]

pytestmark = [pytest.mark.redis, pytest.mark.slow]


class Program:
    """A command in an example's directory, and what it says."""

    def __init__(self, words: list[str], directory: Path, environment: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said, self._has_ended = "", False
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def says(self, pattern: str) -> re.Match[str]:
        """Waits until it has said that."""
        with self._heard:
            self._heard.wait_for(lambda: self._has_ended or re.search(pattern, self.said), SECONDS)
            found = re.search(pattern, self.said)
            assert found, f"not said: {pattern}\n{self.said}"
            return found

    def terminate(self) -> None:
        self._popen.terminate()

    def ends(self) -> int:
        try:
            self._popen.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._reader.join(SECONDS)
        return code

    def _read(self) -> None:
        assert self._popen.stdout
        with self._popen.stdout as lines:
            for line in lines:
                with self._heard:
                    self.said += line
                    self._heard.notify_all()
        with self._heard:
            self._has_ended = True
            self._heard.notify_all()


class Shop:
    """An example, of which programs run."""

    def __init__(self, name: str, url: str, home: str) -> None:
        self.url, self._home = url, home
        self._directory = ROOT / "example" / name
        self._programs: list[Program] = []
        self.port = 0

    def worker(self) -> Program:
        return self._start("rpc worker")

    def web(self, *, backend: str = "", timeout: str = LONG, workers: str = "") -> Program:
        """The web server, once it listens. `workers`: other words than the README's for gunicorn."""
        server = self._start("uvicorn|gunicorn", backend, timeout, workers)
        self.port = int(server.says(r"(?:running on|Listening at:) http://127\.0\.0\.1:(\d+)")[1])
        return server

    def _start(self, program: str, backend: str = "", timeout: str = LONG, workers: str = "") -> Program:
        readme = (self._directory / "README.md").read_text()
        command = re.search(rf"^({program}).*", readme, re.MULTILINE)
        assert command
        words = shlex.split(command[0], comments=True)
        if words[0] == "uvicorn":
            words += ["--port", "0"]
        if words[0] == "gunicorn":
            words[1:-1] = shlex.split(workers) or words[1:-1]
            words += ["--bind", "127.0.0.1:0", "--access-logfile", "-", "--access-logformat", "by %(p)s"]
        environment = {
            "RPC_BACKEND": backend or self.url,
            "RPC_TIMEOUT": timeout,
            "RPC_SETTINGS_MODULE": "settings",
            "PYTHONWARNINGS": "always::ResourceWarning",
            "PYTHONUNBUFFERED": "1",
            "HOME": self._home,  # gunicorn puts a socket there
            "XDG_RUNTIME_DIR": self._home,
        }
        self._programs.append(Program(words, self._directory, environment))
        return self._programs[-1]

    def asks(self, method: str, path: str, data: Any = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            body = None if data is None else json.dumps(data)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text.decode()

    def orders(self, item: str = "tea", quantity: Any = 1) -> tuple[int, Any]:
        return self.asks("POST", "/orders", {"item": item, "quantity": quantity})

    def stops(self) -> None:
        for program in self._programs:
            program.terminate()
        codes = [program.ends() for program in self._programs]
        said = "\n".join(program.said for program in self._programs)
        print(said)
        assert set(codes) <= {0, -signal.SIGTERM}, said  # uvicorn ends by the signal, when it is done
        assert "Warning" not in said
        assert "Exception ignored" not in said


@pytest.fixture(params=["fastapi_app", "flask_app"])
def shop(request: pytest.FixtureRequest, rpc_redis: RedisServer) -> Iterator[Shop]:
    needed = {"fastapi_app": ("fastapi", "uvicorn"), "flask_app": ("flask", "gunicorn")}[request.param]
    for module in needed:
        pytest.importorskip(module)
    with redis.Redis.from_url(rpc_redis.url) as connection:
        connection.flushdb()
    with tempfile.TemporaryDirectory() as home:
        shop = Shop(request.param, rpc_redis.url, home)
        yield shop
        shop.stops()


only_flask = pytest.mark.parametrize("shop", ["flask_app"], indirect=True)


def check_many(shop: Shop) -> None:
    """Ask for so much at once that the requests overlap; each gets its own answer."""
    asked: list[tuple[Callable[[], tuple[int, Any]], tuple[int, Any]]] = []
    for number in range(1, 20):
        for item, cents in PRICES.items():
            order = {"item": item, "quantity": number, "cents": number * cents}
            asked.append((partial(shop.orders, item, number), (201, order)))
        some = dict(islice(cycle(PRICES.items()), number % 3, number % 3 + 2))
        path = "/prices?" + "&".join(f"item={item}" for item in some)
        asked.append((partial(shop.asks, "GET", path), (200, some)))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda ask: ask(), [ask for ask, _ in asked]))
    assert answers == [right for _, right in asked]


def test_orders_prices_and_receipts(shop: Shop) -> None:
    shop.web()
    worker = shop.worker()
    assert shop.orders("tea", 3) == (201, {"item": "tea", "quantity": 3, "cents": 750})
    assert shop.asks("GET", "/prices?item=tea&item=cake") == (200, {"tea": 250, "cake": 320})
    status, receipt = shop.asks("POST", "/receipts", {"email": "a@example.org", "cents": 750})
    assert status == 202
    assert re.fullmatch("[0-9a-f]{32}", receipt["id"])
    worker.says("a receipt for 750 cents goes to a@example.org")


def test_many_requests_at_once_get_their_own_answers(shop: Shop) -> None:
    shop.web()
    shop.worker()
    check_many(shop)


@only_flask
@pytest.mark.parametrize(
    "workers", ["--preload --workers 2 --threads 8", "--worker-class gevent --workers 2"]
)
def test_every_worker_of_gunicorn_answers(shop: Shop, workers: str) -> None:
    """The first are threads after a fork, with a client from before it."""
    if "gevent" in workers:
        pytest.importorskip("gevent")
    assert f"`gunicorn {workers} app:app`" in PAGE.read_text()
    server = shop.web(workers=workers)
    shop.worker()
    end = time.monotonic() + SECONDS
    pids: set[str] = set()
    while len(pids) < 2:
        assert time.monotonic() < end, server.said
        check_many(shop)
        pids = set(re.findall(r"by <(\d+)>", server.said))
    assert pids == set(re.findall(r"Booting worker with pid: (\d+)", server.said))


def test_what_the_job_refuses_is_422(shop: Shop) -> None:
    shop.web()
    shop.worker()
    status, answer = shop.orders("tea", "three")
    assert status == 422
    assert answer["error"].startswith("quantity: ")
    assert shop.orders("gold") == (422, {"error": "Refused: we have no gold"})
    assert shop.asks("GET", "/prices?item=tea&item=gold") == (422, {"error": "Refused: we have no gold"})
    assert shop.asks("POST", "/orders", ["tea", 3])[0] == 422


def test_a_handler_that_fails_is_502_and_its_text_is_not_told(shop: Shop, rpc_worker: Worker) -> None:
    def breaks(item: str, quantity: int) -> None:
        raise OSError("/etc/secret is missing")

    server = shop.web()
    rpc_worker({"place_order": breaks}, backend=shop.url)
    assert shop.orders() == (502, {"error": "RemoteError"})
    server.says("RemoteError: OSError: /etc/secret is missing")
    assert shop.asks("GET", "/prices?item=tea") == (502, {"error": "MethodNotFound"})


only_fastapi = pytest.mark.parametrize("shop", ["fastapi_app"], indirect=True)


@only_fastapi
def test_what_happens_to_an_order_is_told_as_it_happens(shop: Shop) -> None:
    shop.worker()
    shop.web()
    steps = "".join(f"data: tea: {step}\n\n" for step in ("ordered", "made", "served"))
    assert shop.asks("GET", "/preparation?item=tea") == (200, steps)


@only_fastapi
def test_a_browser_that_leaves_ends_the_generator_in_the_worker(shop: Shop, rpc_worker: Worker) -> None:
    ended, waits = threading.Semaphore(0), threading.Event()

    async def preparation(item: str) -> AsyncIterator[str]:
        try:
            yield item
            waits.set()
            await asyncio.Event().wait()
        finally:
            ended.release()

    rpc_worker({"preparation": preparation}, backend=shop.url)
    shop.web()
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", shop.port), SECONDS) as browser:
            browser.sendall(b"GET /preparation?item=tea HTTP/1.1\r\nHost: shop\r\n\r\n")
            with browser.makefile("rb") as lines:
                assert next(line for line in lines if b"tea" in line) == b"data: tea\n"
            assert waits.wait(SECONDS)
        assert ended.acquire(timeout=SECONDS)


def test_no_worker_is_504(shop: Shop) -> None:
    shop.web(timeout="0.2")
    assert shop.orders() == (504, {"error": "RpcTimeout"})
    assert shop.asks("GET", "/prices?item=tea&item=cake") == (504, {"error": "RpcTimeout"})
    assert shop.asks("POST", "/receipts", {"email": "a@example.org", "cents": 750})[0] == 202


def test_no_redis_is_503(shop: Shop) -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        shop.web(backend=f"redis://127.0.0.1:{taken.getsockname()[1]}/0", timeout="0.5")
        assert shop.orders() == (503, {"error": "BackendUnavailable"})
        assert shop.asks("GET", "/prices?item=tea") == (503, {"error": "BackendUnavailable"})


def test_a_full_queue_is_503(shop: Shop) -> None:
    shop.web(backend=f"{shop.url}?max_length=1")
    receipt = {"email": "a@example.org", "cents": 750}
    assert shop.asks("POST", "/receipts", receipt)[0] == 202
    assert shop.asks("POST", "/receipts", receipt) == (503, {"error": "QueueFull"})
    assert shop.orders() == (503, {"error": "QueueFull"})
    worker = shop.worker()
    worker.says("a receipt for 750 cents")
    assert shop.orders()[0] == 201


@pytest.mark.parametrize(("error", "status"), [(NoReceivers, 503), (WorkerLost, 502), (Unsupported, 500)])
def test_what_this_backend_does_not_say_has_a_status_too(
    shop: Shop, rpc_worker: Worker, error: type[RpcError], status: int
) -> None:
    def says(item: str, quantity: int) -> None:
        told = RemoteError("", "")
        told.code = error.code
        raise told

    shop.web()
    rpc_worker({"place_order": says}, backend=shop.url)
    assert shop.orders() == (status, {"error": error.__name__})


def test_a_request_that_waits_is_answered_before_the_server_ends(shop: Shop, rpc_worker: Worker) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(item: str, quantity: int) -> str:
        begun.set()
        assert may_end.wait(SECONDS)
        return "done"

    server = shop.web()
    rpc_worker({"place_order": slow}, backend=shop.url)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(shop.orders)
        try:
            assert begun.wait(SECONDS)
            server.terminate()
            server.says("Shutting down|Handling signal: term")
        finally:
            may_end.set()
        assert answer.result() == (201, "done")


def test_the_page_quotes_the_examples() -> None:
    source = "\n\n".join(path.read_text() for path in ROOT.glob("example/*_app/app.py"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for part in "\n\n\n".join(blocks).split("\n\n\n"):
        assert part.strip() in source
