"""What is special to the native Redis backend: bounds, keys, and workers that die under load."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from rpc import QueueFull, Request, RpcClient, RpcReceiver
from rpc.backends import backend_from_url
from rpc.backends.redis import fetch
from rpc.backends.redis.acks import Ack, AckBuffer, Group, Page
from rpc.backends.redis.keys import QueueNames
from rpc.backends.redis.servers import servers_of
from rpc.testing import RedisServer, start_redis
from rpc.testing.site import eventually
from rpc.transport import Message, queue
from tests.faults.proxy import Proxy
from tests.faults.wire import of_redis

pytestmark = pytest.mark.redis

WORKER = """
import os, sys, time
from rpc import RpcReceiver
log = os.open(sys.argv[2], os.O_APPEND | os.O_WRONLY | os.O_CREAT)
def work(n: int) -> int:
    os.write(log, b"%d\\n" % n)
    time.sleep(0.002)
    return n * 2
RpcReceiver(jobs={"work": work}, backend=sys.argv[1], queues=["default"]).start()
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start_redis() as server:
        yield server


def test_a_bounded_queue_refuses_what_it_has_no_room_for(server: RedisServer) -> None:
    with RpcClient(backend=f"{server.url}?max_length=3") as client:
        for _ in range(3):
            client.call("work")
        for refused in (
            lambda: client.call("work"),
            lambda: client.call_and_wait("work"),
            lambda: client.submit("work").result(10),  # the sending is confirmed with the reply
        ):
            with pytest.raises(QueueFull):
                refused()


def test_nothing_is_left_but_what_ends(server: RedisServer) -> None:
    receiver = RpcReceiver(jobs={"work": lambda n: n}, backend=server.url, queues=["default"])
    thread = threading.Thread(target=receiver.start)
    thread.start()
    with RpcClient(backend=server.url) as client, redis.Redis.from_url(server.url) as admin:
        for n in range(50):
            assert client.call_and_wait("work", [n]).data == n
        receiver.stop()
        thread.join()
        assert [key for key in admin.scan_iter() if admin.ttl(key) == -1] == []


@pytest.mark.slow
def test_what_the_dead_leave_in_the_queue_is_not_forgotten(server: RedisServer, tmp_path: Path) -> None:
    # A living worker that gets no processor for a lease is taken for dead, and would count as killed.
    url = f"{server.url}?lease=5&max_deliveries=50"
    command = [sys.executable, "-c", WORKER, url, str(tmp_path / "log")]
    workers = [subprocess.Popen(command) for _ in range(3)]
    ended, log = threading.Event(), tmp_path / "log"
    log.touch()
    kills = 0

    def kill_now_and_then() -> None:
        nonlocal kills
        done = log.stat().st_size
        while not ended.wait(0.3):
            if log.stat().st_size == done:  # on a busy machine, a worker takes seconds to start
                continue
            done = log.stat().st_size
            number = random.randrange(len(workers))
            workers[number].kill()
            workers[number].wait()
            workers[number] = subprocess.Popen(command)
            kills += 1

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        with RpcClient(backend=url, timeout=120) as client, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: client.call_and_wait("work", [n]).data, range(2000)))
    finally:
        ended.set()
        killer.join()
        for worker in workers:
            worker.kill()
            worker.wait()
    assert answers == [n * 2 for n in range(2000)]
    executed = Counter((tmp_path / "log").read_text().split())
    assert len(executed) == 2000
    assert sum(executed.values()) - 2000 <= kills


def test_an_id_of_any_text_is_answered(server: RedisServer) -> None:
    backend = backend_from_url(server.url)
    serving = backend.server([queue("q")], lambda delivery: delivery.finish(delivery.message))
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        for id in "with\nlines", "ä" * 200, uuid4().hex:
            replies = backend.request(queue("q"), Message(b"x", {"id": id, "reply-to": "r"}))
            assert replies.receive(10).id == id
            replies.close()
    finally:
        serving.stop()
        thread.join()
        backend.close()


ANSWERS_FIRST = """
import os, signal, sys, time
from rpc import RpcReceiver
log = os.open(sys.argv[2], os.O_APPEND | os.O_WRONLY | os.O_CREAT)
def work(request):
    told = request.respond(request.attempt if request.redelivered else "first")
    os.write(log, f"{request.redelivered} {told}\\n".encode())
    if not request.redelivered:
        time.sleep(0.5)  # a response may wait for a tenth of a second
        os.kill(os.getpid(), signal.SIGKILL)
RpcReceiver(jobs={"work": work}, backend=sys.argv[1], queues=["default"]).start()
"""


