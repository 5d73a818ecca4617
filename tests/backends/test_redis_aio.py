"""The asynchronous client on Redis: its own backend's and, in threads, rq's."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from async_calls import Calls, SpecialCalls, Stage, double, echo, run, until

from rpc import AsyncRpcClient, BackendUnavailable, QueueFull, RpcClient, RpcTimeout
from rpc.backends.redis.keys import Record
from rpc.testing import RedisServer
from rpc.testing.site import PATIENCE, eventually

pytestmark = pytest.mark.redis
QUEUE = "rpc:{default}:default"
NOWHERE = "redis://127.0.0.1:1/0"


class RedisStage(Stage):
    def __init__(self, stack: ExitStack, url: str) -> None:
        super().__init__(stack, f"{url}?lease=2")
        self.admin: Any = stack.enter_context(redis.Redis.from_url(url))
        self.admin.flushall()

    def waiting(self) -> int:
        left = {fields.get(b"left") for _, fields in self.admin.xrange(f"{QUEUE}:control")}
        records = [Record.unpacked(record) for record in self.admin.lrange(QUEUE, 0, -1)]
        return sum(
            not each.is_attended or self.admin.exists(f"{QUEUE}:t:{each.id}")
            for each in records
            if each.id.encode() not in left
        )

    def connections(self) -> int:
        """Of clients, but those of this stage itself."""
        return sum(each["name"].startswith("rpc:") for each in self.admin.client_list())


class RqStage(RedisStage):
    def __init__(self, stack: ExitStack, url: str) -> None:
        super().__init__(stack, url)
        self.url = f"rq+{self.url}"

    def waiting(self) -> int:
        return int(self.admin.llen("rq:queue:rpc.default"))


@pytest.fixture
def stage(rpc_redis: RedisServer) -> Iterator[RedisStage]:
    with ExitStack() as stack:
        yield RedisStage(stack, rpc_redis.url)


class TestRedis(Calls, SpecialCalls):
    pass


class TestRq(Calls):
    @pytest.fixture
    def stage(self, rpc_redis: RedisServer) -> Iterator[RqStage]:
        with ExitStack() as stack:
            yield RqStage(stack, rpc_redis.url)


# Where there is no Redis.


@pytest.mark.parametrize("timeout", [0.2, 1.0])
@pytest.mark.parametrize("way", ["call_and_wait", "submit"])
def test_where_nothing_listens_a_call_ends_in_its_time(way: str, timeout: float) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=NOWHERE) as client:
            start = time.monotonic()
            asked = [getattr(client, way)("work", timeout=timeout) for _ in range(5)]
            for each in asked:
                with pytest.raises(BackendUnavailable):
                    await each
            assert time.monotonic() - start < len(asked) * timeout + PATIENCE / 2

    run(main)


def test_where_nothing_listens_what_is_only_sent_fails_and_a_task_can_be_cancelled() -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=NOWHERE) as client:
            start = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await client.call("work", ttl=0.3)
            assert time.monotonic() - start < PATIENCE / 2
            for seconds in 0.0, 0.1, 0.4:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.call_and_wait("work", timeout=None), seconds)
            futures = [client.submit("work", timeout=None) for _ in range(3)]
            await asyncio.sleep(0.05)
        await asyncio.wait(futures, timeout=PATIENCE)
        assert all(each.done() for each in futures)

    run(main)


def test_where_nothing_listens_the_futures_of_a_thread_end_too() -> None:
    with RpcClient(backend=NOWHERE) as client:
        futures = [client.submit("work", timeout=0.5) for _ in range(5)]
        assert {type(each.exception(PATIENCE)) for each in futures} == {BackendUnavailable}
        last = client.submit("work", timeout=None)
    assert last.cancelled()


# What is special to it.


def test_all_that_wait_share_two_connections(stage: RedisStage) -> None:
    async def main() -> None:
        before = stage.connections()
        async with stage.client() as client:
            futures = [client.submit("echo", [number]) for number in range(500)]
            await asyncio.gather(*(client.call("echo", [number]) for number in range(500)))
            for future in futures[::2]:
                future.cancel()
            await client.call("echo", [0])
            assert before < stage.connections() <= before + 2
            assert not any(future.done() for future in futures[1::2])
        await until(lambda: stage.connections() <= before)
        await asyncio.wait(futures)

    run(main)


@pytest.mark.parametrize("scheme", ["", "rq+"])
def test_a_closed_client_has_no_connection(stage: RedisStage, scheme: str) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=scheme + stage.url) as client:
            await client.call("work")
            with pytest.raises(RpcTimeout):
                await client.call_and_wait("work", timeout=0.1)

    before = stage.connections()
    run(main)
    eventually(lambda: stage.connections() <= before)
    with RpcClient(backend=scheme + stage.url) as client:
        client.call("work")
        client.submit("work")
    eventually(lambda: stage.connections() <= before)


def test_a_caller_without_a_limit_is_wanted_for_as_long_as_it_waits(
    stage: RedisStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is alone, and its only connection waits for the reply."""
    for name, module in list(sys.modules.items()):
        if name.startswith("rpc.backends.") and hasattr(module, "UNATTENDED"):
            monkeypatch.setattr(module, "UNATTENDED", 2.0)

    async def main() -> None:
        async with stage.client() as client:
            future = client.submit("double", [4], timeout=None)
            await until(lambda: stage.waiting() == 1)
            await asyncio.sleep(3)  # it is time itself that is tested
            assert stage.waiting() == 1
            stage.serve({"double": double})
            assert (await future).data == 8

    run(main)


