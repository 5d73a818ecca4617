"""The suite that every backend passes: ours, and those of third parties.

    class TestMyBackend(Conformance):
        @pytest.fixture
        def site(self):
            with Site("my+scheme://…") as site:
                yield site

Bodies are opaque here: there is no RPC. A test of what a backend does not claim to have (`Backend.features`)
is skipped with "has no feature …".
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from uuid import uuid4

import pytest

from ..backends import backend_from_url
from ..errors import BackendUnavailable, RpcTimeout
from ..transport import LOST, Delivery, Message, Replies
from ._channels import Channels
from ._deaths import Deaths
from ._delays import Delays
from ._detached import Detached
from ._features import Features
from ._inspection import Inspections
from ._order import Order
from .site import Site, answering, eventually, request


class Conformance(Features, Delays, Inspections, Order, Channels, Detached, Deaths):
    """One test for each rule that a backend keeps."""

    # Requests and replies.

    def test_a_request_gets_its_reply(self, site: Site) -> None:
        site.serve()
        reply = site.ask(b"echo:hello").receive(site.patience)
        assert reply.body == b"hello"
        assert reply.id

    @pytest.mark.parametrize(
        "body",
        [b"", bytes(range(256)), b"\xff" * 1_000_000, b"x" * 1_000_000],
        ids=["none", "all", "1MB", "text"],
    )
    def test_bodies_are_opaque(self, site: Site, body: bytes) -> None:
        site.serve()
        assert site.ask(b"echo:" + body).receive(site.patience).body == body

    def test_headers_are_carried(self, site: Site) -> None:
        site.serve()
        assert site.ask(b"headers:colour", colour="grün").receive(site.patience).body == "grün".encode()

    def test_replies_come_in_order(self, site: Site) -> None:
        site.serve()
        replies = site.ask(b"count:30")
        assert [replies.receive(site.patience).body for _ in range(31)] == [b"%d" % i for i in range(30)] + [
            b"end"
        ]

    def test_each_request_gets_its_own_replies(self, site: Site) -> None:
        site.serve(threads=3)
        pending = [site.ask(b"echo:%d" % i) for i in range(20)]
        assert [replies.receive(site.patience).body for replies in pending] == [b"%d" % i for i in range(20)]

    def test_a_reply_can_leave_before_the_handler_is_done(self, site: Site) -> None:
        toy = site.toy()
        site.serve(toy)
        assert site.ask(b"early:now").receive(site.patience).body == b"now"
        assert "ended" not in site.log.lines()
        toy.released.set()
        eventually(lambda: site.log.lines() == ["sent True", "ended"])

    def test_another_thread_may_end_it_before_its_handler_returns(self, site: Site) -> None:
        may_return = threading.Event()

        def handler(delivery: Delivery) -> None:
            last = Message(b"told", {"id": delivery.message.id})
            threading.Thread(target=delivery.finish, args=[last]).start()
            may_return.wait(site.patience)

        site.serve(handler=handler)
        try:
            assert site.ask(b"").receive(site.patience / 2).body == b"told"
        finally:
            may_return.set()

    def test_a_message_without_a_way_back_has_nobody_to_reply_to(self, site: Site) -> None:
        toy = site.toy()
        toy.released.set()
        site.serve(toy)
        site.tell(b"early:x")
        eventually(lambda: site.log.lines() == ["sent False", "ended"])

    # Time.

    @pytest.mark.parametrize("timeout", [0.05, 0.3, 1.2])
    def test_receive_times_out_and_stays_usable(self, site: Site, timeout: float) -> None:
        toy = site.toy()
        site.serve(toy)
        replies = site.ask(b"hold:x")
        start = time.monotonic()
        with pytest.raises(RpcTimeout):
            replies.receive(timeout)
        assert timeout <= time.monotonic() - start < timeout + site.patience / 4
        toy.released.set()
        assert replies.receive(site.patience).body == b"x"

    def test_without_a_timeout_it_waits(self, site: Site) -> None:
        site.serve()
        assert site.ask(b"echo:x", ttl=None).receive(None).body == b"x"

    def test_nobody_serves(self, site: Site) -> None:
        with pytest.raises(RpcTimeout):
            site.ask(b"echo:x").receive(0.2)

    def test_the_receiver_is_told_how_much_time_is_left(self, site: Site) -> None:
        replies = site.ask(b"headers:ttl", ttl=60)
        time.sleep(0.3)  # it is time itself that is tested
        site.serve()
        left = float(replies.receive(site.patience).body)
        assert 60 - site.patience < left < 60  # in an event loop it may have left late

    def test_an_expired_message_is_not_delivered_as_if_it_were_fresh(self, site: Site) -> None:
        seen: list[float | None] = []

        def handler(delivery: Delivery) -> None:
            seen.append(delivery.message.ttl)

        site.needs("store-and-forward")
        site.client.send(site.queue(), Message(b"", {"id": "old", "ttl": "0.1"}))
        time.sleep(0.3)
        site.tell(b"new")
        site.serve(handler)
        eventually(lambda: None in seen)
        assert all(ttl is None or ttl <= 0 for ttl in seen)

    # Queues.

    def test_one_of_the_receivers_gets_each_message(self, site: Site) -> None:
        for name in "ab":
            site.serve(site.toy(name))
        for number in range(30):
            site.tell(b"log:%d" % number)
        eventually(lambda: len(site.log.lines()) >= 30)
        assert Counter(line.split()[1] for line in site.log.lines()) == Counter(map(str, range(30)))

    def test_first_in_first_out(self, site: Site) -> None:
        site.serve()
        site.ask(b"hold:x")
        eventually(site.log.lines)
        for number in range(30):
            site.tell(b"log:%d" % number)
        site.release()
        eventually(lambda: len(site.log.lines()) == 32)
        assert site.log.lines()[2:] == [f"toy {number}" for number in range(30)]

    def test_queues_are_served_in_order_of_priority(self, site: Site) -> None:
        site.needs("priorities")
        site.serve(site.toy(), *(site.queue(part) for part in "hml"))
        site.ask(b"hold:x", site.queue("h"))
        eventually(site.log.lines)
        for part in "lmh":
            for number in range(3):
                site.tell(b"log:%s%d" % (part.encode(), number), site.queue(part))
        site.release()
        eventually(lambda: len(site.log.lines()) == 11)
        expected = [f"{part}{number}" for part in "hml" for number in range(3)]
        assert [line.split()[1] for line in site.log.lines()[2:]] == expected

    def test_so_many_run_at_a_time_and_no_more(self, site: Site) -> None:
        toy = site.toy()
        site.serve(toy, threads=3)
        pending = [site.ask(b"hold:%d" % number) for number in range(5)]
        eventually(lambda: len(site.log.lines()) == 3)
        with pytest.raises(RpcTimeout):
            pending[4].receive(0.3)
        assert len(site.log.lines()) == 3
        toy.released.set()
        assert {replies.receive(site.patience).body for replies in pending} == {b"%d" % i for i in range(5)}

    def test_the_same_message_sent_twice_is_handled_once(self, site: Site) -> None:
        site.needs("durable")
        message = Message(b"log:x", {"id": uuid4().hex})
        for _ in range(3):
            site.client.send(site.queue(), message)
        site.tell(b"log:y")
        site.serve()
        eventually(lambda: "toy y" in site.log.lines())
        assert site.log.lines() == ["toy x", "toy y"]

    # Ends.

    def test_stop_finishes_what_it_started_and_takes_nothing_new(self, site: Site) -> None:
        toy = site.toy()
        server, thread = site.serve(toy)
        first = site.ask(b"hold:1")
        eventually(site.log.lines)
        second = site.ask(b"echo:2")  # not before: two requests over HTTP may overtake one another
        server.stop()
        toy.released.set()
        thread.join(site.patience)
        assert not thread.is_alive()
        assert first.receive(site.patience).body == b"1"
        with pytest.raises(RpcTimeout):
            second.receive(0.3)
        site.serve()
        assert second.receive(site.patience).body == b"2"

    def test_stop_before_run_makes_it_return(self, site: Site) -> None:
        server = site.backend().server([site.queue()], answering(site.toy()))
        server.stop()
        server.run()

    def test_a_backend_can_serve_again_after_a_stop(self, site: Site) -> None:
        backend = site.backend()
        server, thread = site.serve(backend=backend)
        server.stop()
        thread.join(site.patience)
        site.serve(backend=backend)
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"

    def test_two_servers_on_one_backend_do_not_know_of_each_other(self, site: Site) -> None:
        backend = site.backend()
        toy = site.toy("one")
        one, thread = site.serve(toy, site.queue("one"), backend=backend)
        site.serve(site.toy("other"), site.queue("other"), backend=backend)
        held = site.ask(b"hold:x", site.queue("one"))
        assert site.ask(b"whoami:", site.queue("other")).receive(site.patience).body == b"other"
        eventually(site.log.lines)
        one.stop()
        assert site.ask(b"whoami:", site.queue("other")).receive(site.patience).body == b"other"
        toy.released.set()
        assert held.receive(site.patience).body == b"x"
        thread.join(site.patience)
        assert not thread.is_alive()
        assert site.ask(b"whoami:", site.queue("other")).receive(site.patience).body == b"other"
        with pytest.raises(RpcTimeout):
            site.ask(b"whoami:", site.queue("one")).receive(0.3)

    def test_close_is_idempotent(self, site: Site) -> None:
        site.serve()
        backend = site.backend()
        replies = backend.request(site.queue(), request(b"echo:x"))
        replies.receive(site.patience)
        for each in (replies, replies, backend, backend):
            each.close()

    def test_what_nobody_waits_for_any_more_is_not_started(self, site: Site) -> None:
        site.ask(b"log:withdrawn").close()
        site.hang_up()
        site.serve()
        site.tell(b"log:kept")
        eventually(site.log.lines)
        assert site.log.lines() == ["toy kept"]

    def test_what_one_thread_waits_for_another_may_close(self, site: Site) -> None:
        for _ in range(3):
            replies = site.ask(b"log:withdrawn")
            waiting = threading.Thread(target=partial(_receive_in_vain, replies))
            waiting.start()
            replies.close()
            waiting.join(site.patience)
            assert not waiting.is_alive()
        site.hang_up()
        site.serve()
        site.tell(b"log:kept")
        eventually(site.log.lines)
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        assert site.log.lines() == ["toy kept"]

    def test_a_running_handler_is_told_that_nobody_waits_any_more(self, site: Site) -> None:
        site.serve()
        replies = site.ask(b"until_cancelled:")
        eventually(site.log.lines)
        replies.close()
        eventually(lambda: site.log.lines() == ["waiting", "cancelled, sent False"])
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"

    def test_a_handler_that_was_answered_is_not_cancelled(self, site: Site) -> None:
        toy, cancelled = site.toy(), threading.Event()

        def handler(delivery: Delivery) -> Message | None:
            delivery.on_cancel = cancelled.set
            return toy(delivery)

        site.serve(handler)
        replies = site.ask(b"early:x")
        replies.receive(site.patience)
        replies.close()
        toy.released.set()
        eventually(lambda: "ended" in site.log.lines())
        assert not cancelled.is_set()

    # Faults.

    def test_the_loop_survives_a_handler_that_raises_and_the_caller_is_told(self, site: Site) -> None:
        site.serve()
        assert LOST in site.ask(b"fail:x").receive(site.patience).headers
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"

    def test_constructing_does_no_io(self, site: Site) -> None:
        site.needs("processes")
        scheme = site.url.split(":")[0]
        backend = backend_from_url(f"{scheme}://127.0.0.1:1/0")
        with pytest.raises(BackendUnavailable):
            backend.send(site.queue(), Message(b"", {"id": "x", "ttl": "0.2"}))
        backend.close()

    def test_many_threads_share_one_backend(self, site: Site) -> None:
        site.serve(threads=4)

        def ask(number: int) -> bool:
            return all(
                site.ask(b"echo:%d-%d" % (number, turn)).receive(site.patience).body
                == b"%d-%d" % (number, turn)
                for turn in range(5)
            )

        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(ask, range(32)))

    def test_a_backend_that_was_used_before_a_fork_works_in_each_child(self, site: Site) -> None:
        site.needs("processes")
        site.spawn()
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        children = [_fork(partial(_ask_often, site, number)) for number in range(3)]
        _ask_often(site, 9)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def _receive_in_vain(replies: Replies) -> None:
    with suppress(RpcTimeout, BackendUnavailable):
        assert LOST in replies.receive(None).headers


def _ask_often(site: Site, number: int) -> None:
    for turn in range(50):
        body = b"%d-%d" % (number, turn)
        with closing(site.client.request(site.queue(), request(b"echo:" + body))) as replies:
            assert replies.receive(site.patience).body == body


def _fork(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid
