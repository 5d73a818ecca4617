"""`client.logs()`: log records as whoever listens gets them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from in_memory import LONG, until

from rpc import AsyncRpcClient, BackendUnavailable, Cancelled, Identity, RpcClient, RpcTimeout, Unsupported
from rpc.backends import backend_from_url
from rpc.backends.memory import MemoryBackend
from rpc.core.log_batches import LOGS
from rpc.logs import RpcLogHandler
from rpc.settings import Settings
from rpc.streams import records
from rpc.transport import Message

ORDERS = Settings(domain="shop", service_type="orders", service_id="a")
STOCK = Settings(domain="shop", service_type="stock")


class Process:
    """What a process has that logs."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.handler = RpcLogHandler(url, settings)

    def log(self, level: int, logger: str, message: str) -> None:
        self.handler.handle(logging.LogRecord(logger, level, __file__, 1, message, (), None))

    def flush(self) -> None:
        assert self.handler.flush(LONG)


@pytest.fixture
def orders(plain_url: str) -> Iterator[Process]:
    process = Process(plain_url, ORDERS)
    yield process
    process.handler.close()


def test_whoever_listens_gets_what_is_logged(orders: Process, plain_url: str) -> None:
    with RpcClient(backend=plain_url, timeout=LONG) as client, client.logs() as stream:
        for number in range(300):
            orders.log(logging.INFO, "shop", f"{number}")
        assert [next(stream).message for _ in range(300)] == [str(number) for number in range(300)]
        orders.log(logging.INFO, "shop", "last")
        entry = stream.get(LONG)
    assert (entry.message, entry.service, entry.pid) == ("last", "shop.orders.a", os.getpid())


def test_an_event_loop_listens_too(orders: Process, plain_url: str) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=plain_url, timeout=LONG) as client:
            stream = await client.logs(level="warning")
            with pytest.raises(RpcTimeout):
                await stream.get(0.001)
            await asyncio.to_thread(orders.log, logging.WARNING, "shop", "one")
            assert (await anext(stream)).message == "one"
            waiting = asyncio.create_task(stream.get())
            await asyncio.sleep(0)
            waiting.cancel()
            for message in "two", "three":
                orders.log(logging.WARNING, "shop", message)
            async for entry in stream:
                assert entry.message in ("two", "three")
                if entry.message == "three":
                    break
            async with stream:
                pass
            assert [entry async for entry in stream] == []
            other = await client.logs()
        with pytest.raises(Cancelled):
            await other.get(LONG)

    asyncio.run(main())


@pytest.mark.parametrize(("wanted", "messages"), [
    ({}, ["debug", "stock", "error", "end"]),
    ({"level": "warning"}, ["error", "end"]),
    ({"level": 41}, ["end"]),
    ({"service": "shop.stock.*"}, ["stock", "end"]),
    ({"logger": "shop.http"}, ["error"]),
    ({"logger": "shop", "level": "error"}, ["error", "end"]),
    ({"logger": "*.http"}, ["error"]),
], ids=str)  # fmt: skip
def test_filters(memory_url: str, wanted: dict[str, str], messages: list[str]) -> None:
    orders, stock = Process(memory_url, ORDERS), Process(memory_url, STOCK)
    with RpcClient(backend=memory_url, timeout=LONG) as client, client.logs(**wanted) as stream:  # type: ignore[arg-type]
        orders.log(logging.DEBUG, "shop", "debug")
        orders.flush()
        stock.log(logging.INFO, "shop", "stock")
        stock.flush()
        orders.log(logging.ERROR, "shop.http", "error")
        orders.flush()
        stock.log(logging.CRITICAL, "shop", "end")
        stock.flush()
        assert [stream.get(LONG).message for _ in messages] == messages
        with pytest.raises(RpcTimeout, match=r"no log record came within 0.01 s"):
            stream.get(0.01)
    for process in orders, stock:
        process.handler.close()


def test_who_waits_is_not_kept_by_what_is_not_wanted(memory_url: str) -> None:
    orders, ended = Process(memory_url, ORDERS), threading.Event()

    def log() -> None:
        while not ended.is_set():
            orders.log(logging.DEBUG, "shop", "noise")
            orders.flush()

    thread = threading.Thread(target=log)
    with RpcClient(backend=memory_url, timeout=LONG) as client, client.logs(level="error") as stream:
        thread.start()
        try:
            with pytest.raises(RpcTimeout):
                stream.get(0.1)
            with pytest.raises(RpcTimeout):
                stream.get(0)
        finally:
            ended.set()
            thread.join(LONG)
    orders.handler.close()


