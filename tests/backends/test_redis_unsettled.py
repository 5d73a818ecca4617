"""What could not be postponed, buried or begun, because Redis could not be had just then."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4

import pytest
import redis

from rpc import BackendUnavailable, Event, RemoteError, Request, RpcClient, RpcReceiver, job, on
from rpc.backends._serving import BEGUN
from rpc.backends.redis import RedisBackend, scripts
from rpc.backends.redis.acks import AckBuffer
from rpc.backends.redis.keys import Keys, QueueNames
from rpc.backends.redis.server import RedisServer as Serving
from rpc.events import listeners_in
from rpc.inspection import DeadLetters
from rpc.settings import Settings
from rpc.testing import RedisServer
from rpc.testing.site import eventually
from rpc.transport import queue
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.redis
RETRIED: Any = {"retries": 1, "backoff": 0.01}


@pytest.fixture
def name() -> str:
    return f"q{uuid4().hex[:8]}"


@pytest.fixture
def client(rpc_redis: RedisServer, name: str) -> Iterator[RpcClient]:
    with RpcClient(backend=rpc_redis.url, queue=name, timeout=20) as client:
        yield client


@contextmanager
def receiving(url: str, name: str, **what: Any) -> Iterator[None]:
    receiver = RpcReceiver(backend=url, queues=[name], settings=Settings(), **what)
    thread = threading.Thread(target=receiver.start)
    thread.start()
    try:
        yield
    finally:
        receiver.stop()
        thread.join(20)
        assert not thread.is_alive()


def letters(client: RpcClient, name: str) -> list[Any]:
    return cast("DeadLetters", client.backend).dead_letters(name)


@pytest.mark.parametrize("kind", ["a job", "an event"])
def test_it_is_delivered_again_after_redis_was_away(
    rpc_redis: RedisServer, client: RpcClient, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy, heard = Proxy(rpc_redis.port, random.Random(0)), list[int]()

    def fail(attempt: int) -> None:
        heard.append(attempt)
        if heard == [1, 2]:
            proxy.refusing = True
            proxy.cut()
        raise ValueError("no")

    @job(**RETRIED)
    def work(request: Request) -> None:
        fail(request.attempt)

    @on(f"{name}.x", group="team", durable=True, **RETRIED)
    def hear(event: Event) -> None:
        fail(1 + len(heard) % 2)

    shelf = listeners_in([("hear", hear)])[0].address.subscription_queue.name
    what: Any = {"jobs": {"work": work}} if kind == "a job" else {"jobs": {}, "services": [hear]}
    with receiving(f"redis://127.0.0.1:{proxy.port}?lease=1", name, **what):
        if kind == "a job":
            client.call("work")
        else:
            eventually(lambda: client.backend.subscribed())
            client.publish(f"{name}.x")
        eventually(lambda: "neither postponed nor buried: Redis" in caplog.text)
        proxy.heal()
        (letter,) = eventually(lambda: letters(client, name if kind == "a job" else shelf))
    proxy.close()
    assert letter.why == "ValueError: no"
    assert heard == [1, 2, 2] or kind == "an event"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a script fail, once."""

    def fail(script: str) -> None:
        carry_out, failures = Serving.carry_out, iter([BackendUnavailable("away")])

        def fragile(server: Serving, *command: Any, **more: Any) -> Any:
            if command[0] == script:
                for failure in failures:
                    raise failure
            return carry_out(server, *command, **more)

        monkeypatch.setattr(Serving, "carry_out", fragile)

    return fail


@pytest.mark.parametrize(
    ("script", "attempts"),
    [(scripts.POSTPONE, [1, 1, 2]), (scripts.BURY, [1, 2, 2])],
    ids=["postpone", "bury"],
)
def test_what_came_with_it_is_done_once(
    rpc_redis: RedisServer, client: RpcClient, name: str, failing: Any, script: str, attempts: list[int]
) -> None:
    done: list[int] = []
    seen: list[int] = []

    @job(**RETRIED)
    def fail(request: Request) -> None:
        seen.append(request.attempt)
        raise ValueError("no")

    failing(script)
    for number in range(60):
        client.call("work", [number]) if number != 40 else client.call("fail")
    with receiving(rpc_redis.url, name, jobs={"work": done.append, "fail": fail}):
        eventually(lambda: letters(client, name))
        eventually(lambda: len(done) >= 59)
    assert seen == attempts
    assert done == [number for number in range(60) if number != 40]


