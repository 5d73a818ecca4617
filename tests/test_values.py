"""Values on their way from a caller to a handler, or a listener, and back."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pydantic
import pytest
from in_memory import LONG, until

from rpc import AsyncRequest, AsyncRpcClient, RpcClient, RpcReceiver, SerializationError, SettingsError, on


class Order(pydantic.BaseModel):
    item: str
    count: int = 1
    notes: dict[int, Path] = {}

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return self.count * 2


TEA = {"item": "tea", "count": 2, "notes": {"7": "/etc"}, "total": 4}


def traced(function: Any) -> Any:
    """A decorator that does not know of coroutines."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def place(order: Order, others: list[Order], by_day: dict[int, Order | None]) -> list[Any]:
    assert isinstance(by_day[1], Order)
    return [order, others[0], by_day[1].notes[7], order.model_copy(update={"count": 3}).total]


@traced
async def charge(cents: int) -> int:
    await asyncio.sleep(0)
    return cents


@traced
async def nested(order: AsyncRequest) -> Any:
    return (await order.call_and_wait("charge", order.data)).data


class Secret:
    def __init__(self) -> None:
        self.password = "hunter2"


def leak(times: int) -> Any:
    return {"items": [{"user": Secret()}] * times}


@pytest.fixture
def serve() -> Iterator[Callable[..., None]]:
    with ExitStack() as stack:

        def serve(url: str, *listeners: Any, **jobs: Callable[..., Any]) -> None:
            receiver, begun = RpcReceiver(services=listeners, jobs=jobs, backend=url, concurrency=2), Event()
            receiver.hook("on_connect")(begun.set)
            thread = Thread(target=receiver.run, daemon=True)
            thread.start()
            stack.callback(thread.join, LONG)
            stack.callback(receiver.stop)
            assert begun.wait(LONG)

        yield serve


def test_models_and_coroutines_of_decorated_functions_on_each_backend(
    job_url: str, serve: Callable[..., None]
) -> None:
    serve(job_url, place=place, charge=charge, later=lambda cents: charge(cents), nested=nested, leak=leak)
    order = Order(item="tea", count=2, notes={7: Path("/etc")})
    with RpcClient(backend=job_url, timeout=LONG) as client:
        placed = client.call_and_wait("place", {"order": order, "others": [order], "by_day": {1: order}})
        assert placed.data == [TEA, TEA, "/etc", 6]
        for name in "charge", "later", "nested":
            assert client.call_and_wait(name, {"cents": 5}).data == 5
        with pytest.raises(
            SerializationError, match=r"result\.items\[0\]\.user: .*\.Secret cannot be"
        ) as refusal:
            client.call_and_wait("leak", [1])
        assert "hunter2" not in str(refusal.value)


def test_a_caller_is_told_which_of_its_arguments_cannot_travel(
    memory_url: str, serve: Callable[..., None]
) -> None:
    async def call_in_a_loop() -> None:
        async with AsyncRpcClient(backend=memory_url, timeout=LONG) as client:
            await client.services.shop.place({"price": Secret()})

    with RpcClient(backend=memory_url) as client:
        for path, send in (
            (r"data\.order\[1\]", lambda: client.call("place", {"order": [1, Secret()]})),
            (r"data\[0\]\.price", lambda: client.services.shop.place({"price": Secret()})),
            (r"kwargs\.price", lambda: client.services.shop.place(1, price=Secret())),
            (r"data\.price", lambda: client.publish("shop.placed", {"price": Secret()})),
            (r"data\[0\]\.price", lambda: asyncio.run(call_in_a_loop())),
        ):
            with pytest.raises(SerializationError, match=f"^{path}: a value of type test_values.Secret"):
                send()


def test_a_listener_gets_a_model_of_a_model(memory_url: str, serve: Callable[..., None]) -> None:
    heard: list[Any] = []

    @on("order.placed")
    def hear(order: Order) -> None:
        heard.append(order)

    @on("order.placed")
    @traced
    async def hear_too(order: Order) -> None:
        await asyncio.sleep(0)
        heard.append(order)

    @on("order.many")
    def hear_many(orders: list[Order]) -> None:
        heard.append(orders)

    serve(memory_url, hear, hear_too, hear_many)
    order = Order(item="tea", notes={7: Path("/etc")})
    with RpcClient(backend=memory_url) as client:
        client.publish("order.placed", order)
        client.publish("order.many", [order])
        until(lambda: len(heard) == 3)
    assert [each for each in heard if each == order] == [order, order]
    assert [order] in heard


def test_a_listener_of_what_nothing_becomes_is_refused() -> None:
    @on("order.placed")
    def hear(secret: Secret) -> None: ...

    with pytest.raises(SettingsError, match=r"listener .*hear: parameter secret: .*Secret"):
        RpcReceiver(services=[hear], jobs={}, backend="memory://")


def test_a_listener_may_name_the_event_for_type_checkers_only(
    memory_url: str, serve: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    def hear(it: Any) -> None:
        heard.append(it.data)

    hear.__annotations__["it"] = "Event.Event"
    caplog.set_level("WARNING")
    serve(memory_url, on("order.placed")(hear))
    with RpcClient(backend=memory_url) as client:
        client.publish("order.placed", {"n": 1})
        until(lambda: heard == [{"n": 1}])
    assert not caplog.text
