"""A RabbitMQ that refuses messages, by an operator's limits: nothing is lost, nobody is kept waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from rpc import RemoteError, RpcClient, RpcReceiver, job
from rpc.inspection import DeadLetters
from rpc.settings import Settings
from rpc.testing.site import PATIENCE, Site, eventually
from rpc.transport import Delivery, Message
from tests.rabbit import Rabbit, give_back

from rpc.backends.amqp.session import Session  # isort: skip - after the skip without the driver


@pytest.fixture
def site(broker: Rabbit) -> Iterator[Site]:
    with Site(broker.admin_url, named=broker.declare) as site:
        yield site


def full(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, length: int) -> None:
    """Queues of this kind have no more room than this from now on, as with a policy."""
    servers = type(cast("Any", site.client).servers)
    declared = servers.queue

    def limited(self: Any, name: str, expires: float = 0) -> Any:
        queue: Any = declared(self, name, expires)
        if name == f"rpc:{kind}:{site.name()}":
            limits = {"x-max-length": length, "x-overflow": "reject-publish"}
            queue.arguments = {**(queue.arguments or {}), **limits}
        return queue

    cast("Any", site.client).delete(site.queue())
    monkeypatch.setattr(servers, "queue", limited)
    cast("Any", site.client).declare(site.queue())


def test_what_cannot_be_counted_for_lack_of_room_is_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever counts a message puts a copy into its queue, which has no room."""
    heard: list[str] = []
    full(site, monkeypatch, "queue", 1)
    site.tell(b"0")
    give_back(site)
    begun, go_on = threading.Event(), threading.Event()

    def handler(delivery: Delivery) -> Message:
        heard.append(f"{delivery.message.body.decode()} {delivery.message.deliveries}")
        begun.set()
        assert go_on.wait(PATIENCE)
        return Message(b"", {"id": delivery.message.id})

    put_when_taken(site, monkeypatch, b"1")
    site.serve(handler)
    assert begun.wait(PATIENCE)
    go_on.set()
    eventually(lambda: len(heard) == 2)
    assert heard == ["0 2", "1 1"]


def put_when_taken(site: Site, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Have the queue full again as soon as its first message is to be copied."""
    replace = Session.replace

    def refilled(session: Session, delivery: Any) -> bool:
        site.tell(body)
        monkeypatch.setattr(Session, "replace", replace)
        return replace(session, delivery)

    monkeypatch.setattr(Session, "replace", refilled)


def test_what_is_given_back_to_a_full_queue_is_not_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    full(site, monkeypatch, "queue", 1)
    begun = threading.Semaphore(0)
    over = threading.Event()

    def hold(delivery: Delivery) -> Message:
        begun.release()
        assert over.wait(PATIENCE)
        return Message(b"", {"id": delivery.message.id})

    server, _ = site.serve(hold)
    site.tell(b"0")
    assert begun.acquire(timeout=PATIENCE)
    site.tell(b"1")  # lies in the queue, which is full
    server.stop()
    server.hand_back()
    over.set()

    def handler(delivery: Delivery) -> Message:
        heard.append(delivery.message.body)
        return Message(b"", {"id": delivery.message.id})

    site.serve(handler)
    eventually(lambda: len(heard) == 2)
    assert sorted(heard) == [b"0", b"1"]


def test_what_cannot_be_buried_disturbs_nobody_else_and_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job(retries=1, backoff=0.001)
    def fail(number: int) -> None:
        raise ValueError(number)

    begun: list[int] = []
    go_on = threading.Event()

    def slow(number: int) -> int:
        begun.append(number)
        assert go_on.wait(PATIENCE)
        return number

    full(site, monkeypatch, "dead", 1)
    client = RpcClient(backend=site.client, queue=site.name(), timeout=PATIENCE)
    jobs: Any = {"fail": fail, "slow": slow, "echo": lambda number: number}
    receiver = RpcReceiver(
        backend=site.url, queues=[site.name()], settings=Settings(), jobs=jobs, concurrency=3
    )
    broken: list[int] = []
    receiver.hook("on_disconnect")(lambda: broken.append(1))
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        busy = client.submit("slow", [7])
        eventually(lambda: begun)
        client.call("fail", [0])
        eventually(lambda: letters(site))
        client.call("fail", [1])  # for which there is no room
        with pytest.raises(RemoteError):
            client.call_and_wait("fail", [2])
        for number in range(5):
            assert client.call_and_wait("echo", [number]).data == number
        assert broken == []
        go_on.set()
        assert busy.result(PATIENCE).data == 7
        (letter,) = letters(site)
        assert cast("DeadLetters", site.client).drop(letter)
        eventually(lambda: letters(site))
    finally:
        go_on.set()
        receiver.stop()
        thread.join(PATIENCE)
        client.close()
    assert begun == [7]


def letters(site: Site) -> list[Any]:
    return cast("DeadLetters", site.client).dead_letters(site.name())
