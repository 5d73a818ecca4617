"""What servers of all backends share: the account of what is in hand, of the connection, and of what comes
to each address."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from rpc.backends._serially import Serially
from rpc.backends._serving import BaseDelivery, Connections, Slots
from rpc.testing.site import eventually
from rpc.transport import Message, queue, topic


class Held(BaseDelivery):
    """Tells the slots when it is finished."""

    def __init__(self, slots: Slots) -> None:
        self.slots, self.message = slots, Message()

    def _finish(self, last: Message | None) -> None:
        self.slots.done(self)


class FinishedMeanwhile(Held):
    """One that another thread finishes just when the slots look for the second time whether it is."""

    looks = 0
    has_ended = False

    @property
    def finished(self) -> bool:  # type: ignore[override]
        self.looks += 1
        before = self.has_ended
        if self.looks == 2:
            thread = threading.Thread(target=self.finish_elsewhere)
            thread.start()
            thread.join(0.2)
        return before

    def finish_elsewhere(self) -> None:
        self.has_ended = True
        self.slots.done(self)


def keeping(delivery: Any) -> None:
    """A handler that returns, and has not finished."""


def finishing(delivery: Any) -> None:
    delivery.finish(None)


def test_what_is_not_finished_takes_room_until_it_is() -> None:
    slots = Slots(2)
    first, second = Held(slots), Held(slots)
    slots.call(keeping, first)
    slots.call(finishing, Held(slots))
    assert (slots.room, slots.in_hand()) == (1, [first])
    slots.call(keeping, second)
    assert slots.room == 0
    assert slots.done(second), "there was no room before"
    assert not slots.done(first)
    assert slots.room == 2
    slots.wait()


def test_what_is_finished_just_when_its_handler_returns_takes_no_room() -> None:
    slots = Slots(1)
    slots.call(keeping, FinishedMeanwhile(slots))
    eventually(lambda: slots.room == 1)


def test_many_threads_finish_what_many_others_begin() -> None:
    slots = Slots(10**6)
    with ThreadPoolExecutor(4) as begins, ThreadPoolExecutor(4) as ends:

        def elsewhere(delivery: Any) -> None:
            ends.submit(delivery.finish, None)

        list(begins.map(partial(slots.call, elsewhere), [Held(slots) for _ in range(5000)]))
    assert slots.room == 10**6


def test_a_change_of_the_connection_is_told_once() -> None:
    told: list[bool] = []
    connections = Connections(told.append)
    for connected in (False, True, True, False, False, True):
        connections.notify(connected)
    assert (told, connections.count) == ([True, False, True], 2)


def test_what_comes_to_one_address_is_done_in_order_and_beside_the_others() -> None:
    go_on, done = threading.Event(), list[int]()
    one, other = topic("one"), queue("other")
    serially = Serially(2)
    serially.run(one, partial(go_on.wait, 20))
    for number in range(1, 101):
        serially.run(one, partial(done.append, number))
        serially.run(other, partial(done.append, -number))
    eventually(lambda: len(done) == 100)
    assert serially.waiting(one) == 101
    assert done == [-number for number in range(1, 101)]
    go_on.set()
    eventually(lambda: len(done) == 200)
    assert done[100:] == list(range(1, 101))
    serially.end()


def test_in_place_it_is_done_by_whoever_brings_it(caplog: pytest.LogCaptureFixture) -> None:
    done, to = list[int](), topic("one")
    serially = Serially(1, in_place=True)
    serially.run(to, lambda: done.append(threading.get_ident()))
    serially.run(to, lambda: done.append(1 // 0))
    assert done == [threading.get_ident()]
    assert caplog.messages == [f"what came to {to} could not be handled"]
    assert serially.waiting(to) == 0
    serially.end()
    serially.run(to, lambda: done.append(1))
    assert len(done) == 1


def test_at_the_end_what_is_not_begun_is_forgotten() -> None:
    begun, go_on, done, to = threading.Event(), threading.Event(), list[int](), topic("one")
    serially = Serially(1)

    def first() -> None:
        begun.set()
        go_on.wait(20)

    serially.run(to, first)
    serially.run(to, partial(done.append, 1))
    assert begun.wait(20)
    ending = threading.Thread(target=serially.end)
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    go_on.set()
    ending.join(20)
    assert not ending.is_alive()
    assert done == []
