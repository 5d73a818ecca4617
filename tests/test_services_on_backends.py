"""Services, proxies and hooks on every kind of backend: nothing in them knows which one it is."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from async_calls import run
from in_memory import LONG, until

from rpc import (
    AsyncRpcClient,
    Event,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    RemoteError,
    Request,
    RpcClient,
    RpcReceiver,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    expose,
    job,
    on,
    service,
)
from rpc.application import Application
from rpc.backends.redis.subscriptions import SubscriptionQueue
from rpc.describe import WorkerInfo
from rpc.testing import RedisServer


class Stage:
    """Workers in threads, and a client of them."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self.url, self._stack = url, stack
        self.client = stack.enter_context(RpcClient(backend=url, timeout=LONG))

    def serve(self, *services: Any, **options: Any) -> RpcReceiver:
        receiver = RpcReceiver(services=services, backend=self.url, **options)
        thread = threading.Thread(target=receiver.start)
        thread.start()

        def end() -> None:
            receiver.stop()
            thread.join(LONG)
            assert not thread.is_alive()

        self._stack.callback(end)
        return receiver

    def described(self, count: int) -> list[WorkerInfo]:
        found: list[WorkerInfo] = []

        def complete() -> bool:
            found[:] = self.client.describe(wait=0.3)
            return len(found) == count

        until(complete)
        return found


@pytest.fixture
def stage(any_url: str) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack, any_url)


class Example:
    name = "example"

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.together = threading.Barrier(4)

    @expose
    def both(self, request: Request) -> Any:
        return [request.data, request.kwargs]

    @expose
    def typed(self, count: int, *, key: str = "k") -> list[Any]:
        return [count, key]

    @expose
    async def coroutine(self, number: int) -> int:
        return number * 2

    @expose
    def fail(self) -> None:
        raise KeyError

    @expose
    def odd(self) -> Any:
        return print

    @expose
    def until_cancelled(self, request: Request) -> None:
        self.began.append(request.id)
        until(lambda: request.cancelled)
        self.ended.append(request.id)

    @expose
    def meet(self) -> bool:
        """Returns once it is called four times at a time."""
        self.together.wait(LONG)
        return True

    def hidden(self) -> None:
        """Is not for clients."""


def test_arguments_and_results_are_intact(stage: Stage) -> None:
    stage.serve(Example, service(Example, name="deep.space"))
    example = stage.client.services.example
    assert example.both(1, [2], {"a": 3}, key=4) == [[1, [2], {"a": 3}], {"key": 4}]
    assert example.both(key=4) == [{"key": 4}, {}]
    assert example.both() == [{}, {}]
    assert example.typed(1, key="b") == [1, "b"]
    assert example.coroutine(21) == 42
    assert stage.client.services.deep.space.coroutine.submit(2).result(LONG) == 4


def test_each_way_to_fail_is_told_at_once(stage: Stage) -> None:
    stage.serve(Example)
    services = stage.client.services
    for proxy, error in (
        (services.example.nosuch, MethodNotFound),
        (services.example.hidden, MethodNotExposed),
        (services.nosuch.foo, ServiceNotFound),
        (services.example.typed, InvalidParams),
        (services.example.odd, SerializationError),
        (services.example.fail, RemoteError),
    ):
        with pytest.raises(error) as caught:
            proxy()
        assert type(caught.value) is error
        assert type(proxy.submit().exception(LONG)) is error
    assert (caught.value.type, caught.value.message) == ("KeyError", "")  # type: ignore[attr-defined]
    for way in services.example.both, services.example.both.submit, services.example.both.call:
        with pytest.raises(SerializationError):
            way(print)


def test_to_cancel_reaches_the_worker(stage: Stage) -> None:
    example = Example()
    stage.serve(example, concurrency=2)
    future = stage.client.services.example.until_cancelled.submit()
    until(lambda: example.began)
    future.cancel()
    until(lambda: example.ended == example.began)

    async def main() -> None:
        async with AsyncRpcClient(backend=stage.url, timeout=LONG) as client:
            assert await client.services.example.coroutine(1) == 2
            assert await client.services.example.coroutine.submit(2) == 4
            with pytest.raises(RpcTimeout):
                await client.services.example.until_cancelled.options(timeout=0.3)()
            with pytest.raises(MethodNotExposed):
                await client.services.example.hidden()

    run(main)
    until(lambda: example.ended == example.began)


def test_calls_run_at_a_time(stage: Stage) -> None:
    stage.serve(Example, concurrency=8)
    futures = [stage.client.services.example.meet.submit() for _ in range(4)]
    assert [future.result(LONG) for future in futures] == [True] * 4


def test_a_worker_that_joins_takes_its_share(stage: Stage) -> None:
    seen: set[int] = set()

    class Node:
        name = "node"

        @expose
        def work(self) -> None:
            seen.add(id(self))
            until(lambda: len(seen) == 2)

    stage.serve(Node())
    futures = [stage.client.services.node.work.submit() for _ in range(6)]
    until(lambda: seen)
    stage.serve(Node())
    assert [future.result(LONG) for future in futures] == [None] * 6


def test_of_those_that_offer_the_same_one_says_what_that_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    discover = Application.discover

    def counted(application: Application) -> dict[str, Any]:
        asked.append(application.id)
        return discover(application)

    monkeypatch.setattr(Application, "discover", counted)
    first, second = stage.serve(Example), stage.serve(Example)
    third = stage.serve(jobs={"add": lambda a, b: a + b})
    schemas = {worker.id: worker.schema for worker in stage.described(3)}
    assert schemas[first.id] == schemas[second.id] != schemas[third.id]
    document = stage.client.discover()
    assert {"add", "example.typed"} <= {each["name"] for each in document["methods"]}
    assert (len(asked), third.id in asked) == (2, True)
    assert [each["name"] for each in stage.client.discover("add")["methods"]] == ["add"]
    with pytest.raises(ServiceNotFound, match="'nosuch'"):
        stage.client.discover("nosuch")


