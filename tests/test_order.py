"""What a client makes of an order key: `rpc.testing.conformance` says what a backend makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import Enum
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
import redis
from in_memory import LONG

from rpc import AsyncRpcClient, RpcClient, RpcReceiver, Unsupported, job
from rpc.inspection import QueueInfo
from rpc.testing.site import eventually
from rpc.transport import queue, unpacked

MANY = 500


class Colour(str, Enum):
    red = "r"


class Place:
    """A worker that notes what it is given, and the URL of its backend."""

    def __init__(self, url: str) -> None:
        self.url, self.came = url, list[Any]()
        self.failures = 2

    def note(self, what: Any) -> Any:
        self.came.append(what)
        return what

    @job(retries=3, backoff=0.01)
    def flaky(self, what: Any) -> Any:
        self.came.append(what)
        if self.failures:
            self.failures -= 1
            raise ValueError(what)
        return what


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=pytest.mark.redis) for name in ("redis", "rq")), "amqp"]
)
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def serve(place: Place) -> Iterator[Callable[[], object]]:
    """Starts the worker, with four threads."""
    with ExitStack() as stack:

        def serve() -> None:
            jobs = {"note": place.note, "flaky": place.flaky}
            receiver = RpcReceiver(jobs=jobs, backend=place.url, concurrency=4)
            thread = Thread(target=receiver.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(receiver.stop)

        yield serve


@pytest.fixture
def client(place: Place) -> Iterator[RpcClient]:
    with RpcClient(backend=place.url, timeout=LONG) as client:
        yield client


@pytest.mark.parametrize("is_served", [True, False])
def test_what_is_submitted_is_done_in_that_order(
    place: Place, serve: Callable[[], object], client: RpcClient, is_served: bool
) -> None:
    if is_served:
        serve()
    futures = [client.submit("note", [number], order_key="k") for number in range(MANY)]
    if not is_served:
        serve()
    assert [future.result().data for future in futures] == list(range(MANY))
    assert place.came == list(range(MANY))


def test_it_is_so_for_tasks_too(place: Place, serve: Callable[[], object]) -> None:
    serve()

    async def main() -> None:
        async with AsyncRpcClient(backend=place.url, timeout=LONG) as client:
            waiting = client.submit("note", ["first"])  # what is sent next leaves on another connection
            await waiting
            futures: list[Any] = []
            for number in range(MANY):
                once = f"{number}" if number % 7 == 0 and not place.url.startswith("amqp") else None
                futures.append(client.submit("note", [number], order_key=7, idempotency_key=once))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(*futures)

    asyncio.run(main())
    assert place.came == ["first", *range(MANY)]


def test_each_way_to_call_has_it(place: Place, serve: Callable[[], object], client: RpcClient) -> None:
    client.call("note", [1], order_key="k")
    futures = [client.submit("note", [2], order_key="k")]
    eventually(lambda: info(client).waiting == 2)
    futures.append(client.services.note.options(order_key="k").submit(3))
    eventually(lambda: info(client).waiting == 3)
    client.services.note.options(order_key="k").call(4)
    serve()
    assert client.call_and_wait("note", [5], order_key="k").data == 5
    assert place.came == [1, 2, 3, 4, 5]


def test_a_job_that_is_tried_again_is_waited_for(
    place: Place, serve: Callable[[], object], client: RpcClient
) -> None:
    futures = [client.submit(name, [name], order_key="k") for name in ("flaky", "note")]
    serve()
    assert [future.result().data for future in futures] == ["flaky", "note"]
    assert place.came == ["flaky"] * 3 + ["note"]


@pytest.mark.parametrize("place", ["memory", "redis", "rq"], indirect=True)
def test_a_job_that_waits_for_its_turn_can_be_cancelled(
    place: Place, serve: Callable[[], object], client: RpcClient
) -> None:
    first, second, third = [client.call("note", [number], order_key="k") for number in range(3)]
    assert client.job(second).state == "waiting"
    assert client.cancel(second)
    assert client.cancel(first)
    assert info(client).waiting == 1
    serve()
    eventually(lambda: place.came == [2])
    assert client.job(third).state != "waiting"


@pytest.mark.redis
@pytest.mark.parametrize("place", ["redis", "rq"], indirect=True)
@pytest.mark.parametrize("instead", ["nothing", "text"])
def test_what_waits_behind_a_job_that_others_took_away_is_done(
    place: Place, serve: Callable[[], object], client: RpcClient, redis_url: str, instead: str
) -> None:
    for number in range(4):
        client.call("note", [number], order_key=number // 3)
    key = "rq:queue:rpc.default" if place.url.startswith("rq") else "rpc:{default}:default"
    with redis.Redis.from_url(redis_url.partition("?")[0]) as admin:
        assert admin.lrange(key, 0, -1)
        admin.delete(key)
        if instead == "text":
            admin.set(key, "text")
    serve()
    eventually(lambda: place.came == [1, 2])
    assert client.call_and_wait("note", [4], order_key=0).data == 4


@pytest.mark.parametrize(
    "same", [(17, "17"), (UUID(int=5), str(UUID(int=5))), (Colour.red, "r"), ("",), ("ä" * 512,), ("a\nb",)]
)
def test_any_str_int_or_uuid_is_a_key(
    place: Place, serve: Callable[[], object], client: RpcClient, same: tuple[Any, ...]
) -> None:
    for number, key in enumerate(same * 2):
        client.call("note", [number], order_key=key)
    backend: Any = client.backend
    if "inspection" in backend.features:
        keys = [unpacked(each.frame).headers["order-key"] for each in backend.entries("default")]
        assert keys == [str(same[-1])] * 2 * len(same)
    serve()
    eventually(lambda: place.came == list(range(2 * len(same))))


def test_what_is_none_is_refused(client: RpcClient) -> None:
    ways: Any = client.call, client.call_and_wait, client.submit
    for bad in True, 1.5, b"k", ("a",), {}, "\ud800", "ä" * 513:
        for way in ways:
            with pytest.raises(ValueError, match="an order key is a str of at most 1024 bytes in UTF-8"):
                way("note", order_key=bad)
    with pytest.raises(ValueError, match="headers are named"):
        client.call("note", headers={"order-key": "k"})


def test_where_there_is_no_order_it_is_refused_before_anything_is_sent() -> None:
    for url in "zmq+tcp://127.0.0.1:1", "http://127.0.0.1:1":
        with RpcClient(backend=url) as client:
            for way in client.call, client.call_and_wait, client.submit:
                with pytest.raises(
                    Unsupported, match=r"no feature 'order'; redis:, rq\+redis:, amqp: and memory: have it"
                ):
                    way("work", order_key="k")


def test_a_key_is_not_passed_on_by_a_handler(memory_url: str) -> None:
    came: list[Any] = []

    def outer(request: Any) -> None:
        request.call("inner")
        request.respond({})

    with RpcClient(backend=memory_url, timeout=LONG) as client:
        receiver = RpcReceiver(jobs={"outer": outer}, backend=memory_url)
        thread = Thread(target=receiver.run)
        thread.start()
        client.call_and_wait("outer", order_key="k")
        receiver.stop()
        thread.join()
        backend: Any = client.backend
        came = [unpacked(each.frame).headers for each in backend.entries("default")]
        assert [("order-key" in headers, headers["name"]) for headers in came] == [(False, "inner")]


def info(client: RpcClient) -> QueueInfo:
    backend: Any = client.backend
    found: QueueInfo = backend.queue_info(queue("default").name)
    return found
