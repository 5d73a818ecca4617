"""What rq on Redis promises beyond the conformance suite, in one process: records, ends, constructors."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis
import rq
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from rpc import (
    BackendUnavailable,
    Event,
    MethodNotFound,
    PythonRqBackend,
    RemoteError,
    RpcClient,
    RpcError,
    RpcReceiver,
    RpcTimeout,
    WorkerLost,
    job,
    on,
)
from rpc.backends._serving import Connections
from rpc.backends.rq.worker import RqWorker
from rpc.core.jobs import JobOptions
from rpc.events import Subscription
from rpc.testing import RedisServer
from rpc.transport import Delivery, Message, queue, topic
from tests.faults.proxy import Proxy

from .rq_jobs import PATIENCE, Bench, Serve, add, eventually, without_end

pytestmark = pytest.mark.redis


# rq's own tools show the truth.


def test_rqs_records_tell_what_is_queued_runs_and_ended(bench: Bench, serve: Serve) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(PATIENCE)

    there = rq.Queue(bench.rq_queue, connection=bench.redis, serializer=JSONSerializer)
    running, waiting = bench.client.call("hold"), bench.client.call("add", {"a": 1, "b": 2})
    failing = bench.client.call("fail", {"text": "no"})
    assert there.count == 3
    job = Job.fetch(waiting, connection=bench.redis, serializer=JSONSerializer)
    assert (job.description, job.get_status(), job.origin) == ("add", "queued", bench.rq_queue)
    assert job.func_name.startswith("rpc.")
    serve({"hold": hold})
    assert entered.wait(PATIENCE)
    assert there.count == 2
    assert StartedJobRegistry(queue=there).get_job_ids() == [running]
    [worker] = rq.Worker.all(connection=bench.redis, serializer=JSONSerializer)
    assert (worker.get_state(), worker.get_current_job_id()) == ("busy", running)
    assert job.fetch(running, connection=bench.redis, serializer=JSONSerializer).get_status() == "started"
    leave.set()
    eventually(lambda: FailedJobRegistry(queue=there).get_job_ids() == [failing])
    assert set(FinishedJobRegistry(queue=there).get_job_ids()) == {running, waiting}
    assert StartedJobRegistry(queue=there).count == 0
    assert job.get_status() == "finished"
    assert Job.fetch(failing, connection=bench.redis, serializer=JSONSerializer).get_status() == "failed"
    [worker] = rq.Worker.all(connection=bench.redis, serializer=JSONSerializer)
    assert (worker.get_state(), worker.get_current_job_id()) == ("idle", None)
    assert (worker.successful_job_count, worker.failed_job_count) == (2, 1)
    assert all(0 < bench.redis.ttl(f"rq:job:{id}") <= 60 for id in (running, waiting))
    assert bench.redis.ttl(f"rq:job:{failing}") > 60, "it is a dead letter"


def test_rq_info_lists_the_queue_and_its_worker(bench: Bench, serve: Serve) -> None:
    bench.client.call("add", {"a": 1, "b": 1}, queue="unserved")
    serve()
    assert bench.asks() == 2
    command = [sys.executable, "-m", "rq.cli", "info", "--url", bench.url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert "unserved" in said
    assert "1 workers" in said
    assert bench.queue in said
    assert "idle" in said


def test_a_worker_that_left_is_in_no_record(bench: Bench, serve: Serve) -> None:
    receiver = RpcReceiver(jobs={"add": add}, backend=PythonRqBackend(bench.url), queues=[bench.queue])
    thread = threading.Thread(target=receiver.start)
    thread.start()
    assert bench.asks() == 2
    receiver.stop()
    thread.join(PATIENCE)
    assert rq.Worker.all(connection=bench.redis) == []
    assert bench.redis.smembers("rq:workers") == set()
    assert bench.redis.smembers(f"rq:workers:{bench.rq_queue}") == set()


def test_a_failed_job_can_be_requeued_by_rq(bench: Bench, serve: Serve) -> None:
    attempts: list[int] = []

    def second_time() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError

    serve({"second_time": second_time})
    id = bench.client.call("second_time")
    job = eventually(
        lambda: [
            job
            for job in [Job.fetch(id, connection=bench.redis, serializer=JSONSerializer)]
            if job.get_status() == "failed"
        ]
    )[0]
    job.requeue()
    eventually(lambda: job.get_status() == "finished")
    assert len(attempts) == 2


def test_what_failed_each_time_is_one_of_rqs_failed_jobs(bench: Bench, serve: Serve) -> None:
    @on("boom", group="team", durable=True, retries=1, backoff=0.01)
    def hear(event: Event) -> None:
        raise ConnectionError("each time")

    @job(retries=1, backoff=0.01)
    def work() -> None:
        raise ConnectionError("each time")

    serve({"work": work}, services=[hear])
    bench.asks()
    id = bench.client.call("work")
    bench.client.publish("boom", {"n": 1})
    shelf = Subscription("boom", "team", True, JobOptions()).address().subscription_queue
    failed = [
        FailedJobRegistry(name, connection=bench.redis) for name in (bench.rq_queue, f"rpc.{shelf.name}")
    ]
    eventually(lambda: [each.count for each in failed] == [1, 1])
    assert failed[0].get_job_ids() == [id]
    for registry in failed:
        why = bench.redis.hget(f"rq:job:{registry.get_job_ids()[0]}", "exc_info")
        assert zlib.decompress(why).startswith(
            b"ConnectionError: each time\nTraceback" if registry is failed[0] else b"ConnectionError: each"
        )
    assert "in work\n" in shown(bench, id)
    (letter,) = bench.client.backend.dead_letters(bench.queue)
    assert bench.client.backend.drop(letter)
    assert not bench.redis.exists(f"rq:results:{id}")


def shown(bench: Bench, id: str) -> str:
    """What dashboards show of a failed job."""
    result = Job.fetch(id, connection=bench.redis, serializer=JSONSerializer).latest_result()
    assert result is not None
    assert result.type == result.Type.FAILED
    return str(result.exc_string)


def test_dashboards_show_the_traceback_of_a_failed_job(bench: Bench, serve: Serve) -> None:
    def work(n: int) -> None:
        raise ValueError("a reason")

    serve({"work": work})
    failed = FailedJobRegistry(bench.rq_queue, connection=bench.redis)
    id, refused = bench.client.call("work", [1]), bench.client.call("work", ["no number"])
    eventually(lambda: failed.count == 2)
    lines = shown(bench, id).splitlines()
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: a reason")
    assert [line.split()[-1] for line in lines if line.startswith("  File")] == ["work"]
    assert shown(bench, refused).startswith("rpc.errors.InvalidParams: ")
    assert bench.redis.ttl(f"rq:results:{id}") > 60


# Nothing is left behind.


def test_after_any_mix_every_key_but_rqs_own_lists_has_an_end(bench: Bench, serve: Serve) -> None:
    serve({"nap": lambda: time.sleep(0.3)})
    for _ in range(20):
        assert bench.asks() == 2
        bench.client.call("add", {"a": 1, "b": 1})
    for name in "fail", "unknown":
        with pytest.raises((RemoteError, MethodNotFound)):
            bench.client.call_and_wait(name, {"text": "x"})
    with pytest.raises(RpcTimeout):
        bench.client.call_and_wait("nap", timeout=0.1)
    with pytest.raises(RpcTimeout):
        bench.client.call_and_wait("add", {"a": 1, "b": 1}, timeout=0.1, queue="unserved")
    bench.client.submit("nap").cancel()
    assert bench.asks() == 2
    eventually(lambda: without_end(bench.redis) == [])  # what is cancelled may be on its way


@pytest.mark.real_redis
def test_a_worker_that_stops_while_a_job_arrives_leaves_nothing_without_an_end(bench: Bench) -> None:
    backend = PythonRqBackend(bench.url, lease=2)
    server = backend.server([queue(bench.queue)], lambda delivery: delivery.finish(None))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: bench.redis.info("clients")["blocked_clients"] >= 2, "it does not wait")
    server.stop()
    bench.client.call("add", {"a": 1, "b": 1}, ttl=60)
    thread.join(PATIENCE)
    backend.close()
    assert without_end(bench.redis) == []


def test_nothing_grows_with_the_number_of_calls(bench: Bench, serve: Serve) -> None:
    serve()
    assert bench.client.call_and_wait("add", {"a": 1, "b": 1}).data == 2
    threads = {*threading.enumerate()}
    for _ in range(500):
        assert bench.client.call_and_wait("add", {"a": 1, "b": 1}).data == 2
    ways_back = len(bench.redis.keys("rpc:re:*"))
    assert ways_back <= 64
    others = [k for k in bench.redis.keys("*") if not k.startswith((b"rpc:re:", b"rq:job:"))]
    assert len(others) < 15
    assert bench.redis.llen(f"rpc:bell:{bench.queue}") <= 1
    assert (
        len({*threading.enumerate()} - threads) <= 10
    )  # other threads of the worker begin as they are wanted


def test_forbidding_redelivery_after_the_records_were_lost_writes_nothing_that_stays(bench: Bench) -> None:
    backend = PythonRqBackend(bench.url, lease=2)

    def handler(delivery: Delivery) -> None:
        bench.redis.flushall()
        server.stop()
        delivery.forbid_redelivery()

    bench.client.call("add", {"a": 1, "b": 1})
    server = backend.server([queue(bench.queue)], handler)
    server.run()
    backend.close()
    assert without_end(bench.redis) == []


# The caller is told.


@pytest.mark.parametrize(
    "end",
    [
        lambda job: job.cancel(),
        lambda job: job.delete(),
        lambda job: job.set_status(JobStatus.STOPPED),
        lambda job: job.set_status(JobStatus.FAILED),
    ],
    ids=["cancelled", "deleted", "stopped", "failed"],
)
def test_a_job_that_is_ended_by_rqs_own_means_is_not_waited_for(bench: Bench, end: Any) -> None:
    future = bench.client.submit("add", {"a": 1, "b": 1})
    waiting = rq.Queue(bench.rq_queue, connection=bench.redis)
    eventually(lambda: waiting.job_ids)
    [id] = waiting.job_ids
    end(Job.fetch(id, connection=bench.redis, serializer=JSONSerializer))
    with pytest.raises(WorkerLost):
        future.result(PATIENCE)


@pytest.mark.real_redis
def test_losing_all_of_redis_in_the_middle_is_told_and_survived(bench: Bench, serve: Serve) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(PATIENCE)

    serve({"hold": hold})
    future = bench.client.submit("hold")
    assert entered.wait(PATIENCE)
    bench.redis.flushall()
    with pytest.raises(WorkerLost):
        future.result(PATIENCE)
    leave.set()
    assert bench.asks() == 2
    eventually(lambda: len(rq.Worker.all(connection=bench.redis)) == 1)


def test_a_timeout_says_that_no_worker_serves_the_queue(bench: Bench) -> None:
    with pytest.raises(RpcTimeout, match=f"no worker serves queue '{bench.queue}'"):
        bench.client.call_and_wait("add", timeout=0.1)


# Constructors.


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"socket_timeout": 0.1}], ids=str)
def test_a_client_of_any_make_is_taken_and_only_its_address_counts(
    bench: Bench, serve: Serve, options: dict[str, Any]
) -> None:
    serve({"nap": lambda: time.sleep(0.5)})
    with redis.Redis.from_url(bench.url, **options) as given:
        backend = PythonRqBackend(given)
        client = RpcClient(backend=backend, queue=bench.queue)
        client.call_and_wait("nap")
        assert client.call_and_wait("add", {"a": 1, "b": 1}).data == 2
        client.close()
        backend.close()
        given.ping()


def test_password_and_database_are_kept(rpc_redis: RedisServer) -> None:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.acl_setuser(
            "ann", enabled=True, passwords=["+s3cret"], keys="*", channels="*", commands=["+@all"]
        )
    by_client = redis.Redis("127.0.0.1", rpc_redis.port, db=3, username="ann", password="s3cret")
    by_url = f"redis://ann:s3cret@127.0.0.1:{rpc_redis.port}/3"
    for source in by_client, by_url:
        backend = PythonRqBackend(source)
        backend.send(queue("there"), Message(b"", {"id": os.urandom(4).hex(), "ttl": "9"}))
        backend.close()
    assert by_client.llen("rq:queue:rpc.there") == 2
    by_client.flushdb()
    by_client.close()
    with pytest.raises(BackendUnavailable):
        PythonRqBackend(by_url.replace("s3cret", "wrong")).send(queue("there"), Message(b"", {"id": "x"}))


def test_what_arrives_when_its_caller_has_stopped_waiting_is_not_done(
    rpc_redis: RedisServer, bench: Bench, serve: Serve
) -> None:
    """Something in between had kept it, or Redis itself had stopped for a while."""
    proxy, done = Proxy(rpc_redis.port, random.Random(0)), list[int]()
    serve({"note": done.append})
    with RpcClient(backend=f"rq+redis://127.0.0.1:{proxy.port}", queue=bench.queue) as client:
        client.call_and_wait("note", [1])
        proxy.stall()
        with pytest.raises(RpcError):
            client.call_and_wait("note", [2], timeout=0.2)
        proxy.heal()
        client.call_and_wait("note", [3])
    proxy.close()
    bench.client.call_and_wait("note", [4])
    assert done == [1, 3, 4]


# What Redis does to scripts.


@pytest.mark.real_redis
def test_a_script_need_not_be_loaded_before_it_is_run(bench: Bench, serve: Serve) -> None:
    """It might be flushed again in between; here this user may not load any."""
    bench.redis.acl_setuser("ann", enabled=True, nopass=True, keys="*", commands=["+@all", "-script"])
    serve()
    backend = f"rq+{bench.url.replace('://', '://ann:any@')}"
    client = RpcClient(backend=backend, queue=bench.queue, timeout=PATIENCE)
    for _ in range(2):
        bench.redis.script_flush()
        assert client.call_and_wait("add", {"a": 1, "b": 1}).data == 2
    client.close()


@pytest.mark.real_redis
@pytest.mark.parametrize("first", [True, False], ids=["that run", "that start"])
def test_when_redis_has_no_memory_left_workers_go_on(bench: Bench, serve: Serve, first: bool) -> None:
    """What they finish makes room."""
    begun, go_on, done = threading.Event(), threading.Event(), list[int]()

    def hold() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    begin = partial(serve, {"hold": hold, "note": done.append}, lease=1)
    bench.client.call("hold")
    for number in range(20):
        bench.client.call("note", [number])
    if first:
        begin()
        assert begun.wait(PATIENCE)
    bench.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(BackendUnavailable, match="maxmemory"):
            bench.client.call_and_wait("add", {"a": 1, "b": 1}, timeout=10)
        if first:
            time.sleep(2.5)  # it is time itself that is tested: its signs of life do not fit in, either
        else:
            begin()
        go_on.set()
        eventually(lambda: done == list(range(20)))
    finally:
        bench.redis.config_set("maxmemory", 0)
    assert bench.asks() == 2


@pytest.mark.parametrize("also_lost", ["sign_on", "started"])
def test_a_claim_whose_answer_was_lost_is_remembered_though_more_answers_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, also_lost: str
) -> None:
    """It has a live worker, so that no other one recovers it."""
    backend = PythonRqBackend(bench.url)
    worker = RqWorker(backend._records, [bench.queue], print, backend._options, bool, Connections(bool))
    lost: list[str] = []

    def lose(place: Any, name: str) -> None:
        """The answer, once: it was carried out."""
        ask = getattr(place, name)

        def losing(*arguments: Any) -> Any:
            answer = ask(*arguments)
            if name in lost or (name == "run" and not isinstance(answer, list)):
                return answer
            lost.append(name)
            raise redis.ConnectionError("cut")

        monkeypatch.setattr(place, name, losing)

    worker.claim()  # signs on
    id = bench.client.call("add")
    lose(backend._records, "run")
    with pytest.raises(redis.ConnectionError):
        worker.claim()
    bench.redis.delete(worker.key)  # its lease is over
    lose(backend._records if also_lost == "sign_on" else worker._recovery, also_lost)

    def claimed() -> Any:
        with suppress(redis.ConnectionError):
            worker.beat_if_due()  # as another thread does
            return worker.claim()

    assert eventually(claimed).message.id == id
    assert lost == ["run", also_lost]
    worker.leave()
    backend.close()


def test_a_worker_minds_each_of_its_queues(bench: Bench) -> None:
    """Also those of durable subscriptions, which have a worker of rq's each."""
    backend = PythonRqBackend(bench.url, lease=1)
    topics = [topic(f"{bench.queue}{each}", "g", durable=True) for each in range(3)]
    heard: list[bytes] = []

    def handle(delivery: Delivery) -> None:
        heard.append(delivery.message.body)
        delivery.finish(None)

    for to in topics:
        backend.send(to.subscription_queue, Message(to.name.encode(), {"id": uuid4().hex}))
        worker = RqWorker(
            backend._records, [to.subscription_queue.name], handle, backend._options, bool, Connections(bool)
        )
        eventually(worker.claim)  # and dies, as it were
    server = backend.server(topics, handle)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: sorted(heard) == [to.name.encode() for to in topics])
    finally:
        server.stop()
        thread.join()
        for to in topics:
            backend.unsubscribe(to)
        backend.close()
