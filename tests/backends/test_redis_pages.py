"""The pages of a worker, what it has taken: each message in them is in its hands, or comes into them again,
whichever answers are lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import redis

from rpc import RpcClient, RpcReceiver
from rpc.backends.redis import RedisBackend, fetch, scripts
from rpc.backends.redis.acks import AckBuffer, Page
from rpc.backends.redis.connection import Command
from rpc.backends.redis.delivery import RedisDelivery
from rpc.backends.redis.fetch import PAGE, Fetcher, Pages, Taken
from rpc.backends.redis.keys import QueueNames, Record
from rpc.backends.redis.servers import servers_of
from rpc.backends.redis.subscriptions import SubscriptionQueue
from rpc.settings import Settings
from rpc.testing import RedisServer
from rpc.testing.site import eventually
from rpc.transport import Message, queue, topic

pytestmark = pytest.mark.redis
CUT = redis.ConnectionError("cut")


@pytest.fixture
def name() -> str:
    return f"q{uuid4().hex[:8]}"


@pytest.fixture
def admin(rpc_redis: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        yield admin


@contextmanager
def receiving(url: str, name: str, jobs: dict[str, Any], **options: Any) -> Iterator[RpcClient]:
    receiver = RpcReceiver(jobs=jobs, backend=url, queues=[name], settings=Settings(), **options)
    thread = threading.Thread(target=receiver.start)
    thread.start()
    try:
        with RpcClient(backend=url, queue=name, timeout=20) as client:
            yield client
    finally:
        receiver.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_who_takes_more_than_fits_a_page_says_so_until_it_is_heard(
    rpc_redis: RedisServer, admin: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it dies, what lies in a page that nobody knows of is lost."""
    ask, failures, release = AckBuffer.ask, [CUT], threading.Event()

    def failing(self: AckBuffer, *commands: Any) -> list[Any]:
        if commands[-1][0] == scripts.SIGN_ON and commands[-1][-1] > 1 and failures:
            raise failures.pop()
        return ask(self, *commands)

    async def hold() -> None:
        await asyncio.to_thread(release.wait, 20)

    monkeypatch.setattr(AckBuffer, "ask", failing)
    keys = QueueNames().queue(name)
    with receiving(rpc_redis.url, name, {"hold": hold}, coroutines=2 * PAGE) as client:
        try:
            for _ in range(PAGE + 1):
                client.call("hold")
            assert eventually(lambda: [*admin.hvals(keys.workers)] == [b"2"])
        finally:
            release.set()
    assert not failures


