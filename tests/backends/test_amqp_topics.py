"""What is special to topics on RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from pamqp.commands import Exchange, Queue

from rpc.backends.amqp.messages import Probe
from rpc.errors import SerializationError
from rpc.testing.site import PATIENCE, Site, eventually
from rpc.transport import Address, Needs, Server, topic
from tests.rabbit import rabbit


@pytest.fixture
def site() -> Iterator[Site]:
    with rabbit() as broker, Site(broker.admin_url, named=broker.declare) as site:
        yield site


def serve(site: Site, to: Address) -> tuple[Server, threading.Thread]:
    """Serve a topic; returns once it is heard."""
    told = list[bool]()
    served = site.serve(None, to, on_change=told.append)
    eventually(lambda: told == [True])
    return served


def test_whoever_says_that_he_is_connected_misses_nothing(site: Site) -> None:
    to, told = topic(site.name(), group="some"), list[bool]()
    in_the_way = cast("Any", site.client).connect()
    in_the_way.ask(1, Queue.Declare(queue=f"rpc:topic:{to.name}:some", exclusive=True), Queue.DeclareOk)
    site.serve(None, site.queue(), to, on_change=told.append)
    try:
        assert site.ask(b"echo:x").receive(PATIENCE).body == b"x"
        assert told != [True], "its queue is served, but the topic is not heard"
        in_the_way.close()
        eventually(lambda: told == [True])
        site.tell(b"log:news", topic(site.name()))
        eventually(lambda: site.log.lines() == ["toy news"])
    finally:
        in_the_way.close()


def test_a_member_that_stops_leaves_to_the_others_of_its_group_what_it_did_not_begin(site: Site) -> None:
    to, news = topic(site.name(), group="some"), topic(site.name())
    toys = {name: site.toy(name) for name in "ab"}
    served = {name: site.serve(toy, to) for name, toy in toys.items()}

    def both_hold() -> bool:
        site.tell(b"hold:x", news)
        return site.log.lines().count("holding x") == 2

    eventually(both_hold)
    for number in range(3):
        site.tell(b"log:%d" % number, news)
    server, serving = served["a"]
    server.stop()
    toys["a"].released.set()
    serving.join(PATIENCE)
    toys["b"].released.set()
    eventually(
        lambda: sorted(line for line in site.log.lines() if line[-1].isdecimal()) == ["b 0", "b 1", "b 2"]
    )


def test_what_a_durable_group_does_not_need_is_not_kept_for_it(site: Site) -> None:
    wanted = ((("x-region", "eu"), ("x-kind", "a")), (("x-region", "ü"),))
    to = replace(topic(site.name(), "some", durable=True), needs=wanted)
    server, serving = serve(site, to)
    server.stop()
    serving.join(PATIENCE)
    news, kept = topic(to.name), f"rpc:queue:{to.subscription_queue.name}"
    for headers in {"region": "eu"}, {"region": "us", "kind": "a"}, {}:
        site.tell(b"log:not needed", news, **{f"x-{name}": value for name, value in headers.items()})
    site.tell(b"log:both", news, **{"x-region": "eu", "x-kind": "a", "x-more": "b"})
    site.tell(b"log:other", news, **{"x-region": "ü"})
    connection = cast("Any", site.client).connect()
    try:
        assert connection.size_of(1, Probe(kept))[0] == 2
        serve(site, to)
        eventually(lambda: site.log.lines() == ["toy both", "toy other"])
    finally:
        connection.close()


@pytest.mark.parametrize(
    "needs", [((("x-match", "a"),),), ((("x-" + "a" * 200, "a"),),), ((("x-a", "\ud800"),),)], ids=ascii
)
def test_what_rabbitmq_cannot_look_at_is_looked_at_by_the_worker(site: Site, needs: Needs) -> None:
    to = replace(topic(site.name()), needs=needs)
    serve(site, to)
    site.tell(b"log:news", topic(to.name))
    eventually(lambda: site.log.lines() == ["toy news"])


@pytest.mark.parametrize("group", [None, "some"])
def test_a_headers_exchange_goes_with_the_last_who_needs_it(site: Site, group: str | None) -> None:
    to = topic(site.name(), group)
    served = [serve(site, replace(to, needs=((("x-a", value),),))) for value in "ab"]
    other = serve(site, replace(topic(to.name, group and "other"), needs=((("x-a", "b"),), (("x-a", "c"),))))
    connection = cast("Any", site.client).connect()
    exchange = f"rpc:{'group' if group else 'topic'}:{to.name}"

    def is_there() -> bool:
        look = Exchange.Declare(exchange=exchange, exchange_type="headers", passive=True)
        return bool(connection.succeeds(1, look, Exchange.DeclareOk, 404))

    try:
        assert is_there()
        for server, serving in [*served, other]:
            assert is_there()
            server.stop()
            serving.join(PATIENCE)
        assert not is_there()
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["x-" + "a" * 127, "x-" + "ü" * 64, "x-first-death-queue"], ids=ascii)
def test_a_header_that_would_not_arrive_as_it_is_is_refused(site: Site, name: str) -> None:
    with pytest.raises(SerializationError, match="does not carry"):
        site.tell(b"log:news", topic(site.name()), **{name: "1"})


def test_a_header_may_have_a_long_name(site: Site) -> None:
    to, name = topic(site.name()), "x-" + "ü" * 63
    serve(site, replace(to, needs=(((name, "1"),),)))
    site.tell(b"log:not needed", to)
    site.tell(b"log:news", to, **{name: "1"})
    eventually(lambda: site.log.lines() == ["toy news"])