def test_what_is_withdrawn_while_redis_is_away_is_withdrawn_when_it_is_back(stage: RedisStage) -> None:
    from faults.proxy import Proxy  # type: ignore[import-not-found]

    proxy = Proxy(stage.admin.connection_pool.connection_kwargs["port"], random.Random(1))

    async def main() -> None:
        async with stage.client(backend=f"redis://127.0.0.1:{proxy.port}/0") as client:
            future = client.submit("mark", [1])
            await until(lambda: stage.waiting() == 1)
            proxy.refusing = True
            proxy.cut()
            opened = proxy.opened
            await until(lambda: proxy.opened > opened)
            future.cancel()
            await asyncio.wait([future])
            opened = proxy.opened
            await until(lambda: proxy.opened > opened)  # it tries, though nobody waits
            proxy.heal()
            await until(lambda: stage.waiting() == 0)

    try:
        run(main)
    finally:
        proxy.close()


def test_what_was_refused_for_want_of_room_is_not_done(stage: RedisStage) -> None:
    """Neither if it was sent again, because the refusal is slow to arrive, and by then there is room."""
    from faults.proxy import Proxy  # type: ignore[import-not-found]

    proxy = Proxy(stage.admin.connection_pool.connection_kwargs["port"], random.Random(1))

    def refused() -> int:
        return sum(stage.admin.llen(inbox) for inbox in stage.admin.scan_iter("rpc:*:in:*"))

    def make_room() -> None:
        eventually(refused)
        stage.admin.delete(QUEUE)

    async def main() -> None:
        async with stage.client(backend=f"redis://127.0.0.1:{proxy.port}/0?max_length=1") as client:
            await client.call("mark", ["first"])
            proxy.delay = 0.3
            future = client.submit("mark", ["refused"])
            await asyncio.to_thread(make_room)
            with pytest.raises(QueueFull):
                await future
            await asyncio.sleep(0.7)  # what was sent again arrives
            proxy.delay = 0

    try:
        run(main)
        assert stage.marks() == []
    finally:
        proxy.close()


