"""`RpcReceiver(context=…)`: all code of the user runs in it, coroutines in its asynchronous colour. And what
a ContextVar has: each job has a context of its own, as have listeners, what ticks, and hooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from in_memory import until

from rpc import AsyncRpcClient, RemoteError, Request, RpcClient, RpcReceiver, every, expose, on

SECONDS = 30


class Surroundings:
    """Notes when it is entered and left, and whether a thread is in it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.noted: list[str] = []

    def __call__(self) -> Surroundings:
        return self

    def __enter__(self) -> None:
        self.threads.add(threading.get_ident())
        self.noted.append("enter")

    def __exit__(self, *_: object) -> None:
        self.threads.remove(threading.get_ident())
        self.noted.append("exit")

    async def __aenter__(self) -> None:
        self.noted.append("aenter")

    async def __aexit__(self, *_: object) -> None:
        self.noted.append("aexit")

    @property
    def here(self) -> bool:
        return threading.get_ident() in self.threads


class Shop:
    name = "shop"

    def __init__(self, context: Surroundings) -> None:
        self.context = context
        self.heard, self.ticked = threading.Event(), threading.Event()
        self.was_inside: list[bool] = []

    @expose
    def inside(self) -> bool:
        return self.context.here

    @expose
    async def soon(self) -> list[str]:
        return list(self.context.noted)

    @expose
    def breaks(self) -> None:
        raise ValueError("no")

    @on("order")
    def hear(self, event: Any) -> None:
        self.was_inside.append(self.context.here)
        self.heard.set()

    @every(seconds=0.01)
    def tick(self) -> None:
        if not self.ticked.is_set():
            self.was_inside.append(self.context.here)
            self.ticked.set()


Start = Callable[..., RpcClient]


def test_jobs_listeners_ticks_and_hooks_run_in_it(rpc_worker: Start) -> None:
    context = Surroundings()
    shop, hooked = Shop(context), []
    hooks = {name: lambda *_: hooked.append(context.here) for name in ("on_connect", "pre_call")}
    client = rpc_worker({}, services=[shop], context=context, hooks=hooks)
    assert client.services.shop.inside() is True
    client.publish("order")
    assert shop.heard.wait(SECONDS)
    assert shop.ticked.wait(SECONDS)
    assert shop.was_inside == [True, True]
    assert hooked == [True, True]


def passed_through(request: Request, call_next: Callable[[Request], Any]) -> Any:
    return call_next(request)


