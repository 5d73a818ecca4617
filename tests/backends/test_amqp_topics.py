"""What is special to topics on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from pamqp.commands import Queue

from rpc.testing.site import PATIENCE, Site, eventually
from rpc.transport import topic
from tests.rabbit import rabbit


@pytest.fixture
def site() -> Iterator[Site]:
    with rabbit() as broker, Site(broker.admin_url, named=broker.declare) as site:
        yield site


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
    eventually(lambda: [line for line in site.log.lines() if line[-1].isdecimal()] == ["b 0", "b 1", "b 2"])
