"""The client and the worker in JavaScript (clients/node), beside ours on a real Redis; see test_peers.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from decimal import Decimal
from functools import reduce
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
import redis

from rpc import (
    InvalidParams,
    NoReceivers,
    RemoteError,
    Request,
    RpcClient,
    RpcReceiver,
    RpcTimeout,
    SerializationError,
    ServiceChange,
    TimeLimitExceeded,
    Unauthorized,
    WorkerLost,
)
from rpc.contract.stubs import stubs
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.settings import Settings
from rpc.testing import RedisServer, start_redis
from rpc.transport import queue, unpacked
from tests.peers.running import NODE, SECONDS, build_node, http_url, peer

SECRET = "a secret of thirty-two characters"

pytestmark = [pytest.mark.redis, pytest.mark.xdist_group("peers")]


def node_tests(name: str, **environment: str) -> None:
    """Node's own test runner, on a file of clients/node/test."""
    done = subprocess.run(
        ["node", "--test", str(NODE / "test" / name)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "\n# skipped 0\n" in done.stdout


def test_bodies_frames_and_events_are_those_of_the_vectors() -> None:
    build_node()
    node_tests("vectors.test.mjs")
    node_tests("dispatch.test.mjs")


@pytest.fixture(params=["redis", pytest.param("http", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, rpc_redis: RedisServer) -> str:
    return f"{rpc_redis.url}?prefix=node-{uuid4().hex[:8]}" if request.param == "redis" else http_url()


@pytest.mark.parametrize("kind", ["python", pytest.param("node", marks=pytest.mark.slow)])
def test_its_client_calls_streams_and_publishes(kind: str, url: str, tmp_path: Path) -> None:
    build_node()
    with peer(kind, url, tmp_path) as running:
        node_tests("client.test.mjs", RPC_URL=url)
        running.says(r"cancelled[^!]*cancelled")  # what ran was told, each time


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", "node"])
def test_its_client_signs(kind: str, url: str, tmp_path: Path) -> None:
    build_node()
    with peer(kind, url, tmp_path, SECRET):
        node_tests("client.test.mjs", RPC_URL=url, RPC_SECRET=SECRET)


def test_its_worker_does_nothing_that_is_not_signed(url: str, tmp_path: Path) -> None:
    with peer("node", url, tmp_path, SECRET), ExitStack() as stack:
        signed, unsigned, other = (
            stack.enter_context(RpcClient(backend=url, timeout=SECONDS, settings=Settings(signing_keys=keys)))
            for keys in ({"k1": SECRET}, None, {"k1": SECRET[::-1]})
        )
        assert signed.call_and_wait("add", [1, 2]).data == 3
        assert list(signed.stream("count", {"to": 50}, window=10)) == [*range(50)]
        upload = signed.stream("total", items=range(50))
        assert (list(upload), upload.value) == ([], 1225)
        with pytest.raises(Unauthorized):
            unsigned.call_and_wait("add", [1, 2])
        with pytest.raises(RpcTimeout):
            other.call_and_wait("add", [1, 2], timeout=0.3)


def test_its_worker_does_once_what_was_signed_once(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?prefix=replayed"
    with (
        peer("node", url, tmp_path, SECRET) as node,
        redis.Redis.from_url(rpc_redis.url) as admin,
        RpcClient(backend=url, timeout=SECONDS, settings=Settings(signing_keys={"k1": SECRET})) as client,
    ):
        node.process.send_signal(signal.SIGSTOP)
        future = client.submit("wait", {"seconds": 0})
        key = "replayed:{default}:default"
        until = time.monotonic() + SECONDS
        while not (records := admin.lrange(key, 0, -1)) and time.monotonic() < until:
            time.sleep(0.01)
        admin.rpush(key, *records, *records)
        node.process.send_signal(signal.SIGCONT)
        assert future.result().data == "waited"
        client.call_and_wait("whoami")  # the others were there before
        assert node.ends() == 0
        assert node.said.count("waiting") == 1


def encoding(request: Request) -> None:
    """How the body of this request was made smaller."""
    request.respond(request._delivery.message.headers.get("content-encoding"))


def lengths(request: Request) -> Iterator[int]:
    for each in request.items:
        yield len(each)


def counted(to: int) -> Iterator[int]:
    yield from range(to)


def test_its_client_finds_services_compresses_and_logs(url: str) -> None:
    build_node()
    jobs = {"add": lambda a, b=0: a + b, "count": counted, "encoding": encoding, "lengths": lengths}
    settings = Settings(domain="shop", service_type="sums", service_id="eu", service_version="1.4.0")
    receiver = RpcReceiver(jobs=jobs, backend=url, settings=settings)
    thread = Thread(target=receiver.run)
    thread.start()
    try:
        with RpcClient(backend=url, timeout=SECONDS) as client, ExitStack() as stack:
            has_topics = "topics" in client.backend.features
            logs = stack.enter_context(client.logs()) if has_topics else None
            node_tests("services.test.mjs", RPC_URL=url)
            if logs:
                heard = [logs.get(timeout=SECONDS) for _ in range(3003)]
                assert_logged(heard)
    finally:
        receiver.stop()
        thread.join()


def assert_logged(heard: list[Any]) -> None:
    ordered, failed, odd, *numbers = heard
    assert (ordered.level, ordered.logger, ordered.message) == ("INFO", "shop.web", "ordered")
    assert ordered.extra == {"item": "tea"}
    assert failed.level_number == 40
    assert (failed.exception.type, failed.exception.message) == ("RangeError", "no tea")
    assert "services.test.mjs" in failed.exception.traceback
    assert odd.message == "odd"
    assert odd.problem
    assert [each.message for each in numbers] == [f"number {n}" for n in range(3000)]


def test_its_jobs_have_time_limits_and_its_replies_are_compressed(url: str, tmp_path: Path) -> None:
    with (
        peer("node", url, tmp_path, concurrency=2) as node,
        RpcClient(backend=url, timeout=SECONDS, compress="gzip:1kB") as client,
    ):
        with pytest.raises(TimeLimitExceeded, match=r"ran longer than 0\.05 s"):
            client.call_and_wait("late", {"seconds": 0.3})
        assert client.call_and_wait("late", {"seconds": 0}).data == "in time"
        node.says("hook: late TimeLimitExceeded")
        node.says("hook: late in time")
        assert client.call_and_wait("echo", ["x" * 50_000]).data == "x" * 50_000
        message = call_message("z", "echo", ["x" * 20_000], Writing(JSON), ttl=SECONDS, replies=True)
        for accepts, got in (("gzip", "gzip"), ("br", None)):
            asked = message.replace(id=uuid4().hex, **{"accept-encoding": accepts})
            with closing(client.backend.request(queue("default"), asked)) as replies:
                assert replies.receive(SECONDS).headers.get("content-encoding") == got


def test_python_calls_it(url: str, tmp_path: Path) -> None:
    with peer("node", url, tmp_path) as node, RpcClient(backend=url, timeout=SECONDS) as client:
        assert client.call_and_wait("add", data={"a": 1, "b": 2}).data == 3
        assert [each.result().data for each in [client.submit("echo", [n]) for n in range(50)]] == [
            *range(50)
        ]
        assert client.call_and_wait("echo", data={"value": "x" * 200_000}).data == "x" * 200_000
        with pytest.raises(RemoteError, match=r"^ValueError: no$"):
            client.call_and_wait("fail", data={"text": "no"})
        with pytest.raises(InvalidParams):
            client.call_and_wait("add")
        if "idempotency" in client.backend.features:
            assert {client.call_and_wait("add", {"a": n}, idempotency_key="k").data for n in (1, 2)} == {1}

        future = client.submit("wait", {"seconds": SECONDS})
        client.call_and_wait("whoami")
        future.cancel()
        node.says("cancelled")

        stream = client.stream("count", {"to": 3000}, window=100)
        assert list(stream) == [*range(3000)]
        assert stream.value == "done"
        with client.stream("relay", {"value": 1}) as talk:
            assert (next(talk), talk.send([2]), talk.throw(TypeError("spam"))) == (1, [2], "thrown: spam")
        upload = client.stream("total", items=range(5000))
        assert (list(upload), upload.value) == ([], 12_497_500)
        seen = []
        assert client.call_and_wait("half", on_progress=seen.append).data == "all"
        assert [(each.fraction, each.text) for each in seen] == [(0.5, "half")]


@pytest.mark.parametrize("codec", ["json", "json+types", "msgpack"])
def test_python_gives_it_arguments_by_name(codec: str, url: str, tmp_path: Path) -> None:
    kwargs = {"queue": 1, "timeout": None, "constructor": "", "$date": True, "grüß 世界": "x" * 200_000}
    if codec != "msgpack":  # the package that decodes it refuses that
        kwargs["__proto__"] = {"b": 2}
    with (
        peer("node", url, tmp_path) as node,
        RpcClient(backend=url, timeout=SECONDS, codec=codec) as client,
    ):
        jobs = client.services
        assert jobs.given(1, [2], **kwargs) == [[1, [2]], kwargs]
        assert jobs.given(**kwargs) == [[], kwargs]
        assert jobs.given(1) == [[1], {}]
        assert jobs.given(1, **{"$date": "plain"}) == [[1], {"$date": "plain"}]
        assert jobs.add.submit(1, b=2).result() == 3
        assert list(jobs.count.stream(to=3)) == [0, 1, 2]
        jobs.wait.call(seconds=0)
        node.says("waiting")
        with pytest.raises(RemoteError, match=r"^ValueError: no$"):
            jobs.fail(text="no")
        for args, wrong in (((1,), {"a": 2}), ((), {"b": 1}), ((1,), {"c": 2}), ((1, 2, 3), {"b": 1})):
            with pytest.raises(InvalidParams):
                jobs.add(*args, **wrong)


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.01)
    assert found


def test_python_uses_it_as_what_keeps_types_and_wants_tokens(url: str, tmp_path: Path) -> None:
    value = [
        datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        {1, 2},
        b"\x00",
        {1: None},
        Decimal("1.10"),
        2**62,
    ]
    with (
        peer("node", url, tmp_path),
        RpcClient(
            backend=url, timeout=SECONDS, codec="json+types", token={"secret": "open sesame"}
        ) as client,
    ):
        assert client.call_and_wait("echo", [value]).data == value
        assert client.call_and_wait("secret").data == "told"
        with client.stream("relay", {"value": value}) as talk:
            assert (next(talk), talk.send({3})) == (value, {3})
    with peer("node", url, tmp_path, maxMessageBytes=2000), RpcClient(backend=url, timeout=SECONDS) as client:
        with pytest.raises(Unauthorized):
            client.call_and_wait("secret")
        with pytest.raises(SerializationError, match="more than 2000"):
            client.call_and_wait("echo", ["x" * 2000])
        with pytest.raises(SerializationError, match="nested more deeply"):
            client.call_and_wait("echo", ["x", reduce(lambda inner, _: [inner], range(600), 1)])


def test_what_it_gave_up_is_a_dead_letter(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?prefix=buried"
    with peer("node", url, tmp_path, unknownFor=0), RpcClient(backend=url, timeout=SECONDS) as client:
        client.call("nosuch")
        client.call("flaky", {"works_at": 9}, delay=0.1)
        eventually(lambda: len(client.backend.dead_letters("default")) == 2)
        failed, unknown = client.backend.dead_letters("default")
        assert unknown.why == "MethodNotFound: no job is named 'nosuch' here"
        assert failed.why == "ValueError: attempt 4"
        assert "peer.mjs" in failed.traceback
        assert unpacked(failed.frame).attempt == 4
        kept = client.call("flaky", {"works_at": 2}, keep=SECONDS)
        eventually(lambda: client.job(kept).state == "succeeded")
        job = client.job(kept)
        assert (job.result, job.name, job.attempt) == (2, "flaky", 2)
        assert job.worker
        assert job.took is not None
        large = {"works_at": 3, "padding": "x" * 100_000}  # whose body lies elsewhere
        assert client.call_and_wait("flaky", large).data == 3
        with pytest.raises(RemoteError, match="attempt 4"):  # who waits is told, and it is a dead letter, too
            client.call_and_wait("flaky", {"works_at": 9})
        assert len(client.backend.dead_letters("default")) == 3


@pytest.mark.slow
def test_what_it_does_not_know_is_for_others(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?prefix=unknown"
    with peer("node", url, tmp_path), RpcClient(backend=url, timeout=SECONDS) as client:
        id = client.call("of_python", keep=SECONDS)
        eventually(lambda: client.job(id).state == "scheduled")
        receiver = RpcReceiver(jobs={"of_python": lambda: "done"}, backend=url)
        thread = Thread(target=receiver.run)
        thread.start()
        try:
            eventually(lambda: client.job(id).state == "succeeded")
        finally:
            receiver.stop()
            thread.join()


def test_jobs_with_one_key_are_done_by_both_in_order(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?prefix=ordered"
    python, node = tmp_path / "python", tmp_path / "node"
    for folder in (python, node):
        folder.mkdir()
    ended: list[int] = []
    with (
        peer("python", url, python),
        peer("node", url, node),
        RpcClient(backend=url, timeout=SECONDS) as client,
    ):
        futures = []
        for n in range(40):
            name, data = ("flaky", {"works_at": 2}) if n % 5 == 0 else ("echo", [n])
            future = client.submit(name, data, order_key="user-7")
            future.add_done_callback(lambda _, n=n: ended.append(n))
            futures.append(future)
        for each in futures:
            each.result()
        assert ended == [*range(40)]
        workers = {client.call_and_wait("whoami").data for _ in range(50)}
        assert len(workers) == 2  # else only one of them had a part in it


@pytest.mark.parametrize("secret", ["", pytest.param(SECRET, marks=pytest.mark.slow)], ids=["open", "signed"])
def test_it_is_a_service(secret: str, rpc_redis: RedisServer, tmp_path: Path) -> None:
    prefix = f"service{len(secret)}"
    url = f"{rpc_redis.url}?prefix={prefix}"
    identity = {"domain": "shop", "type": "sums", "id": "eu", "version": "1.4.0"}
    changes: SimpleQueue[ServiceChange] = SimpleQueue()
    settings = Settings(signing_keys={"k1": secret} if secret else None)
    with (
        redis.Redis.from_url(rpc_redis.url) as admin,
        RpcClient(backend=url, timeout=SECONDS, settings=settings) as client,
        client.watch_services(changes.put),
    ):
        with peer("node", url, tmp_path, secret, identity=identity, keepAlive=0.2) as node:
            assert changes.get(timeout=SECONDS).kind == "up"
            sums = client.service(type="sums", domain="shop", version=">=1.2,<2")
            assert sums.add(1, b=2) == 3
            assert sums.health_check() is True
            assert [*sums.count.stream(3)] == [0, 1, 2]
            (info,) = client.list_services(health_check=True)
            assert (info.name, info.version, info.pid) == ("shop.sums.eu", "1.4.0", node.process.pid)
            assert client.service(instance=info.instance).whoami() == info.pid
            with pytest.raises(NoReceivers):
                client.service(type="sums", domain="shop", version=">=2").add(1)
            message = call_message("v", "add", [1], Writing(JSON), ttl=SECONDS, replies=True)
            with closing(
                client.backend.request(queue("shop.sums"), message.replace(version=">=2"))
            ) as replies:
                assert b"version >=2, and this is 1.4.0" in replies.receive(SECONDS).body
            eventually(lambda: admin.xlen(f"{prefix}:topic:{{rpc.services}}") > 2)
        change = changes.get(timeout=SECONDS)  # the signs in between are no change
        assert (change.kind, change.service.instance) == ("down", info.instance)
        assert not client.list_services()


def test_it_says_what_it_offers(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rpc", "describe", "--backend", url]
    with peer("node", url, tmp_path), RpcClient(backend=url, timeout=SECONDS) as client:
        (worker,) = client.describe()
        assert worker.jobs["add"] == "(a, b=…)"
        printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    methods = {each["name"]: each for each in printed["methods"]}
    assert [each["required"] for each in methods["add"]["params"]] == [True, False]
    assert methods["total"]["x-rpc-style"] == "request"
    assert methods["count"]["x-rpc-stream"] == {"items": {}}
    assert "add" in stubs(printed)


def test_it_is_a_member_of_groups_of_python(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?prefix=groups"
    wanted = {"region": "eu", "rush": None, "n": 1.0}
    listen = {"pattern": "order.*", "group": "billing", "durable": True, "headers": wanted, "match": "any"}
    group = {"group": "billing", "durable": True, "headers": wanted, "match": "any"}
    with RpcClient(backend=url, timeout=SECONDS) as client:
        with peer("node", url, tmp_path, listen=listen):
            pass
        client.publish("order.created", {"n": 1}, headers={"region": "eu"})  # nobody listens
        client.publish("order.created", {"n": 2}, headers={"region": "us"})
        with client.subscribe("order.*", **group) as subscription:
            assert subscription.get(timeout=SECONDS).data == {"n": 1}
        client.publish("order.created", {"n": 3}, headers={"rush": True})
        with peer("node", url, tmp_path, listen=listen) as node:
            node.says('heard {"n":3}')
            assert '"n":2' not in node.said


def test_others_see_at_each_queue_that_it_lives(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?lease=1&prefix=several"
    with redis.Redis.from_url(rpc_redis.url) as admin:
        signs = [f"several:{{{tag}}}:alive:*" for tag in ("images", "mail")]
        with peer("node", url, tmp_path, queues=["images", "mail"]):
            keys = [admin.keys(each)[0] for each in signs]
            for key in keys:
                left = [admin.pttl(key)]  # it is renewed: from one look to the next, it has more time
                eventually(lambda key=key, left=left: left.append(admin.pttl(key)) or left[-1] > left[-2])
        assert not admin.exists(*keys)


def test_its_types_help_those_who_use_it() -> None:
    build_node()
    project = str(NODE / "test" / "types" / "tsconfig.json")
    done = subprocess.run(
        ["npx", "tsc", "-p", project], cwd=NODE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_it_ends_what_it_has_when_it_is_stopped(url: str, tmp_path: Path) -> None:
    with peer("node", url, tmp_path) as node, RpcClient(backend=url, timeout=SECONDS) as client:
        running = client.submit("wait", {"seconds": 0.5})
        node.says("waiting")
        node.process.terminate()
        assert running.result().data == "waited"
        assert node.process.wait(SECONDS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("node", "node"), ("node", "python"), ("python", "node")])
def test_another_gets_the_job_of_one_that_was_killed(
    first: str, second: str, rpc_redis: RedisServer, tmp_path: Path
) -> None:
    url = f"{rpc_redis.url}?lease=1&prefix=killed-{first}-{second}"
    with RpcClient(backend=url, timeout=SECONDS) as client:
        with peer(first, url, tmp_path) as killed:
            waiting = client.submit("wait", {"seconds": 1})
            client.call_and_wait("whoami")  # by then it has the one before, too
            killed.process.send_signal(signal.SIGKILL)
        with peer(second, url, tmp_path):
            assert waiting.result().data == "waited"


@pytest.mark.slow
def test_what_may_be_done_once_is_not_begun_twice(rpc_redis: RedisServer, tmp_path: Path) -> None:
    url = f"{rpc_redis.url}?lease=1&prefix=twice"
    with RpcClient(backend=url, timeout=SECONDS) as client:
        with peer("node", url, tmp_path) as killed:
            begun = Event()
            once = client.submit("once", {"seconds": SECONDS}, on_progress=lambda progress: begun.set())
            stream = client.stream("relay", {"value": 1})
            assert next(stream) == 1
            assert begun.wait(SECONDS)
            killed.process.send_signal(signal.SIGKILL)
        with peer("node", url, tmp_path):
            with pytest.raises(WorkerLost):
                next(stream)
            with pytest.raises(WorkerLost):
                once.result()


@pytest.mark.slow
def test_it_serves_on_when_redis_was_restarted(tmp_path: Path) -> None:
    first = start_redis()
    with first, peer("node", first.url, tmp_path), RpcClient(backend=first.url, timeout=SECONDS) as client:
        client.call("wait", {"seconds": 1})
        client.call_and_wait("whoami")
        first.close()
        with start_redis(first.port):
            assert client.call_and_wait("add", [1, 2]).data == 3
