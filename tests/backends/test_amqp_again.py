"""What RabbitMQ delivers again: what could not be buried, what was begun, and what only lay there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, cast

import pytest

from rpc import Event, RemoteError, Request, RpcClient, RpcReceiver, job, on
from rpc.backends import backend_from_url
from rpc.backends._serving import DIED
from rpc.events import listeners_in
from rpc.inspection import DeadLetters
from rpc.settings import Settings
from rpc.testing._portal import Portal
from rpc.testing.site import PATIENCE, Site, eventually, request
from rpc.transport import Backend, Delivery, Message
from tests.rabbit import Rabbit, give_back

from rpc.backends.amqp.messages import Probe  # isort: skip - after the skip without the driver
from rpc.backends.amqp.recent import RecentRequests  # isort: skip
from rpc.backends.amqp.server import AmqpServer  # isort: skip
from rpc.backends.amqp.session import Session  # isort: skip
from rpc.backends.amqp.wire import Basic, Broken, Queue, Wire  # isort: skip


@pytest.fixture
def site(broker: Rabbit) -> Iterator[Site]:
    """Its connections are not those of the proxy: they are not cut."""
    with Site(broker.admin_url, named=broker.declare) as site:
        yield site


@contextmanager
def receiving(broker: Rabbit, name: str, **what: Any) -> Iterator[None]:
    receiver = RpcReceiver(backend=broker.url, queues=[name], settings=Settings(), **what)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        yield
    finally:
        receiver.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def letters(site: Site, name: str = "") -> list[Any]:
    return cast("DeadLetters", site.client).dead_letters(name or site.name())


# What could not be buried.


def failing(broker: Rabbit, heard: list[int]) -> Callable[[Request], None]:
    """Loses its connection in the last of its attempts, when it first comes to that."""

    @job(retries=1, backoff=0.01)
    def fail(request: Request) -> None:
        heard.append(request.attempt)
        if heard == [1, 2]:
            broker.proxy.cut()
        raise ValueError("no")

    return fail


def test_a_job_that_nobody_waits_for_is_done_again(broker: Rabbit, site: Site) -> None:
    heard: list[int] = []
    with receiving(broker, site.name(), jobs={"fail": failing(broker, heard)}):
        RpcClient(backend=site.client, queue=site.name()).call("fail")
        (letter,) = eventually(lambda: letters(site))
    assert (letter.why, heard) == ("ValueError: no", [1, 2, 2])


def test_a_job_that_may_not_be_done_twice_is_not_and_is_kept(broker: Rabbit, site: Site) -> None:
    heard: list[int] = []
    jobs = {"fail": job(delivery="at-most-once", retries=1, backoff=0.01)(failing(broker, heard))}
    with receiving(broker, site.name(), jobs=jobs):
        RpcClient(backend=site.client, queue=site.name()).call("fail")
        eventually(lambda: letters(site))
    assert heard == [1, 2]


def test_a_caller_is_told_and_it_is_not_done_again(broker: Rabbit, site: Site) -> None:
    heard: list[int] = []
    with receiving(broker, site.name(), jobs={"fail": failing(broker, heard), "next": lambda: None}):
        client = RpcClient(backend=site.client, queue=site.name(), timeout=PATIENCE)
        with pytest.raises(RemoteError, match="no"):
            client.call_and_wait("fail")
        client.call_and_wait("next")
    assert heard == [1, 2]
    assert letters(site) == []


def test_an_event_of_a_durable_group_is_heard_again(broker: Rabbit, site: Site) -> None:
    heard: list[str] = []

    @on(f"{site.name()}.x", group="team", durable=True, retries=1, backoff=0.01)
    def fail(event: Event) -> None:
        heard.append(event.id)
        if len(heard) == 2:
            broker.proxy.cut()
        raise ValueError("no")

    shelf = listeners_in([("fail", fail)])[0].address.subscription_queue
    client = RpcClient(backend=site.client)
    try:
        with receiving(broker, site.name(), jobs={}, services=[fail]):
            eventually(lambda: client.publish(f"{site.name()}.x") and heard)
            eventually(lambda: len(heard) > 2 and {each.id for each in letters(site, shelf.name)} == {*heard})
    finally:
        cast("Any", site.client).delete(shelf)


def joining(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set as soon as a message came again while it is in hand."""
    joins, joined = RecentRequests.joins, threading.Event()

    def noted(recent: Any, key: str, delivery: Any) -> bool:
        if found := joins(recent, key, delivery):
            joined.set()
        return found

    monkeypatch.setattr(RecentRequests, "joins", noted)
    return joined


