"""What is special to the native Redis backend: bounds, keys, and workers that die under load."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from rpc import QueueFull, RpcClient, RpcReceiver
from rpc.testing import RedisServer, start_redis

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


def test_what_the_dead_leave_in_the_queue_is_not_forgotten(server: RedisServer, tmp_path: Path) -> None:
    url = f"{server.url}?lease=1&max_deliveries=50"
    command = [sys.executable, "-c", WORKER, url, str(tmp_path / "log")]
    workers = [subprocess.Popen(command) for _ in range(3)]
    ended = threading.Event()
    kills = 0

    def kill_now_and_then() -> None:
        nonlocal kills
        while not ended.wait(0.3):
            number = random.randrange(len(workers))
            workers[number].kill()
            workers[number].wait()
            workers[number] = subprocess.Popen(command)
            kills += 1

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        with RpcClient(backend=url, timeout=40) as client, ThreadPoolExecutor(8) as pool:
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
    from rpc.addresses import queue
    from rpc.backends import backend_from_url
    from rpc.message import Message

    backend = backend_from_url(server.url)
    thread = threading.Thread(target=backend.serve, args=[[queue("q")], lambda delivery: delivery.message])
    thread.start()
    try:
        for id in "with\nlines", "ä" * 200, uuid4().hex:
            replies = backend.request(queue("q"), Message(b"x", {"id": id, "reply-to": "r"}))
            assert replies.receive(10).id == id
            replies.close()
    finally:
        backend.stop()
        thread.join()
        backend.close()
