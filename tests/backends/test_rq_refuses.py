"""Whatever lies in an rq queue: what is not ours is not run, and does not end the worker."""

from __future__ import annotations

import json
import re
import resource
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import rq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.serializers import DefaultSerializer, JSONSerializer

from .rq_jobs import Bench, Serve, eventually, without_end

pytestmark = pytest.mark.redis


def put(bench: Bench, id: bytes, hash: dict[Any, Any]) -> None:
    """A job as anybody with access to Redis can write one that looks like ours."""
    bench.redis.delete(b"rq:job:" + id)
    if hash:
        bench.redis.hset(b"rq:job:" + id, mapping={"rpc_queue": bench.rq_queue, **hash})
    bench.redis.rpush(f"rq:queue:{bench.rq_queue}", id)


def data(headers: dict[str, str], body: str = "{}", encoding: str = "utf-8", function: str = "") -> bytes:
    return zlib.compress(
        json.dumps([function or _our_function(), None, [headers, body, encoding], {}]).encode()
    )


_seen: list[str] = []


def _our_function() -> str:
    """The function that our jobs name, as it is found in Redis."""
    assert _seen, "ask `good_hash` first"
    return _seen[0]


@pytest.fixture
def good_hash(bench: Bench) -> dict[bytes, bytes]:
    """The hash of a job of ours, as it is queued."""
    id = bench.client.call("add", {"a": 1, "b": 2}, queue="elsewhere")
    hash: dict[bytes, bytes] = bench.redis.hgetall(f"rq:job:{id}")
    _seen[:] = [Job.fetch(id, connection=bench.redis, serializer=JSONSerializer).func_name]
    bench.redis.delete("rq:queue:rpc.elsewhere", f"rq:job:{id}")
    return hash


# What is not ours is refused.


@pytest.mark.parametrize("serializer", [JSONSerializer, DefaultSerializer])
def test_a_job_of_others_stays_as_it_is_and_is_warned_of_once(
    bench: Bench, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, serializer: Any
) -> None:
    foreign = rq.Queue(bench.rq_queue, connection=bench.redis, serializer=serializer)
    ran = tmp_path / "ran"
    system = foreign.enqueue("os.system", f"touch {ran}", ttl=300)
    imports = foreign.enqueue("antigravity.fly", on_failure=rq.Callback("antigravity.fly"))
    before = [bench.redis.hgetall(job.key) for job in (system, imports)]
    thread = serve()
    assert [bench.asks() for _ in range(3)] == [2, 2, 2]
    assert not ran.exists()
    assert "antigravity" not in sys.modules
    assert [bench.redis.hgetall(job.key) for job in (system, imports)] == before
    assert 0 < bench.redis.ttl(system.key) <= 300
    assert bench.redis.ttl(imports.key) == -1
    assert {*foreign.job_ids} == {system.id, imports.id}
    assert FailedJobRegistry(bench.rq_queue, connection=bench.redis).count == 0
    warned = [record for record in caplog.records if "jobs that are not ours" in record.getMessage()]
    assert len(warned) == 1
    assert thread.is_alive()


def test_a_started_job_of_others_that_somebody_calls_ours_stays_as_it_is(bench: Bench, serve: Serve) -> None:
    job = rq.Queue("theirs", connection=bench.redis).enqueue("os.getpid")
    before = bench.redis.hgetall(job.key)
    bench.redis.zadd(f"rq:wip:{bench.rq_queue}", {f"{job.id}:rpc-dead": 1})
    serve(lease=1)
    eventually(lambda: not bench.redis.exists(f"rq:wip:{bench.rq_queue}"))
    assert bench.asks() == 2
    assert bench.redis.hgetall(job.key) == before


def test_a_plain_rq_worker_and_ours_do_not_meet(bench: Bench, serve: Serve) -> None:
    theirs = rq.Queue(bench.queue, connection=bench.redis)
    job = theirs.enqueue("os.getpid")
    serve()
    ours = bench.client.call("add", {"a": 1, "b": 1}, queue="waits")
    rq.SimpleWorker([theirs, "waits"], connection=bench.redis).work(burst=True)
    assert bench.asks() == 2
    assert job.get_status(refresh=True) == JobStatus.FINISHED
    assert bench.redis.hget(f"rq:job:{ours}", "status") == b"queued"


def test_callbacks_webhooks_and_dependencies_in_a_job_of_ours_are_ignored(
    bench: Bench, serve: Serve, tmp_path: Path, good_hash: dict[bytes, bytes]
) -> None:
    canary = f"touch {tmp_path / 'ran'}"
    put(
        bench,
        b"x",
        {
            **good_hash,
            "success_callback_name": "os.system",
            "failure_callback_name": "antigravity.fly",
            "stopped_callback_name": "os.system",
            "on_success": json.dumps(["os.system", canary]),
            "webhook": "http://127.0.0.1:1/",
            "dependency_ids": json.dumps(["y"]),
            "dependency_id": "y",
        },
    )
    serve()
    assert bench.asks() == 2
    assert Job.fetch("x", connection=bench.redis, serializer=JSONSerializer).get_status() == "finished"
    assert list(tmp_path.iterdir()) == [bench.log]
    assert "antigravity" not in sys.modules