@pytest.mark.slow
@pytest.mark.real_redis
def test_a_late_copy_of_what_was_given_up_takes_no_answer_away(stage: RedisStage) -> None:
    """A connection is given up because nothing comes; what was sent on it arrives later."""
    from faults.proxy import Proxy  # type: ignore[import-not-found]

    proxy = Proxy(stage.admin.connection_pool.connection_kwargs["port"], random.Random(1))
    stage.serve({"echo": echo})

    async def main() -> None:
        async with stage.client(backend=f"redis://127.0.0.1:{proxy.port}/0") as client:
            for _ in range(2):
                calls = [client.submit("echo", [number]) for number in range(100)]
                await asyncio.gather(*calls)
                proxy.stall()  # with so many read entries to be trimmed
                calls = [client.submit("echo", [number]) for number in range(5)]
                await asyncio.gather(*calls)  # on new connections
                calls = []
                for number in range(400):
                    calls += [client.submit("echo", [number + n / 8]) for n in range(8)]
                    if number == 200:
                        await asyncio.to_thread(proxy.heal)
                    await asyncio.sleep(0)
                answers = await asyncio.gather(*calls)
                assert [answer.data for answer in answers] == [n / 8 for n in range(3200)]

    try:
        run(main)
    finally:
        proxy.close()


def test_the_users_own_threads_may_all_wait_for_it(stage: RedisStage) -> None:
    """It connects without a thread of the loop's executor, which may be full of those that wait for it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with stage.client() as client:

            def ask() -> int:
                future = asyncio.run_coroutine_threadsafe(client.call_and_wait("double", [1]), loop)
                return int(future.result(PATIENCE).data)

            assert set(await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(64)))) == {2}

    stage.serve({"double": double})
    run(main)


def test_closing_while_it_connects_leaves_no_connection(stage: RedisStage) -> None:
    async def main() -> None:
        for turns in range(12):
            client = AsyncRpcClient(backend=stage.url)
            future = client.submit("mark", [1])
            for _ in range(turns):
                await asyncio.sleep(0)
            await client.close()
            with pytest.raises((asyncio.CancelledError, Exception)):
                await future

    before = stage.connections()
    run(main)
    eventually(lambda: stage.connections() <= before)
    assert stage.marks() == []


def test_a_program_that_does_not_close_it_ends_quietly(stage: RedisStage) -> None:
    program = """
import asyncio, sys
from rpc import AsyncRpcClient

async def main(turns):
    client = AsyncRpcClient(backend=sys.argv[1])
    client.submit("mark", [1])
    await client.call("mark", [2], queue="other")
    client.submit("mark", [3], timeout=None)
    for _ in range(turns):
        await asyncio.sleep(0)

for turns in range(8):
    asyncio.run(main(turns))
print("done")
"""
    command = [sys.executable, "-c", program, stage.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


# Threads, loops and forks.


def test_many_loops_come_and_go_in_many_threads(stage: RedisStage) -> None:
    client, failures = AsyncRpcClient(backend=stage.url, timeout=PATIENCE), []

    async def ask(number: int) -> None:
        assert (await client.call_and_wait("echo", [number])).data == number

    def loops(who: int) -> None:
        try:
            for turn in range(20):
                asyncio.run(ask(100 * who + turn))
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        stage.serve({"echo": echo}, concurrency=2)
        threads = [threading.Thread(target=loops, args=[who]) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run(client.close)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_one_thread_may_close_what_others_submit_to(stage: RedisStage) -> None:
    client, outcomes, over = RpcClient(backend=stage.url, timeout=PATIENCE), [], threading.Event()

    def submitter() -> None:
        while not over.is_set():
            future = client.submit("echo", [1])
            try:
                outcomes.append(future.exception(PATIENCE))
            except BaseException as error:  # CancelledError, as it should be
                outcomes.append(error)

    stage.serve({"echo": echo})
    threads = [threading.Thread(target=submitter, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        closing = threading.Thread(target=client.close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive(), "close() hangs"
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    client.close()
    assert {type(each).__name__ for each in outcomes} <= {"NoneType", "CancelledError", "Cancelled"}


@pytest.mark.parametrize("scheme", ["", "rq+"])
def test_64_threads_share_one_client(stage: RedisStage, scheme: str) -> None:
    failures: list[Any] = []

    def caller(who: int) -> None:
        try:
            futures = [client.submit("echo", [[who, -1 - number]]) for number in range(2)]
            for number in range(2):
                assert client.call_and_wait("echo", [[who, number]]).data == [who, number]
            mapped = [
                response.data for response in client.map("echo", ([[who, n]] for n in range(3)), window=2)
            ]
            assert mapped == [[who, number] for number in range(3)]
            assert [each.result(PATIENCE).data for each in futures] == [[who, -1 - n] for n in range(2)]
        except BaseException as error:
            failures.append(error)

    stage.serve({"echo": echo}, backend=scheme + stage.url, concurrency=4)
    with RpcClient(backend=scheme + stage.url, timeout=2 * PATIENCE) as client:
        threads = [threading.Thread(target=caller, args=[who]) for who in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


FORKS = """
import asyncio, os, sys, threading
from rpc import AsyncRpcClient, RpcClient

