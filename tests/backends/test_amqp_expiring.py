"""Jobs with a time to live that nobody waits for, on RabbitMQ: the queue that they have beside the others."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from rpc import NoReceivers, QueueFull
from rpc.backends.amqp.wire import Basic
from rpc.testing._features import letters_of
from rpc.testing.site import Site, eventually
from rpc.transport import Delivery, Message
from tests.rabbit import Node, Rabbit

EXPIRED = "RpcTimeout: it expired before a worker came to it"


@pytest.fixture(params=[False, True], ids=["blocking", "in a loop"])
def site(broker: Rabbit, request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(broker.url, disrupt=broker.proxy.cut, named=broker.declare, asynchronous=request.param) as site:
        yield site


def letters(site: Site) -> list[str]:
    return [each.why for each in cast("Any", site.client).dead_letters(site.name())]


def test_a_queue_that_was_never_served_takes_none(broker: Rabbit) -> None:
    with Site(broker.url) as site:
        for _ in range(2):
            with pytest.raises(NoReceivers):
                site.tell(b"x", ttl="60")


def test_workers_that_run_are_told_of_the_first_one(site: Site) -> None:
    site.serve()
    assert site.ask(b"echo:x").receive(site.patience).body == b"x"
    site.tell(b"log:1", ttl="60")
    eventually(lambda: site.log.lines() == ["toy 1"])
    assert site.disrupt
    site.disrupt()
    site.tell(b"log:2", ttl="60")
    eventually(lambda: site.log.lines() == ["toy 1", "toy 2"])


def test_nobody_needs_to_serve_a_queue_for_it_to_expire(site: Site) -> None:
    site.tell(b"x", ttl="0")
    site.tell(b"x", ttl="0.05")
    site.tell(b"x", ttl="60")
    eventually(lambda: letters(site) == [EXPIRED] * 2)
    info = cast("Any", site.client).queue_info(site.name())
    assert (info.waiting, info.dead) == (1, 2)


def test_a_queue_that_was_deleted_is_made_again(site: Site) -> None:
    site.tell(b"log:1", ttl="60")
    other = site.backend()
    cast("Any", other).delete(site.queue())
    with pytest.raises(NoReceivers):
        site.tell(b"log:2", ttl="60")
    cast("Any", other).declare(site.queue())
    site.tell(b"log:3", ttl="60")
    site.serve()
    eventually(lambda: site.log.lines() == ["toy 3"])


@pytest.mark.parametrize("pause", [0.0, 0.03], ids=["fast", "slow"])
@pytest.mark.parametrize("others", [(), ("low",)], ids=["one queue", "two"])
def test_they_and_others_take_turns(site: Site, pause: float, others: tuple[str, ...]) -> None:
    done: list[bytes] = []

    def answer(delivery: Delivery) -> None:
        time.sleep(pause)
        done.append(delivery.message.body)

    sent = 200 if not pause else 20
    for number in range(sent):
        site.tell(b"-%d" % number)
        site.tell(b"t%d" % number, ttl="60")
    site.serve(answer, site.queue(), *map(site.queue, others))
    eventually(lambda: len(done) == 2 * sent)
    assert len({*done}) == 2 * sent
    kinds = bytes(each[0] for each in done)
    if pause:  # else a worker may have been given many of either
        assert b"-" * 5 not in kinds[:sent]
        assert b"t" * 5 not in kinds[:sent]
    for kind in b"-t" if pause else b"":
        came = [int(each[1:]) for each in done if each[0] == kind]
        assert sum(after < before for before, after in pairwise(came)) <= 2, came


def test_a_busy_worker_leaves_them_to_an_idle_one(site: Site) -> None:
    site.tell(b"log:0", ttl="60")
    site.serve(site.toy("busy"))
    eventually(lambda: site.log.lines() == ["busy 0"])
    site.tell(b"hold:x", ttl="60")
    eventually(lambda: "holding x" in site.log.lines())
    site.tell(b"log:1", ttl="60")
    site.serve(site.toy("idle"))
    site.tell(b"log:2", ttl="60")
    eventually(lambda: {"idle 1", "idle 2"} <= {*site.log.lines()})


def test_one_whose_worker_died_comes_again_and_counts(site: Site) -> None:
    site.tell(b"die_at_first:2", ttl="60")
    for _ in range(2):
        site.spawn().wait(site.patience)
    site.serve()
    eventually(lambda: [line[-2:] for line in site.log.lines()] == [" 1", " 2", " 3"])


def test_one_that_may_not_be_done_twice_is_not(site: Site) -> None:
    site.tell(b"die_once:x", ttl="60")
    site.spawn().wait(site.patience)
    site.serve()
    [why] = eventually(lambda: letters(site))
    assert why == "it was begun, and may not be done twice"
    assert site.log.lines() == ["once"]


def test_one_that_is_tried_again_is_not_kept_from_others(site: Site) -> None:
    site.tell(b"again:1", ttl="60")
    site.serve()
    eventually(lambda: site.log.lines() == ["attempt 1", "attempt 2"])


def test_they_count_in_a_bounded_queue(site: Site) -> None:
    backend = site.backend(max_length=2)
    messages = [Message(b"x", {"id": f"m{number}", "ttl": "60"}) for number in range(3)]
    backend.send(site.queue(), messages[0].replace(ttl=None))
    backend.send(site.queue(), messages[1])
    with pytest.raises(QueueFull):
        backend.send(site.queue(), messages[2])


def test_prefixes_keep_them_apart(broker: Rabbit) -> None:
    with Site(f"{broker.url}?prefix=one") as one, Site(f"{broker.url}?prefix=two") as two:
        name = one.queue()
        for site in one, two:
            cast("Any", site.client).declare(name)
        try:
            one.tell(b"x", ttl="0")
            eventually(lambda: letters(one))
            assert cast("Any", two.client).dead_letters(one.name()) == []
        finally:
            for site in one, two:
                cast("Any", site.client).delete(name)


@pytest.mark.parametrize("junk", [
    [], "x", [[]], [{}], [{"time": "now"}], [{"reason": "expired"}],
])  # fmt: skip
def test_what_was_forged_is_no_dead_letter(broker: Rabbit, junk: Any) -> None:
    with Site(broker.url, named=broker.declare) as site:
        site.tell(b"x", ttl="0")
        eventually(lambda: letters(site))
        properties = Basic.Properties(headers={"x-death": junk})
        senders = cast("Any", site.client).senders
        senders.do(lambda on: on.confirmed(2, f"rpc:dead:{site.name()}", properties, b"junk"))
        assert letters(site) == [EXPIRED]


@pytest.mark.parametrize("end", ["revive", "drop"])
def test_one_that_rabbitmq_moved_twice_is_one(site: Site, end: str) -> None:
    backend = cast("Any", site.client)

    def put_twice(on: Any) -> None:
        got = on.ask(3, Basic.Get(queue=dead), Basic.GetOk)
        on.confirmed(2, dead, got.properties, got.body)
        on.close_channel(3)  # gives the first one back

    site.tell(b"x", ttl="0")
    site.tell(b"y", ttl="0")
    eventually(lambda: len(letters(site)) == 2)
    dead = f"rpc:dead:{site.name()}"
    backend.senders.do(put_twice)
    assert backend.queue_info(site.name()).dead == 3
    newest, twice = backend.dead_letters(site.name())  # what lay first is the oldest
    assert getattr(backend, end)(twice)
    assert [each.id for each in backend.dead_letters(site.name())] == [newest.id]
    assert not getattr(backend, end)(twice)
    assert backend.queue_info(site.name()).waiting == (end == "revive")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_nothing_is_lost_when_rabbitmq_is_killed(tmp_path: Path, queue_type: str) -> None:
    node = Node(tmp_path)
    node.start()
    try:
        with Site(f"{node.url}?queue_type={queue_type}") as site:
            backend = cast("Any", site.client)
            backend.declare(site.queue())
            sent = {site.tell(b"", ttl="0")}
            node.stop()  # what was made just now may be forgotten with its death
            node.start()
            site.tell(b"")  # gets a connection again: what expires at once is tried once
            sent |= {site.tell(b"", ttl=f"{number / 1000}") for number in range(300)}
            node.stop(signal.SIGKILL)
            node.start()
            eventually(lambda: {each.id for each in letters_of(site, len(sent))} == sent)
    finally:
        node.stop(signal.SIGKILL)
