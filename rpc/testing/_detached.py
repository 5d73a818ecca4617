"""The part of the conformance suite that is about handlers which return before they have finished (feature
`detached`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..errors import RpcTimeout
from ..loops import LoopThread
from ..transport import HANDED_BACK, LOST, Delivery, Message
from .site import Site, eventually


class Held:
    """A handler that keeps what it is given, to be finished by the test."""

    def __init__(self) -> None:
        self.deliveries: dict[bytes, Delivery] = {}
        self._is_released = False

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries[delivery.message.body] = delivery
        if self._is_released:
            self.finish(delivery.message.body)

    def finish(self, body: bytes) -> None:
        if delivery := self.deliveries.pop(body, None):
            delivery.finish(Message(body, {"id": delivery.message.id}))

    def release(self) -> None:
        """Nothing is kept any more: the server can end."""
        self._is_released = True
        for body in [*self.deliveries]:
            self.finish(body)

    def has(self, *bodies: bytes) -> bool:
        return {*bodies} == {*self.deliveries}


@contextmanager
def held(site: Site) -> Iterator[Held]:
    """A handler that keeps nothing any more at the end."""
    site.needs("detached")
    handler = Held()
    try:
        yield handler
    finally:
        handler.release()


class Detached:
    """Tests that `rpc.testing.conformance.Conformance` has, too."""

    def test_a_handler_may_finish_after_it_has_returned(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=10)
            replies = site.ask(b"x")
            eventually(lambda: handler.has(b"x"))
            with pytest.raises(RpcTimeout):
                replies.receive(0.1)
            finishing = threading.Thread(target=handler.finish, args=[b"x"])
            finishing.start()
            assert replies.receive(site.patience).body == b"x"
            finishing.join()

    def test_only_the_first_end_counts(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=10)
            replies = site.ask(b"x")
            eventually(lambda: handler.has(b"x"))
            delivery = handler.deliveries.pop(b"x")
            for body in b"first", b"second":
                delivery.finish(Message(body, {"id": delivery.message.id}))
            assert replies.receive(site.patience).body == b"first"
            with pytest.raises(RpcTimeout):
                replies.receive(0.3)

    def test_what_is_in_hand_is_finished_in_any_order(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=200)
            bodies = [b"%d" % number for number in range(150)]
            asked = {body: site.ask(body) for body in bodies}
            eventually(lambda: handler.has(*bodies))
            for body in bodies[::3] + bodies[2::3] + bodies[1::3][::-1]:
                handler.finish(body)
            assert all(asked[body].receive(site.patience).body == body for body in bodies)

    def test_an_event_loop_may_finish_what_a_thread_was_given(self, site: Site) -> None:
        site.needs("detached")
        loop = LoopThread("test")

        def handler(delivery: Delivery) -> None:
            async def nap() -> None:
                await asyncio.sleep(0.05)
                delivery.finish(Message(delivery.message.body, {"id": delivery.message.id}))

            loop.spawn(nap(), lambda cancel: None)

        site.serve(handler=handler, coroutines=1000)
        asked = [(b"%d" % number, site.ask(b"%d" % number)) for number in range(300)]
        assert all(replies.receive(site.patience).body == body for body, replies in asked)
        loop.close()

    def test_so_many_are_in_hand_and_no_more(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=3)
            bodies = [b"%d" % number for number in range(5)]
            asked = {body: site.ask(body) for body in bodies}
            eventually(lambda: len(handler.deliveries) == 3)
            first, second, third = handler.deliveries
            fourth, fifth = {*bodies} - {first, second, third}
            with pytest.raises(RpcTimeout):
                asked[fourth].receive(0.3)
            assert handler.has(first, second, third)
            handler.finish(second)
            assert asked[second].receive(site.patience).body == second
            eventually(lambda: len(handler.deliveries) == 3)
            for body in [*handler.deliveries]:
                handler.finish(body)
            eventually(lambda: handler.has(fourth) or handler.has(fifth))

    def test_what_there_is_no_room_for_is_left_to_others(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=2)
            for body in b"1", b"2":
                site.ask(body)
            eventually(lambda: handler.has(b"1", b"2"))
            asked = [site.ask(b"echo:%d" % number) for number in range(3)]
            with pytest.raises(RpcTimeout):
                asked[0].receive(0.3)
            site.serve()
            assert [replies.receive(site.patience).body for replies in asked] == [b"0", b"1", b"2"]

    def test_what_is_in_hand_costs_no_thread(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=1000)
            site.tell(b"first")
            eventually(lambda: handler.has(b"first"))
            before = {*threading.enumerate()}
            for number in range(500):
                site.tell(b"%d" % number)
            eventually(lambda: len(handler.deliveries) == 501)
            assert len({*threading.enumerate()} - before) <= 2

    def test_a_stop_waits_for_what_is_in_hand(self, site: Site) -> None:
        with held(site) as handler:
            server, thread = site.serve(handler=handler, coroutines=10)
            replies = site.ask(b"x")
            eventually(lambda: handler.has(b"x"))
            server.stop()
            thread.join(0.3)
            assert thread.is_alive()
            handler.finish(b"x")
            assert replies.receive(site.patience).body == b"x"
            thread.join(site.patience)
            assert not thread.is_alive()

    def test_whoever_has_it_is_told_that_nobody_waits_any_more(self, site: Site) -> None:
        with held(site) as handler:
            site.serve(handler=handler, coroutines=10)
            asked = {body: site.ask(body) for body in (b"1", b"2")}
            eventually(lambda: handler.has(b"1", b"2"))
            told = threading.Event()
            handler.deliveries[b"1"].on_cancel = told.set
            asked[b"1"].close()
            assert told.wait(site.patience)
            assert handler.deliveries[b"1"].cancelled
            assert not handler.deliveries[b"2"].cancelled

    def test_what_is_handed_back_goes_to_others_and_does_not_count_as_a_death(self, site: Site) -> None:
        site.needs("redelivers")
        with held(site) as handler:
            server, _ = site.serve(handler=handler, coroutines=1000)
            bodies = [b"headers:deliveries" + b" " * number for number in range(100)]
            asked = [site.ask(body, deliveries="0") for body in bodies]
            eventually(lambda: handler.has(*bodies))
            server.stop()
            server.hand_back()

            def told(delivery: Delivery) -> Message:
                message = delivery.message
                body = f"{message.deliveries} {HANDED_BACK in message.headers}".encode()
                return Message(body, {"id": message.id})

            site.serve(told)
            assert {replies.receive(site.patience).body for replies in asked} <= {b"0 True", b"1 True"}

    def test_what_may_be_done_once_is_not_handed_back(self, site: Site) -> None:
        site.needs("redelivers")
        with held(site) as handler:
            server, _ = site.serve(handler=handler, coroutines=10)
            replies = site.ask(b"once")
            eventually(lambda: handler.has(b"once"))
            handler.deliveries[b"once"].forbid_redelivery()
            server.stop()
            server.hand_back()
            site.serve(lambda delivery: Message(b"again", {"id": delivery.message.id}))
            assert LOST in replies.receive(site.patience * 2).headers

    def test_only_what_was_not_finished_is_delivered_again(self, site: Site) -> None:
        """Acknowledged in any order, and then the worker is killed."""
        site.needs("detached", "redelivers")
        process = site.spawn("detached")
        asked = [(number, site.ask(b"odd:%d" % number, ttl=120)) for number in range(40)]
        for number, replies in asked:
            if number % 2:
                assert replies.receive(site.patience).body == b"%d" % number
        eventually(lambda: len(site.log.lines()) == 40)
        process.kill()
        site.log.clear()
        site.serve()
        for number, replies in asked:
            if not number % 2:
                assert replies.receive(site.patience * 2).body == b"%d" % number
        assert sorted(site.log.lines()) == sorted(f"even {number}" for number in range(0, 40, 2))
