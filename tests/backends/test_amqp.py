"""What is special to RabbitMQ."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from uuid import uuid4

import pytest

from rpc import BackendUnavailable, NoReceivers, QueueFull, RpcTimeout, SettingsError
from rpc.backends import backend_from_url
from rpc.backends._serving import DIED
from rpc.backends.amqp.deliveries import QueueDelivery
from rpc.inspection import DeadLetters
from rpc.testing._portal import Portal
from rpc.testing.site import PATIENCE, Site, eventually, request
from rpc.transport import LOST, Address, Backend, Delivery, Locks, Message, inbox, queue, topic
from tests.rabbit import Rabbit


@pytest.fixture
def site(broker: Rabbit) -> Iterator[Site]:
    with Site(broker.url, disrupt=broker.proxy.cut, named=broker.declare) as site:
        yield site


@pytest.fixture
def direct(broker: Rabbit) -> Iterator[Site]:
    """Another way to the same RabbitMQ, which is not cut."""
    with Site(broker.admin_url, named=broker.declare) as site:
        yield site


# URLs.


@pytest.mark.parametrize(
    ("url", "servers", "vhost"),
    [
        ("amqp://", [("127.0.0.1", 5672)], "/"),
        ("amqp://me:p%40ss@rabbit/", [("rabbit", 5672)], "/"),
        ("amqps://one,two:5000/%2Fshop", [("one", 5671), ("two", 5000)], "/shop"),
        ("amqp://[::1]:5673/shop", [("::1", 5673)], "shop"),
    ],
)
def test_what_a_url_names(url: str, servers: list[tuple[str, int]], vhost: str) -> None:
    found = cast("Any", backend_from_url(url)).servers
    assert (found.addresses, found.vhost) == (servers, vhost)


@pytest.mark.parametrize("query", ["ssl_keyfile=x", "max_deliveries=0", "heartbeat=1", "queue_type=stream"])
def test_options_that_make_no_sense_are_refused(query: str) -> None:
    with pytest.raises(SettingsError):
        backend_from_url(f"amqp://127.0.0.1?{query}")


def test_a_wrong_password_is_said_to_be_wrong(broker: Rabbit) -> None:
    backend = backend_from_url(f"amqp://guest:wrong@127.0.0.1:{broker.proxy.port}")
    with pytest.raises(BackendUnavailable, match="ACCESS_REFUSED"):
        backend.send(queue("x"), Message(b"", {"id": "x", "ttl": "0.2"}))
    backend.close()


# Where a message may go.


@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_a_queue_that_nobody_ever_served_has_no_receivers(broker: Rabbit, wrap: Any) -> None:
    backend: Backend = wrap(backend_from_url(broker.url))
    nowhere = queue(f"q{uuid4().hex}")
    with pytest.raises(NoReceivers, match="nobody has ever served"):
        backend.send(nowhere, Message(b"", {"id": "x"}))
    replies = backend.request(nowhere, request(b"echo:x"))
    with pytest.raises(NoReceivers):
        replies.receive(PATIENCE)
    replies.close()
    backend.close()


def test_a_bounded_sender_knows_so_too(broker: Rabbit) -> None:
    backend = backend_from_url(broker.url, max_length=5)
    with pytest.raises(NoReceivers):
        backend.send(queue(f"q{uuid4().hex}"), Message(b"", {"id": "x"}))
    backend.close()


def test_a_request_to_a_topic_that_nobody_hears_has_no_receivers(site: Site) -> None:
    site.client.send(topic(site.name()), Message(b"", {"id": "x"}))  # news need no listeners
    with pytest.raises(NoReceivers):
        site.ask(b"echo:x", topic(site.name())).receive(PATIENCE)


def test_a_request_may_go_to_an_inbox(site: Site) -> None:
    site.serve(site.toy(), inbox(site.name()))
    eventually(lambda: _answered(site, inbox(site.name())))


def _answered(site: Site, to: Address) -> bool:
    try:
        return site.ask(b"echo:x", to).receive(0.5).body == b"x"
    except (NoReceivers, RpcTimeout):
        return False


def test_headers_travel_as_properties_for_clients_of_other_makes(site: Site) -> None:
    pamqp = pytest.importorskip("pamqp.commands")
    site.serve()
    backend = cast("Any", site.client)
    properties = pamqp.Basic.Properties(
        correlation_id="theirs", reply_to=f"rpc:inbox:{site.name('back')}", expiration="5000"
    )

    def ask(connection: Any) -> None:
        connection.ask(1, backend.servers.queue(properties.reply_to, 3600), pamqp.Queue.DeclareOk)
        assert connection.confirmed(1, f"rpc:queue:{site.name()}", properties, b"echo:hello") is None

    backend.senders.do(ask)
    heard: list[Message] = []
    site.serve(lambda delivery: heard.append(delivery.message), inbox(site.name("back")))
    eventually(lambda: heard)
    assert (heard[0].id, heard[0].body) == ("theirs", b"hello")


YEARS = b"\x00\x40" + b"\x7f" * 8  # a timestamp that no calendar has
TEXT = b"\x20\x00" + struct.pack(">IB16scI", 24, 16, b"x-delivery-count", b"S", 2) + b"no"


@pytest.mark.parametrize("properties", [YEARS, TEXT], ids=["a year", "a count"])
def test_headers_that_make_no_sense_keep_nobody_from_what_is_behind_them(
    site: Site, properties: bytes
) -> None:
    pamqp = pytest.importorskip("pamqp")
    publish = pamqp.commands.Basic.Publish(routing_key=f"rpc:queue:{site.name()}")
    content = struct.pack(">HHQ", 60, 0, 5) + properties
    header = struct.pack(">BHI", 2, 1, len(content)) + content + b"\xce"
    message = (
        pamqp.frame.marshal(publish, 1) + header + pamqp.frame.marshal(pamqp.body.ContentBody(b"log:x"), 1)
    )
    cast("Any", site.client).senders.do(lambda connection: (connection.put(message), connection.flush()))
    site.serve()
    for _ in range(2):
        assert site.ask(b"echo:x").receive(PATIENCE).body == b"x"


@pytest.mark.parametrize(
    "way", ["its own", "amq.rabbitmq.reply-to.!!!.x", "amq.rabbitmq.reply-to.aGVsbG8=.x"]
)
def test_a_reply_to_that_is_somebody_elses_costs_that_message_at_most(site: Site, way: str) -> None:
    """RabbitMQ closes the connection of who publishes to a name of its own that it never gave."""
    commands = pytest.importorskip("pamqp.commands")
    senders = cast("Any", site.client).senders
    own = f"{site.name()}.own"

    def poison(connection: Any) -> None:
        connection.ask(9, commands.Queue.Declare(queue=own, exclusive=True), commands.Queue.DeclareOk)
        properties = commands.Basic.Properties(reply_to=own if way == "its own" else way, correlation_id="x")
        assert connection.confirmed(1, f"rpc:queue:{site.name()}", properties, b"echo:x") is None

    senders.do(poison)
    told: list[bool] = []
    site.serve(on_change=told.append)
    for _ in range(2):
        assert site.ask(b"echo:x").receive(PATIENCE).body == b"x"
    assert told == [True]


def test_a_client_of_another_make_may_use_direct_reply_to(site: Site) -> None:
    commands = pytest.importorskip("pamqp.commands")
    connection, replies = cast("Any", site.client).connect(), list[bytes]()
    connection.listeners[1] = lambda arrival: replies.append(arrival.body)
    site.serve()
    way = "amq.rabbitmq.reply-to"
    connection.ask(1, commands.Basic.Consume(queue=way, no_ack=True), commands.Basic.ConsumeOk)
    properties = commands.Basic.Properties(reply_to=way, correlation_id="x")
    connection.confirmed(1, f"rpc:queue:{site.name()}", properties, b"echo:hello")
    eventually(lambda: connection.read(0.1) and replies)
    assert replies == [b"hello"]
    connection.close()


@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_a_queue_that_refuses_more_by_policy_says_so_at_once(broker: Rabbit, site: Site, wrap: Any) -> None:
    commands = pytest.importorskip("pamqp.commands")
    name, limits = f"q{uuid4().hex}", {"x-max-length": 1, "x-overflow": "reject-publish"}
    made = commands.Queue.Declare(queue=f"rpc:queue:{name}", arguments=limits, auto_delete=True, durable=True)
    cast("Any", site.client).senders.do(lambda connection: connection.ask(1, made, commands.Queue.DeclareOk))
    backend: Backend = wrap(backend_from_url(broker.url))
    backend.send(queue(name), Message(b"", {"id": "x"}))
    replies = backend.request(queue(name), request(b""))
    with pytest.raises(QueueFull):
        replies.receive(PATIENCE)
    replies.close()
    cast("Any", site.client).delete(queue(name))
    backend.close()


# Workers.


def test_a_message_that_was_given_up_is_a_dead_letter(site: Site) -> None:
    replies = site.ask(b"die_at_first:99", ttl=120)
    for _ in range(4):
        site.spawn()
    assert LOST in replies.receive(PATIENCE * 2).headers
    (letter,) = cast("DeadLetters", site.client).dead_letters(site.name())
    assert letter.why == DIED


def test_neighbours_of_a_message_that_kills_are_done(site: Site) -> None:
    for number in range(40):  # so many that the worker takes some ahead
        site.tell(b"log:%d" % number)
    killing = site.ask(b"die_at_first:99", ttl=120)
    for number in range(40, 60):
        site.tell(b"log:%d" % number)
    for _ in range(4):
        site.spawn()
    assert LOST in killing.receive(PATIENCE * 2).headers

    def done() -> Counter[str]:
        return Counter(line for line in site.log.lines() if line.startswith("toy "))

    eventually(lambda: len(done()) == 60)
    assert len(cast("DeadLetters", site.client).dead_letters(site.name())) == 1


def test_a_busy_worker_keeps_nothing_from_an_idle_one(site: Site) -> None:
    busy, idle = site.toy("busy"), site.toy("idle")
    site.serve(busy)
    for number in range(100):
        site.tell(b"log:%d" % number)
    eventually(lambda: len(site.log.lines()) == 100)
    site.tell(b"hold:x")
    eventually(lambda: "holding x" in site.log.lines())
    for number in range(100, 110):
        site.tell(b"log:%d" % number)
    site.serve(idle)
    eventually(lambda: len(site.log.lines()) == 111)
    assert sum(line.startswith("idle ") for line in site.log.lines()) == 10


def test_several_queues_are_served_in_order_while_the_worker_is_busy(site: Site) -> None:
    toy = site.toy()
    site.serve(toy, *(site.queue(part) for part in "hl"))
    site.tell(b"hold:x", site.queue("l"))
    eventually(site.log.lines)
    for number in range(3):
        site.tell(b"log:l%d" % number, site.queue("l"))
    for number in range(3):
        site.tell(b"log:h%d" % number, site.queue("h"))
    toy.released.set()
    eventually(lambda: len(site.log.lines()) == 8)
    assert [line[4:] for line in site.log.lines()[2:]] == ["h0", "h1", "h2", "l0", "l1", "l2"]


@pytest.mark.slow
def test_a_handler_that_takes_long_keeps_its_connection(site: Site) -> None:
    """Longer than the heartbeats after which RabbitMQ would take it for dead, and others would get it."""
    backend = site.backend(heartbeat=2)

    def slow(delivery: Delivery) -> Message:
        site.log.write(f"begun {delivery.message.deliveries}")
        time.sleep(6.5)  # it is time itself that is tested
        return Message(b"done", {"id": delivery.message.id})

    site.serve(slow, backend=backend)
    assert site.ask(b"").receive(PATIENCE).body == b"done"
    assert site.log.lines() == ["begun 1"]


def test_what_a_caller_that_was_killed_had_asked_for_is_not_started(site: Site) -> None:
    program = (
        "import sys, os\n"
        "from rpc.transport import queue\n"
        "from rpc.backends import backend_from_url\n"
        "from rpc.testing.site import request\n"
        "backend = backend_from_url(sys.argv[1])\n"
        "replies = backend.request(queue(sys.argv[2]), request(b'log:unwanted'))\n"
        "backend.send(queue(sys.argv[2]), request(b'log:wanted').replace(reply_to=None))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, site.url, site.name()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    site.serve()
    eventually(site.log.lines)
    assert site.ask(b"echo:x").receive(PATIENCE).body == b"x"
    assert site.log.lines() == ["toy wanted"]


# Connections.


@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_a_reply_finds_a_caller_whose_connection_broke(
    broker: Rabbit, direct: Site, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's did not: it knows the request, which is sent again, and does not do it again."""
    join, joined = QueueDelivery.join, threading.Event()

    def joins(delivery: QueueDelivery, other: QueueDelivery) -> None:
        join(delivery, other)
        joined.set()

    monkeypatch.setattr(QueueDelivery, "join", joins)
    toy = direct.toy()
    direct.serve(toy, threads=2)
    caller: Backend = wrap(backend_from_url(broker.url))
    replies = caller.request(direct.queue(), request(b"hold:x"))
    receiving = ThreadPoolExecutor(1).submit(replies.receive, PATIENCE)
    eventually(direct.log.lines)
    broker.proxy.cut()
    assert joined.wait(PATIENCE)
    toy.released.set()
    assert receiving.result(PATIENCE).body == b"x"
    assert direct.log.lines() == ["holding x", "held x"]
    replies.close()
    caller.close()


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_no_call_is_lost_while_connections_are_cut_again_and_again(
    broker: Rabbit, site: Site, wrap: Any
) -> None:
    for _ in range(2):
        site.serve(threads=2)
    caller: Backend = wrap(backend_from_url(broker.url))
    to = site.queue()

    over = threading.Event()

    def ask(name: int) -> int:
        answered = 0
        while not over.is_set():
            body = b"%d-%d" % (name, answered)
            replies = caller.request(to, request(b"echo:" + body, ttl=60))
            assert replies.receive(60).body == body
            replies.close()
            answered += 1
        return answered

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, name) for name in range(8)]
        try:
            for _ in range(15):
                time.sleep(0.4)
                broker.proxy.cut()
        finally:
            over.set()
        assert all(answer.result(60) for answer in answers)
    caller.close()