def test_what_could_not_be_given_back_is_done_here(
    rpc_redis: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken ahead, waits behind a handler that takes long, and Redis cannot be had just then."""
    monkeypatch.setattr(fetch, "AHEAD", 10.0)
    ask, tried, go_on = AckBuffer.ask, threading.Event(), threading.Event()
    taken, begin, done = threading.Event(), threading.Event(), list[int]()

    def failing(self: AckBuffer, *commands: Any) -> list[Any]:
        if commands[0][0] == scripts.RELEASE and not tried.is_set():
            tried.set()
            raise CUT
        return ask(self, *commands)

    def hold() -> None:
        taken.set()
        begin.wait(20)

    def linger() -> None:
        go_on.wait(20)

    monkeypatch.setattr(AckBuffer, "ask", failing)
    jobs = {"fast": done.append, "hold": hold, "linger": linger}
    with receiving(rpc_redis.url, name, jobs) as client:
        try:
            for number in range(20):
                client.call("fast", [number])
            client.call("hold")
            assert taken.wait(20)
            for each in "linger", "fast":
                client.call(each, [20] if each == "fast" else None)
            begin.set()
            assert tried.wait(20)
        finally:
            begin.set()
            go_on.set()
        eventually(lambda: len(done) == 21)
    assert done == [*range(21)]


class Stock:
    """A fetcher and a subscription, of one worker, that look into the same page."""

    def __init__(self, url: str, name: str) -> None:
        self.keys, self._servers = QueueNames().queue(name), servers_of(url)
        self.pages, self.in_hand, self._got = Pages(self.keys, "worker"), set[bytes](), list[bytes]()
        self.page = self.pages.all[0].key
        self.acks = AckBuffer(self._servers, self.keys.queue, lambda group: None, lambda: None)
        holder: Any = SimpleNamespace(
            acks=self.acks, in_hand=self.in_hand, is_stopped=bool, begun=self._begun, mend=print
        )
        self.fetcher = Fetcher(
            self._servers, [self.pages], self.acks, in_hand=self.in_hand, sign_on=lambda: None
        )
        self.subscription = SubscriptionQueue(holder, topic(name, "t", durable=True), self.keys, self.pages)

    def _begun(self, taken: Taken, to: Any) -> None:
        self._got.append(taken.raw)

    def doubt(self) -> None:
        self.fetcher.doubtful = self.subscription.doubtful = True

    def taken(self, kind: str) -> list[bytes]:
        """What is begun now."""
        self._got.clear()
        if kind == "subscription":
            self.subscription.work_off()
        else:
            self.fetcher.receive(1)
            self._got += [taken.raw for taken in self.fetcher.emptied()]
        return [*self._got]

    def close(self) -> None:
        self.fetcher.drop()
        self.acks.drop()
        self._servers.close()


@pytest.fixture
def stock(rpc_redis: RedisServer, admin: Any, name: str) -> Iterator[Stock]:
    stock = Stock(rpc_redis.url, name)
    yield stock
    stock.close()
    admin.delete(stock.page)


def once(place: Any, name: str, action: Callable[[], object]) -> None:
    """Have something happen right after this method has returned for the first time."""
    method = getattr(place, name)

    def call(*arguments: Any) -> Any:
        setattr(place, name, method)
        result = method(*arguments)
        action()
        return result

    setattr(place, name, call)


@pytest.mark.parametrize("kind", ["queue", "subscription"])
def test_a_doubt_that_comes_while_another_is_settled_is_not_forgotten(
    stock: Stock, admin: Any, kind: str
) -> None:
    """Another thread gives up what it had, when it has just been seen to have it."""

    def give_up() -> None:
        stock.in_hand.clear()
        stock.doubt()

    admin.rpush(stock.page, b"it")
    stock.in_hand.add(b"it")
    stock.doubt()
    once(stock.acks, "stock", give_up)
    assert [stock.taken(kind) for _ in range(2)] == [[], [b"it"]]


@pytest.mark.parametrize("kind", ["queue", "subscription"])
def test_what_is_acknowledged_while_it_is_looked_for_is_not_done_again(
    stock: Stock, admin: Any, kind: str
) -> None:
    admin.rpush(stock.page, b"it", b"another")
    stock.in_hand.add(b"it")
    stock.doubt()
    once(stock.acks, "_asked", stock.in_hand.clear)
    assert stock.taken(kind) == [b"another"]


def test_what_redis_gives_to_a_connection_that_was_given_up_is_found(stock: Stock, admin: Any) -> None:
    """Redis was not told of its end, and waits there for a second more."""
    for _ in range(3):  # it looks into the page, then into the queue, and waits
        assert stock.taken("queue") == []
    stock.fetcher.drop()
    wait = threading.Thread(target=admin.blmove, args=[stock.keys.queue, stock.page, 20, "LEFT", "RIGHT"])
    wait.start()
    eventually(lambda: admin.info("clients")["blocked_clients"])
    assert stock.taken("queue") == []
    admin.rpush(stock.keys.queue, b"it")
    wait.join(20)
    assert eventually(lambda: stock.taken("queue")) == [b"it"]


def test_what_ends_while_it_is_written_anew_is_acknowledged_as_it_is_then() -> None:
    """Its reply was sent, as it takes long, and it ended just then."""
    keys, owed = QueueNames().queue("default"), list[bytes]()
    page, record = Page(keys, "worker", 0), Record("k", "id", keys.inbox("x"), "", 0, b"", 1)
    holder: Any = SimpleNamespace(
        say=lambda *commands: None,
        is_riding=lambda delivery: True,
        waits=lambda: None,
        finished=lambda delivery, ack: owed.append(ack.record),
    )
    delivery = RedisDelivery(holder, page, record.packed(), record, Message(headers={"id": "id"}))
    written: list[bytes] = []

    def change(page: Page, before: bytes, after: bytes, said: Sequence[Command]) -> bool:
        delivery.finish(None)
        written.append(after)
        return True

    holder.change = change
    assert delivery.reply(Message(b"done", {"id": "id"}))
    delivery.say()
    assert owed == [record.packed(), *written]


def test_who_was_given_up_looks_what_is_left_though_the_answer_to_its_return_was_lost(
    rpc_redis: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = AckBuffer.ask

    def losing(self: AckBuffer, *commands: Any) -> list[Any]:
        answers = ask(self, *commands)
        if commands[-1][0] == scripts.SIGN_ON:
            raise CUT
        return answers

    backend = RedisBackend(rpc_redis.url)
    server = backend.server([queue(name)], lambda delivery: delivery.finish(None))
    assert server.fetcher
    monkeypatch.setattr(AckBuffer, "ask", losing)
    server.fetcher.doubtful = False
    with pytest.raises(redis.ConnectionError):
        server.maintenance._sign_if_due()  # it is not known (any more)
    server.maintenance._sign_if_due()  # it is
    assert server.fetcher.doubtful
    server.acks.drop()
    server.alarm.close()
    backend.close()
