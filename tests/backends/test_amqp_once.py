"""At most once means it, whoever has another copy of a message."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

from rpc import Request, RpcClient, RpcError, RpcReceiver, WorkerLost, job
from rpc.backends import backend_from_url
from rpc.inspection import DeadLetters
from rpc.settings import Settings
from rpc.testing._portal import Portal
from rpc.testing.site import PATIENCE, Site, eventually
from rpc.transport import Backend
from tests.rabbit import Node, Rabbit

from rpc.backends.amqp.messages import RESENT  # isort: skip - after the skip without the driver
from rpc.backends.amqp.once import SURE, UNKNOWN  # isort: skip
from rpc.backends.amqp.session import Session  # isort: skip
from rpc.backends.amqp.wire import Basic  # isort: skip


@pytest.fixture
def site(broker: Rabbit) -> Iterator[Site]:
    """Its connections are not those of the proxy: they are not cut."""
    with Site(broker.admin_url, named=broker.declare) as site:
        yield site


@contextmanager
def workers(url: str, name: str, number: int = 2, **jobs: Callable[..., Any]) -> Iterator[None]:
    """Of one process, which know nothing of each other."""
    with ExitStack() as stack:
        for _ in range(number):
            receiver = RpcReceiver(backend=url, queues=[name], settings=Settings(), jobs=jobs, concurrency=1)
            thread = threading.Thread(target=receiver.run)
            thread.start()
            stack.callback(thread.join, PATIENCE)
            stack.callback(receiver.stop)
        yield


class Counting:
    """A job that may not be done twice, and who did it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Event()

    @property
    def job(self) -> Callable[[Request], None]:
        @job(delivery="at-most-once")
        def work(request: Request) -> None:
            self.begun.append(request.id)
            assert self.may_end.wait(PATIENCE)

        return work


def publish(site: Site, id: str, **headers: str | int) -> None:
    """A copy of one message. It expires: else what says that it was begun would stay for a day."""
    properties = Basic.Properties(correlation_id=id, headers=headers, delivery_mode=2, expiration="30000")
    body = b'{"jsonrpc": "2.0", "method": "work"}'

    def send(connection: Any) -> None:
        assert connection.confirmed(1, f"rpc:queue:{site.name()}", properties, body) is None

    cast("Any", site.client).senders.do(send)


def sent_again(ago: float = 0) -> dict[str, str]:
    """The header of a copy of what was first sent so many seconds ago."""
    return {RESENT: str(round((time.time() - ago) * 1000))}


def letters(site: Site) -> list[str]:
    return [each.why for each in cast("DeadLetters", site.client).dead_letters(site.name())]


@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_a_call_that_is_sent_again_is_not_begun_by_another_worker(
    broker: Rabbit, site: Site, wrap: Any
) -> None:
    """Its copy comes to the second worker, as the first one has no other thread."""
    counting = Counting()
    caller: Backend = wrap(backend_from_url(broker.url))
    with workers(site.url, site.name(), work=counting.job), ThreadPoolExecutor(1) as pool:
        client = RpcClient(backend=caller, queue=site.name(), timeout=PATIENCE)
        asked = pool.submit(client.call_and_wait, "work")
        eventually(lambda: counting.begun)
        broker.proxy.cut()
        try:
            with pytest.raises(WorkerLost, match="may not be done twice"):
                asked.result(PATIENCE)
        finally:
            counting.may_end.set()
    assert len(counting.begun) == 1
    assert letters(site) == []
    caller.close()