def test_who_is_too_slow_is_told_how_much_he_has_missed(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MESSAGES", 3)
    orders = Process(memory_url, ORDERS)
    with RpcClient(backend=memory_url, timeout=LONG) as client, client.logs(level="critical") as stream:
        orders.log(logging.CRITICAL, "shop", "first")
        assert next(stream).message == "first"
        for number in range(5):
            orders.log(logging.CRITICAL, "shop", f"{number}")
            orders.flush()
        until(lambda: stream._events.missed == 2)
        assert [next(stream).message for _ in range(4)] == [
            "2 log records were lost on their way",
            "2",
            "3",
            "4",
        ]
    orders.handler.close()


@pytest.mark.redis
def test_what_was_logged_before_is_heard_where_it_is_remembered(redis_url: str, memory_url: str) -> None:
    orders = Process(redis_url, ORDERS)
    orders.log(logging.INFO, "shop", "before")
    orders.flush()
    with RpcClient(backend=redis_url, timeout=LONG) as client, client.logs() as new:
        with client.logs(since=timedelta(minutes=1)) as stream:
            assert stream.get(LONG).message == "before"
            orders.log(logging.INFO, "shop", "after")
            assert stream.get(LONG).message == "after"
        assert new.get(LONG).message == "after"
    orders.handler.close()
    with (
        RpcClient(backend=memory_url, timeout=LONG) as client,
        pytest.raises(Unsupported, match=r"'replay'; .*redis: .*have it"),
    ):
        client.logs(since=timedelta(minutes=1))


def test_what_is_no_log_record_is_logged_and_the_next_one_is_heard(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    orders, backend = Process(memory_url, ORDERS), backend_from_url(memory_url)
    with RpcClient(backend=memory_url, timeout=LONG) as client, client.logs() as stream:
        for body in b"", b"{", b'{"method":"rpc.logs"}', b"[" * 5000:
            backend.send(LOGS, Message(body, {"id": "odd"}))
        orders.log(logging.INFO, "shop", "good")
        assert next(stream).message == "good"
    assert caplog.text.count("(odd)") == 4
    orders.handler.close()


def test_close_ends_who_waits_and_so_does_the_client(memory_url: str) -> None:
    client = RpcClient(backend=memory_url, timeout=LONG)
    streams, ended = [client.logs(), client.logs()], list[int]()

    def wait(number: int) -> None:
        for _ in streams[number]:
            raise AssertionError
        ended.append(number)

    threads = [threading.Thread(target=wait, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    streams[0].close()
    streams[0].close()
    threads[0].join(LONG)
    assert ended == [0]
    client.close()
    threads[1].join(LONG)
    assert ended == [0, 1]
    assert not any(thread.name == "rpc-subscription" for thread in threading.enumerate())


def test_a_process_that_listens_and_sends_everything_comes_to_rest(any_url: str) -> None:
    root, handler = logging.getLogger(), RpcLogHandler(any_url)
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with RpcClient(backend=any_url, timeout=LONG) as client, client.logs() as stream:
            logging.getLogger("tests.mine").warning("x")
            while stream.get(LONG).message != "x":
                pass
            with suppress(RpcTimeout):  # it ends, if it does not feed itself
                while True:
                    stream.get(0.5)
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()


def test_they_are_handled_here_by_what_is_set_up_here(memory_url: str) -> None:
    orders, got = Process(memory_url, ORDERS), list[logging.LogRecord]()
    name = f"tests.{uuid4().hex}"
    here = logging.getLogger(name)
    handler = logging.Handler()
    handler.emit = got.append  # type: ignore[method-assign]
    here.addHandler(handler)
    here.addHandler(orders.handler)  # which does not send it again
    with RpcClient(backend=memory_url, timeout=LONG) as client, client.logs() as stream:
        orders.log(logging.ERROR, name, "elsewhere")
        entry = next(stream)
        logging.getLogger(entry.logger).handle(entry.to_record())
        orders.flush()
        with pytest.raises(RpcTimeout):
            stream.get(0.05)
    assert [(each.getMessage(), vars(each)["service"]) for each in got] == [("elsewhere", "shop.orders.a")]
    here.handlers.clear()
    orders.handler.close()


@pytest.mark.parametrize("scheme", ["redis", "rq+redis"])
def test_no_broker(scheme: str) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{port.getsockname()[1]}"
        with (
            RpcClient(backend=url, timeout=0.2) as client,
            pytest.raises(BackendUnavailable, match=r"did not begin within 0.2 s"),
        ):
            client.logs()


def test_a_backend_without_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBackend, "features", frozenset())
    with RpcClient(backend="memory://") as client, pytest.raises(Unsupported, match="'topics'"):
        client.logs()


def test_a_level_that_is_none(memory_url: str) -> None:
    with RpcClient(backend=memory_url) as client, pytest.raises(ValueError, match="'loud' is no level"):
        client.logs(level="loud")


@pytest.mark.parametrize("variable", ["", "RPC_SETTINGS_MODULE"])
def test_who_logs_is_from_the_settings_that_there_are(
    variable: str, memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a handler that is given its backend, and unless it is told."""
    name = f"named_{uuid4().hex}" if variable else "settings"
    (tmp_path / f"{name}.py").write_text("RPC_DOMAIN, RPC_SERVICE_TYPE = 'shop', 'carts'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "settings", ModuleType("settings"))  # it is as it was afterwards
    del sys.modules["settings"]
    if variable:
        monkeypatch.setenv(variable, name)
    told = Identity(domain="bank", type="teller")
    cases: list[tuple[dict[str, Any], str]]
    cases = [({}, "shop.carts.default"), ({"identity": told}, "bank.teller.default")]
    with RpcClient(backend=memory_url) as client, client.logs() as logs:
        for options, service in cases:
            with closing(RpcLogHandler(memory_url, **options)) as handler:
                handler.handle(logging.LogRecord("shop", 20, __file__, 1, "x", (), None))
                assert logs.get(timeout=LONG).service == service


def test_without_settings_nobody_says_who_logs(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with RpcClient(backend=memory_url) as client, client.logs() as logs:
        with closing(RpcLogHandler(memory_url)) as handler:
            handler.handle(logging.LogRecord("shop", 20, __file__, 1, "x", (), None))
        assert logs.get(timeout=LONG).service == ""


def test_records_are_signed_where_there_are_keys() -> None:
    """Who has keys takes nothing that is not."""
    url = f"memory://{uuid4().hex}"
    settings = Settings(signing_keys={"one": "a secret of this test, long enough"})
    shop = logging.getLogger(f"shop.{uuid4().hex}")
    with RpcClient(backend=url, settings=settings) as client, client.logs(logger=shop.name) as logs:
        handler = RpcLogHandler(url, settings)
        shop.addHandler(handler)
        try:
            shop.warning("signed")
            assert logs.get(timeout=LONG).message == "signed"
        finally:
            shop.removeHandler(handler)
            handler.close()
