"""The part of the conformance suite that is about messages which are to be delivered later, or once more."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from ..errors import BackendUnavailable
from ..transport import LOST, Delivery, Message
from .site import ONCE, Answer, Site, eventually


class Delays:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    # Delay.

    def test_a_delayed_message_comes_when_it_is_due_and_not_before(self, site: Site) -> None:
        site.needs("delay")
        came: list[tuple[bytes, float]] = []

        def handler(delivery: Delivery) -> None:
            came.append((delivery.message.body, time.monotonic()))

        site.serve(handler)
        sent = time.monotonic()
        site.tell(b"later", delay="0.4")
        site.tell(b"now")
        eventually(lambda: len(came) == 2)
        assert [body for body, _ in came] == [b"now", b"later"]
        assert came[1][1] - sent >= 0.4

    def test_delayed_messages_come_in_the_order_in_which_they_are_due(self, site: Site) -> None:
        site.needs("delay")
        site.serve()
        for number, delay in (2, "0.6"), (0, "0.2"), (3, "0.8"), (1, "0.4"):
            site.tell(b"log:%d" % number, delay=delay)
        eventually(lambda: len(site.log.lines()) == 4)
        assert site.log.lines() == [f"toy {number}" for number in range(4)]

    def test_a_delayed_message_comes_to_its_queue_among_several(self, site: Site) -> None:
        site.needs("delay", "priorities")
        came: list[tuple[str, bytes]] = []

        def handler(delivery: Delivery) -> None:
            came.append((delivery.to.name, delivery.message.body))

        for number, part in enumerate("abab"):
            site.tell(b"%d" % number, site.queue(part), delay=f"{0.2 * (number + 1):.1f}")
        time.sleep(0.5)  # some wait by the time that the others are due
        site.serve(handler, site.queue("a"), site.queue("b"))
        eventually(lambda: len(came) == 4)
        assert sorted(body for _, body in came) == [b"0", b"1", b"2", b"3"]
        assert {(name, int(body) % 2) for name, body in came} == {(site.name("a"), 0), (site.name("b"), 1)}

    def test_a_delay_passes_while_nobody_serves(self, site: Site) -> None:
        site.needs("delay")
        site.tell(b"log:first", delay="0.1")
        site.tell(b"log:second", delay="0.2")
        time.sleep(0.3)  # it is time itself that is tested
        site.serve()
        eventually(lambda: site.log.lines() == ["toy first", "toy second"])

    def test_a_request_may_be_delayed(self, site: Site) -> None:
        site.needs("delay")
        site.serve()
        sent = time.monotonic()
        assert site.ask(b"echo:x", delay="0.3").receive(site.patience).body == b"x"
        assert time.monotonic() - sent >= 0.3

    def test_what_is_withdrawn_while_it_is_delayed_does_not_come(self, site: Site) -> None:
        site.needs("delay")
        site.ask(b"log:withdrawn", delay="0.1").close()
        site.tell(b"log:kept", delay="0.3")
        site.serve()
        eventually(site.log.lines)
        assert site.log.lines() == ["toy kept"]

    def test_the_time_that_is_left_passes_while_a_message_is_delayed(self, site: Site) -> None:
        site.needs("delay")
        seen: dict[bytes, float] = {}

        def handler(delivery: Delivery) -> None:
            seen[delivery.message.body] = delivery.message.ttl or 0.0

        site.serve(handler)
        site.tell(b"expired", delay="0.2", ttl="0.1")
        site.tell(b"wanted", delay="0.4", ttl="60")
        eventually(lambda: b"wanted" in seen)
        assert 60 - site.patience < seen[b"wanted"] <= 59.8
        assert seen.get(b"expired", 0.0) <= 0.0

    # Another attempt.

    def test_a_postponed_message_comes_again_as_it_was_changed(self, site: Site) -> None:
        site.needs("delay")
        site.serve()
        sent = time.monotonic()
        assert site.ask(b"again:2").receive(site.patience).body == b"3"
        assert time.monotonic() - sent >= 2 * 0.2
        assert site.log.lines() == ["attempt 1", "attempt 2", "attempt 3"]

    def test_a_postponed_message_that_nobody_waits_for_comes_again_too(self, site: Site) -> None:
        site.needs("delay")
        site.tell(b"again:1")
        site.serve()
        eventually(lambda: site.log.lines() == ["attempt 1", "attempt 2"])

    def test_who_postponed_a_message_cannot_finish_the_next_attempt(self, site: Site) -> None:
        site.needs("delay")
        held: list[Delivery] = []

        def handler(delivery: Delivery) -> Message | None:
            held.append(delivery)
            if len(held) == 1:
                delivery.postpone(0.1, delivery.message.replace(attempt=2))
                return None
            held[0].finish(Message(b"the first", {"id": delivery.message.id}))
            return Message(b"the second", {"id": delivery.message.id})

        site.serve(handler)
        assert site.ask(b"x").receive(site.patience).body == b"the second"

    def test_what_is_withdrawn_between_two_attempts_does_not_come_again(self, site: Site) -> None:
        site.needs("delay")
        replies = site.ask(b"again:9")
        site.serve()
        eventually(site.log.lines)
        replies.close()
        attempts = len(site.log.lines())
        site.tell(b"log:kept", delay="0.5")
        eventually(lambda: "toy kept" in site.log.lines())
        assert len(site.log.lines()) <= attempts + 2  # one may have begun when the caller left

    # With an idempotency key.

    def test_of_delayed_messages_with_a_key_only_the_first_is_handled(self, site: Site) -> None:
        site.needs("delay", "idempotency")
        site.tell(b"log:first", delay="0.4", **ONCE)
        site.tell(b"log:second", delay="0.1", **ONCE)
        third = site.ask(b"log:third", **ONCE)
        site.serve()
        assert third.receive(site.patience).body == b"logged"
        site.tell(b"log:fourth", delay="0.1", **ONCE)
        site.tell(b"log:other", delay="0.3")
        eventually(lambda: "toy other" in site.log.lines())
        assert site.log.lines() == ["toy first", "toy other"]

    def test_between_two_attempts_a_key_is_not_free(self, site: Site) -> None:
        site.needs("delay", "idempotency")
        site.serve()
        first = site.ask(b"again:2", **ONCE)
        eventually(site.log.lines)
        second = site.ask(b"again:2", **ONCE)
        assert [each.receive(site.patience).body for each in (first, second)] == [b"3", b"3"]
        assert site.log.lines() == ["attempt 1", "attempt 2", "attempt 3"]

    # Faults.

    @pytest.mark.parametrize("is_waited_for", [True, False], ids=["a request", "a message"])
    def test_what_is_postponed_as_the_connection_breaks_comes_again(
        self, site: Site, is_waited_for: bool
    ) -> None:
        site.needs("delay", "processes")
        site.serve(_postponing(site))
        if is_waited_for:
            replies = site.ask(b"x")
            assert replies.receive(site.patience).body in (b"2", b"unsettled")
        else:
            site.tell(b"x")
            eventually(lambda: "attempt 2" in site.log.lines())

    def test_a_caller_whose_connection_breaks_between_two_attempts_gets_his_reply(self, site: Site) -> None:
        site.needs("delay", "processes")
        assert site.disrupt is not None

        def handler(delivery: Delivery) -> Message | None:
            message = delivery.message
            if message.attempt > 1:
                return Message(b"done", {"id": message.id})
            delivery.postpone(0.5, message.replace(attempt=2))
            site.log.write("postponed")
            return None

        site.serve(handler)
        replies = site.ask(b"x")
        eventually(site.log.lines)
        site.disrupt()
        assert replies.receive(site.patience).body == b"done"

    @pytest.mark.parametrize("promise", [b"", b"once"], ids=["at least once", "at most once"])
    def test_a_worker_that_dies_as_it_postpones_loses_nothing(self, site: Site, promise: bytes) -> None:
        site.needs("delay", "redelivers")
        replies = site.ask(b"postpone_and_die:" + promise)
        for _ in range(2):
            site.spawn()
        reply = replies.receive(site.patience * 2)
        attempts = site.log.lines()
        if promise:
            assert len(attempts) == len(set(attempts))
            assert reply.body == b"done" or LOST in reply.headers
        else:
            assert reply.body == b"done"


def _postponing(site: Site) -> Answer:
    """Postpones what comes, unless it is the second attempt; at first, the connection breaks just then."""

    def handler(delivery: Delivery) -> Message | None:
        message, is_first = delivery.message, not site.log.lines()
        site.log.write(f"attempt {message.attempt}")
        if message.attempt == 2:
            return Message(b"2", {"id": message.id})
        if is_first and site.disrupt:
            site.disrupt()
        with suppress(BackendUnavailable):
            delivery.postpone(0.2, message.replace(attempt=2))
            return None
        return Message(b"unsettled", {"id": message.id}) if message.reply_to else None

    return handler