# Locks.


def test_a_lock_that_is_not_asked_for_again_ends_with_its_lease(site: Site) -> None:
    one, other = cast("Locks", site.backend()), cast("Locks", site.backend())
    assert one.acquire(site.name(), "one", 0.5)
    eventually(lambda: other.acquire(site.name(), "other", 30))
    other.release(site.name(), "other")


def test_a_lock_is_lost_with_its_connection(site: Site, direct: Site) -> None:
    one, other = cast("Locks", site.backend()), cast("Locks", direct.backend())
    assert one.acquire(site.name(), "one", 30)
    assert not other.acquire(site.name(), "other", 30)
    assert site.disrupt
    site.disrupt()
    eventually(lambda: other.acquire(site.name(), "other", 30))
    assert not one.acquire(site.name(), "one", 30)
    other.release(site.name(), "other")


# Quorum queues.


def test_quorum_queues_count_by_themselves(broker: Rabbit) -> None:
    with Site(f"{broker.admin_url}?queue_type=quorum") as site:
        backend = cast("Any", site.backend())
        backend.declare(site.queue())
        try:
            replies = site.ask(b"die_at_first:99", ttl=120)
            for _ in range(4):
                site.spawn()
            assert LOST in replies.receive(PATIENCE * 2).headers
            assert [line.split()[1] for line in site.log.lines()] == ["1", "2", "3"]
        finally:
            backend.delete(site.queue())


def test_what_is_given_back_after_the_backend_was_closed_is_closed(broker: Rabbit) -> None:
    """As by a look-up in the background."""
    with Site(broker.url, disrupt=broker.proxy.cut, named=broker.declare) as site:
        site.serve()
        replies = cast("Any", site.ask(b"echo:x"))
        assert replies.receive(site.patience).body == b"x"
        connection = replies._caller.connection
        site.client.close()
        assert connection.is_open
        replies.close()
        assert not connection.is_open
