"""The part of the conformance suite that is about workers that die, and connections that are cut."""

from __future__ import annotations

from contextlib import closing

from ..transport import LOST
from .site import Site, eventually, request


class Deaths:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    def test_a_cut_connection_loses_nothing(self, site: Site) -> None:
        site.needs("processes")
        assert site.disrupt is not None, "give Site a way to cut connections"
        toy = site.toy()
        site.serve(toy)
        waiting = site.ask(b"hold:x")
        eventually(site.log.lines)
        site.disrupt()
        toy.released.set()
        assert waiting.receive(site.patience).body == b"x"
        site.disrupt()
        assert site.ask(b"echo:y").receive(site.patience).body == b"y"
        lines = site.log.lines()
        assert lines.count("held x") == 1, lines

    def test_a_worker_killed_in_the_middle_loses_nothing(self, site: Site) -> None:
        site.needs("redelivers")
        message = request(b"die_at_first:1")
        with closing(site.client.request(site.queue(), message)) as replies:
            site.spawn()
            eventually(site.log.lines)
            site.spawn()
            assert replies.receive(site.patience * 2).body == b"2"
        assert site.log.lines() == [f"{message.id} 1", f"{message.id} 2"]

    def test_a_message_that_kills_every_worker_is_given_up(self, site: Site) -> None:
        site.needs("redelivers")
        replies = site.ask(b"die_at_first:99", ttl=120)
        workers = [site.spawn() for _ in range(5)]
        assert LOST in replies.receive(site.patience * 3).headers
        assert len(site.log.lines()) == 3
        eventually(lambda: sum(worker.poll() is None for worker in workers) == 2)  # it is told as they die

    def test_a_message_not_to_be_redelivered_is_not(self, site: Site) -> None:
        site.needs("redelivers")
        replies = site.ask(b"die_once:")
        for _ in range(2):
            site.spawn()
        assert LOST in replies.receive(site.patience * 2).headers
        assert site.log.lines() == ["once"]
