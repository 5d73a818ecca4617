"""The part of the conformance suite that is about what people see of a backend: what is in its queues, and
the last replies that are kept."""

from __future__ import annotations

import threading
from functools import partial
from typing import cast

from ..errors import Cancelled
from ..inspection import Counts, DeadLetters, Inspection, Results
from ..transport import KEEP, Delivery, Message, queue, unpacked
from .site import Site, eventually, request


class Inspections:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    def test_what_waits_is_counted(self, site: Site) -> None:
        site.needs("counts")
        count = cast("Counts", site.client).queue_info
        assert (count(site.name()).waiting, count(site.name()).workers) == (0, 0)
        for number in range(3):
            site.tell(b"hold:%d" % number)
        eventually(lambda: count(site.name()).waiting == 3)
        assert (count(site.name()).oldest or 0) >= 0
        site.serve(threads=2)
        eventually(lambda: count(site.name()).running in (2, None) and count(site.name()).workers == 1)
        site.release()
        eventually(lambda: (count(site.name()).waiting, count(site.name()).running or 0) == (0, 0))

    def test_what_is_dead_and_scheduled_is_counted(self, site: Site) -> None:
        site.needs("counts", "dead-letters")
        count = cast("Counts", site.client).queue_info
        if "delay" in site.client.features:
            site.tell(b"echo:x", delay="60")
        site.serve()
        site.tell(b"bury:x")
        eventually(lambda: count(site.name()).dead == 1)
        assert count(site.name()).scheduled in ((1, None) if "delay" in site.client.features else (0, None))

    def test_what_waits_and_what_runs_is_seen(self, site: Site) -> None:
        site.needs("inspection")
        look = cast("Inspection", site.client).entries
        first, large = site.tell(b"hold:1"), site.tell(b"hold:" + b"x" * 200_000)
        seen = [*look(site.name())]
        assert [(each.id, each.state, unpacked(each.frame).body[:6]) for each in seen] == [
            (first, "waiting", b"hold:1"),
            (large, "waiting", b"hold:x"),
        ]
        assert all(each.at and not each.worker for each in seen)
        site.serve()
        eventually(lambda: [each.state for each in look(site.name(), first)] == ["running"])
        [runs] = look(site.name(), first)
        assert runs.worker
        assert unpacked(runs.frame).body == b"hold:1"
        assert [each.state for each in look(site.name(), large)] == ["waiting"]
        assert [*look(site.name(), "nobody")] == []
        site.release()
        eventually(lambda: [*look(site.name())] == [])

    def test_what_is_scheduled_is_seen(self, site: Site) -> None:
        site.needs("inspection", "delay")
        id = site.tell(b"echo:later", delay="60")
        [entry] = cast("Inspection", site.client).entries(site.name())
        assert (entry.id, entry.state, entry.queue) == (id, "scheduled", site.name())

    def test_what_waits_is_withdrawn(self, site: Site) -> None:
        site.needs("inspection")
        inspection = cast("Inspection", site.client)
        first, large, last = site.tell(b"log:1"), site.tell(b"log:" + b"2" * 200_000), site.tell(b"log:3")
        for id in first, large:
            [entry] = inspection.entries(site.name(), id)
            assert inspection.withdraw(entry)
        assert [each.id for each in inspection.entries(site.name())] == [last]
        site.serve()
        eventually(lambda: site.log.lines() == ["toy 3"])

    def test_what_is_scheduled_is_withdrawn(self, site: Site) -> None:
        site.needs("inspection", "delay")
        inspection = cast("Inspection", site.client)
        site.tell(b"log:1", delay="0.5")
        [entry] = inspection.entries(site.name())
        assert inspection.withdraw(entry)
        site.tell(b"log:2", delay="0.6")
        site.serve()
        eventually(lambda: site.log.lines() == ["toy 2"])

    def test_whoever_runs_what_is_withdrawn_is_told(self, site: Site) -> None:
        site.needs("inspection")
        inspection = cast("Inspection", site.client)
        site.serve()
        id = site.tell(b"until_cancelled:x")
        eventually(lambda: "waiting" in site.log.lines())

        [entry] = eventually(lambda: [*inspection.entries(site.name(), id)])
        assert (entry.state, inspection.withdraw(entry)) == ("running", True)
        eventually(lambda: any(line.startswith("cancelled") for line in site.log.lines()))

    def test_what_is_withdrawn_in_the_middle_of_an_attempt_is_not_tried_again(self, site: Site) -> None:
        """Even if its worker does not know of that when it postpones it; whoever waits for it is told."""
        site.needs("inspection", "delay")
        inspection, withdrawn = cast("Inspection", site.client), threading.Event()

        def handler(delivery: Delivery) -> Message | None:
            site.log.write(f"attempt {delivery.message.attempt}")
            withdrawn.wait(site.patience)
            try:
                delivery.postpone(0.01, delivery.message.replace(attempt=2))
            except Cancelled:
                return Message(b"told", {"id": delivery.message.id})
            return None

        site.serve(handler)
        message = request(b"x")
        replies = site.client.request(site.queue(), message)
        eventually(site.log.lines)
        [entry] = inspection.entries(site.name(), message.id)
        assert inspection.withdraw(entry)
        withdrawn.set()
        assert replies.receive(site.patience).body == b"told"
        assert site.log.lines() == ["attempt 1"]
        eventually(lambda: [*inspection.entries(site.name())] == [])

    def test_what_is_no_longer_where_it_was_seen_is_not_withdrawn_there(self, site: Site) -> None:
        site.needs("inspection", "delay")
        inspection, seen = cast("Inspection", site.client), threading.Event()

        def handler(delivery: Delivery) -> None:
            seen.wait(site.patience)
            delivery.postpone(60, delivery.message.replace(attempt=2))

        site.serve(handler)
        id = site.tell(b"x")
        [entry] = eventually(lambda: [each for each in inspection.entries(site.name(), id) if each.worker])
        seen.set()
        [later] = eventually(lambda: [each for each in inspection.entries(site.name()) if not each.worker])
        assert inspection.withdraw(entry) or inspection.withdraw(later)
        eventually(lambda: [*inspection.entries(site.name())] == [])

    def test_a_last_reply_is_kept(self, site: Site) -> None:
        site.needs("results")
        result = cast("Results", site.client).result

        def answer(delivery: Delivery) -> Message:
            return Message(delivery.message.body, {"id": delivery.message.id, KEEP: "60", "by": "me"})

        site.serve(answer)
        for body in b"small", b"x" * 200_000:
            id = site.tell(body)
            last = eventually(partial(result, site.name(), id))
            assert (last.body, last.id, last.headers["by"]) == (body, id, "me")
        assert result(site.name(), "nobody") is None
        assert result(f"{site.name()}2", id) is None

    def test_what_is_not_to_be_kept_is_not(self, site: Site) -> None:
        site.needs("results")
        site.serve()
        id = site.tell(b"log:x")
        eventually(site.log.lines)
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        assert cast("Results", site.client).result(site.name(), id) is None

    def test_the_last_reply_to_what_is_buried_is_kept(self, site: Site) -> None:
        site.needs("results", "dead-letters")

        def answer(delivery: Delivery) -> None:
            delivery.bury("why", Message(b"told", {"id": delivery.message.id, KEEP: "60"}))

        site.serve(answer)
        id = site.tell(b"x")
        last = eventually(lambda: cast("Results", site.client).result(site.name(), id))
        assert last.body == b"told"

    def test_a_reply_from_elsewhere_is_kept(self, site: Site) -> None:
        site.needs("results")
        results = cast("Results", site.client)
        results.keep(site.name(), "id", Message(b"x", {"id": "id"}), 60.0)
        results.keep(site.name(), "gone", Message(b"x", {"id": "gone"}), 0.05)
        kept = results.result(site.name(), "id")
        assert kept
        assert kept.body == b"x"
        eventually(lambda: results.result(site.name(), "gone") is None)

    def test_a_dead_letter_has_a_reason_and_a_traceback(self, site: Site) -> None:
        site.needs("dead-letters")

        def answer(delivery: Delivery) -> None:
            delivery.bury("ValueError: ä\nTraceback\n  line", None)

        site.serve(answer)
        site.tell(b"x")
        shelf = cast("DeadLetters", site.client)
        [letter] = eventually(lambda: shelf.dead_letters(queue(site.name()).name))
        assert (letter.why, letter.traceback) == ("ValueError: ä", "Traceback\n  line")
