"""What may become of a message, as a state machine that chooses at random what happens next, and compares.

An accepted message is in exactly one of these places: queued, in limbo (its receiver is gone, and nobody has
noticed yet), held, or at one of its ends: done, withdrawn, expired, dead. The machine knows where, and so
what a receiver may get next; anything else that comes is an error.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from multiprocessing.connection import wait
from typing import Any
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rpc.errors import RpcTimeout
from rpc.transport import LOST, STREAM, Backend, Message, Replies, queue

from .nursery import PATIENCE
from .oracle import ACCEPTED, ANSWERED, Call, Ledger, Oracle
from .steps import Receiver

MAX_DELIVERIES = 2
BRIEF = 0.02
numbers = st.integers(0, 1000)
Step = Callable[..., None]


def when(possible: Callable[[Any], object]) -> Callable[[Step], Step]:
    """Else nothing happens. (A precondition of hypothesis' may not depend on which receiver was faster.)"""

    def conditional(step: Step) -> Step:
        @wraps(step)
        def perhaps(self: Model, *arguments: Any, **named: Any) -> None:
            if possible(self):
                step(self, *arguments, **named)

        return perhaps

    return conditional


class Model(RuleBasedStateMachine):
    """One queue and two receivers. A subclass says on which backend."""

    backend: Backend
    hire: Callable[[str], Receiver]
    """Makes a receiver of the queue of this name."""
    oracle: Oracle
    deaths_allowed = 1
    ahead = 0
    """How many messages a receiver may have that it has not begun. They are not begun in order, then."""

    @initialize()
    def begin(self) -> None:
        self.name = f"model-{uuid4().hex[:8]}"
        self.queued: list[str] = []
        self.limbo: list[str] = []
        self.ended: dict[str, str] = {}
        self.messages: dict[str, Message] = {}
        self.replies: dict[str, Replies] = {}
        self.deaths: Counter[str] = Counter()
        self.parts_read: Counter[str] = Counter()
        self.killed = 0
        self.ledger = Ledger(self.oracle.path)
        self.receivers = [self._hired(), self._hired()]

    def _hired(self) -> Receiver:
        return type(self).hire(self.name)

    # What senders do.

    def _message(self, ttl: float | None = None, **headers: str) -> Message:
        message = Message(b"", {"id": f"{self.name}-{len(self.messages)}"}).replace(ttl=ttl, **headers)
        self.messages[message.id] = message
        return message

    @rule()
    def send(self) -> None:
        message = self._message()
        self.backend.send(queue(self.name), message)
        self.queued.append(message.id)
        self._settle()

    @rule()
    def ask(self) -> None:
        message = self._message(ttl=300, reply_to=uuid4().hex)
        self.replies[message.id] = self.backend.request(queue(self.name), message)
        self.queued.append(message.id)
        self._settle()

    @rule(number=numbers)
    @when(lambda self: "durable" in self.backend.features and self._sent())
    def send_again(self, number: int) -> None:
        """The same message once more: there is one of it."""
        self.backend.send(queue(self.name), self._sent()[number % len(self._sent())])

    @rule()
    @when(lambda self: not self._idle())
    def let_expire(self) -> None:
        message = self._message(ttl=BRIEF)
        self.backend.send(queue(self.name), message)
        time.sleep(2 * BRIEF)  # it is time itself that is tested
        self.ended[message.id] = "expired"

    @rule(number=numbers)
    @when(lambda self: self._open())
    def withdraw(self, number: int) -> None:
        id = self._open()[number % len(self._open())]
        self.replies[id].close()
        self.ended[id] = "withdrawn"
        if holder := self._holder(id):
            assert holder.next_event() == ("cancelled", id)
        else:
            (self.queued if id in self.queued else self.limbo).remove(id)

    # What receivers do.

    @rule(number=numbers)
    @when(lambda self: self._open_and_held())
    def reply_in_part(self, number: int) -> None:
        id = self._open_and_held()[number % len(self._open_and_held())]
        receiver = self._holder(id)
        assert receiver
        self._say_a_part(receiver)
        if receiver.parts > self.parts_read[id]:
            self.parts_read[id] += 1
            part = self.replies[id].receive(PATIENCE)
            assert (part.body, part.headers.get(STREAM), part.id) == (b"part", "1", id)

    def _say_a_part(self, receiver: Receiver) -> None:
        """What was said by an earlier receiver, before it went, is not heard again."""
        receiver.order("part", b"part")
        assert receiver.next_event() == ("sent", True)
        receiver.parts += 1

    @rule(number=numbers, order=st.sampled_from(["finish", "finish", "finish", "raise"]))
    @when(lambda self: self._busy())
    def finish(self, number: int, order: str) -> None:
        receiver = self._busy()[number % len(self._busy())]
        id = receiver.holds or ""
        while id not in self.ended and receiver.parts < self.parts_read[id]:
            self._say_a_part(receiver)  # a handler says no less than it did before
        receiver.holds, receiver.parts = None, 0
        receiver.order(order, id.encode())
        self.ledger.note(id, 1, "end")
        if id not in self.ended:
            self._done(id, lost=order == "raise")
        self._settle()

    def _done(self, id: str, *, lost: bool) -> None:
        """A caller that waits gets the last reply, once."""
        self.ended[id] = "dead" if lost else "done"
        if id not in self.replies:
            return
        reply = self.replies[id].receive(PATIENCE)
        assert (LOST in reply.headers) == lost
        assert lost or (reply.body, reply.id) == (id.encode(), id)
        try:
            second = self.replies[id].receive(0.01)
        except RpcTimeout:
            self.replies[id].close()
        else:
            raise AssertionError(f"{id} was answered twice: {second.headers}")

    @rule(number=numbers)
    @when(lambda self: "redelivers" in self.backend.features and self.killed < self.deaths_allowed)
    def kill(self, number: int) -> None:
        """SIGKILL to a receiver: what it holds is delivered again, or given up."""
        self.killed += 1
        place = number % 2
        id = self._gone(place)
        if id and id not in self.ended:
            self.deaths[id] += 1
            if self.deaths[id] >= MAX_DELIVERIES:
                self._done(id, lost=True)
            else:
                self.limbo.append(id)
        self._settle()

    @rule(number=numbers)
    @when(lambda self: "redelivers" in self.backend.features and self._busy())
    def hand_back(self, number: int) -> None:
        """A receiver leaves in the middle, in good order: that is no death."""
        receiver = self._busy()[number % len(self._busy())]
        receiver.order("leave")
        assert receiver.join() == 0
        id = self._gone(self.receivers.index(receiver))
        if id and id not in self.ended:
            self.limbo.append(id)
        self._settle()

    def _gone(self, place: int) -> str | None:
        """End a receiver, and hire another one; what it held."""
        receiver = self.receivers[place]
        receiver.end()
        self.receivers[place] = self._hired()
        return receiver.holds

    # What must be so.

    def _settle(self) -> None:
        """Whoever is idle gets what comes next, if anything does."""
        while (idle := self._idle()) and (self.queued or self.limbo):
            ready = wait([receiver.connection for receiver in idle], PATIENCE)
            assert ready, f"nobody gets {self.queued + self.limbo}"
            receiver = next(each for each in idle if each.connection is ready[0])
            self._took(receiver, len(idle))

    def _took(self, receiver: Receiver, idle: int) -> None:
        what, id, *deliveries = receiver.next_event()
        if what == "expired":
            assert self.ended[id] == "expired"
            return
        assert what == "holds"
        place = [*self.limbo, *self.queued[: idle + self.ahead]]
        assert id in place, f"{id} of {self.queued} and {self.limbo}"
        # A receiver that dies takes along what it has not begun: a delivery of that, too.
        assert self.deaths[id] < deliveries[0] <= self.deaths[id] + 1 + (self.ahead and self.killed)
        self.deaths[id] = deliveries[0] - 1
        (self.limbo if id in self.limbo else self.queued).remove(id)
        receiver.holds = id
        self.ledger.note(id, deliveries[0], "begin")

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        if not hasattr(self, "receivers"):
            return
        held = [str(each.holds) for each in self._busy() if each.holds not in self.ended]
        places = [*self.queued, *self.limbo, *held, *self.ended]
        assert sorted(places) == sorted(self.messages)

    def teardown(self) -> None:
        if not hasattr(self, "receivers"):
            return
        try:
            while self._busy():
                self.finish(0, "finish")
            self.send()  # it comes at once: nothing else is before it
            assert sum(receiver.holds is not None for receiver in self.receivers) == 1
            self.finish(0, "finish")
            for receiver in self.receivers:
                while receiver.connection.poll(BRIEF):
                    what, id = receiver.next_event()
                    assert (what, self.ended[id]) == ("expired", "expired")
        finally:
            for receiver in self.receivers:
                receiver.end()
            for receiver in self.receivers:
                receiver.join()
        self._report()

    def _report(self) -> None:
        for id, end in self.ended.items():
            outcome = {"done": ANSWERED if id in self.replies else ACCEPTED, "dead": "WorkerLost"}.get(
                end, end
            )
            self.oracle.calls.append(Call(id, 0.0, hurried=True, outcome=outcome))

    def _idle(self) -> list[Receiver]:
        return [receiver for receiver in self.receivers if receiver.holds is None]

    def _busy(self) -> list[Receiver]:
        """In an order that does not depend on which of them was faster."""
        busy = [receiver for receiver in self.receivers if receiver.holds is not None]
        return sorted(busy, key=lambda receiver: str(receiver.holds))

    def _holder(self, id: str) -> Receiver | None:
        return next((receiver for receiver in self.receivers if receiver.holds == id), None)

    def _sent(self) -> list[Message]:
        """Messages that nobody answers, and that may come again."""
        unwanted = {id for id, end in self.ended.items() if end == "expired"} | set(self.replies)
        return [message for id, message in self.messages.items() if id not in unwanted]

    def _open(self) -> list[str]:
        """Requests whose caller still waits."""
        return [id for id in self.replies if id not in self.ended]

    def _open_and_held(self) -> list[str]:
        return [id for id in self._open() if self._holder(id)]