@pytest.mark.parametrize(
    ("middleware", "colours"),
    [([], ["aenter", "aexit"]), ([passed_through], ["enter", "aenter", "aexit", "exit"])],
    ids=["holds no thread", "a thread waits for it"],
)
def test_a_coroutine_runs_in_it(rpc_worker: Start, middleware: Any, colours: list[str]) -> None:
    """In its event loop, and in the thread that waits for it, if there is one."""
    context = Surroundings()

    async def soon() -> list[str]:
        return list(context.noted)

    client = rpc_worker({"soon": soon}, context=context, middleware=middleware)
    before = len(context.noted)  # of the hooks of the connection
    assert client.call_and_wait("soon").data[before:] == colours[: len(colours) // 2]
    until(lambda: context.noted[before:] == colours)


@pytest.mark.parametrize("way", ["ends", "raises", "is left"])
def test_an_async_generator_runs_in_it_from_its_first_line_to_its_finally(
    rpc_worker: Start, way: str
) -> None:
    context = Surroundings()

    async def count() -> Any:
        try:
            for number in range(3 if way == "ends" else 100):
                yield number
                if way == "raises" and number == 2:
                    raise ValueError("no")
        finally:
            await asyncio.sleep(0)
            context.noted.append("finally")

    client = rpc_worker({"count": count}, context=context)
    before = len(context.noted)  # of the hooks of the connection
    stream = client.stream("count")
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    if way == "is left":
        stream.close()
    else:
        with pytest.raises(RemoteError if way == "raises" else StopIteration):
            next(stream)
    until(lambda: context.noted[-1] == "aexit")
    assert context.noted[before:] == ["enter", "exit", "aenter", "finally", "aexit"]


def test_a_plain_generator_runs_in_it_step_by_step(rpc_worker: Start) -> None:
    context, inside = Surroundings(), []

    def count() -> Any:
        try:
            for number in range(2):
                inside.append(context.here)
                yield number
        finally:
            inside.append(context.here)

    client = rpc_worker({"count": count}, context=context)
    assert [*client.stream("count")] == [0, 1]
    assert inside == [True] * 3
    assert not context.here


def test_it_is_left_when_a_handler_raises(rpc_worker: Start) -> None:
    context = Surroundings()
    client = rpc_worker({}, services=[Shop(context)], context=context)
    with pytest.raises(RemoteError, match="no"):
        client.services.shop.breaks()
    assert not context.here
    assert client.services.shop.inside() is True


class Broken(Surroundings):
    is_broken = False

    def __enter__(self) -> None:
        if self.is_broken:
            raise OSError("the database is gone")
        super().__enter__()


class BrokenInTheLoop(Surroundings):
    is_broken = False

    async def __aenter__(self) -> None:
        if self.is_broken:
            raise OSError("the database is gone")


@pytest.mark.parametrize(
    ("kind", "job"), [(Broken, "inside"), (BrokenInTheLoop, "soon"), (BrokenInTheLoop, "items")]
)
def test_what_it_raises_the_caller_is_told(kind: Any, job: str, rpc_worker: Start) -> None:
    """And it does not end the worker, when it is in one the hooks of its connection."""
    context = kind()

    class Plain:
        name = "plain"
        inside = Shop.inside
        soon = Shop.soon

        @expose
        async def items(self) -> Any:
            yield 1

    plain: Any = Plain()
    plain.context = context
    client = rpc_worker({}, services=[plain], context=context)
    context.is_broken = True
    with pytest.raises(RemoteError, match="the database is gone"):
        list(client.stream(f"plain.{job}"))


def test_without_it_nothing_is_around() -> None:
    receiver = RpcReceiver(jobs={"len": len}, backend="memory://around")
    assert sorted(receiver.jobs) == ["len"]
    receiver.backend.close()


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Tenants:
    """Whatever runs here looks who the tenant is, and becomes it."""

    name = "tenants"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ticks = 0

    def enter(self) -> str:
        before = tenant.get()
        tenant.set("ada")
        return before

    plain = expose(enter)

    @expose
    async def soon(self) -> str:
        return self.enter()

    @expose
    def found(self) -> list[str]:
        return self.seen

    @on("login", retries=1, backoff=0.0)
    def hear(self, event: Any) -> None:
        self.seen.append(self.enter())
        raise ValueError("once more")

    @on("login")
    async def hear_soon(self, event: Any) -> None:
        self.seen.append(self.enter())

    @every(seconds=0.01)
    def tick(self) -> None:
        if self.ticks < 3:
            self.ticks += 1
            self.seen.append(self.enter())


@pytest.mark.parametrize(
    "middleware", [[], [passed_through]], ids=["holds no thread", "a thread waits for it"]
)
def test_nothing_that_runs_sees_what_another_one_set(rpc_worker: Start, middleware: Any) -> None:
    tenants = Tenants()
    client = rpc_worker({}, services=[tenants], middleware=middleware, hooks={"on_connect": tenants.enter})
    for name in ("plain", "soon") * 3:
        assert getattr(client.services.tenants, name)() == "nobody"
    client.publish("login")
    until(lambda: len(tenants.seen) == 6)  # two attempts of one listener, the other one, three ticks
    assert tenants.seen == ["nobody"] * 6
    assert client.services.tenants.plain() == "nobody"


def test_jobs_begin_with_the_context_that_the_receiver_was_started_in(plain_url: str) -> None:
    receiver = RpcReceiver(services=[Tenants()], backend=plain_url, concurrency=2)
    context = copy_context()
    context.run(tenant.set, "the house")
    thread = threading.Thread(target=context.run, args=[receiver.run])
    thread.start()
    try:
        with RpcClient(backend=plain_url, timeout=SECONDS) as client:
            for name in ("plain", "soon") * 4:
                assert getattr(client.services.tenants, name)() == "the house"
    finally:
        receiver.stop()
        thread.join()


def test_they_do_in_the_event_loop_of_an_application(memory_url: str) -> None:
    async def main() -> list[str]:
        tenant.set("the house")
        async with (
            RpcReceiver(services=[Tenants()], backend=memory_url),
            AsyncRpcClient(backend=memory_url, timeout=SECONDS) as client,
        ):
            return [await getattr(client.services.tenants, name)() for name in ("plain", "soon") * 2]

    assert asyncio.run(main()) == ["the house"] * 4
