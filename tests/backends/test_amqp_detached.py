"""Deliveries that are finished later than their handler returned, on one connection."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from rpc.testing.site import PATIENCE, Site, eventually
from rpc.transport import Delivery, Message, topic
from tests.rabbit import rabbit


@pytest.fixture
def site() -> Iterator[Site]:
    with rabbit() as broker, Site(broker.admin_url, named=broker.declare) as site:
        yield site


def answer(delivery: Delivery) -> None:
    delivery.finish(Message(delivery.message.body, {"id": delivery.message.id}))


def waiting(site: Site) -> int:
    """How many messages the queue has that nobody took."""
    probe = cast("Any", pytest.importorskip("rpc.backends.amqp.messages")).Probe
    commands = pytest.importorskip("pamqp.commands")
    ask = probe(f"rpc:queue:{site.name()}")
    found = cast("Any", site.client).senders.do(
        lambda connection: connection.ask(9, ask, commands.Queue.DeclareOk)
    )
    return int(found.method.message_count)


def test_they_are_finished_in_any_order_by_another_thread(site: Site) -> None:
    held: list[Delivery] = []
    site.serve(handler=held.append, coroutines=20)
    replies = [site.ask(b"%d" % number) for number in range(20)]
    eventually(lambda: len(held) == 20)
    random.Random(7).shuffle(held)
    finisher = threading.Thread(target=lambda: [answer(each) for each in held])
    finisher.start()
    assert [each.receive(PATIENCE).body for each in replies] == [b"%d" % number for number in range(20)]
    finisher.join()
    last = site.ask(b"next")
    eventually(lambda: len(held) == 21)
    answer(held[-1])
    assert last.receive(PATIENCE).body == b"next"


def test_thousands_are_in_flight_on_one_connection_with_few_threads(site: Site) -> None:
    count, held = 2000, list[Delivery]()
    for number in range(count):
        site.tell(b"%d" % number)
    before = {*threading.enumerate()}
    server, _ = site.serve(handler=held.append, threads=4, coroutines=count)
    eventually(lambda: len(held) == count)
    assert len({*threading.enumerate()} - before) <= 6  # its own, one that reads besides, heartbeats
    connections = {id(cast("Any", each).connection) for each in held}
    assert len(connections) == 1
    for each in held:
        each.finish(None)
    site.tell(b"next")
    eventually(lambda: len(held) == count + 1)
    held[-1].finish(None)
    assert {int(each.message.body) for each in held[:-1]} == {*range(count)}
    server.stop()


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_more_is_taken_than_there_is_room_for(site: Site, threads: int) -> None:
    held: list[Delivery] = []
    for number in range(10):
        site.tell(b"%d" % number)
    site.serve(handler=held.append, threads=threads, coroutines=4)
    eventually(lambda: len(held) == 4)
    time.sleep(0.3)  # it would take more now
    assert len(held) == 4
    eventually(lambda: waiting(site) == 6)
    held[2].finish(None)
    eventually(lambda: len(held) == 5)
    for each in held:
        each.finish(None)
    eventually(lambda: len(held) >= 8)

    def all_came() -> bool:
        for each in [*held]:
            each.finish(None)
        return len(held) == 10

    eventually(all_came)
    assert sorted(int(each.message.body) for each in held) == [*range(10)]


def test_plain_functions_are_not_kept_waiting_for_coroutines(site: Site) -> None:
    """Those of one kind are in flight while others come and go."""
    held: list[Delivery] = []

    def handler(delivery: Delivery) -> None:
        if delivery.message.body == b"later":
            held.append(delivery)
        else:
            answer(delivery)

    site.serve(handler=handler, threads=2, coroutines=50)
    for _ in range(40):
        site.tell(b"later")
    for number in range(100):
        assert site.ask(b"%d" % number).receive(PATIENCE).body == b"%d" % number
    assert len(held) == 40
    for each in held:
        each.finish(None)


def test_what_is_handed_back_is_done_by_another_and_does_not_count(site: Site) -> None:
    held: list[Delivery] = []
    count = 300
    server, thread = site.serve(handler=held.append, threads=2, coroutines=count)
    replies = [site.ask(b"%d" % number) for number in range(5)]
    for number in range(5, count):
        site.tell(b"%d" % number)
    eventually(lambda: len(held) == count)
    server.hand_back()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for each in held:
        answer(each)  # too late
    done: list[tuple[int, int]] = []

    def handler(delivery: Delivery) -> None:
        done.append((int(delivery.message.body), delivery.message.deliveries))
        answer(delivery)

    site.serve(handler=handler)
    eventually(lambda: len(done) == count)
    assert sorted(done) == [(number, 1) for number in range(count)]
    assert [each.receive(PATIENCE).body for each in replies] == [b"%d" % number for number in range(5)]


def test_a_stop_waits_for_them(site: Site) -> None:
    held: list[Delivery] = []
    server, thread = site.serve(handler=held.append, coroutines=5)
    replies = site.ask(b"x")
    eventually(lambda: held)
    server.stop()
    site.tell(b"y")
    thread.join(0.3)
    assert thread.is_alive()
    answer(held[0])
    assert replies.receive(PATIENCE).body == b"x"
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(held) == 1


def test_a_caller_that_leaves_is_heard_while_all_handlers_are_busy(site: Site) -> None:
    site.serve(site.toy(), threads=1)
    replies = site.ask(b"until_cancelled:")
    eventually(site.log.lines)
    replies.close()
    eventually(lambda: len(site.log.lines()) == 2)


def test_an_idle_server_has_one_connection_and_few_threads(site: Site) -> None:
    connected, before = threading.Event(), {*threading.enumerate()}
    name = site.name()
    durable = topic(name, "team", durable=True)
    backend = cast("Any", site.backend())
    made: list[Any] = []
    connect = backend.connect
    backend.connect = lambda *how: made.append(connect(*how)) or made[-1]
    addresses = site.queue(), topic(name), durable
    site.serve(None, *addresses, backend=backend, threads=8, on_change=lambda told: told and connected.set())
    assert connected.wait(PATIENCE)
    assert len({*threading.enumerate()} - before) <= 10
    assert len(made) == 1
    backend.unsubscribe(durable)
