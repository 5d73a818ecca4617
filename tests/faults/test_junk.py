"""Junk in all that is ours in Redis, while workers, listeners and callers go on: it costs nobody else
anything.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from rpc import RpcClient, RpcError, RpcReceiver, every, on
from rpc.backends import backend_from_url
from rpc.backends.redis.keys import QueueNames
from rpc.inspection import DeadLetters
from rpc.testing import RedisServer
from rpc.transport import Message, queue

from .conftest import Pick

pytestmark = pytest.mark.real_redis

PATIENCE = 30.0
HUGE = [10**30, -(10**30), 2**63, -1, 0, "1e400", "-inf", "nan", "9" * 5000]
LAST_ID = "18446744073709551615-18446744073709551615"


class Site:
    """Two workers, what they heard, and callers that go on until something goes wrong."""

    def __init__(self, url: str) -> None:
        self.url, self.heard, self.failures = url, [set(), set(), set()], list[str]()
        self.calls, self.ticks, self.published = 0, 0, 0
        self._over, self._stack, self._threads = False, ExitStack(), list[threading.Thread]()
        self.receivers = [self._receiver() for _ in range(2)]
        self.workers = [threading.Thread(target=each.run) for each in self.receivers]

    def _receiver(self) -> RpcReceiver:
        site = self

        class Service:
            @on("fuzz")
            def alone(self, data: Any) -> None:
                site.heard[0].add(data["n"])

            @on("fuzz", group="team")
            def team(self, data: Any) -> None:
                site.heard[1].add(data["n"])

            @on("fuzz", group="books", durable=True)
            def books(self, data: Any) -> None:
                site.heard[2].add(data["n"])

            @every(seconds=0.1, singleton=True)
            def tick(self) -> None:
                site.ticks += 1

        jobs = {"echo": lambda n: n}
        return RpcReceiver(
            jobs=jobs, services=[Service()], backend=self.url, queues=["high", "default"], concurrency=2
        )

    def start(self) -> None:
        for thread in self.workers:
            thread.start()
        client = self._stack.enter_context(RpcClient(backend=self.url, timeout=PATIENCE))
        client.call_and_wait("echo", [0])
        for queue_name in ("default", "high"):
            self._go_on(lambda n, queue=queue_name: client.call_and_wait("echo", [n], queue=queue).data == n)
        self._go_on(lambda n: client.submit("echo", [n]).result().data == n)
        self._go_on(lambda n: self._publish(client))

    def _publish(self, client: RpcClient) -> bool:
        client.publish("fuzz", {"n": self.published})
        self.published += 1
        return True

    def _go_on(self, action: Callable[[int], bool]) -> None:
        def run() -> None:
            n = 0
            while not self._over:
                n += 1
                try:
                    if not action(n):
                        self.failures.append("a wrong answer")
                except BaseException as error:  # the test reports it
                    kind = "an RpcError" if isinstance(error, RpcError) else "no RpcError"
                    self.failures.append(f"{kind}: {error!r}")
                self.calls += 1

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def goes_on(self) -> None:
        """Wait until some more calls have been answered."""
        goal, end = self.calls + 8, time.monotonic() + PATIENCE
        while self.calls < goal:
            assert time.monotonic() < end, f"nothing goes on: {self.failures}"
            time.sleep(0.001)

    def end(self) -> None:
        """End the callers."""
        self._over = True
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive()

    def close(self) -> None:
        self.end()
        for receiver in self.receivers:
            receiver.stop()
        for thread in self.workers:
            thread.join(PATIENCE)
        self._stack.close()


class Vandal:
    """Writes into Redis what nobody should. It takes nothing away from others."""

    def __init__(self, admin: Any, dice: random.Random, samples: list[bytes]) -> None:
        self._admin, self._dice, self._samples = admin, dice, samples
        self.done: list[str] = []

    def junk(self) -> bytes:
        """Something to write."""
        dice = self._dice
        sample = dice.choice(self._samples)
        head = b"\n".join([b"%d k" % dice.choice([0, 1, 10**15]), dice.choice([b"x", b"\xff", b"a\nb"])])
        inbox = dice.choice([b"theirs:list", b"theirs:text", b"rpc:{default}:in:nobody", b""])
        return dice.choice(
            [
                b"",
                dice.randbytes(dice.randrange(300)),
                str(dice.choice(HUGE)).encode(),
                sample[: dice.randrange(len(sample))],
                sample[dice.randrange(len(sample)) :],
                b"x" * dice.choice([1, 70_000, 1_000_000]),
                b"\n".join([head, inbox, dice.choice([b"", b"zz", b"0" * 64]), b"", b"frame"]),
                b"%d w9\nid\n%s\n\n%s\n\x00\x01\x80" % (10**14, inbox, b"9" * dice.choice([3, 5000])),
                b"1\nid\n" + sample,
                b"--5\nid\nframe",
                b"theirs:job:rpc-dead",
                b"theirs-job",
                f"x\n{logging.CRITICAL} forged".encode(),
            ]
        )

    def one(self, key: bytes) -> None:
        """Once, to this key: something of its own type if it is there, anything else if it is not."""
        kind = self._admin.type(key).decode()
        try:
            getattr(self, f"_{kind}")(key)
        except redis.ResponseError as error:  # it became something else meanwhile, or takes no such number
            kind = f"{kind}, refused: {error}"
        self.done.append(f"{kind} {key!r}")

    def _list(self, key: bytes) -> None:
        push = self._dice.choice([self._admin.lpush, self._admin.rpush])
        push(key, self.junk())

    def _set(self, key: bytes) -> None:
        self._admin.sadd(key, self.junk())

    def _hash(self, key: bytes) -> None:
        self._admin.hset(key, self.junk(), self.junk())

    def _zset(self, key: bytes) -> None:
        score = self._dice.choice([0, -1, 1e300, "-inf", "inf", time.time() * 1000])
        self._admin.zadd(key, {self.junk(): score})

    def _stream(self, key: bytes) -> None:
        if key.startswith(b"rpc:re:"):
            self._admin.xadd(key, {self._dice.choice([b"m", b"x"]): self.junk()}, nomkstream=True)
        else:
            id = self._dice.choice(["*", "*", "*", LAST_ID])
            self._admin.xadd(key, {self._dice.choice([b"m", b"x", b"left"]): self.junk()}, id=id)

    def _string(self, key: bytes) -> None:
        """What is there is somebody's."""

    def _none(self, key: bytes) -> None:
        self._dice.choice(
            [
                lambda: self._admin.set(key, self.junk(), nx=True),
                lambda: self._admin.rpush(key, self.junk()),
                lambda: self._admin.zadd(key, {self.junk(): 0}),
                lambda: self._admin.hset(key, b"x", self.junk()),
                lambda: self._admin.sadd(key, self.junk()),
                lambda: self._admin.xadd(key, {b"m": self.junk()}),
            ]
        )()


