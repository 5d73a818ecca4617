"""The part of the conformance suite that is about topics and inboxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from ..addresses import Address, inbox, topic
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

    def test_a_request_to_a_topic_gathers_replies(self, site: Site) -> None:
        site.needs("topics")
        to = topic(site.name())
        for name in "ab":
            site.serve(site.toy(name), to)
        _until_heard(site, to, "ab")
        replies = site.ask(b"whoami:", to)
        assert {replies.receive(site.patience).body, replies.receive(site.patience).body} == {b"a", b"b"}

    def test_an_inbox_keeps_what_comes_before_its_owner(self, site: Site) -> None:
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
