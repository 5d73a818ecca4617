"""Log records on their way to whoever listens, and what becomes of them when the broker is away."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from in_memory import LONG, until

from rpc import BackendUnavailable, Request, RpcClient, RpcReceiver, SettingsError, Unsupported
from rpc.backends import backend_from_url
from rpc.core.codecs import ACCEPTED
from rpc.core.events import decode_event
from rpc.core.log_batches import LOGS, Heard
from rpc.core.log_entries import LogEntry
from rpc.logs import MOST_RECORDS, RpcLogHandler
from rpc.settings import Settings
from rpc.testing import start_redis
from rpc.transport import Address, Delivery, Message

ROOT = Path(__file__).parent.parent


class Listener:
    """Hears all log records at a URL, until it is closed."""

    def __init__(self, url: str) -> None:
        self.entries = list[LogEntry]()
        self.came = list[Message]()
        self._heard, connected = Heard(), threading.Event()
        self._backend = backend_from_url(url)
        self._server = self._backend.server(
            [LOGS], self._hear, on_change=lambda is_there: connected.set() if is_there else None
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        assert connected.wait(LONG)

    def _hear(self, delivery: Delivery) -> None:
        self.came.append(delivery.message)
        self.entries += self._heard.entries(decode_event(delivery.message, ACCEPTED))
        delivery.finish(None)

    def close(self) -> None:
        self._server.stop()
        self._thread.join(LONG)
        self._backend.close()
        assert not self._thread.is_alive()

    def messages(self, number: int) -> list[str]:
        """Wait for so many entries; what they say."""
        until(lambda: len(self.entries) >= number)
        return [each.message for each in self.entries]


class Site:
    """Loggers, their handlers, and listeners, that end with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.log = logging.getLogger(f"tests.{uuid4().hex}")
        self.log.setLevel(logging.DEBUG)
        self.log.propagate = False
        stack.callback(self.log.handlers.clear)

    def handler(self, *arguments: Any, to: logging.Logger | None = None, **options: Any) -> RpcLogHandler:
        handler = RpcLogHandler(*arguments, **options)
        to = to or self.log
        to.addHandler(handler)
        self._stack.callback(handler.close)
        self._stack.callback(to.removeHandler, handler)
        return handler

    def listen(self, url: str) -> Listener:
        listener = Listener(url)
        self._stack.callback(listener.close)
        return listener


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


class Stub:
    """A backend that only carries, and whose broker may be away."""

    features, max_message = frozenset({"topics"}), None

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = threading.Event()
        if is_there:
            self.is_there.set()
        self.attempts = 0
        self.sent = list[Message]()
        self.meanwhile: Callable[[], object] = lambda: None

    def send(self, to: Address, message: Message) -> None:
        self.attempts += 1
        self.meanwhile()
        if not self.is_there.is_set():
            raise BackendUnavailable("away")
        self.sent.append(message)

    def request(self, to: Address, message: Message) -> Any: ...

    def server(self, *arguments: Any, **options: Any) -> Any: ...

    def close(self) -> None: ...

    @property
    def said(self) -> list[str]:
        heard = Heard()
        events = (decode_event(message, ACCEPTED) for message in self.sent)
        return [entry.message for event in events for entry in heard.entries(event)]


# Whoever logs.


def test_what_is_logged_is_heard(site: Site, plain_url: str) -> None:
    listener, handler = site.listen(plain_url), site.handler(plain_url)
    site.log.warning("order %d of %s", 17, "Ann", extra={"colour": "red"})
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        site.log.exception("it failed", stack_info=True)
    assert handler.flush(LONG)
    assert listener.messages(2) == ["order 17 of Ann", "it failed"]
    first, second = listener.entries
    assert (first.level, first.args, first.extra) == ("WARNING", [17, "Ann"], {"colour": "red"})
    assert (first.pid, first.logger, first.thread) == (os.getpid(), site.log.name, "MainThread")
    assert (first.path, first.function) == (__file__, "test_what_is_logged_is_heard")
    assert second.exception
    assert second.exception.type == "ZeroDivisionError"
    assert second.exception.traceback.startswith("Traceback")
    assert second.stack.startswith("Stack")