def test_all_workers_describe_themselves(stage: Stage) -> None:
    class Listening(Example):
        @on("boom")
        def hear(self, data: Any) -> None:
            raise ValueError

    first = stage.serve(Example, concurrency=2)
    second = stage.serve(Listening, queues=["other"], jobs={"add": lambda a, b: a + b})
    workers = {worker.id: worker for worker in stage.described(2)}
    assert workers == {each.id: each.describe() for each in (first, second)}
    assert workers[second.id].jobs["example.typed"] == "(count: int, *, key: str = 'k') -> list[Any]"
    for _ in range(2):
        stage.client.publish("boom")
    until(lambda: [each.failures for each in second.describe().listeners] == [2])
    assert second.describe() in stage.described(2)
    assert dir(stage.client.services) == ["example"]
    assert "typed" in dir(stage.client.services.example)


def test_hooks_and_middleware_are_everywhere(stage: Stage) -> None:
    notes: list[Any] = []
    hooks = {
        "pre_call": lambda request: notes.append(request.name),
        "post_success": lambda request, result: notes.append(result),
        "post_error": lambda request, error: notes.append(type(error)),
        "on_connect": lambda: notes.append("connected"),
    }
    stage.serve(Example, hooks=hooks, middleware=[lambda request, rest: [rest(request)]])
    assert stage.client.services.example.coroutine(1) == [2]
    with pytest.raises(RemoteError):
        stage.client.services.example.fail()
    until(lambda: len(notes) == 5)
    assert notes == ["connected", "example.coroutine", [2], "example.fail", KeyError]


def test_a_job_that_fails_is_tried_again(stage: Stage) -> None:
    attempts: list[tuple[str, int]] = []

    def fail(name: str, request: Request, times: int) -> int:
        attempts.append((name, request.attempt))
        if request.attempt <= times:
            raise ConnectionError("not now")
        return request.attempt

    class Flaky:
        name = "flaky"

        @expose
        @job(retries=2, backoff=0.01)
        def soon_works(self, request: Request) -> int:
            return fail("soon", request, 2)

        @expose
        @job(retries=2, backoff=0.01)
        async def never_works(self, request: Request) -> int:
            return fail("never", request, 99)

    stage.serve(Flaky)
    assert stage.client.services.flaky.soon_works() == 3
    with pytest.raises(RemoteError, match="not now"):
        stage.client.services.flaky.never_works()
    assert attempts == [(name, number) for name in ("soon", "never") for number in (1, 2, 3)]


def test_a_durable_listener_that_fails_is_tried_again(stage: Stage) -> None:
    attempts: list[int] = []

    @on("boom", group="team", durable=True, retries=2, backoff=0.01)
    def hear(data: Any) -> None:
        attempts.append(data["n"])
        if data["n"] < 2 and attempts.count(data["n"]) < 3 - data["n"]:
            raise ConnectionError("not now")

    stage.serve(hear)
    stage.described(1)
    for n in 0, 1, 2:
        stage.client.publish("boom", {"n": n})
    until(lambda: len(attempts) == 6)
    assert sorted(attempts) == [0, 0, 0, 1, 1, 2]


def test_nothing_is_left_behind(stage: Stage) -> None:
    stage.serve(Example)
    services = stage.client.services
    futures = [services.example.coroutine.submit(n) for n in range(100)]
    assert [future.result(LONG) for future in futures] == [2 * n for n in range(100)]
    late = [services.example.both.options(timeout=0.1, queue="nobody").submit() for _ in range(100)]
    assert {type(future.exception(LONG)) for future in late} == {RpcTimeout}
    for _ in range(100):
        services.example.both.options(timeout=0.1, queue="nobody").submit()
    del futures, late
    held: Any = stage.client._submits._open
    until(lambda: all(future.done() for future in list(held)))
    until(lambda: gc.collect() >= 0 and not len(held))


class Meeting:
    name = "meeting"

    def __init__(self) -> None:
        self._both, self.may_end = threading.Barrier(2), threading.Event()

    @expose
    async def nap(self) -> None:
        await asyncio.to_thread(self.may_end.wait, LONG)

    @expose
    def meet(self) -> int:
        return self._both.wait(LONG)


def test_threads_work_side_by_side_behind_coroutines_that_had_used_up_their_slots(stage: Stage) -> None:
    meeting = Meeting()
    stage.serve(meeting, concurrency=2, coroutines=1)
    naps = [stage.client.submit("meeting.nap") for _ in range(4)]
    meetings = [stage.client.submit("meeting.meet") for _ in range(4)]
    stage.described(1)  # by then, both threads have seen that there is no room
    meeting.may_end.set()
    assert [future.result(LONG).data for future in naps] == [None] * 4
    assert sorted(future.result(LONG).data for future in meetings) == [0, 0, 1, 1]


@pytest.mark.redis
def test_a_durable_listener_is_tried_again_as_soon_as_that_is_due(
    rpc_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Redis, where it lies in a queue of its own, which is looked at now and then, too."""
    monkeypatch.setattr(SubscriptionQueue, "has_some", lambda self: False)
    heard: list[Event] = []

    @on("tried", group=uuid4().hex, durable=True, retries=3, backoff=0.05)
    def listener(event: Event) -> None:
        heard.append(event)
        if len(heard) < 3:
            raise ValueError

    with ExitStack() as stack:
        stage = Stage(stack, rpc_redis.url)
        stage.serve(listener)
        stage.described(1)
        stage.client.publish("tried", {})
        until(lambda: len(heard) == 3)