def ours(admin: Any, scheme: str, dice: random.Random) -> list[bytes]:
    """Keys of ours, those that are there and those that may be."""
    there = [
        *admin.scan_iter("rpc:*", count=1000),
        *(key for key in admin.scan_iter("rq:*", count=1000) if b"theirs" not in key),
    ]
    own = "0" * 31 + dice.choice("0123456789")
    names = [
        f"rpc:lock:timer.{own}",
        f"rpc:re:{own}",
        f"rpc:in:{own}",
        "rpc:subscriptions",
        "rpc:topic:{rpc}",
    ]
    names += ["rpc:topic:{fuzz}", "rpc:subscriptions:{fuzz}", "rpc:members:{fuzz}:team"]
    for name in "default", "high", "_fuzz.books":
        keys = QueueNames().queue(name)
        if scheme == "redis":
            names += [keys.queue, keys.wakeup, keys.delayed, keys.dead, keys.workers, keys.control]
            names += [keys.token("x"), keys.body("x"), keys.once("0" * 64), keys.page(own, 0)]
            names += [f"{keys.once('0' * 64)}:w", keys.alive(own), keys.inbox(own)]
        else:
            names += [f"rpc:bell:{name}", f"rpc:cancel:rpc-{own}", f"rq:worker:rpc-{own}", f"rq:job:{own}"]
            names += [f"rq:{each}:rpc.{name}" for each in ("queue", "wip", "finished", "failed", "workers")]
    return [*there, *(name.encode() for name in names)]


def samples_of(admin: Any, url: str) -> list[bytes]:
    """Real messages, replies to which nobody waits for."""
    with RpcClient(backend=url) as client:
        client.call("echo", [1])
        client.call("echo", ["x" * 200])
    found = [record for key in admin.scan_iter("rpc:*", _type="list") for record in admin.lrange(key, 0, -1)]
    for key in admin.scan_iter("rq:job:*"):
        found += admin.hgetall(key).values()
    admin.flushall()
    return [each for each in found if len(each) > 1] or [b"xx"]


