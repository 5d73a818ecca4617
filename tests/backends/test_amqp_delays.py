"""Delays on RabbitMQ: what the levels keep, what they pass on, and what they refuse."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from rpc import NoReceivers, Unsupported
from rpc.backends import backend_from_url
from rpc.testing.site import PATIENCE, Site, eventually, request
from rpc.transport import Delivery, Message, queue
from tests.rabbit import Node, Rabbit

delays = pytest.importorskip("rpc.backends.amqp.delays", reason="needs RabbitMQ's driver")
names = pytest.importorskip("rpc.backends.amqp.names")
commands = pytest.importorskip("pamqp.commands")


@pytest.fixture
def site(broker: Rabbit) -> Iterator[Site]:
    with Site(broker.url, disrupt=broker.proxy.cut, named=broker.declare) as site:
        yield site


@pytest.mark.parametrize(
    ("seconds", "level", "digits"),
    [(0, 0, "1"), (0.0159, 0, "1"), (0.016, 1, "10"), (0.4, 4, "11010"), (4294967.27, 27, "1" * 28)],
)
def test_a_delay_is_never_shorter_and_names_its_levels(seconds: float, level: int, digits: str) -> None:
    exchange, key = delays.route_after(names.Names(), seconds, "rpc:queue:a.b")
    assert exchange == f"rpc:delay:{level}"
    assert key == ".".join(digits.zfill(28)) + ".rpc:queue:a.b"
    assert int(digits, 2) * 0.016 > seconds - 0.001


@pytest.mark.parametrize("delay", ["4294967.3", "-1", "inf"])
def test_a_delay_that_is_none_or_too_long_is_refused(site: Site, delay: str) -> None:
    with pytest.raises(Unsupported, match="from 0 to 49 days"):
        site.tell(b"x", delay=delay)


def test_what_is_sent_again_has_the_time_that_is_left() -> None:
    messages = pytest.importorskip("rpc.backends.amqp.messages")
    properties = messages.properties_of(Message(b"", {"id": "x", "delay": "1", "ttl": "60"}), durable=True)
    now = time.monotonic()
    messages.resend(properties, now - 20, now + 40)
    assert float(messages.message_of(properties, b"").headers["ttl"]) <= 39


def test_what_is_for_a_queue_that_was_never_served_is_refused(broker: Rabbit) -> None:
    client = backend_from_url(broker.url)
    for _ in range(2):  # of the levels it is not known, and then known, that they are there
        with pytest.raises(NoReceivers):
            client.send(queue("never-served"), Message(b"x", {"id": "x", "delay": "0.1"}))
    client.close()


def test_what_is_for_a_deleted_queue_is_in_nobodys_way(broker: Rabbit, site: Site) -> None:
    doomed = site.queue("doomed")
    for _ in range(100):  # a queue waits for 32 of what it passes on
        site.tell(b"log:doomed", doomed, delay="0.4")
    cast("Any", site.client).delete(doomed)
    site.tell(b"log:kept", delay="0.7")
    site.serve()
    eventually(lambda: site.log.lines() == ["toy kept"])


def test_a_handler_sees_what_was_sent_and_nothing_of_the_levels(site: Site) -> None:
    came: list[Delivery] = []

    def handler(delivery: Any) -> None:
        came.append(delivery)
        if delivery.message.attempt == 1:
            delivery.postpone(0.1, delivery.message.replace(attempt=2))

    def publish(connection: Any) -> None:
        properties = commands.Basic.Properties(
            correlation_id="x", priority=7, delivery_mode=2, headers={"x-tenant": "t"}
        )
        assert connection.confirmed(2, f"rpc:queue:{site.name()}", properties, b"body") is None

    site.serve(handler)
    cast("Any", site.client).senders.do(publish)
    eventually(lambda: len(came) == 2)
    last: Any = came[1]
    assert last.arrival.properties.priority == 7
    assert dict(last.message.headers) == {"id": "x", "x-tenant": "t", "attempt": "2", "delay": "0.1"}
    assert last.message.body == b"body"


@pytest.mark.parametrize("is_waited_for", [True, False], ids=["a request", "a message"])
def test_what_was_postponed_is_not_done_as_it_was_if_the_acknowledgement_is_lost(
    broker: Rabbit, site: Site, is_waited_for: bool
) -> None:
    def handler(delivery: Delivery) -> Message | None:
        message = delivery.message
        site.log.write(f"attempt {message.attempt}")
        if message.attempt > 1:
            return Message(b"done", {"id": message.id})
        delivery.postpone(0.5, message.replace(attempt=2))
        broker.proxy.cut()  # what it has said since then leaves when the handler has returned
        return None

    site.serve(handler)
    caller = backend_from_url(broker.admin_url)  # its connection is not cut
    if is_waited_for:
        replies = caller.request(site.queue(), request(b"x"))
        assert replies.receive(PATIENCE).body == b"done"
        replies.close()
    else:
        caller.send(site.queue(), Message(b"x", {"id": site.name()}))
        eventually(lambda: "attempt 2" in site.log.lines())
    caller.close()
    assert site.log.lines() == ["attempt 1", "attempt 2"]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_is_delayed_outlives_a_restart_of_rabbitmq(tmp_path: Path, number: int) -> None:
    node, to, many = Node(tmp_path), queue("delayed"), 500
    node.start()
    backend: Any = backend_from_url(node.url)
    came: set[str] = set()

    def handler(delivery: Delivery) -> None:
        came.add(delivery.message.id)
        delivery.finish(None)

    server = backend.server([to], handler)
    serving = threading.Thread(target=server.run)
    try:
        backend.declare(to)
        backend.send(to, Message(b"", {"id": "first", "delay": "60"}))
        node.stop()  # what was made just now may be forgotten with its death
        node.start()
        for each in range(many):
            delay = random.Random(each).uniform(0, 4)
            backend.send(to, Message(b"", {"id": f"id-{each}", "delay": f"{delay:.3f}"}))
        node.stop(number)
        node.start()
        serving.start()
        wanted = {f"id-{each}" for each in range(many)}
        eventually(lambda: came >= wanted, within=90)
        assert came <= {*wanted, "first"}  # its minute may be over
    finally:
        server.stop()
        if serving.ident:
            serving.join(PATIENCE)
        backend.close()
        node.stop()
