"""The users of docs/amqp.md may do what is necessary, and nothing else; with a prefix of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rpc import (
    AsyncRpcClient,
    BackendUnavailable,
    NoReceivers,
    Request,
    RpcClient,
    RpcReceiver,
    every,
    expose,
    job,
    on,
)
from rpc.testing.site import PATIENCE, eventually
from tests.rabbit import PREFIX, AmqpBackend, Node

pytestmark = pytest.mark.xdist_group("rabbit_node")


def url(node: Node, user: str) -> str:
    return node.url.replace("//", f"//{user}:{user}@") + f"?prefix={PREFIX}"


class Everything:
    """Uses all that a worker has."""

    name = "everything"

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.cancelled = threading.Event()
        self.began = threading.Event()

    @expose
    def add(self, a: int, b: int) -> int:
        return a + b

    @expose
    @job(delivery="at-most-once")
    def once(self) -> int:
        return 1

    @expose
    def ask(self, request: Request) -> Any:
        return request.call_and_wait("everything.add", {"a": 2, "b": 2}).data

    @expose
    def wait(self, request: Request) -> None:
        self.began.set()
        eventually(lambda: request.cancelled)
        self.cancelled.set()

    @on("boom")
    def hear(self, data: Any) -> None:
        self.heard.append("alone")

    @on("boom", group="team")
    def hear_together(self, data: Any) -> None:
        self.heard.append("together")

    @on("boom", group="team", durable=True, retries=1, backoff=0.01)
    def fail(self, data: Any) -> None:
        self.heard.append("failed")
        raise ConnectionError("each time")

    @every(seconds=0.05, singleton=True)
    def tick(self) -> None:
        if "tick" not in self.heard:
            self.heard.append("tick")


@pytest.fixture
def everything(rabbit_node: Node) -> Iterator[Everything]:
    everything, ready = Everything(), threading.Event()
    receiver = RpcReceiver(services=[everything], backend=url(rabbit_node, "worker"), concurrency=3)
    receiver.hook("on_connect")(ready.set)
    serving = threading.Thread(target=receiver.run)
    serving.start()
    try:
        assert ready.wait(PATIENCE)
        yield everything
    finally:
        receiver.stop()
        serving.join(PATIENCE)


@pytest.mark.slow
def test_with_these_users_all_of_it_works(rabbit_node: Node, everything: Everything) -> None:
    with RpcClient(backend=url(rabbit_node, "client"), timeout=PATIENCE) as client:
        services = client.services.everything
        assert (services.add(1, 2), services.once(), services.ask()) == (3, 1, 4)
        assert services.add.options(order_key="k")(1, 2) == 3
        waiting = services.wait.submit()
        assert everything.began.wait(PATIENCE)
        waiting.cancel()
        assert everything.cancelled.wait(PATIENCE)
        client.publish("boom")
        eventually(lambda: sorted(everything.heard) == ["alone", "failed", "failed", "tick", "together"])
        assert client.describe()
        with pytest.raises(NoReceivers):
            client.call("everything.add", {"a": 1, "b": 2}, queue="nobody")
        shelf: Any = client.backend
        client.call("everything.once", ttl=0)
        (expired,) = eventually(lambda: shelf.dead_letters("default"))
        assert shelf.drop(expired)
        client.call("everything.once", ttl=60)
        (letter,) = eventually(lambda: shelf.dead_letters("_boom.team..boom"))
        assert shelf.drop(letter)


def test_in_a_loop_too(rabbit_node: Node, everything: Everything) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=url(rabbit_node, "client"), timeout=PATIENCE) as client:
            assert await client.services.everything.add(1, 2) == 3
            await client.publish("boom")
            waiting = client.services.everything.wait.submit()
            assert await asyncio.to_thread(everything.began.wait, PATIENCE)
            waiting.cancel()

    asyncio.run(main())
    eventually(lambda: "alone" in everything.heard and everything.cancelled.is_set())


@pytest.mark.parametrize(
    ("user", "name"),
    [("client", f"{PREFIX}:queue:x"), ("client", "theirs"), ("worker", "theirs"), ("worker", f"{PREFIX}2:x")],
)
def test_what_they_need_not_do_is_refused(rabbit_node: Node, user: str, name: str) -> None:
    commands = pytest.importorskip("pamqp.commands")
    backend = AmqpBackend(rabbit_node.url.replace("//", f"//{user}:{user}@"), prefix=PREFIX)
    made = backend.servers.queue(name)
    with pytest.raises(BackendUnavailable, match=f"ACCESS_REFUSED.*'{name}'"):
        backend.senders.do(lambda connection: connection.ask(1, made, commands.Queue.DeclareOk))
    backend.close()
