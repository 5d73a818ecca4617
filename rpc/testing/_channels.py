"""The part of the conformance suite that is about topics and inboxes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import cast
from uuid import uuid4

import pytest

from ..inspection import Counts
from ..transport import Address, Delivery, Locks, Replay, Subscriptions, inbox, topic
from ._features import burying, letters_of
from .site import Site, eventually


class Channels:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    def test_every_receiver_of_a_topic_gets_each_message(self, site: Site) -> None:
        site.needs("topics")
        to = topic(site.name())
        for name in "abc":
            site.serve(site.toy(name), to)
        _until_heard(site, to, "abc")
        site.tell(b"log:news", to)
        eventually(lambda: sum(line.endswith("news") for line in site.log.lines()) == 3)
        assert {line for line in site.log.lines() if "news" in line} == {"a news", "b news", "c news"}

    def test_a_group_shares_one_copy(self, site: Site) -> None:
        site.needs("topics", "groups")
        plain = topic(site.name())
        site.serve(site.toy("alone"), plain)
        for name in "xy":
            site.serve(site.toy(name), topic(site.name(), group="team"))
        _until_heard(site, plain, ["alone", "xy"])
        for number in range(20):  # one after the other: a copy too many shows while the next is waited for
            site.tell(b"log:n%d" % number, plain)
            eventually(partial(_heard_by_both, site, f"n{number}"))
        heard = Counter("alone" if "alone" in line else "team" for line in site.log.lines() if " n" in line)
        assert heard == {"alone": 20, "team": 20}

    def test_a_durable_subscription_keeps_what_comes_while_nobody_serves_it(self, site: Site) -> None:
        with _subscription(site) as to:
            server, thread = site.serve(None, to)
            _until_subscribed(site, to)
            server.stop()
            thread.join(site.patience)
            before = len(site.log.lines())
            for number in range(3):
                site.tell(b"log:%d" % number, topic(site.name()))
            site.serve(None, to)
            eventually(lambda: site.log.lines()[before:] == ["toy 0", "toy 1", "toy 2"])

    def test_the_members_of_a_durable_subscription_share_one_copy(self, site: Site) -> None:
        with _subscription(site) as team, _subscription(site, "others") as others:
            for name, to in ("x", team), ("y", team), ("other", others):
                site.serve(site.toy(name), to)
                _until_subscribed(site, to, name)
            for number in range(20):
                site.tell(b"log:n%d" % number, topic(site.name()))
            eventually(lambda: sum(" n" in line for line in site.log.lines()) == 40)
            heard = Counter(line.startswith("other ") for line in site.log.lines() if " n" in line)
            assert heard == {True: 20, False: 20}

    def test_what_a_durable_subscription_could_not_bury_is_delivered_again(self, site: Site) -> None:
        site.needs("dead-letters")
        with _subscription(site) as to:
            server, thread = site.serve(None, to)
            _until_subscribed(site, to)
            server.stop()
            thread.join(site.patience)
            site.log.clear()
            site.tell(b"x", topic(site.name()))
            site.serve(burying(site), to)
            assert [letter.why for letter in letters_of(site, 1, to.subscription_queue.name)] == ["why"]

    def test_durable_subscriptions_of_one_worker_get_a_copy_each(self, site: Site) -> None:
        with _subscription(site) as team, _subscription(site, "others") as others:
            heard = Counter[tuple[Address, bytes]]()

            def handler(delivery: Delivery) -> None:
                heard[delivery.to, delivery.message.body] += 1

            def both_hear() -> bool:
                site.tell(b"hello", topic(site.name()))
                return bool(heard[team, b"hello"] and heard[others, b"hello"])

            site.serve(handler, team, others)
            eventually(both_hear)
            for number in range(20):
                site.tell(b"%d" % number, topic(site.name()))
            expected = [(to, b"%d" % number) for to in (team, others) for number in range(20)]
            eventually(lambda: all(heard[each] for each in expected))
            assert [heard[each] for each in expected] == [1] * 40

    def test_what_nobody_subscribes_to_any_more_is_not_kept(self, site: Site) -> None:
        with _subscription(site) as to:
            server, thread = site.serve(None, to)
            _until_subscribed(site, to)
            server.stop()
            thread.join(site.patience)
            site.tell(b"log:forgotten", topic(site.name()))
            _forget(site, to)
            site.tell(b"log:forgotten", topic(site.name()))
            site.serve(None, to)
            _until_subscribed(site, to)
            assert "toy forgotten" not in site.log.lines()

    def test_it_tells_which_subscriptions_there_are(self, site: Site) -> None:
        with _subscription(site) as to:
            subscribed = getattr(site.backend(), "subscribed", None)
            if subscribed is None:
                pytest.skip(f"{site.url.split(':')[0]} has no feature like subscribed()")
            server, thread = site.serve(None, to)
            eventually(lambda: to in subscribed())
            server.stop()
            thread.join(site.patience)
            assert to in subscribed()
        assert to not in subscribed()

    def test_it_counts_who_serves_a_subscription_and_what_is_kept_for_it(self, site: Site) -> None:
        site.needs("counts")
        with _subscription(site) as to:
            queue_info = cast("Counts", site.client).queue_info
            shelf = to.subscription_queue.name
            server, thread = site.serve(None, to)
            _until_subscribed(site, to)
            eventually(lambda: (queue_info(shelf).workers, queue_info(shelf).waiting) == (1, 0))
            server.stop()
            thread.join(site.patience)
            eventually(lambda: queue_info(shelf).workers == 0)
            site.tell(b"log:kept", topic(site.name()))
            eventually(lambda: queue_info(shelf).waiting == 1)

    def test_a_handler_knows_where_its_message_arrived(self, site: Site) -> None:
        site.needs("topics", "groups")
        name = site.name()
        with _subscription(site) as durable:
            addresses = [site.queue(), topic(name), topic(name, group="some"), durable, inbox(name)]
            arrived = set()

            def handler(delivery: Delivery) -> None:
                arrived.add(delivery.to)

            def all_arrived() -> bool:
                for to in (site.queue(), topic(name), inbox(name)):
                    site.tell(b"", to)
                return arrived == {*addresses}

            site.serve(handler, *addresses)
            eventually(all_arrived)

    # Replay.

    def test_what_was_sent_to_a_topic_is_remembered(self, site: Site) -> None:
        site.needs("replay")
        to, replay = topic(site.name()), cast("Replay", site.client).replay
        assert [*replay(to, None)] == []
        for number in range(600):
            site.tell(b"%d" % number, to)
        site.tell(b"elsewhere", topic(site.name("second")))
        for seconds in None, 600.0:
            found = [*replay(to, seconds)]
            assert [message.body for message in found] == [b"%d" % number for number in range(600)]
            assert len({message.id for message in found}) == 600
        time.sleep(0.01)
        assert [*replay(to, 0.005)] == []

    # Locks.

    def test_a_lock_has_one_owner_until_it_is_given_back(self, site: Site) -> None:
        site.needs("locks")
        one, other = cast("Locks", site.backend()), cast("Locks", site.backend())
        name, second = site.name(), site.name("second")
        assert one.acquire(name, "one", 30)
        assert one.acquire(name, "one", 30)
        assert not other.acquire(name, "other", 30)
        assert other.acquire(second, "other", 30)
        other.release(name, "other")
        assert not other.acquire(name, "other", 30)
        one.release(name, "one")
        assert other.acquire(name, "other", 30)
        assert not one.acquire(name, "one", 30)
        other.release(name, "other")
        other.release(second, "other")

    def test_a_lock_is_lost_with_its_owner(self, site: Site) -> None:
        site.needs("locks")
        one, other = site.backend(), cast("Locks", site.backend())
        assert cast("Locks", one).acquire(site.name(), "one", 0.5)
        one.close()
        eventually(lambda: other.acquire(site.name(), "other", 30))
        other.release(site.name(), "other")

    # Connections.

    def test_it_tells_whether_it_is_connected(self, site: Site) -> None:
        told: list[bool] = []
        server, thread = site.serve(on_change=told.append)
        eventually(lambda: told == [True])
        if site.disrupt:
            site.disrupt()
            eventually(lambda: told == [True, False, True])
        server.stop()
        thread.join(site.patience)
        assert told[-1] is False

    def test_a_request_to_a_topic_gathers_replies(self, site: Site) -> None:
        site.needs("topics")
        to = topic(site.name())
        for name in "ab":
            site.serve(site.toy(name), to)
        _until_heard(site, to, "ab")
        replies = site.ask(b"whoami:", to)
        assert {replies.receive(site.patience).body, replies.receive(site.patience).body} == {b"a", b"b"}

    def test_an_inbox_keeps_what_comes_before_its_owner(self, site: Site) -> None:
        site.needs("store-and-forward")
        to = inbox(site.name())
        site.tell(b"log:before", to)
        site.serve(site.toy(), to)
        eventually(site.log.lines)
        site.tell(b"log:after", to)
        eventually(lambda: site.log.lines() == ["toy before", "toy after"])

    def test_a_busy_queue_does_not_keep_an_inbox_waiting(self, site: Site) -> None:
        site.serve(site.toy(), site.queue(), inbox(site.name()))
        site.tell(b"hold:x")
        eventually(site.log.lines)
        site.tell(b"log:urgent", inbox(site.name()))
        eventually(lambda: site.log.lines() == ["holding x", "toy urgent"])


@contextmanager
def _subscription(site: Site, group: str = "team") -> Iterator[Address]:
    site.needs("topics", "subscriptions")
    to = topic(site.name(), group=group, durable=True)
    try:
        yield to
    finally:
        _forget(site, to)


def _forget(site: Site, to: Address) -> None:
    cast("Subscriptions", site.client).unsubscribe(to)


def _until_subscribed(site: Site, to: Address, name: str = "toy") -> None:
    """Send until this member hears it, and wait for all that is kept by then."""
    mark, numbers, sent = uuid4().hex, count(), [""]

    def has_begun() -> bool:
        sent[0] = f"{mark}-{next(numbers)}"
        site.tell(f"log:{sent[0]}".encode(), topic(to.name))
        return any(line.startswith(f"{name} {mark}") for line in site.log.lines())

    eventually(has_begun)
    eventually(lambda: any(line.endswith(f" {sent[0]}") for line in site.log.lines()))


def _until_heard(site: Site, to: Address, listeners: Sequence[str]) -> None:
    """Send until each of the listeners, given by the names of its members, has heard something."""

    def all_heard() -> bool:
        site.tell(b"log:hello", to)
        heard = {line.split()[0] for line in site.log.lines()}
        return all(set([members] if members == "alone" else members) & heard for members in listeners)

    eventually(all_heard)


def _heard_by_both(site: Site, text: str) -> bool:
    lines = {*site.log.lines()}
    return f"alone {text}" in lines and not lines.isdisjoint({f"x {text}", f"y {text}"})