url = sys.argv[1]
client, others = RpcClient(backend=url, timeout=20), AsyncRpcClient(backend=url, timeout=20)

async def ask(who):
    asked = [others.call_and_wait("echo", [[who, number]]) for number in range(20)]
    assert [answer.data for answer in await asyncio.gather(*asked)] == [[who, n] for n in range(20)]
    assert [r.data async for r in others.map("echo", [[1], [2]])] == [1, 2]

def use(who):
    for number in range(5):
        assert client.call_and_wait("echo", [[who, number]]).data == [who, number]
    futures = [client.submit("echo", [[who, number]]) for number in range(20)]
    assert [future.result(20).data for future in futures] == [[who, number] for number in range(20)]
    assert [r.data for r in client.map("echo", [[1], [2], [3]], window=2)] == [1, 2, 3]
    asyncio.run(ask(who))

use("parent")
waiting = client.submit("echo", ["held"], queue="later")  # under way at the fork
busy = threading.Event()

def go_on_submitting():
    while not busy.is_set():
        client.submit("echo", [0]).result(20)

submitting = threading.Thread(target=go_on_submitting)
submitting.start()
children = []
for child in range(6):
    if (pid := os.fork()) == 0:
        code = 1
        try:
            use(f"child {child}")
            client.close()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    children.append(pid)
busy.set()
submitting.join()
use("parent again")
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
use("parent at last")
assert client.call_and_wait("echo", ["wake"], queue="wake").data == "wake"
assert waiting.result(20).data == "held"
client.close()
print(codes)
"""


@pytest.mark.parametrize("scheme", ["", "rq+"])
def test_a_client_that_was_used_before_a_fork_works_in_each_child(stage: RedisStage, scheme: str) -> None:
    url = scheme + stage.url

    def wake(text: str) -> str:
        stage.serve({"echo": echo}, backend=url, queues=["later"])
        return text

    stage.serve({"echo": echo}, backend=url, concurrency=4)
    stage.serve({"echo": wake}, backend=url, queues=["wake"])
    done = subprocess.run(
        [sys.executable, "-c", FORKS, url], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("[0, 0, 0, 0, 0, 0]\n", 0), done.stderr


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from rpc import RpcClient

url = sys.argv[1]
with RpcClient(backend=url, timeout=30) as client:
    def ask(number):
        return client.call_and_wait("echo", [number]).data
    for turn in range(2):
        greenlets = [gevent.spawn(ask, number) for number in range(100)]
        gevent.joinall(greenlets, raise_error=True)
        assert [greenlet.value for greenlet in greenlets] == list(range(100))
    futures = [client.submit("echo", [number]) for number in range(100)]
    assert [future.result(30).data for future in futures] == list(range(100))
    left = client.submit("echo", [1], queue="nobody")
    assert left.cancel()
    def several(who):
        return [response.data for response in client.map("echo", ([[who, n]] for n in range(10)), window=3)]
    greenlets = [gevent.spawn(several, who) for who in range(10)]
    gevent.joinall(greenlets, raise_error=True)
    assert [greenlet.value for greenlet in greenlets] == [[[who, n] for n in range(10)] for who in range(10)]
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "rq+"])
def test_greenlets_share_one_client(stage: RedisStage, scheme: str) -> None:
    pytest.importorskip("gevent", reason="needs gevent")
    stage.serve({"echo": echo}, backend=scheme + stage.url, concurrency=2)
    command = [sys.executable, "-c", GREENLETS, scheme + stage.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
