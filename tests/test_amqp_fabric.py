"""The programs of amqp-fabric's README, as they are written here: a service, its proxy, the list of
services, data that is published and subscribed to. On RabbitMQ, Redis and ZeroMQ."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from async_calls import run
from in_memory import LONG

from rpc import AsyncRpcClient, Event, Identity, RpcReceiver, service
from rpc.settings import Settings

SHOP = Identity(domain="my-domain", type="my-app", id="server", version="1.0.0")


class Api:
    def multiply(self, x: int, y: int) -> int:
        return x * y

    async def add(self, x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y


@pytest.fixture(
    params=[
        "zmq",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("amqp", marks=pytest.mark.xdist_group("rabbit_node")),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def served(url: str) -> RpcReceiver:
    settings = Settings(keep_alive=0.5)
    return RpcReceiver(services=[service(Api(), name="")], backend=url, identity=SHOP, settings=settings)


def client_of(url: str, domain: str = "my-domain") -> AsyncRpcClient:
    settings = Settings(domain=domain, service_type="my-app", service_id="client")
    return AsyncRpcClient(backend=url, settings=settings, timeout=LONG)


def test_a_proxy_calls_the_service_by_name_and_by_place(url: str) -> None:
    async def main() -> None:
        async with served(url), client_of(url) as client:
            proxy = await client.service(type="my-app", id="server", wait_for_receiver=LONG)
            assert await proxy.multiply(x=5, y=7) == 35
            assert await proxy.multiply(5, 7) == 35
            assert await proxy.add(1, y=2) == 3
            assert await proxy.health_check() is True

    run(main)


def test_services_are_listed_with_and_without_a_health_check(url: str) -> None:
    async def main() -> None:
        async with served(url), client_of(url) as client:
            await client.service(type="my-app", wait_for_receiver=LONG)
            for asked in ({}, {"domain": "my-domain"}, {"type": "my-app"}, {"health_check": True}):
                found = await client.list_services(**asked)
                assert [(each.domain, each.type, each.id) for each in found] == [
                    ("my-domain", "my-app", "server")
                ]
            assert await client.list_services(domain="my-do") == []

    run(main)


def test_data_is_published_and_subscribed_to_within_its_domain(url: str) -> None:
    async def main() -> None:
        got: asyncio.Queue[Event] = asyncio.Queue()

        async def heard(event: Event) -> None:
            await got.put(event)

        headers: dict[str, Any] = {"msg_type": "data"}
        async with client_of(url) as client, client_of(url, domain="another") as stranger:
            subscription = await client.subscribe("values", headers=headers, callback=heard)
            await stranger.publish("values", b"not for us", headers=headers)
            await client.publish("values", b"nor this", headers={"msg_type": "other"})
            await client.publish("values", b"hello", headers=headers)
            event = await asyncio.wait_for(got.get(), LONG)
            assert (event.data, event.headers["msg_type"]) == (b"hello", "data")
            assert (event.headers["service_type"], event.headers["service_id"]) == ("my-app", "client")
            assert headers == {"msg_type": "data"}
            await subscription.close()

    run(main)