@pytest.fixture(params=["redis", "rq+redis"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def admin(rpc_redis: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.flushall()
        yield admin


def put_theirs(admin: Any) -> dict[str, tuple[bytes, int]]:
    """What somebody else has in the same Redis."""
    admin.rpush("theirs:list", "1", "2")
    admin.set("theirs:text", "text")
    admin.hset("theirs:hash", "a", "b")
    admin.hset("rq:job:theirs-job", mapping={"data": b"x", "origin": "theirs", "status": "queued"})
    admin.hset("rq:job:theirs:job", mapping={"data": b"x", "origin": "theirs", "status": "queued"})
    admin.rpush("rq:queue:theirs", "theirs-job")
    return theirs(admin)


def theirs(admin: Any) -> dict[str, tuple[bytes, int]]:
    names = [
        "theirs:list",
        "theirs:text",
        "theirs:hash",
        "rq:job:theirs-job",
        "rq:job:theirs:job",
        "rq:queue:theirs",
    ]
    return {name: (admin.dump(name), admin.ttl(name)) for name in names}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_junk_costs_nobody_else_anything(
    scheme: str,
    rpc_redis: RedisServer,
    admin: Any,
    dice: random.Random,
    pick: Pick,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Junk in every key of ours: calls are answered, events heard, timers tick; what others have stays"""
    caplog.set_level(logging.WARNING)
    url = f"{scheme.removesuffix('redis')}{rpc_redis.url}?lease=2"
    samples = samples_of(admin, url)
    before = put_theirs(admin)
    site, vandal = Site(url), Vandal(admin, dice, samples)
    site.start()
    try:
        much = pick(250, 10_000)
        while len(vandal.done) < much:
            keys = ours(admin, scheme, dice)
            for _ in range(20):
                vandal.one(dice.choice(keys))
            site.goes_on()
        site.end()
        assert site.failures == []
        ticks, end = site.ticks, time.monotonic() + PATIENCE
        last = site.published
        with RpcClient(backend=url) as client:
            client.publish("fuzz", {"n": last})
        while not (all(last in heard for heard in site.heard) and site.ticks > ticks):
            missing = [last in heard for heard in site.heard], site.ticks - ticks
            assert time.monotonic() < end, f"events or ticks are missing: {missing}, {vandal.done[-200:]}"
            time.sleep(0.01)
        assert site.heard[2] >= set(range(last))
        assert all(thread.is_alive() for thread in site.workers)
    finally:
        site.close()
    assert theirs(admin) == before
    forged = [each for each in caplog.records if "\n" in each.getMessage()]
    assert forged == []
    assert [each.getMessage() for each in caplog.records if each.exc_info] == []


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"", b"1 k\nx", b"1 k\nx\n\n\n\n\x00\xffframe"])
def test_what_cannot_be_read_is_a_dead_letter(
    rpc_redis: RedisServer, admin: Any, junk: bytes, serving: Callable[[str], None]
) -> None:
    url = f"{rpc_redis.url}?lease=2"
    admin.rpush(QueueNames().queue("default").queue, junk)
    serving(url)
    backend: Any = backend_from_url(url)
    shelf: DeadLetters = backend
    end = time.monotonic() + PATIENCE
    while not (letters := shelf.dead_letters("default")):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert letters[0].why.startswith("refused: ")
    assert letters[0].frame == junk or letters[0].id == "x"
    assert shelf.drop(letters[0])
    backend.close()


@pytest.fixture
def serving() -> Iterator[Callable[[str], None]]:
    """Starts a worker in a thread."""
    with ExitStack() as stack:

        def serve(url: str) -> None:
            receiver = RpcReceiver(jobs={"echo": lambda n: n}, backend=url)
            thread = threading.Thread(target=receiver.run)
            thread.start()
            stack.callback(thread.join, PATIENCE)
            stack.callback(receiver.stop)

        yield serve


def test_an_id_forges_no_log_line(
    rpc_redis: RedisServer, admin: Any, serving: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{rpc_redis.url}?lease=2"
    with RpcClient(backend=url, timeout=PATIENCE) as client:
        forged = Message(b'{"jsonrpc":"2.0","method":"nope"}', {"id": "x\n2026 CRITICAL forged"})
        client.backend.send(queue("default"), forged)
        serving(url)
        client.call_and_wait("echo", [1])
    refused = [each.getMessage() for each in caplog.records if "nope" in each.getMessage()]
    assert len(refused) == 1
    assert "\n" not in refused[0]
