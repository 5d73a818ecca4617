"""What every backend on Redis shares: the way back of a request, topics, inboxes, connections."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from rpc import PythonRqBackend, RpcError, RpcTimeout
from rpc.backends import backend_from_url
from rpc.backends.redis.servers import servers_of
from rpc.backends.redis.topics import RedisReplies
from rpc.loops import Alarm
from rpc.testing import RedisServer
from rpc.transport import LOST, Address, Delivery, Handler, Message, inbox, packed, queue, topic
from tests.faults.proxy import Proxy

from .rq_jobs import PATIENCE, Bench, eventually, later, without_end

pytestmark = pytest.mark.redis


@pytest.fixture
def client(bench: Bench) -> Iterator[Any]:
    here = servers_of(bench.url)
    yield here.client("")
    here.close()


def opened(client: Any, name: str = "way", **options: Any) -> RedisReplies:
    client.xadd(f"rpc:re:{name}", {"m": b""}, id="0-1")
    return RedisReplies(client, f"rpc:re:{name}", **options)


def replied(client: Any, body: bytes, name: str = "way", **headers: str) -> None:
    client.xadd(f"rpc:re:{name}", {"m": packed(Message(body, {"id": name, **headers}))})


# The way back.


def test_reading_takes_nothing_away(client: Any) -> None:
    replies = opened(client)
    replied(client, b"x")
    assert replies.receive(1).body == b"x"
    assert RedisReplies(client, "rpc:re:way").receive(1).body == b"x"


def cut_all(bench: Bench) -> None:
    bench.redis.client_kill_filter(_type="normal", skipme=True)


def test_a_reader_goes_on_where_it_was_after_its_connection_was_cut(client: Any, bench: Bench) -> None:
    replies = opened(client)
    replied(client, b"1", stream="1")
    assert replies.receive(1).body == b"1"
    with later(0.2, cut_all, bench), later(0.5, replied, bench.redis, b"2"):
        assert replies.receive(PATIENCE).body == b"2"


def test_what_can_no_longer_come_is_told_within_a_slice(client: Any) -> None:
    replies = opened(client, lost=lambda: "it is gone")
    assert replies.receive(PATIENCE).headers[LOST] == "it is gone"


def test_a_reply_that_came_between_two_looks_wins_over_the_news_that_none_can_come(client: Any) -> None:
    replies = opened(client, lost=lambda: replied(client, b"x") or "it is gone")
    assert replies.receive(PATIENCE).body == b"x"


def test_a_reply_to_another_request_is_not_taken_for_ones_own(bench: Bench) -> None:
    backend = PythonRqBackend(bench.url)
    replies = backend.request(
        queue(bench.queue), Message(b"", {"id": "mine", "reply-to": "mine", "ttl": "9"})
    )
    bench.redis.xadd("rpc:re:mine", {"m": packed(Message(b"theirs", {"id": "theirs"}))})
    bench.redis.xadd("rpc:re:mine", {"m": packed(Message(b"mine", {"id": "mine"}))})
    assert replies.receive(PATIENCE).body == b"mine"
    replies.close()
    backend.close()


@pytest.mark.parametrize("frame", [b"", b"\xff", b"\x00\x05abc", b"\x00\x01\x80", b"\x00\x01\xc1body"])
def test_garbage_on_the_way_back_is_an_error_of_ours(client: Any, frame: bytes) -> None:
    replies = opened(client)
    client.xadd("rpc:re:way", {"m": frame})
    with contextlib.suppress(RpcError):
        replies.receive(0.2)


def test_an_open_way_back_lives_as_long_as_its_reader_and_a_minute_more(client: Any) -> None:
    replies = opened(client)
    client.pexpire("rpc:re:way", 1500)
    with pytest.raises(RpcTimeout):
        replies.receive(2.5)
    assert 50 < client.ttl("rpc:re:way") <= 60


def test_nobody_replies_to_a_caller_who_left(bench: Bench) -> None:
    backend, sent = PythonRqBackend(bench.url), []

    def handler(delivery: Delivery) -> None:
        replies.close()
        sent.append(delivery.reply(Message(b"x", {"id": delivery.message.id})))
        server.stop()
        delivery.finish(Message(b"y", {"id": delivery.message.id}))

    replies = backend.request(queue(bench.queue), Message(b"", {"id": "a", "reply-to": "a", "ttl": "9"}))
    server = backend.server([queue(bench.queue)], handler)
    server.run()
    backend.close()
    assert sent == [False]
    assert not bench.redis.exists("rpc:re:a")


def test_many_threads_may_finish_their_calls_at_the_same_moment(bench: Bench) -> None:
    backend = PythonRqBackend(bench.url)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def turn(number: int) -> None:
            for turn in range(20):
                name = f"{number}-{turn}"
                to, message = queue(bench.queue), Message(b"", {"id": name, "reply-to": name, "ttl": "9"})
                replies = backend.request(to, message)
                replied(bench.redis, b"x", name)
                assert replies.receive(PATIENCE).body == b"x"
                replies.close()

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(turn, range(32)))
    finally:
        sys.setswitchinterval(interval)
        backend.close()


# Topics and inboxes.


@contextmanager
def hearing(backend: PythonRqBackend, to: Address, handler: Handler) -> Iterator[threading.Thread]:
    """A server of this address, in a thread; both end with the body, and the backend is closed."""
    server = backend.server([to], handler)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield thread
    finally:
        server.stop()
        thread.join(PATIENCE)
        backend.close()
    assert not thread.is_alive()


def test_an_inbox_is_emptied_as_it_is_read(bench: Bench) -> None:
    backend, seen = PythonRqBackend(bench.url), list[Delivery]()
    for number in range(3):
        backend.send(inbox("me"), Message(b"%d" % number, {"id": "x"}))
    with hearing(backend, inbox("me"), seen.append):
        eventually(lambda: len(seen) == 3)
        eventually(lambda: bench.redis.xlen("rpc:in:me") == 0)
    assert [delivery.message.body for delivery in seen] == [b"0", b"1", b"2"]


def test_what_comes_to_the_only_topic_is_handled_where_it_is_read_and_waited_for(bench: Bench) -> None:
    backend, threads, go_on = PythonRqBackend(bench.url), list[str](), threading.Event()

    def handler(delivery: Delivery) -> None:
        threads.append(threading.current_thread().name)
        go_on.wait(PATIENCE)

    def is_heard() -> bool:
        backend.send(topic("news"), Message(b"", {"id": "x"}))
        return bool(threads)

    server = backend.server([topic("news")], handler)
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(is_heard)
    server.stop()
    thread.join(0.2)
    assert thread.is_alive()
    go_on.set()
    thread.join(PATIENCE)
    backend.close()
    assert not thread.is_alive()
    assert len(threads) == 1
    assert threads[0].startswith("rpc-topics")


@pytest.mark.parametrize("group", [None, "team"])
def test_a_listener_hears_what_comes_after_redis_was_emptied(bench: Bench, group: str | None) -> None:
    backend, seen = PythonRqBackend(bench.url), []
    to = topic("news", group)

    def handler(delivery: Delivery) -> None:
        seen.append(delivery.message.body)

    def heard(body: bytes) -> bool:
        backend.send(topic("news"), Message(body, {"id": "x"}))
        return body in seen

    with hearing(backend, to, handler):
        eventually(lambda: heard(b"before"))
        bench.redis.flushall()
        eventually(lambda: heard(b"after"))
    assert without_end(bench.redis) == []


@pytest.mark.parametrize("to", [topic("t"), topic("t", "g"), inbox("i")], ids=str)
def test_garbage_in_a_stream_does_not_stop_its_listeners(bench: Bench, to: Any) -> None:
    backend, seen = PythonRqBackend(bench.url), []

    def handler(delivery: Delivery) -> None:
        seen.append(delivery.message.body)
        raise ValueError

    key = backend.names.channel(to)

    def heard() -> bool:
        for entry in ({"m": b"\xff\xff"}, {"other": b"x"}):
            bench.redis.xadd(key, entry)
        backend.send(to if to.kind == "inbox" else topic("t"), Message(b"good", {"id": "x"}))
        time.sleep(0.02)
        return len(seen) > 2 or not thread.is_alive()

    with hearing(backend, to, handler) as thread:
        eventually(heard)
        assert thread.is_alive()


# Connections.


def test_a_clients_own_time_limits_are_not_taken_over(rpc_redis: RedisServer) -> None:
    with redis.Redis.from_url(rpc_redis.url, socket_timeout=0.05, decode_responses=True) as given:
        here = servers_of(given)
        ours = here.client("")
        assert ours.blpop(["nothing"], timeout=0.3) is None
        assert isinstance(ours.client_id(), int)
        ours.set("k", "v")
        assert ours.getdel("k") == b"v"
        here.close()


@pytest.mark.real_redis
def test_a_command_is_not_repeated_by_the_driver(bench: Bench, client: Any) -> None:
    with later(0.3, cut_all, bench), pytest.raises(redis.ConnectionError):
        client.blpop(["nothing"], timeout=4)


@pytest.mark.parametrize("scheme", ["redis", "rq+redis"])
def test_what_is_sent_to_an_inbox_while_redis_cannot_be_had_comes_once_it_can(
    bench: Bench, scheme: str
) -> None:
    """As to a queue: what a stream says must not fail for a connection that was cut."""
    proxy = Proxy(int(bench.url.rpartition(":")[2].partition("/")[0]), random.Random(0))
    backend = backend_from_url(f"{scheme}://127.0.0.1:{proxy.port}")
    backend.send(inbox("mine"), Message(b"", {"id": "0"}))
    proxy.refusing = True
    proxy.cut()
    with later(0.3, proxy.heal):
        backend.send(inbox("mine"), Message(b"it", {"id": "1"}))
    assert bench.redis.xlen("rpc:in:mine") == 2
    backend.close()
    proxy.close()


@pytest.mark.parametrize("scheme", ["redis", "rq+redis"])
def test_whoever_hears_topics_alone_is_woken_to_stop(
    bench: Bench, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    class UntilRung(Alarm):
        def wait(self, seconds: float) -> None:
            waits.set()
            super().wait(3600)

    monkeypatch.setattr("rpc.backends.redis.subscriber.Alarm", UntilRung)
    with contextlib.closing(backend_from_url(bench.backend(scheme))) as backend:
        server = backend.server([topic("t")], lambda delivery: None)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert waits.wait(PATIENCE)
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
