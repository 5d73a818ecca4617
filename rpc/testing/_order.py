"""The part of the conformance suite that is about order keys."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from ..errors import RpcTimeout
from ..transport import ORDER_KEY, Delivery, Message
from .site import ONCE, Site, eventually

KEYS: list[Any] = [{ORDER_KEY: key} for key in ("user-7", "user 8/ä", "")]
A, B, C = KEYS
SENDERS = 16


class Order:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    may_do_what_was_given_up = False
    """Whether a call may be done whose caller has left before there was a worker, if that caller waits for
    others still."""

    def test_what_has_one_key_is_handled_one_after_the_other(self, site: Site) -> None:
        site.needs("order")
        busy: defaultdict[bytes, int] = defaultdict(int)
        wrong: list[bytes] = []

        def handler(delivery: Delivery) -> Message | None:
            key, _, number = delivery.message.body.partition(b" ")
            busy[key] += 1
            if busy[key] > 1:
                wrong.append(delivery.message.body)
            time.sleep(0.002)
            site.log.write(f"{key.decode()} {number.decode()}")
            busy[key] -= 1
            return None

        for number in range(20):
            for key, headers in enumerate(KEYS):
                site.tell(b"%d %d" % (key, number), **headers)
        for _ in range(2):
            site.serve(handler, threads=3)
        eventually(lambda: len(site.log.lines()) == 60)
        assert (inversions(site.log.lines()), wrong) == (0, [])

    def test_keys_do_not_wait_for_each_other(self, site: Site) -> None:
        site.needs("order")
        site.serve(threads=2)
        held, behind = site.ask(b"hold:a", **A), site.ask(b"echo:b", **A)
        eventually(lambda: site.log.lines() == ["holding a"])
        assert site.ask(b"echo:c", **B).receive(site.patience).body == b"c"
        assert site.ask(b"echo:d").receive(site.patience).body == b"d"
        with pytest.raises(RpcTimeout):
            behind.receive(0.1)
        site.release()
        assert [each.receive(site.patience).body for each in (held, behind)] == [b"a", b"b"]

    def test_a_key_with_many_messages_does_not_keep_others_waiting(self, site: Site) -> None:
        site.needs("order")
        for number in range(300):
            site.tell(b"log:many %d" % number, **A)
        site.tell(b"log:other", **B)
        site.tell(b"log:none")
        site.serve()
        eventually(lambda: len(site.log.lines()) == 302)
        lines = site.log.lines()
        assert max(lines.index("toy other"), lines.index("toy none")) < 3
        assert [line for line in lines if "many" in line] == [f"toy many {number}" for number in range(300)]

    def test_what_is_tried_again_keeps_its_place(self, site: Site) -> None:
        site.needs("order", "delay")
        for body in b"again:2", b"log:next", b"bury:1", b"log:last":
            site.tell(body, **A)
        site.tell(b"log:other", **B)
        site.serve(threads=3)
        eventually(lambda: "toy last" in site.log.lines())
        lines = [line for line in site.log.lines() if line != "toy other"]
        assert lines == ["attempt 1", "attempt 2", "attempt 3", "toy next", "bury 1", "toy last"]

    def test_what_raises_does_not_stop_its_key(self, site: Site) -> None:
        site.needs("order")
        site.tell(b"fail:x", **A)
        site.tell(b"log:next", **A)
        site.serve()
        eventually(lambda: site.log.lines() == ["toy next"])

    def test_what_nobody_waits_for_any_more_does_not_stop_its_key(self, site: Site) -> None:
        site.needs("order")
        first, second = site.ask(b"log:first", **A), site.ask(b"log:second", **A)
        expired = site.ask(b"log:expired", ttl=0.05, **A)
        third, last = site.ask(b"log:third", **A), site.ask(b"echo:last", **A)
        third.close()
        first.close()
        time.sleep(0.1)
        site.serve()
        assert second.receive(site.patience).body == b"logged"
        assert last.receive(site.patience).body == b"last"
        expired.close()
        # What has expired is for the handler to refuse, and this one does not.
        ignored = {"toy expired", *(("toy first", "toy third") if self.may_do_what_was_given_up else ())}
        assert [line for line in site.log.lines() if line not in ignored] == ["toy second"]

    def test_what_is_delayed_comes_when_it_is_due(self, site: Site) -> None:
        site.needs("order", "delay")
        site.tell(b"log:later", delay="0.2", **A)
        site.tell(b"log:first", **A)
        site.serve()
        eventually(lambda: site.log.lines() == ["toy first", "toy later"])
        site.tell(b"log:last", **A)
        eventually(lambda: len(site.log.lines()) == 3)

    def test_a_key_may_be_one_of_idempotency_too(self, site: Site) -> None:
        site.needs("order", "idempotency")
        asked = [site.ask(b"echo:%d" % number, **A, **ONCE) for number in range(3)]
        after = site.ask(b"echo:after", **A)
        site.serve()
        assert [each.receive(site.patience).body for each in (*asked, after)] == [b"0", b"0", b"0", b"after"]

    def test_large_messages_have_an_order_too(self, site: Site) -> None:
        site.needs("order")
        large = b"echo:" + bytes(100_000)
        asked = [site.ask(large, **A) for _ in range(3)]
        site.serve()
        assert [len(each.receive(site.patience).body) for each in asked] == [100_000] * 3

    def test_what_waits_for_its_turn_is_seen_and_can_be_withdrawn(self, site: Site) -> None:
        site.needs("order", "inspection")
        seen = cast("Any", site.client)
        ids = [site.tell(b"log:%d" % number, **A) for number in range(4)]
        assert [each.id for each in seen.entries(site.name()) if each.state == "waiting"] == ids
        assert seen.queue_info(site.name()).waiting == 4
        for gone in ids[0], ids[2]:
            (entry,) = seen.entries(site.name(), gone)
            assert seen.withdraw(entry)
        assert seen.queue_info(site.name()).waiting == 2
        site.serve()
        eventually(lambda: site.log.lines() == ["toy 1", "toy 3"])
        eventually(lambda: seen.queue_info(site.name()).waiting == 0)

    def test_a_revived_letter_waits_for_its_turn(self, site: Site) -> None:
        site.needs("order", "dead-letters")
        toy = site.toy()
        site.tell(b"bury:1", **A)
        site.serve(toy, threads=2)
        (letter,) = eventually(lambda: cast("Any", site.client).dead_letters(site.name()))
        held = site.ask(b"hold:x", **A)
        eventually(lambda: "holding x" in site.log.lines())
        assert cast("Any", site.client).revive(letter)
        assert site.ask(b"echo:other", **B).receive(site.patience).body == b"other"
        toy.released.set()
        held.receive(site.patience)
        eventually(lambda: site.log.lines() == ["bury 1", "holding x", "held x", "bury 1"])

    def test_what_its_worker_had_is_done_again_before_what_follows(self, site: Site) -> None:
        site.needs("order", "redelivers")
        site.tell(b"die_at_first:1", **A)
        site.tell(b"log:next", **A)
        for _ in range(2):
            site.spawn()
        eventually(lambda: "toy next" in site.log.lines(), within=3 * site.patience)
        assert [line[-1] for line in site.log.lines()] == ["1", "2", "t"]

    @pytest.mark.slow
    def test_order_is_kept_while_workers_are_killed(self, site: Site) -> None:
        site.needs("order", "redelivers", "store-and-forward")
        keys, each = 1000, 20

        def tell(share: int) -> None:
            for number in range(each):
                for key in range(share, keys, SENDERS):
                    headers: Any = {ORDER_KEY: f"key {key}"}
                    site.tell(b"log:%d %d" % (key, number), **headers)

        with ThreadPoolExecutor(SENDERS) as senders:  # a broker may take long until each is safe
            list(senders.map(tell, range(SENDERS)))
        workers = [site.spawn() for _ in range(4)]
        for share in range(1, 6):
            enough = share * keys * each // 8
            eventually(lambda enough=enough: len(site.log.lines()) > enough, within=10 * site.patience)  # type: ignore[misc]
            workers.pop(0).kill()
            workers.append(site.spawn())

        def all_done() -> bool:
            lines = [line.removeprefix("toy ") for line in site.log.lines()]
            return len({*lines}) == keys * each

        eventually(all_done, within=20 * site.patience)
        assert inversions([line.removeprefix("toy ") for line in site.log.lines()]) == 0


def inversions(lines: list[str]) -> int:
    """How many of the lines `key number` come before one of the same key with a smaller number. What is done
    again, as its worker died, comes at once after the first time."""
    last: dict[str, int] = {}
    wrong = 0
    for line in lines:
        key, _, number = line.rpartition(" ")
        wrong += int(number) not in (last.get(key, -1) + 1, last.get(key))
        last[key] = int(number)
    return wrong
