"""Retries, delays, dead letters, idempotency keys and bounds on the native Redis backend: with bodies that
are too large for its scripts, in both protocols, and what is left afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc import QueueFull, RemoteError, RpcClient, RpcReceiver, RpcTimeout, WorkerLost
from rpc.backends.redis.admission import Admission
from rpc.backends.redis.calls import UNCONFIRMED
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.testing import RedisServer
from rpc.transport import queue, unpacked

from .redis_jobs import QUEUE, WORKERS, Bench
from .rq_jobs import PATIENCE, eventually

pytestmark = pytest.mark.redis

LARGE = "x" * 100_000
SIZES = pytest.mark.parametrize("text", ["small", LARGE], ids=["small", "large"])


@pytest.fixture(params=["lease=2", "lease=2&protocol=2", "lease=2&protocol=3"])
def any_bench(rpc_redis: RedisServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(rpc_redis, tmp_path / "log", request.param)
    yield bench
    bench.close()


@pytest.fixture
def bench(rpc_redis: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(rpc_redis, tmp_path / "log")
    yield bench
    bench.close()


def bodies(bench: Bench) -> list[Any]:
    """The frames that lie outside of lists."""
    return list(bench.admin.scan_iter(f"{QUEUE}:b:*"))


# All of it, in small and in large.


@SIZES
def test_what_is_asked_comes_back(any_bench: Bench, text: str) -> None:
    any_bench.serve()
    assert any_bench.client.call_and_wait("echo", [text]).data == text
    future = any_bench.client.submit("echo", [text])
    assert future.result(PATIENCE).data == text
    eventually(lambda: not bodies(any_bench))


def test_a_large_call_that_is_sent_again_leaves_nothing(bench: Bench) -> None:
    """It was answered by then, and its body was gone."""
    message = call_message("i", "echo", [LARGE], Writing(JSON), ttl=PATIENCE, replies=True)
    replies = bench.client.backend.request(queue("default"), message)
    with pytest.raises(RpcTimeout):
        replies.receive(UNCONFIRMED / 2)
    eventually(lambda: bench.admin.info("clients")["blocked_clients"] == 0)
    bench.serve()
    eventually(lambda: not bodies(bench))
    assert LARGE.encode() in replies.receive(PATIENCE).body
    replies.close()
    assert bodies(bench) == []


@pytest.mark.parametrize("ttl", [None, PATIENCE])
def test_a_large_call_whose_caller_leaves_as_it_is_taken_leaves_nothing(
    bench: Bench, ttl: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, fetched = bench.client.submit("fast", [LARGE], timeout=ttl), Admission._fetched

    def left_meanwhile(*args: Any) -> bytes:
        asked.cancel()
        eventually(lambda: not bodies(bench))
        return fetched(*args)

    monkeypatch.setattr(Admission, "_fetched", left_meanwhile)
    bench.serve()
    assert bench.client.call_and_wait("echo", ["x"]).data == "x"
    assert bench.lines() == []
    assert bench.letters() == []


@SIZES
def test_what_fails_is_tried_again(any_bench: Bench, text: str) -> None:
    any_bench.serve()
    assert any_bench.client.call_and_wait("flaky", [text]).data == text
    eventually(lambda: not bodies(any_bench))
    assert any_bench.letters() == []


@SIZES
def test_a_delayed_job_is_done_and_leaves_nothing(any_bench: Bench, text: str) -> None:
    any_bench.client.call("fast", [text], delay=0.2)
    assert any_bench.admin.zcard(f"{QUEUE}:delayed") == 1
    any_bench.serve()
    eventually(lambda: any_bench.lines() == [text])
    eventually(lambda: not bodies(any_bench))
    assert any_bench.admin.zcard(f"{QUEUE}:delayed") == 0


@SIZES
def test_one_key_one_execution(any_bench: Bench, text: str) -> None:
    first = any_bench.client.submit("fast", [text], idempotency_key="k")
    eventually(lambda: any_bench.admin.llen(QUEUE))
    second = any_bench.client.submit("fast", [text + "2"], idempotency_key="k")
    any_bench.client.call("fast", [text + "3"], idempotency_key="k")
    any_bench.serve()
    assert first.result(PATIENCE).data == second.result(PATIENCE).data == text
    assert any_bench.client.call_and_wait("fast", [text + "4"], idempotency_key="k").data == text
    any_bench.client.call("fast", [text + "5"], idempotency_key="k")
    assert any_bench.client.call_and_wait("echo", ["last"]).data == "last"
    assert any_bench.lines() == [text]
    assert bodies(any_bench) == []


@SIZES
def test_a_dead_letter_is_shown_revived_and_dropped(any_bench: Bench, text: str) -> None:
    any_bench.serve()
    with pytest.raises(RemoteError, match="each time"):
        any_bench.client.call_and_wait("hopeless", [text])
    (letter,) = any_bench.letters()
    assert json.loads(unpacked(letter.frame).body)["params"] == [text]
    assert any_bench.shelf.revive(letter)
    (again,) = eventually(any_bench.letters)
    assert again.id == letter.id
    assert json.loads(unpacked(again.frame).body)["params"] == [text]
    assert not any_bench.shelf.drop(letter)
    assert any_bench.shelf.drop(again)
    assert any_bench.letters() == []
    assert bodies(any_bench) == []


def test_a_letter_that_is_gone_cannot_harm_the_message_that_was_revived(bench: Bench) -> None:
    stop = bench.serve()
    with pytest.raises(RemoteError):
        bench.client.call_and_wait("hopeless", [LARGE])
    stop()
    (letter,) = bench.letters()
    assert bench.shelf.revive(letter)
    assert not bench.shelf.drop(letter)
    assert not bench.shelf.revive(letter)
    (body,) = bodies(bench)
    assert bench.admin.ttl(body) == -1, "it waits for as long as it must"
    bench.serve()
    eventually(bench.letters)


# Nothing is left behind.


def test_after_all_of_it_no_key_is_without_an_end(bench: Bench) -> None:
    stop = bench.serve(concurrency=2)
    client = bench.client
    for text in "small", LARGE:
        client.call_and_wait("flaky", [text])
        client.call("fast", [text], delay=0.1)
        client.call("fast", [text], ttl=30)
        for _ in range(2):
            client.call_and_wait("fast", [text], idempotency_key=text[:5])
            client.call("fast", [text], idempotency_key=text[:5])
        with pytest.raises(RemoteError):
            client.call_and_wait("hopeless", [text])
        client.submit("slow", [1]).cancel()
    eventually(lambda: bench.lines().count(LARGE) == 3)
    bench.release()
    for letter in bench.letters():
        assert bench.shelf.drop(letter)
    stop()
    assert bench.without_end() == set()


@pytest.mark.parametrize("options", [
    {}, {"delay": 5}, {"idempotency_key": "k"}, {"ttl": 9}, {"ttl": 9, "idempotency_key": "l"},
], ids=str)  # fmt: skip
def test_what_is_refused_for_want_of_room_leaves_nothing(bench: Bench, options: Any) -> None:
    bounded = bench.make_client("max_length=1")
    bounded.call("fast", ["first"])
    before = set(bench.admin.scan_iter())
    for _ in range(3):
        with pytest.raises(QueueFull):
            bounded.call("fast", [LARGE], **options)
    assert set(bench.admin.scan_iter()) == before


def test_a_refusal_for_want_of_room_costs_no_connection(bench: Bench) -> None:
    bounded = bench.make_client("max_length=1")
    bounded.call("fast", ["first"])
    before = bench.admin.info("stats")["total_connections_received"]
    for _ in range(5):
        with pytest.raises(QueueFull):
            bounded.call("fast", ["second"])
    assert bench.admin.info("stats")["total_connections_received"] == before


def test_what_is_sent_again_with_a_key_leaves_no_body(bench: Bench) -> None:
    for _ in range(3):
        bench.client.call("fast", [LARGE], idempotency_key="k")
    (body,) = bodies(bench)
    assert bench.admin.ttl(body) == -1
    assert bench.without_end() == {QUEUE, body.decode()}


def ended(bench: Bench) -> int:
    """How many bodies there are, of dead letters that will be forgotten."""
    found = bodies(bench)
    assert all(0 < bench.admin.ttl(body) <= 7 * 86400 for body in found)
    assert bench.admin.llen(f"{QUEUE}:dead") == len(found)
    return len(found)


def test_what_expires_in_the_queue_is_a_dead_letter_when_a_worker_comes(bench: Bench) -> None:
    bench.client.call("fast", [LARGE], ttl=0.1)
    time.sleep(0.2)  # it is time itself that is tested
    bench.serve()
    assert bench.client.call_and_wait("echo", ["last"]).data == "last"
    assert ended(bench) == 1
    assert bench.lines() == []


def test_garbage_at_the_head_of_a_queue_disturbs_neither_senders_nor_workers(bench: Bench) -> None:
    bench.admin.rpush(QUEUE, b"garbage", b"\xff\x00", b"k\n", b"w\nid\nlane\n\nno frame")
    bench.client.call("fast", ["first"])
    bench.serve()
    assert bench.client.call_and_wait("fast", ["second"]).data == "second"
    assert bench.lines() == ["first", "second"]


# Keys that must not stay taken.


def test_a_key_is_free_after_its_message_was_handed_back_and_has_expired(bench: Bench) -> None:
    worker = bench.spawn()
    lost = bench.client.submit("slow", [1], timeout=1.5, idempotency_key="k")
    eventually(lambda: "slow 1" in bench.lines())
    (dead,) = bench.admin.hkeys(WORKERS)
    worker.kill()
    with pytest.raises(TimeoutError):
        lost.result(PATIENCE)
    bench.release()
    bench.serve()
    eventually(lambda: not bench.admin.hexists(WORKERS, dead), "the dead worker was not noticed")
    assert bench.client.call_and_wait("echo", ["it comes after what was held"]).data
    assert bench.client.call_and_wait("fast", [2], timeout=10, idempotency_key="k").data == 2


def test_who_waits_longer_than_the_first_is_answered_although_the_worker_dies(bench: Bench) -> None:
    worker = bench.spawn()
    first = bench.client.submit("slow", [1], timeout=1.5, idempotency_key="k")
    eventually(lambda: "slow 1" in bench.lines())
    second = bench.client.submit("slow", [2], idempotency_key="k")
    with pytest.raises(TimeoutError):
        first.result(PATIENCE)
    worker.kill()
    bench.release()
    bench.serve()
    assert second.result(PATIENCE).data == 1


@pytest.mark.slow
def test_a_key_whose_message_was_given_up_is_free(bench: Bench) -> None:
    bad = bench.client.submit("poison", timeout=60, idempotency_key="k")
    for _ in range(3):
        bench.spawn().wait(PATIENCE)
    bench.spawn()
    with pytest.raises(WorkerLost):
        bad.result(PATIENCE)
    assert bench.client.call_and_wait("fast", [1], idempotency_key="k").data == 1


# Room.


def test_a_submitted_call_waits_for_room_if_its_client_does(bench: Bench) -> None:
    bounded = bench.make_client("max_length=1", when_full="wait")
    bounded.call("fast", [1])
    waiting = [bounded.submit("fast", [n]) for n in (2, 3)]
    bench.serve()
    assert [each.result(PATIENCE).data for each in waiting] == [2, 3]


@pytest.mark.parametrize("end", ["expired", "withdrawn"])
def test_what_nobody_wants_any_more_takes_no_room_at_the_head_of_a_queue(bench: Bench, end: str) -> None:
    bounded = bench.make_client("max_length=2")
    for _ in range(2):
        if end == "expired":
            bounded.call("fast", [LARGE], ttl=0.05)
        else:
            unwanted = bounded.submit("fast", [LARGE])
            eventually(lambda: bench.admin.llen(QUEUE))
            unwanted.cancel()
    time.sleep(1)  # it is time itself that is tested; the clock of a busy server is known roughly
    for _ in range(2):
        bounded.call("fast", ["wanted"])
    with pytest.raises(QueueFull):
        bounded.call("fast", ["one too many"])
    assert ended(bench) == (2 if end == "expired" else 0)


# A caller without a timeout.


def test_who_waits_without_end_sets_no_deadline(rpc_redis: RedisServer) -> None:
    receiver = RpcReceiver(
        jobs={"deadline": lambda request: request.deadline}, backend=rpc_redis.url, queues=["endless"]
    )
    thread = threading.Thread(target=receiver.start)
    thread.start()
    try:
        with RpcClient(backend=rpc_redis.url, queue="endless", timeout=None) as client:
            assert client.call_and_wait("deadline").data is None
    finally:
        receiver.stop()
        thread.join()


def test_others_see_at_each_queue_that_a_worker_of_several_lives(
    bench: Bench, rpc_redis: RedisServer
) -> None:
    """Whose names begin differently: at the second it was taken for dead, and what it ran was done again."""
    url = f"{rpc_redis.url}?lease=1&prefix=several"
    receiver = RpcReceiver(jobs={"echo": lambda text: text}, backend=url, queues=["images", "mail"])
    thread = threading.Thread(target=receiver.run)
    thread.start()
    signs = [f"several:{{{tag}}}:alive:*" for tag in ("images", "mail")]
    try:
        eventually(lambda: all(bench.admin.keys(each) for each in signs))
        for key in [bench.admin.keys(each)[0] for each in signs]:
            left = [bench.admin.pttl(key)]  # it is renewed: from one look to the next, it has more time
            eventually(lambda key=key, left=left: left.append(bench.admin.pttl(key)) or left[-1] > left[-2])
    finally:
        receiver.stop()
        thread.join()
    assert not any(bench.admin.keys(each) for each in signs)