def test_of_two_that_get_copies_at_the_same_time_one_begins(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    makes, both, counting = Session.makes, threading.Barrier(2, timeout=PATIENCE), Counting()

    def at_once(session: Session, declaration: Any) -> bool:
        both.wait()
        return makes(session, declaration)

    monkeypatch.setattr(Session, "makes", at_once)
    counting.may_end.set()
    with workers(site.url, site.name(), work=counting.job, ping=lambda: None):
        for number in range(10):
            publish(site, f"x{number}")
            publish(site, f"x{number}")
        eventually(lambda: len(counting.begun) >= 10)
        ping(site)
    assert Counter(counting.begun) == Counter(f"x{number}" for number in range(10))
    assert letters(site) == []


@pytest.mark.parametrize("first", [True, False], ids=["sent again", "not sent again"])
def test_what_was_done_is_not_begun_again(site: Site, first: bool) -> None:
    counting = Counting()
    counting.may_end.set()
    with workers(site.url, site.name(), 2, work=counting.job, ping=lambda: None):
        eventually(lambda: cast("Any", site.client).queue_info(site.name()).workers == 2)
        time.sleep(0.01)  # what is sent now is younger than the workers, by their clock of milliseconds
        sent = sent_again()
        publish(site, "x", **(sent if first else {}))
        eventually(lambda: counting.begun)
        for again in sent, {}, sent:
            publish(site, "x", **again)
        ping(site)
    assert counting.begun == ["x"]
    assert letters(site) == []


@pytest.mark.parametrize("sent", ["-", "before the worker was there", "long ago"])
def test_what_may_have_been_begun_is_a_dead_letter(site: Site, sent: str) -> None:
    counting = Counting()
    ago = {"-": 0.0, "before the worker was there": 1.0, "long ago": SURE}[sent]
    with workers(site.url, site.name(), 1, work=counting.job, ping=lambda: None):
        publish(site, "x", **({RESENT: sent} if sent == "-" else sent_again(ago)))
        ping(site)
        assert letters(site) == [UNKNOWN]
    assert counting.begun == []


@pytest.mark.parametrize(("overdue", "left"), [(0.0, []), (SURE, [UNKNOWN])], ids=["just due", "long due"])
def test_the_age_of_what_was_delayed_counts_from_when_it_was_due(
    site: Site, overdue: float, left: list[str]
) -> None:
    counting = Counting()
    counting.may_end.set()
    with workers(site.url, site.name(), 1, work=counting.job, ping=lambda: None):
        eventually(lambda: cast("Any", site.client).is_served(site.name()))
        time.sleep(0.01)  # as above
        publish(site, "x", delay="600.000", **sent_again(600.0 + overdue))
        ping(site)
        assert letters(site) == left
    assert counting.begun == ([] if left else ["x"])


def ping(site: Site) -> None:
    """Done after what was sent before."""
    for _ in range(4):  # of any worker, and any thread
        RpcClient(backend=site.client, queue=site.name(), timeout=PATIENCE).call_and_wait("ping")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_nothing_is_done_twice_whatever_is_cut(broker: Rabbit, site: Site, wrap: Any) -> None:
    """The connections of callers, senders and workers, again and again."""
    begun: list[str] = []
    outcomes: Counter[str] = Counter()
    over = threading.Event()

    @job(delivery="at-most-once")
    def work(request: Request) -> str:
        begun.append(request.data["key"])
        time.sleep(random.uniform(0, 0.01))
        return str(request.data["key"])

    caller: Backend = wrap(backend_from_url(broker.url))
    client = RpcClient(backend=caller, queue=site.name(), timeout=PATIENCE)

    def ask(name: int) -> None:
        for number in count():
            if over.is_set():
                return
            key = f"{name}-{number}"
            try:
                if number % 2:
                    client.call("work", {"key": key})
                else:
                    assert client.call_and_wait("work", {"key": key}).data == key
                outcomes["done"] += 1
            except RpcError as error:
                outcomes[type(error).__name__] += 1

    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        stack.enter_context(workers(broker.url, site.name(), 2, work=work))
        stack.enter_context(workers(site.url, site.name(), 1, work=work))
        asking = [pool.submit(ask, name) for name in range(6)]
        try:
            for _ in range(25):
                time.sleep(random.uniform(0, 0.3))
                broker.proxy.cut()
            eventually(lambda: outcomes["done"] > 25)  # they go on afterwards
        finally:
            over.set()
        for each in asking:
            each.result(PATIENCE * 2)
    caller.close()
    assert {key: times for key, times in Counter(begun).items() if times > 1} == {}
    assert outcomes.keys() <= {"done", "WorkerLost", "BackendUnavailable"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_claim_outlives_the_death_of_rabbitmq(tmp_path: Path) -> None:
    """RabbitMQ has what it has made on disk before it says so."""
    begun: list[str] = []
    node = Node(tmp_path)

    @job(delivery="at-most-once")
    def work(request: Request) -> None:
        begun.append(request.id)
        time.sleep(0.01)

    node.start()
    try:
        with RpcClient(backend=node.url, queue="once") as client, workers(node.url, "once", work=work):
            sent: set[str] = set()
            for _ in range(2):
                eventually(lambda: cast("Any", client.backend).is_served("once"))
                sent |= {client.call("work") for _ in range(200)}
                ready = len(begun) + 20
                eventually(lambda ready=ready: len(begun) > ready)
                node.stop(signal.SIGKILL)
                node.start()
            dead = cast("DeadLetters", client.backend).dead_letters
            eventually(lambda: {*begun, *(each.id for each in dead("once"))} >= sent, within=120)
    finally:
        node.stop(signal.SIGKILL)
    assert max(Counter(begun).values()) == 1
