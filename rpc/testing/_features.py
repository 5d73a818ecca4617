"""The part of the conformance suite that is about what a backend may do besides carrying messages: presence,
dead letters, idempotency keys, bounded queues."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest

from ..errors import BackendUnavailable, QueueFull, SettingsError
from ..inspection import DeadLetter, DeadLetters
from ..transport import (
    IDEMPOTENCY_KEY,
    LOST,
    Address,
    Backend,
    Delivery,
    Liveness,
    Message,
    Presence,
    queue,
    unpacked,
)
from .site import ONCE, Answer, Site, eventually, request


class Features:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    # Presence.

    def test_it_is_known_whether_a_queue_is_served(self, site: Site) -> None:
        site.needs("presence")
        is_served = cast("Presence", site.client).is_served
        assert not is_served(site.name())
        server, thread = site.serve(None, site.queue(), site.queue("second"))
        eventually(lambda: is_served(site.name()) and is_served(site.name("second")))
        assert not is_served(site.name("third"))
        hold = site.ask(b"hold:x")
        eventually(site.log.lines)
        assert is_served(site.name()), "a worker that is busy serves its queue all the same"
        site.release()
        assert hold.receive(site.patience).body == b"x"
        server.stop()
        thread.join(site.patience)
        eventually(lambda: not is_served(site.name()))

    # Liveness.

    def test_it_tells_how_long_its_loop_has_not_come_round(self, site: Site) -> None:
        site.needs("liveness")
        server = cast("Liveness", site.serve(threads=2)[0])
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        asked = []
        for busy in range(3):  # of two threads: if both are, it need not come round
            eventually(partial(self._is_busy, site, busy))
            eventually(partial(self._has_come_round, server, time.monotonic()))
            asked.append(site.ask(b"hold:x"))
        site.release()
        assert [each.receive(site.patience).body for each in asked] == [b"x"] * 3

    def _is_busy(self, site: Site, threads: int) -> bool:
        return len(site.log.lines()) == threads

    def _has_come_round(self, server: Liveness, since: float) -> bool:
        return server.stalled() < time.monotonic() - since

    # Dead letters.

    def test_a_buried_message_is_answered_and_kept(self, site: Site) -> None:
        site.needs("dead-letters")
        site.serve()
        sent = request(b"bury:1")
        replies = site.client.request(site.queue(), sent)
        assert replies.receive(site.patience).body == b"buried"
        replies.close()
        (letter,) = letters_of(site, 1)
        assert (letter.id, letter.queue, letter.why) == (sent.id, site.name(), "why 1")
        assert unpacked(letter.frame).body == b"bury:1"
        assert abs(letter.at - time.time()) < site.patience
        assert _shelf(site).dead_letters(site.name("other")) == []

    def test_the_last_dead_letter_comes_first(self, site: Site) -> None:
        site.needs("dead-letters")
        for number in range(3):
            site.tell(b"bury:%d" % number)
        site.serve()
        assert [letter.why for letter in letters_of(site, 3)] == ["why 2", "why 1", "why 0"]

    def test_a_revived_letter_is_delivered_again_and_is_gone(self, site: Site) -> None:
        site.needs("dead-letters")
        toy = site.toy()
        site.serve(toy)
        once = ONCE if "idempotency" in site.client.features else {}
        replies = site.ask(b"bury:1", **once)
        replies.receive(site.patience)
        (letter,) = letters_of(site, 1)
        toy.released.set()
        assert _shelf(site).revive(letter)
        eventually(lambda: site.log.lines() == ["bury 1", "bury 1"])
        assert not _shelf(site).revive(letter)
        assert not _shelf(site).drop(letter)
        assert _shelf(site).dead_letters(site.name()) == []
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        assert site.log.lines() == ["bury 1", "bury 1"]

    def test_a_letter_whose_caller_has_left_is_revived_too(self, site: Site) -> None:
        site.needs("dead-letters")
        toy, left = site.toy(), threading.Event()

        def handler(delivery: Delivery) -> Message | None:
            if not toy.released.is_set():
                delivery.on_cancel = left.set
                site.log.write("began")
                left.wait(site.patience)
            return toy(delivery)

        site.serve(handler)
        replies = site.ask(b"bury:1")
        eventually(site.log.lines)
        replies.close()
        (letter,) = letters_of(site, 1)
        toy.released.set()
        assert _shelf(site).revive(letter)
        eventually(lambda: site.log.lines() == ["began", "bury 1", "bury 1"])

    def test_what_expires_and_nobody_waits_for_is_a_dead_letter(self, site: Site) -> None:
        site.needs("dead-letters", "store-and-forward")
        seen: list[bytes] = []

        def answer(delivery: Delivery) -> None:
            ttl = delivery.message.ttl
            if ttl is None or ttl > 0:
                seen.append(delivery.message.body)
                delivery.finish(None)
            elif delivery.message.reply_to is None:  # where it is for the handler to refuse
                delivery.bury("RpcTimeout: it expired before a worker came to it", None)
            else:
                delivery.finish(None)

        id, _, left = site.tell(b"old", ttl="0.1"), site.tell(b"new", ttl="60"), site.ask(b"left", ttl=0.1)
        time.sleep(0.3)  # it is time itself that is tested
        site.serve(handler=answer)
        site.tell(b"last", ttl="60")
        (letter,) = letters_of(site, 1)
        assert (letter.id, letter.queue) == (id, site.name())
        assert letter.why == "RpcTimeout: it expired before a worker came to it"
        assert unpacked(letter.frame).body == b"old"
        assert abs(letter.at - time.time()) < site.patience
        eventually(lambda: sorted(seen) == [b"last", b"new"])
        left.close()
        assert _shelf(site).revive(letter)
        eventually(lambda: sorted(seen) == [b"last", b"new", b"old"])
        eventually(lambda: not _shelf(site).dead_letters(site.name()))

    def test_a_dropped_letter_is_forgotten(self, site: Site) -> None:
        site.needs("dead-letters")
        site.tell(b"bury:1")
        site.tell(b"bury:2")
        site.serve()
        last, first = letters_of(site, 2)
        assert _shelf(site).drop(first)
        assert [letter.id for letter in _shelf(site).dead_letters(site.name())] == [last.id]
        assert not _shelf(site).drop(first)
        assert not _shelf(site).revive(first)
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        assert site.log.lines() == ["bury 1", "bury 2"]

    def test_what_could_not_be_buried_is_delivered_again(self, site: Site) -> None:
        site.needs("dead-letters")
        site.tell(b"x")
        site.serve(burying(site))
        assert [letter.why for letter in letters_of(site, 1)] == ["why"]

    # Idempotency keys.

    @pytest.mark.parametrize("moment", ["is queued", "runs", "is done"])
    def test_a_second_request_with_a_key_gets_the_reply_of_the_first(self, site: Site, moment: str) -> None:
        site.needs("idempotency")
        toy = site.toy()
        first = site.ask(b"hold:first", **ONCE)
        if moment == "is queued":
            second = site.ask(b"hold:second", **ONCE)
        site.serve(toy)
        eventually(site.log.lines)
        if moment == "runs":
            second = site.ask(b"hold:second", **ONCE)
        toy.released.set()
        assert first.receive(site.patience).body == b"first"
        if moment == "is done":
            second = site.ask(b"hold:second", **ONCE)
        reply = second.receive(site.patience)
        assert reply.body == b"first"
        assert site.log.lines() == ["holding first", "held first"]

    def test_a_key_belongs_to_its_queue(self, site: Site) -> None:
        site.needs("idempotency")
        site.serve(site.toy(), site.queue("a"), site.queue("b"))
        for part in "ab":
            replies = site.ask(b"echo:" + part.encode(), site.queue(part), **ONCE)
            assert replies.receive(site.patience).body == part.encode()
        another: Any = {IDEMPOTENCY_KEY: "order-18"}
        other = site.ask(b"echo:c", site.queue("a"), **another)
        assert other.receive(site.patience).body == b"c"

    @pytest.mark.parametrize("found", [False, True], ids=["and lies there", "and was found"])
    def test_a_first_that_has_expired_does_not_block_a_second(self, site: Site, found: bool) -> None:
        site.needs("idempotency")
        site.ask(b"echo:first", ttl=0.1, **ONCE)
        time.sleep(0.3)  # it is time itself that is tested
        if found:
            site.serve()
            assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        second = site.ask(b"echo:second", **ONCE)
        if not found:
            site.serve()
        assert second.receive(site.patience).body == b"second"
        assert site.ask(b"echo:third", **ONCE).receive(site.patience).body == b"second"

    def test_whoever_waits_longest_decides_when_it_expires(self, site: Site) -> None:
        site.needs("idempotency")
        site.ask(b"echo:first", ttl=0.2, **ONCE)
        second = site.ask(b"echo:second", **ONCE)
        time.sleep(0.4)  # it is time itself that is tested
        site.serve()
        assert second.receive(site.patience).body == b"first"

    def test_what_nobody_waits_for_is_answered_to_those_who_ask_later(self, site: Site) -> None:
        site.needs("idempotency")
        site.tell(b"log:first", **ONCE)
        site.tell(b"log:second", **ONCE)
        third = site.ask(b"log:third", **ONCE)
        site.serve()
        assert third.receive(site.patience).body == b"logged"
        assert site.ask(b"log:fourth", **ONCE).receive(site.patience).body == b"logged"
        assert site.log.lines() == ["toy first"]

    def test_a_caller_that_leaves_does_not_take_along_what_others_wait_for(self, site: Site) -> None:
        site.needs("idempotency")
        first = site.ask(b"echo:first", **ONCE)
        second = site.ask(b"echo:second", **ONCE)
        first.close()
        site.serve()
        assert second.receive(site.patience).body == b"first"

    def test_a_key_whose_message_was_given_up_is_free_again(self, site: Site) -> None:
        site.needs("idempotency", "redelivers")
        first = site.ask(b"die_once:", ttl=120, **ONCE)
        second = site.ask(b"die_once:", ttl=120, **ONCE)
        for _ in range(2):
            site.spawn()
        assert LOST in first.receive(site.patience * 2).headers
        assert LOST in second.receive(site.patience).headers
        assert site.ask(b"echo:third", **ONCE).receive(site.patience).body == b"third"
        assert site.log.lines() == ["once"]

    # Bounds.

    def test_a_full_queue_refuses_more_until_there_is_room(self, site: Site) -> None:
        backend, to = _bounded(site, 2), site.queue()
        messages = [Message(b"log:%d" % number, {"id": f"{site.name()}-{number}"}) for number in range(3)]
        for message in messages[:2]:
            backend.send(to, message)
        with pytest.raises(QueueFull):
            backend.send(to, messages[2])
        with pytest.raises(QueueFull):
            _refused(backend, to, site.patience)
        backend.send(queue(site.name("other")), messages[2])
        site.serve()
        eventually(lambda: len(site.log.lines()) == 2)
        backend.send(to, messages[2])
        eventually(lambda: site.log.lines() == ["toy 0", "toy 1", "toy 2"])


def burying(site: Site) -> Answer:
    """Buries what comes; the first time, the connection breaks just then."""

    def handler(delivery: Delivery) -> None:
        if site.disrupt and not site.log.lines():
            site.disrupt()
        site.log.write("buries")
        with suppress(BackendUnavailable):
            delivery.bury("why", None)

    return handler


def _shelf(site: Site) -> DeadLetters:
    return cast("DeadLetters", site.client)


def letters_of(site: Site, count: int, queue: str = "") -> list[DeadLetter]:
    """The dead letters of the queue, once there are so many."""

    def found() -> list[DeadLetter] | None:
        with suppress(BackendUnavailable):  # some tests cut connections meanwhile
            letters = _shelf(site).dead_letters(queue or site.name())
            return letters if len(letters) == count else None
        return None

    return cast("list[DeadLetter]", eventually(found))


def _refused(backend: Backend, to: Address, patience: float) -> None:
    """By the request, or by the first look at what comes back."""
    replies = backend.request(to, request(b"log:refused"))
    try:
        replies.receive(patience)
    finally:
        replies.close()


def _bounded(site: Site, max_length: int) -> Backend:
    try:
        return site.backend(max_length=max_length)
    except SettingsError:
        pytest.skip(f"{site.url.split(':')[0]} has no feature like max_length")