BAD_FIELDS: dict[str, dict[str, Any]] = {
    "timeout": {"timeout": "abc"},
    "status": {"status": "bogus"},
    "created_at": {"created_at": "x"},
    "dependencies": {"dependency_ids": "{"},
    "meta": {"meta": b"\x80\x04garbage"},
    "ttl": {"ttl": "-99999999999999999999", "result_ttl": "1e400", "failure_ttl": "-5"},
    "deliveries": {"rpc_deliveries": "abc"},
    "many deliveries": {"rpc_deliveries": "1e400"},
    "expires": {"rpc_expires": "zzz"},
    "expires never": {"rpc_expires": "1e400"},
    "expires nan": {"rpc_expires": "nan"},
    "expires long ago": {"rpc_expires": "-1e300"},
    "lost": {"rpc_lost": "abc"},
    "reply_to": {"rpc_reply_to": b"\xff\x00 {}:*"},
    "retries": {"retries_left": "x", "retry_intervals": "{"},
    "no data": {"data": b""},
    "random data": {"data": b"\x00\xff" * 99},
    "not json": {"data": zlib.compress(b"[[[[")},
    "deep json": {"data": zlib.compress(b"[" * 100_000)},
    "half a stream": {"data": zlib.compress(b"x" * 999)[:9]},
    "pickle": {"data": zlib.compress(b"cos\nsystem\n(S'true'\ntR.")},
}


@pytest.mark.parametrize("fields", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_the_worker_survives_a_malformed_hash(
    bench: Bench, serve: Serve, good_hash: dict[bytes, bytes], fields: dict[str, Any]
) -> None:
    put(bench, b"bad", {**good_hash, **fields})
    thread = serve()
    assert bench.asks() == 2
    assert thread.is_alive()
    assert without_end(bench.redis) == []


BAD_MESSAGES: dict[str, tuple[dict[str, str], str, str]] = {
    "huge id": ({"id": "x" * 9000, "reply-to": "y"}, "{}", "utf-8"),
    "many headers": ({f"h{n}": "" for n in range(1000)} | {"reply-to": "y"}, "{}", "utf-8"),
    "no headers": ({}, "", "utf-8"),
    "weird reply-to": ({"id": "i", "reply-to": "\x00\n é:*"}, "{}", "utf-8"),
    "ttl": ({"id": "i", "reply-to": "y", "ttl": "nan"}, "{}", "utf-8"),
    "content-type": ({"id": "i", "reply-to": "y", "content-type": "x" * 9000}, "{}", "utf-8"),
    "surrogate": ({"id": "\udc80", "reply-to": "y"}, "\udc80", "utf-8"),
    "base64": ({"id": "i"}, "?", "base64"),
    "encoding": ({"id": "i"}, "{}", "x" * 9000),
}


@pytest.mark.parametrize("message", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_the_worker_survives_a_malformed_message(
    bench: Bench, serve: Serve, good_hash: dict[bytes, bytes], message: tuple[dict[str, str], str, str]
) -> None:
    put(bench, b"bad", {**good_hash, "data": data(*message)})
    bench.redis.xadd("rpc:re:y", {"m": b""}, id="0-1")
    thread = serve()
    assert bench.asks() == 2
    assert thread.is_alive()


IDS = [b"", b":", b"a:b:rpc-c", b"\xff\xfe", b"\x00\n", "é".encode(), b"*[x]", b"x" * 10_000]


@pytest.mark.parametrize("id", IDS, ids=range(len(IDS)))
def test_the_worker_survives_a_strange_id(
    bench: Bench, serve: Serve, good_hash: dict[bytes, bytes], id: bytes
) -> None:
    put(bench, id, good_hash)
    thread = serve()
    assert bench.asks() == 2
    assert thread.is_alive()
    eventually(lambda: bench.redis.zcard(f"rq:wip:{bench.rq_queue}") == 0, "it is held for ever")
    assert b"current_job" not in bench.redis.hgetall(bench.workers().pop())


@pytest.mark.parametrize("kind", ["string", "list", "zset", "stream", "nothing"])
def test_the_worker_survives_another_type_under_a_jobs_key(bench: Bench, serve: Serve, kind: str) -> None:
    key = "rq:job:bad"
    write = {
        "string": lambda: bench.redis.set(key, "x"),
        "list": lambda: bench.redis.rpush(key, "x"),
        "zset": lambda: bench.redis.zadd(key, {"x": 1}),
        "stream": lambda: bench.redis.xadd(key, {"x": 1}),
        "nothing": lambda: None,
    }
    write[kind]()
    bench.redis.rpush(f"rq:queue:{bench.rq_queue}", "bad")
    thread = serve()
    assert bench.asks() == 2
    assert thread.is_alive()
    assert bench.redis.zcard(f"rq:wip:{bench.rq_queue}") == 0


def test_a_small_job_that_hides_a_gigabyte_does_not_take_the_memory(
    bench: Bench, serve: Serve, good_hash: dict[bytes, bytes]
) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()
    put(bench, b"bad", {**good_hash, "data": bomb})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    serve()
    assert bench.asks() == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


values = st.one_of(
    st.binary(max_size=50),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "{", "[]", "null", "1e400", "-1"]),
)
FIELDS = (
    "data status timeout created_at enqueued_at origin dependency_ids ttl result_ttl worker_name meta "
    "rpc_expires rpc_deliveries rpc_lost rpc_once rpc_reply_to rpc_owner rpc_key rpc_postponed "
    "rpc_withdrawn retries_left"
)
names = st.sampled_from(re.findall(r"\w+", FIELDS))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, values, min_size=1), st.booleans())
def test_no_hash_ends_the_worker(
    bench: Bench, serve: Serve, good_hash: dict[bytes, bytes], fields: dict[str, Any], whole: bool
) -> None:
    if not bench.workers():
        serve()
    put(bench, b"bad", {**(good_hash if whole else {}), **fields})
    assert bench.asks() == 2