def test_who_was_answered_before_the_worker_died_is_not_answered_again(
    server: RedisServer, tmp_path: Path
) -> None:
    url, log = f"{server.url}?lease=1", tmp_path / "log"
    workers = [subprocess.Popen([sys.executable, "-c", ANSWERS_FIRST, url, str(log)])]
    try:
        with RpcClient(backend=url, timeout=20) as client:
            assert client.call_and_wait("work").data == "first"
            workers[0].wait(20)
            workers.append(subprocess.Popen([sys.executable, "-c", ANSWERS_FIRST, url, str(log)]))
            eventually(lambda: len(log.read_text().splitlines()) == 2)
            assert log.read_text().splitlines() == ["False True", "True False"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@pytest.mark.parametrize("callers", [1, 8])
def test_a_response_that_was_lost_with_its_connection_goes_with_the_acknowledgement(
    server: RedisServer, callers: int
) -> None:
    begun: list[int] = []

    def work(request: Request) -> None:
        begun.append(request.data["n"])
        if request.data["n"] % 3 == 0:
            admin.client_kill_filter(_type="normal", skipme=True)
        assert request.respond(request.data["n"])

    with redis.Redis.from_url(server.url) as admin, RpcClient(backend=server.url, timeout=20) as client:
        receiver = RpcReceiver(jobs={"work": work}, backend=server.url, queues=["default"])
        thread = threading.Thread(target=receiver.start)
        thread.start()
        try:
            with ThreadPoolExecutor(callers) as pool:
                answers = list(pool.map(lambda n: client.call_and_wait("work", {"n": n}).data, range(24)))
        finally:
            receiver.stop()
            thread.join()
    assert answers == list(range(24))
    assert sorted(begun) == list(range(24))


def test_a_response_leaves_though_its_handler_goes_on_and_others_wait_behind_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "AHEAD", 10.0)
    taken, begin, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        taken.set()
        begin.wait(20)

    def answer(request: Request) -> None:
        request.respond("answered")
        go_on.wait(20)

    receiver = RpcReceiver(
        jobs={"fast": lambda: None, "hold": hold, "answer": answer}, backend=server.url, queues=["default"]
    )
    thread = threading.Thread(target=receiver.start)
    thread.start()
    with RpcClient(backend=server.url, timeout=20) as client:
        try:
            for name in ["fast"] * 20 + ["hold"]:
                client.call(name)
            assert taken.wait(20)
            client.call("fast")
            answers = [client.submit("answer") for _ in range(2)]
            begin.set()
            assert answers[0].result(20).data == "answered"
            go_on.set()
            assert answers[1].result(20).data == "answered"
        finally:
            go_on.set()
            receiver.stop()
            thread.join()


def test_what_was_acknowledged_on_a_connection_that_broke_is_not_answered_on_the_next(
    server: RedisServer,
) -> None:
    keys, confirmed = QueueNames().queue(uuid4().hex), list[Group]()
    page, servers = Page(keys, "worker", 0), servers_of(server.url)
    acks = AckBuffer(servers, keys.queue, confirmed.append, lambda: None)
    with redis.Redis.from_url(server.url) as admin:
        admin.rpush(page.key, b"first")
        ack = Ack(page, b"first", "", b"")
        (connection,) = acks.ask(("CLIENT", "ID"))
        acks.owe(ack)
        acks.flush()
        admin.client_kill_filter(_id=str(connection))
        with suppress(redis.RedisError):
            while True:  # the first write to a broken connection may succeed
                acks.say(("SET", "x", "1"))
        acks.say(("SET", "x", "2"))
        assert acks.ask(("PING",)) == [b"PONG"]
        assert acks.ask(("CLIENT", "ID")) != [connection]
        assert (confirmed, admin.llen(page.key), admin.get("x")) == ([[ack]], 0, b"2")
    acks.drop()
    servers.close()


@pytest.mark.parametrize("where", ["in the queue", "in a page"])
def test_a_call_that_is_cut_off_after_it_came_into_the_queue_is_done_once(
    server: RedisServer, where: str
) -> None:
    """Plain commands send it, the token after the record: what is lost with the connection is the token."""
    begun, held, release = list[int](), threading.Event(), threading.Event()
    proxy = Proxy(server.port, random.Random(0), frame_end=of_redis)

    def tokens() -> set[bytes]:
        return {*admin.scan_iter(QueueNames().queue("default").token("*"), count=1000)}

    def is_known() -> bool:
        """It was sent again."""
        return bool(tokens() - before)

    def work(n: int) -> int:
        begun.append(n)
        eventually(is_known)
        return n

    def hold() -> None:
        held.set()
        release.wait(20)

    receiver = RpcReceiver(
        jobs={"work": work, "hold": hold, "pass": lambda: None}, backend=server.url, queues=["default"]
    )
    thread = threading.Thread(target=receiver.start)
    thread.start()
    with (
        redis.Redis.from_url(server.url) as admin,
        RpcClient(backend=f"redis://127.0.0.1:{proxy.port}", timeout=20) as client,
        RpcClient(backend=server.url, timeout=20) as another,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            client.call_and_wait("pass")  # opens the connection
            if where == "in the queue":
                another.call("hold")
                assert held.wait(20)
            before = tokens()
            proxy.lose("up", 6)
            future = pool.submit(client.call_and_wait, "work", {"n": 1})
            eventually(is_known)
            assert not proxy.armed
            release.set()
            assert future.result(20).data == 1
            another.call_and_wait("pass")  # comes after what was sent again
        finally:
            release.set()
            receiver.stop()
            thread.join()
            proxy.close()
    assert begun == [1]


def test_a_caller_who_left_unheard_is_missed_unless_it_was_answered(server: RedisServer) -> None:
    begun, told, answered = threading.Semaphore(0), threading.Semaphore(0), list[Request]()

    def work(request: Request) -> None:
        begun.release()
        eventually(lambda: request.cancelled)
        told.release()

    def answer(request: Request) -> None:
        answered.append(request)
        request.respond(1)
        assert release.wait(60)

    release, proxy = threading.Event(), Proxy(server.port, random.Random(0))
    url, jobs = f"redis://127.0.0.1:{proxy.port}", {"work": work, "answer": answer}
    receiver = RpcReceiver(jobs=jobs, backend=url, queues=["default"], concurrency=2)
    thread = threading.Thread(target=receiver.start, daemon=True)
    thread.start()
    with RpcClient(backend=server.url, timeout=60) as client:
        assert client.call_and_wait("answer").data == 1
        for _ in range(2):
            future = client.submit("work")
            assert begun.acquire(timeout=20)
            proxy.refusing = True
            proxy.cut()
            assert future.cancel()
            assert not told.acquire(timeout=0.5)
            proxy.heal()
            assert told.acquire(timeout=20)
        assert not answered[0].cancelled
        release.set()
    receiver.stop()
    thread.join(20)
    assert not thread.is_alive()
    proxy.close()