def test_what_may_not_be_done_twice_is_not_and_is_kept(
    rpc_redis: RedisServer, client: RpcClient, name: str, failing: Any
) -> None:
    attempts: list[int] = []

    @job(delivery="at-most-once", **RETRIED)
    def fail(request: Request) -> None:
        attempts.append(request.attempt)
        raise ValueError("no")

    failing(scripts.BURY)
    with receiving(rpc_redis.url, name, jobs={"fail": fail}):
        client.call("fail")
        (letter,) = eventually(lambda: letters(client, name))
    assert attempts == [1, 2]
    assert letter.why == BEGUN


def test_a_caller_is_told_and_it_is_not_done_again(
    rpc_redis: RedisServer, client: RpcClient, name: str, failing: Any
) -> None:
    attempts: list[int] = []

    @job(**RETRIED)
    def fail(request: Request) -> None:
        attempts.append(request.attempt)
        raise ValueError("no")

    failing(scripts.BURY)
    with receiving(rpc_redis.url, name, jobs={"fail": fail, "next": lambda: None}):
        with pytest.raises(RemoteError, match="no"):
            client.call_and_wait("fail")
        client.call_and_wait("next")
    assert attempts == [1, 2]
    assert letters(client, name) == []


@pytest.mark.parametrize(
    ("what", "asked"),
    [
        ({"timeout": None}, scripts.BEGIN),
        ({"idempotency_key": "k"}, scripts.BEGIN),
        ({"data": ["x" * 100_000]}, "MGET"),
    ],
    ids=["a call without end", "a key", "a large one"],
)
def test_what_could_not_be_begun_is_begun_later(
    client: RpcClient,
    rpc_redis: RedisServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    what: Any,
    asked: str,
) -> None:
    """Redis was asked for more of it, and could not be had: it lies in the page of the worker alone."""
    ask, failures = AckBuffer.ask, [redis.ConnectionError("not now")]

    def failing(self: AckBuffer, *commands: Any) -> list[Any]:
        if commands[0][0] == asked and failures:
            raise failures.pop()
        return ask(self, *commands)

    monkeypatch.setattr(AckBuffer, "ask", failing)
    with receiving(rpc_redis.url, name, jobs={"work": lambda request: "done"}):
        future = client.submit("work", **what)
        assert future.result(20).data == "done"
    assert not failures


def test_a_reply_on_a_connection_that_breaks_is_said_again(
    rpc_redis: RedisServer, client: RpcClient, name: str
) -> None:
    """Its handler goes on; what says that it was sent leaves on the next connection."""
    proxy, over = Proxy(rpc_redis.port, random.Random(0)), threading.Event()

    def work(request: Request) -> None:
        proxy.holes.add("up")
        request.respond("sent")
        eventually(lambda: b"sent" in proxy.swallowed["up"])
        proxy.heal()
        proxy.cut()
        assert over.wait(20)

    with receiving(f"redis://127.0.0.1:{proxy.port}", name, jobs={"work": work}):
        try:
            assert client.call_and_wait("work").data == "sent"
        finally:
            over.set()
    proxy.close()


def test_who_takes_something_is_known_to_those_who_would_bring_it_back(
    rpc_redis: RedisServer, client: RpcClient, name: str
) -> None:
    """Also if it was given up, and has had no turn yet to see that."""
    keys, backend = QueueNames().queue(name), RedisBackend(rpc_redis.url)
    serving: Any = backend.server([queue(name)], lambda delivery: delivery.finish(None))
    client.call("work")
    with redis.Redis.from_url(rpc_redis.url) as admin:
        delivery = eventually(serving._fetch)
        assert admin.hexists(keys.workers, serving.name)
    serving.handle(delivery)
    serving._end([])
    backend.close()


def test_what_redis_gives_to_a_dead_worker_is_brought_back(
    rpc_redis: RedisServer, client: RpcClient, name: str
) -> None:
    """It goes on waiting for it: after what it had was brought back, too."""
    keys, done = QueueNames().queue(name), list[int]()
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.hset(keys.workers, "dead", 1)
        admin.rpush(keys.page("dead", 0), record_of(client, admin, keys, 1))
        late = record_of(client, admin, keys, 2)
        with receiving(f"{rpc_redis.url}?lease=1", name, jobs={"work": done.append}):
            eventually(lambda: done == [1])
            admin.rpush(keys.page("dead", 0), late)
            eventually(lambda: done == [1, 2])
            eventually(lambda: not admin.hexists(keys.workers, "dead"))


def record_of(client: RpcClient, admin: Any, keys: Keys, number: int) -> Any:
    """What lies in the queue when this job is called; it is taken out again."""
    client.call("work", [number])
    return admin.lpop(keys.queue)