@pytest.mark.parametrize("moment", ["when it was to be buried", "before it was begun"])
def test_what_came_again_meanwhile_is_not_taken_for_done(
    broker: Rabbit, site: Site, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The connection broke, and the message came again on the next one while it was in hand."""
    begin, joined = AmqpServer._begin, joining(monkeypatch)

    def break_once() -> None:
        if not joined.is_set():
            broker.proxy.cut()
            assert joined.wait(PATIENCE)

    def breaking(server: AmqpServer, session: Any, delivery: Any) -> None:
        if (
            moment == "before it was begun"
            and not joined.is_set()
            and not delivery.arrival.method.redelivered
        ):
            assert server._recent.begin(delivery.key, delivery)
            break_once()
            raise Broken("just then")
        begin(server, session, delivery)

    monkeypatch.setattr(AmqpServer, "_begin", breaking)

    @job(retries=1, backoff=0.01)
    def fail(request: Request) -> None:
        if request.attempt == 2:
            break_once()
        raise ValueError("no")

    with receiving(broker, site.name(), jobs={"fail": fail}, concurrency=2):
        RpcClient(backend=site.client, queue=site.name()).call("fail")
        (letter,) = eventually(lambda: letters(site))
    assert letter.why == "ValueError: no"


# What counts as the death of a worker.


def test_what_nobody_had_begun_is_not_counted(site: Site) -> None:
    """A RabbitMQ that was killed says of all its messages that they were delivered before."""
    go_on = threading.Semaphore(0)

    def handler(delivery: Delivery) -> None:
        site.log.write(f"{delivery.message.body.decode()} {delivery.message.deliveries}")
        if delivery.message.body == b"hold":
            assert go_on.acquire(timeout=PATIENCE)

    site.tell(b"hold")
    site.serve(handler)
    eventually(site.log.lines)
    site.tell(b"x")
    for held in range(4):
        give_back(site)
        site.tell(b"hold")  # whoever counts x puts it behind this one
        go_on.release()
        eventually(lambda held=held: site.log.lines().count("hold 1") == held + 2)
        if "x 2" in site.log.lines():
            break
    go_on.release()
    assert [line for line in site.log.lines() if "x" in line] == ["x 2"]
    assert letters(site) == []


def test_what_stopped_workers_give_back_is_not_counted(site: Site) -> None:
    began, go_on = threading.Semaphore(0), threading.Event()

    def hold(delivery: Delivery) -> Message:
        began.release()
        assert go_on.wait(PATIENCE)
        return Message(str(delivery.message.deliveries).encode(), {"id": delivery.message.id})

    site.client.declare(site.queue())  # type: ignore[attr-defined]
    replies = site.ask(b"")
    for _ in range(5):
        server, _ = site.serve(hold)
        assert began.acquire(timeout=PATIENCE)
        server.stop()
        server.hand_back()
    go_on.set()
    site.serve(hold)
    assert replies.receive(PATIENCE).body == b"1"
    assert letters(site) == []


def test_the_copy_that_is_counted_is_done_though_it_comes_before_the_first_is_through(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, began = Session.replace, threading.Event()

    def slow(session: Session, delivery: Any) -> None:
        replace(session, delivery)
        assert began.wait(PATIENCE)

    def handler(delivery: Delivery) -> Message:
        began.set()
        return Message(b"x", {"id": delivery.message.id})

    monkeypatch.setattr(Session, "replace", slow)
    site.client.declare(site.queue())  # type: ignore[attr-defined]
    replies = site.ask(b"")
    give_back(site)
    site.serve(handler, threads=2)
    assert replies.receive(PATIENCE).body == b"x"


def test_what_says_that_it_may_not_be_done_twice_goes_after_the_acknowledgement(site: Site) -> None:
    """And what says that it was done goes before that. On one channel, so that RabbitMQ takes them in this
    order: a worker that dies between them leaves the mark, not the message."""
    said: list[Any] = []

    def handler(delivery: Delivery) -> None:
        delivery.forbid_redelivery()
        ending = cast("Any", delivery).ending(cast("Any", delivery).connection, None)
        said.extend((arrival.channel, type(arrival.method)) for arrival in Wire().feed(ending))

    site.serve(handler)
    site.tell(b"x")
    eventually(lambda: said)
    channel = said[0][0]
    assert said == [(channel, Queue.Declare), (channel, Basic.Ack), (channel, Queue.Delete)]


def test_what_is_copied_may_have_any_headers(site: Site) -> None:
    """RabbitMQ would deliver it to the others of CC again, and refuses the name of another user."""
    commands = pytest.importorskip("pamqp.commands")
    properties = commands.Basic.Properties(
        headers={"a": {"b": [1, None, 2.5]}, "CC": [], "c": "kept", "d": None},
        correlation_id="x",
        user_id="guest",
        priority=3,
    )

    def send(connection: Any) -> None:
        assert connection.confirmed(1, f"rpc:queue:{site.name()}", properties, b"headers:c") is None

    cast("Any", site.client).senders.do(send)
    give_back(site)
    heard: list[Message] = []
    site.serve(lambda delivery: heard.append(delivery.message))
    eventually(lambda: heard)
    assert (heard[0].headers["c"], heard[0].deliveries, heard[0].id) == ("kept", 2, "x")


@pytest.mark.slow
@pytest.mark.parametrize("id", ["with\nlines", "ä" * 100, ""])
def test_a_message_with_any_id_kills_three_workers_and_no_more(site: Site, id: str) -> None:
    site.client.send(site.queue(), Message(b"die_at_first:99", {"id": id}))
    workers = [site.spawn() for _ in range(4)]
    (letter,) = eventually(lambda: letters(site))
    assert (letter.id, letter.why) == (id, DIED)
    assert sum(worker.poll() is None for worker in workers) == 1
    marks = [f"rpc:begun:{count}:{sha256(id.encode()).hexdigest()}" for count in (2, 3)]
    eventually(lambda: not any(is_there(site, mark) for mark in marks))  # after the letter, that is


def is_there(site: Site, name: str) -> bool:
    def look(connection: Any) -> bool:
        return bool(connection.succeeds(9, Probe(name), Queue.DeclareOk, 404))

    return bool(cast("Any", site.client).senders.do(look))


@pytest.mark.parametrize(
    ("wrap", "connections"), [(lambda backend: backend, 2), (Portal, 1)], ids=["blocking", "in a loop"]
)
def test_who_gives_up_a_call_keeps_the_connection_for_others(
    broker: Rabbit, site: Site, wrap: Any, connections: int
) -> None:
    """The queue for its reply is deleted, and RabbitMQ says nothing of a consumer that was there."""
    site.serve(threads=2)
    caller: Backend = wrap(backend_from_url(broker.url))
    for _ in range(50):
        given_up, other = (caller.request(site.queue(), request(b"echo:x", ttl=60)) for _ in range(2))
        given_up.close()
        assert other.receive(PATIENCE).body == b"x"
        other.close()
    assert broker.proxy.opened == connections
    caller.close()
