"""A session carries each frame once and in order, whatever the connections do."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rpc.backends.zeromq.session import CONFIRM, HEAD, REPLY, Route, Session


class Wire(Route):
    """A connection that says whether it has room, and loses all that is on its way when it breaks."""

    def __init__(self) -> None:
        self.on_the_way: list[bytes] = []
        self.has_room = True

    def write(self, frame: bytes) -> bool:
        if self.has_room:
            self.on_the_way.append(frame)
        return self.has_room


class End:
    """One side."""

    def __init__(self) -> None:
        self.wire, self.blocked = Wire(), set[Session]()
        self.session = Session(b"", self.wire, self.blocked)
        self.came: list[bytes] = []
        self.confirmed: list[int] = []
        self.sent = 0

    def send(self) -> None:
        number, self.sent = self.sent, self.sent + 1
        self.session.send(REPLY, b"%d" % number, lambda: self.confirmed.append(number))

    def take(self, frame: bytes) -> None:
        kind, number, confirmed = HEAD.unpack_from(frame)
        if kind != CONFIRM and self.session.take(number, len(frame)):
            self.came.append(frame[HEAD.size :])
        self.session.confirmed(confirmed)

    def reconnect(self, received: int) -> None:
        self.wire.has_room = True
        self.session.confirmed(received)
        self.session.resume()


STEPS = st.lists(st.tuples(st.sampled_from(["send", "carry", "full", "break", "confirm"]), st.booleans()))


@given(STEPS)
def test_each_frame_comes_once_and_in_order(steps: list[tuple[str, bool]]) -> None:
    ends = [End(), End()]

    def carry(here: End, there: End) -> None:
        if here.wire.on_the_way:
            there.take(here.wire.on_the_way.pop(0))

    def break_off(*_: Any) -> None:
        for end in ends:
            end.wire.on_the_way.clear()
        for here, there in (ends, ends[::-1]):
            here.reconnect(there.session.received)

    for step, which in steps:
        here, there = ends if which else ends[::-1]
        if step == "send":
            here.send()
        elif step == "carry":
            carry(here, there)
        elif step == "full":
            here.wire.has_room = False
        elif step == "break":
            break_off()
        else:
            here.session.confirm()
    break_off()
    for _ in range(2):
        while any(end.wire.on_the_way for end in ends):
            carry(ends[0], ends[1])
            carry(ends[1], ends[0])
        for end in ends:
            end.session.confirm()
    for here, there in (ends, ends[::-1]):
        while here.wire.on_the_way:
            carry(here, there)
        assert there.came == [b"%d" % number for number in range(here.sent)]
        assert here.confirmed == [*range(here.sent)]
        assert not here.session.unconfirmed
        assert not here.blocked