def test_threads_and_coroutines_log_and_nothing_is_lost(site: Site, any_url: str) -> None:
    listener, handler = site.listen(any_url), site.handler(any_url)

    def work(name: str) -> None:
        for number in range(200):
            site.log.info("%s %d", name, number)

    async def task(name: str) -> None:
        for number in range(200):
            site.log.info("%s %d", name, number)
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(*[asyncio.create_task(task(f"task{n}"), name=f"task{n}") for n in range(3)])

    threads = [threading.Thread(target=work, args=[f"thread{n}"], name=f"thread{n}") for n in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join()
    assert handler.flush(LONG)
    said = listener.messages(1200)
    for name in (f"{kind}{n}" for kind in ("thread", "task") for n in range(3)):
        assert [each for each in said if each.startswith(f"{name} ")] == [f"{name} {n}" for n in range(200)]
    for entry in listener.entries:
        name = entry.message.split()[0]
        assert entry.thread == (name if name.startswith("thread") else "MainThread")
        assert entry.task == ("" if name.startswith("thread") or sys.version_info < (3, 12) else name)


CHILD = """
import logging, os, sys
from rpc.logs import RpcLogHandler

handler = RpcLogHandler(sys.argv[1], capacity=100_000)
log = logging.getLogger()
log.addHandler(handler)
log.warning("before")
for number in range(1000):
    log.warning("parent %d", number)
child = os.fork()
if child == 0:
    log.warning("child")
    assert handler.flush(20)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
log.warning("after")
"""


def test_a_forked_child_sends_what_it_logs_and_nothing_twice(site: Site, any_broker_url: str) -> None:
    """And the end of a process sends what is left."""
    listener = site.listen(any_broker_url)
    subprocess.run([sys.executable, "-c", CHILD, any_broker_url], check=True, timeout=60)
    listener.messages(1003)
    of_child = [each for each in listener.entries if each.message == "child"]
    others = [each for each in listener.entries if each.message != "child"]
    assert [each.message for each in others] == [
        "before",
        *(f"parent {number}" for number in range(1000)),
        "after",
    ]
    assert len(of_child) == 1
    assert of_child[0].pid not in {each.pid for each in others}


def _logs(name: str) -> None:
    for number in range(50):
        logging.getLogger(name).info("child %d", number)


@pytest.mark.redis
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs a fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_of_multiprocessing_sends_what_is_left_when_it_ends(site: Site, redis_url: str) -> None:
    listener = site.listen(redis_url)
    site.handler(redis_url)
    child = multiprocessing.get_context("fork").Process(target=_logs, args=[site.log.name], name="counter")
    child.start()
    child.join(LONG)
    assert child.exitcode == 0
    assert listener.messages(50) == [f"child {number}" for number in range(50)]
    assert {each.process for each in listener.entries} == {"counter"}


def test_what_a_handler_logs_has_its_request(site: Site) -> None:
    url = f"memory://{uuid4().hex}"
    listener, handler = site.listen(url), site.handler(url)

    def plain(request: Request) -> str:
        site.log.info("plain")
        return request.id

    async def coroutine(request: Request) -> str:
        await asyncio.sleep(0)
        site.log.info("coroutine")
        return request.id

    receiver = RpcReceiver(jobs={"plain": plain, "coroutine": coroutine}, backend=url)
    thread = threading.Thread(target=receiver.start)
    thread.start()
    headers = {"traceparent": f"00-{'b' * 32}-{'c' * 16}-01"}
    with RpcClient(backend=url, timeout=LONG) as client:
        ids = [client.call_and_wait(name, headers=headers).data for name in ("plain", "coroutine")]
    receiver.stop()
    thread.join(LONG)
    site.log.info("outside")
    assert handler.flush(LONG)
    listener.messages(3)
    assert [each.request_id for each in listener.entries] == [*ids, ""]
    assert [each.trace_id for each in listener.entries] == ["b" * 32] * 2 + [""]


def test_the_identity_is_that_of_the_settings(site: Site) -> None:
    url = f"memory://{uuid4().hex}"
    settings = Settings(backend=url, domain="shop", service_type="orders", service_version="1.2.0")
    listener, handler = site.listen(url), site.handler(settings=settings)
    site.log.info("x")
    assert handler.flush(LONG)
    listener.messages(1)
    assert (listener.entries[0].service, listener.entries[0].version) == ("shop.orders.default", "1.2.0")


def test_it_is_configured_by_a_dictionary(site: Site) -> None:
    url = f"memory://{uuid4().hex}"
    listener = site.listen(url)
    name = f"tests.{uuid4().hex}"
    logging.config.dictConfig({
        "version": 1,
        "incremental": False,
        "disable_existing_loggers": False,
        "filters": {"quiet": {"()": lambda: lambda record: "quiet" not in record.getMessage()}},
        "handlers": {
            "remote": {
                "class": "rpc.logs.RpcLogHandler",
                "backend": url,
                "level": "WARNING",
                "capacity": 100,
                "filters": ["quiet"],
            }
        },
        "loggers": {name: {"handlers": ["remote"], "level": "DEBUG", "propagate": False}},
    })  # fmt: skip
    log = logging.getLogger(name)
    (handler,) = log.handlers
    assert isinstance(handler, RpcLogHandler)
    try:
        for message in "one", "quiet", "two":
            log.info(message)
            log.error(message)
        assert handler.flush(LONG)
        assert listener.messages(2) == ["one", "two"]
    finally:
        log.handlers.clear()
        handler.close()


# The broker is away.


def test_what_is_logged_while_the_broker_is_away_is_sent_when_it_is_back(site: Site) -> None:
    stub = Stub(is_there=False)
    handler = site.handler(stub)
    for number in range(3000):
        site.log.info("%d", number)
    until(lambda: stub.attempts > 1)
    assert not handler.flush(0.001)
    stub.is_there.set()
    assert handler.flush(LONG)
    assert stub.said == [str(number) for number in range(3000)]


def test_of_more_than_there_is_room_for_the_last_are_kept_and_the_others_counted(site: Site) -> None:
    stub = Stub(is_there=False)
    handler = site.handler(stub, capacity=10)
    site.log.info("first")
    until(lambda: stub.attempts)  # it is on its way, and takes no room
    for number in range(25):
        site.log.info("%d", number)
    stub.is_there.set()
    assert handler.flush(LONG)
    dropped = "15 log records were dropped by their process, whose buffer was full"
    assert stub.said == ["first", dropped, *(str(number) for number in range(15, 25))]
    site.log.info("last")
    assert handler.flush(LONG)
    assert stub.said[-2:] == ["24", "last"], "it is told once"


def test_who_logs_does_not_wait_for_a_broker_that_hangs(site: Site) -> None:
    stub, goes_on = Stub(), threading.Event()
    stub.meanwhile = goes_on.wait
    handler = site.handler(stub, close_timeout=0.1)
    site.log.info("first")
    until(lambda: stub.attempts)
    for number in range(1000):
        site.log.info("%d", number)
    assert not handler.flush(0.01)
    handler.close()
    assert not stub.sent
    goes_on.set()
    until(lambda: len(stub.said) == 1001)


def test_a_message_that_may_have_arrived_is_sent_again_as_the_same(site: Site) -> None:
    stub = Stub()

    def arrives_once() -> None:
        if stub.attempts == 1:
            stub.sent.append(Message())  # in its place
            raise BackendUnavailable("whether it arrived, nobody knows")

    stub.meanwhile = arrives_once
    handler = site.handler(stub)
    site.log.info("x")
    assert handler.flush(LONG)
    again = stub.sent[1]
    stub.sent = [again, again]
    assert stub.said == ["x"]


@pytest.mark.slow
@pytest.mark.real_redis
@pytest.mark.redis
@pytest.mark.parametrize("scheme", ["", "rq+"])
def test_a_broker_that_is_restarted(site: Site, scheme: str) -> None:
    with start_redis(durable=True) as redis:
        url = scheme + redis.url
        listener, handler = site.listen(url), site.handler(url, close_timeout=LONG)
        site.log.info("before")
        assert listener.messages(1) == ["before"]
        redis.kill()
        for number in range(1000):
            site.log.info("%d", number)
        redis.restart()
        assert handler.flush(LONG)
        assert listener.messages(1001) == ["before", *map(str, range(1000))]
        listener.close()


@pytest.mark.slow
@pytest.mark.xdist_group("rabbit_node")
def test_a_rabbitmq_that_is_restarted(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("pamqp", reason="needs RabbitMQ's driver")
    from tests.rabbit import Node

    node = Node(tmp_path)
    node.start()
    try:
        handler = site.handler(node.url)
        site.log.info("before")
        assert handler.flush(LONG)
        node.stop()
        for number in range(1000):
            site.log.info("%d", number)
        node.start()
        listener = site.listen(node.url)
        assert handler.flush(60)
        # What was on its way when there was no listener yet, is gone with RabbitMQ: a topic keeps nothing.
        site.log.info("after")
        until(lambda: any(each.message == "after" for each in listener.entries))
        handler.close()
        listener.close()
    finally:
        node.stop()


# It never feeds itself.


def test_what_is_logged_while_it_sends_is_not_sent(site: Site) -> None:
    """On the root logger, at DEBUG, with two handlers, each of which could feed the other."""
    stubs, root = [Stub(), Stub()], logging.getLogger()
    before = root.level
    for stub in stubs:
        stub.meanwhile = lambda: logging.getLogger("driver").debug("of the driver")
    handlers = [site.handler(stub, to=root) for stub in stubs]
    root.setLevel(logging.DEBUG)
    try:
        for message in "first", "second":
            logging.getLogger("tests.mine").warning(message)
            assert all(handler.flush(LONG) for handler in handlers)
    finally:
        root.setLevel(before)
    assert [stub.said for stub in stubs] == [["first", "second"]] * 2


@pytest.mark.parametrize("kind", ["rpc.backends.redis.topics", "rpc.loops", "rpc.logs"])
def test_what_others_log_of_its_sending_is_no_reason_to_send(site: Site, kind: str) -> None:
    stub, log = Stub(), logging.getLogger(kind)

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: log.warning("sent a message"))
        thread.start()
        thread.join()

    stub.meanwhile = in_a_thread
    handler = site.handler(stub, to=log)
    site.handler(stub)  # has nothing to do
    mine = logging.getLogger(kind)
    mine.warning("one")
    assert not stub.sent
    assert handler.flush(LONG)
    assert handler.flush(LONG)
    assert stub.said == ["one", "sent a message"], "that of the second message waits for a third"


def test_it_comes_to_rest_in_a_process_that_listens_too(site: Site, any_url: str) -> None:
    root, listener = logging.getLogger(), site.listen(any_url)
    handler, before = site.handler(any_url, to=root), root.level
    root.setLevel(logging.DEBUG)
    try:
        logging.getLogger("tests.mine").warning("x")
        assert handler.flush(LONG)
        until(lambda: any(each.message == "x" for each in listener.entries))
        assert handler.flush(LONG)
        until(lambda: handler.flush(LONG) and handler._sender._wake.empty())
        assert len(listener.came) <= 3
    finally:
        root.setLevel(before)


def test_what_came_from_another_process_is_not_sent_again(site: Site) -> None:
    stub = Stub()
    handler = site.handler(stub)
    entry = LogEntry(time=0.0, level="ERROR", level_number=40, logger=site.log.name, message="elsewhere")
    site.log.handle(entry.to_record())
    site.log.info("here")
    assert handler.flush(LONG)
    assert stub.said == ["here"]


# What is odd.


class Odd:
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_record_that_cannot_be_formatted_costs_only_itself_and_is_told(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = Stub()
    handler = site.handler(stub)
    for message, arguments in ("before", ()), ("%d", ("x",)), ("%s", (Odd(),)), ("after", ()):
        handler.handle(logging.LogRecord("x", logging.INFO, __file__, 1, message, arguments, None))
    site.log.info("last", extra={"odd": Odd(), "half": "\ud800"})
    assert handler.flush(LONG)
    assert stub.said == ["before", "%d", "%s", "after", "last"]
    told = capsys.readouterr().err
    assert told.count("--- Logging error ---") == 2
    assert "no text" in told


def test_records_that_a_backend_cannot_carry_are_counted_and_told(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    stub = Stub()
    stub.max_message = 3000  # type: ignore[assignment]
    handler = site.handler(stub)
    site.log.info("%s", [os.urandom(4000).hex()])
    assert handler.flush(LONG)
    site.log.info("small")
    assert handler.flush(LONG)
    assert stub.said == ["1 log record was dropped by their process, whose buffer was full", "small"]
    assert "1 log records cannot be sent: the message with log records has" in caplog.text


def test_a_backend_that_raises_anything_is_tried_again(site: Site) -> None:
    stub = Stub()

    def fail() -> None:
        if stub.attempts < 3:
            raise KeyError("of a driver")

    stub.meanwhile = fail
    handler = site.handler(stub)
    site.log.info("x")
    assert handler.flush(LONG)
    assert stub.said == ["x"]


def test_many_records_go_in_few_messages(site: Site) -> None:
    stub = Stub(is_there=False)
    handler = site.handler(stub)
    for number in range(4 * MOST_RECORDS):
        site.log.info("%d", number)
    stub.is_there.set()
    assert handler.flush(LONG)
    assert len(stub.said) == 4 * MOST_RECORDS
    assert len(stub.sent) < MOST_RECORDS / 10


def test_who_logs_gets_no_error_if_there_can_be_no_thread(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = Stub()
    handler = site.handler(stub)
    with monkeypatch.context() as patch:

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        site.log.info("one")
    assert "no thread can be started" in capsys.readouterr().err
    site.log.info("two")
    assert handler.flush(LONG)
    assert stub.said == ["one", "two"]


# The end.


def test_close_sends_what_is_left_and_ends(site: Site) -> None:
    stub, before = Stub(), {*threading.enumerate()}
    handler = site.handler(stub, close_timeout=LONG)
    for number in range(2000):
        site.log.info("%d", number)
    handler.close()
    assert stub.said == [str(number) for number in range(2000)]
    handler.close()
    site.log.info("too late")
    assert handler.flush(LONG)
    assert len(stub.said) == 2000
    assert {*threading.enumerate()} <= before


def test_close_does_not_wait_for_a_broker_that_does_not_come_back(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    handler = site.handler(Stub(is_there=False), close_timeout=0.2)
    for number in range(700):
        site.log.info("%d", number)
    handler.close()
    assert "700 log records were not sent within 0.2 s" in caplog.text


def test_close_of_one_that_was_never_used(site: Site) -> None:
    handler = site.handler(Stub(is_there=False))
    assert handler.flush(LONG)
    handler.close()


PROGRAM = """
import logging, sys
from rpc.logs import RpcLogHandler

logging.getLogger().addHandler(RpcLogHandler(sys.argv[1]))
logging.warning("the last words")
"""


@pytest.mark.redis
def test_a_process_that_ends_at_once_has_sent_everything(site: Site, redis_url: str) -> None:
    listener = site.listen(redis_url)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, redis_url], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert listener.messages(1) == ["the last words"]


# What is refused.


def test_a_backend_without_topics() -> None:
    stub = Stub()
    stub.features = frozenset()
    with pytest.raises(Unsupported, match=r"'topics'; .*amqp:.* have it"):
        RpcLogHandler(stub)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"capacity": 0}, {"close_timeout": -1}, {"level": "loud"}], ids=str)
def test_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RpcLogHandler("memory://", **options)


def test_settings_without_a_backend() -> None:
    with pytest.raises(SettingsError, match="RPC_BACKEND"):
        RpcLogHandler(settings=Settings())
