"""The suite itself: each of these broken backends is caught by the test that is named beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest

from rpc.addresses import Address
from rpc.backends.memory import Hub, MemoryBackend, MemoryDelivery, MemoryReplies
from rpc.errors import RpcTimeout
from rpc.message import Handler, Message
from rpc.testing import site as site_module
from rpc.testing.conformance import Conformance, Site

Put = Callable[..., None]
Patch = pytest.MonkeyPatch


def loses_every_third(patch: Patch) -> None:
    put, count = Hub.put, iter(range(10**6))
    patch.setattr(Hub, "put", lambda *args: None if next(count) % 3 == 2 else put(*args))


def sends_twice(patch: Patch) -> None:
    put = Hub.put
    patch.setattr(Hub, "put", lambda *args: (put(*args), put(*args))[0])


def is_last_in_first_out(patch: Patch) -> None:
    def newest(self: MemoryBackend, lists: list[Any]) -> MemoryDelivery | None:
        with self._hub.changed:
            while not self._stopped:
                for deliveries in lists:
                    if deliveries:
                        return deliveries.pop()  # type: ignore[no-any-return]
                self._hub.changed.wait(0.01)
            return None

    patch.setattr(MemoryBackend, "_next", newest)


def ignores_priority(patch: Patch) -> None:
    following = MemoryBackend._next
    patch.setattr(MemoryBackend, "_next", lambda self, lists: following(self, lists[::-1]))


def decodes_bodies(patch: Patch) -> None:
    put = Hub.put

    def text(self: Hub, to: Address, message: Message, replies: Any) -> None:
        put(self, to, Message(message.body.decode("utf-8", "replace").encode(), message.headers), replies)

    patch.setattr(Hub, "put", text)


def drops_headers(patch: Patch) -> None:
    put, known = Hub.put, {"id", "ttl", "reply-to"}

    def few(self: Hub, to: Address, message: Message, replies: Any) -> None:
        kept = {name: value for name, value in message.headers.items() if name in known}
        put(self, to, Message(message.body, kept), replies)

    patch.setattr(Hub, "put", few)


def mixes_up_replies(patch: Patch) -> None:
    shared: list[MemoryReplies] = []
    put = MemoryReplies.put

    def anybody(self: MemoryReplies, message: Message) -> bool:
        shared.append(self)
        return put(shared[len(shared) // 2], message)

    patch.setattr(MemoryReplies, "put", anybody)


def reorders_replies(patch: Patch) -> None:
    receive = MemoryReplies.receive

    def newest(self: MemoryReplies, timeout: float | None) -> Message:
        time.sleep(0.05)
        with self._hub.changed:
            self._arrived.reverse()
        return receive(self, timeout)

    patch.setattr(MemoryReplies, "receive", newest)


def holds_replies_until_the_end(patch: Patch) -> None:
    loop = MemoryBackend._loop

    def late(self: MemoryBackend, lists: list[Any], handler: Handler) -> None:
        def buffered(delivery: Any) -> Message | None:
            early, reply = [], delivery.reply
            delivery.reply = lambda message: early.append(message) or delivery.replies is not None
            last = handler(delivery)
            delivery.reply = reply
            for message in early:
                reply(message)
            return last

        loop(self, lists, buffered)

    patch.setattr(MemoryBackend, "_loop", late)


def rounds_timeouts_to_seconds(patch: Patch) -> None:
    receive = MemoryReplies.receive
    patch.setattr(
        MemoryReplies, "receive", lambda self, timeout: receive(self, timeout and float(int(timeout)))
    )


def dies_of_a_timeout(patch: Patch) -> None:
    receive = MemoryReplies.receive

    def once(self: MemoryReplies, timeout: float | None) -> Message:
        try:
            return receive(self, timeout)
        except RpcTimeout:
            self.close()
            raise

    patch.setattr(MemoryReplies, "receive", once)


def never_updates_ttl(patch: Patch) -> None:
    patch.setattr(MemoryDelivery, "start", lambda self: None)


def dies_of_a_handler_that_raises(patch: Patch) -> None:
    def fragile(self: MemoryBackend, lists: list[Any], handler: Handler) -> None:
        while (delivery := self._next(lists)) is not None:
            if last := handler(delivery):
                delivery.reply(last)

    patch.setattr(MemoryBackend, "_loop", fragile)


def runs_one_at_a_time(patch: Patch) -> None:
    serve = MemoryBackend.serve

    def single(self: Any, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        serve(self, addresses, handler, 1)

    patch.setattr(MemoryBackend, "serve", single)


def runs_more_than_it_may(patch: Patch) -> None:
    serve = MemoryBackend.serve

    def many(self: Any, addresses: Sequence[Address], handler: Handler, concurrency: int = 1) -> None:
        serve(self, addresses, handler, concurrency + 1)

    patch.setattr(MemoryBackend, "serve", many)


def never_withdraws(patch: Patch) -> None:
    def close(self: MemoryReplies) -> None:
        self._closed = True

    patch.setattr(MemoryReplies, "close", close)


def cancels_what_was_answered(patch: Patch) -> None:
    close = MemoryReplies.close

    def always(self: MemoryReplies) -> None:
        self._ended = False
        close(self)

    patch.setattr(MemoryReplies, "close", always)


def forgets_what_was_sent_when_it_stops(patch: Patch) -> None:
    def stop(self: MemoryBackend) -> None:
        self._stopped = True
        for waiting in self._hub.waiting.values():
            waiting.clear()

    patch.setattr(MemoryBackend, "stop", stop)


def takes_one_more_after_stop(patch: Patch) -> None:
    following = MemoryBackend._next

    def late(self: MemoryBackend, lists: list[Any]) -> MemoryDelivery | None:
        for deliveries in lists if self._stopped else ():
            if deliveries:
                return deliveries.popleft()  # type: ignore[no-any-return]
        return following(self, lists)

    patch.setattr(MemoryBackend, "_next", late)


def splits_topics(patch: Patch) -> None:
    subscribe = Hub.subscribe
    patch.setattr(Hub, "subscribe", lambda self, to: subscribe(self, Address(to.kind, to.name, "all")))


def copies_for_every_member_of_a_group(patch: Patch) -> None:
    subscribe = Hub.subscribe
    patch.setattr(Hub, "subscribe", lambda self, to: subscribe(self, Address(to.kind, to.name)))


C = Conformance
MUTANTS: list[tuple[Callable[[Patch], None], Callable[..., None], tuple[Any, ...]]] = [
    (loses_every_third, C.test_each_request_gets_its_own_replies, ()),
    (sends_twice, C.test_one_of_the_receivers_gets_each_message, ()),
    (is_last_in_first_out, C.test_first_in_first_out, ()),
    (ignores_priority, C.test_queues_are_served_in_order_of_priority, ()),
    (decodes_bodies, C.test_bodies_are_opaque, (bytes(range(256)),)),
    (drops_headers, C.test_headers_are_carried, ()),
    (mixes_up_replies, C.test_each_request_gets_its_own_replies, ()),
    (reorders_replies, C.test_replies_come_in_order, ()),
    (holds_replies_until_the_end, C.test_a_reply_can_leave_before_the_handler_is_done, ()),
    (rounds_timeouts_to_seconds, C.test_receive_times_out_and_stays_usable, (0.3,)),
    (dies_of_a_timeout, C.test_receive_times_out_and_stays_usable, (0.05,)),
    (never_updates_ttl, C.test_the_receiver_is_told_how_much_time_is_left, ()),
    (
        dies_of_a_handler_that_raises,
        C.test_the_loop_survives_a_handler_that_raises_and_the_caller_is_told,
        (),
    ),
    (runs_one_at_a_time, C.test_so_many_run_at_a_time_and_no_more, ()),
    (runs_more_than_it_may, C.test_so_many_run_at_a_time_and_no_more, ()),
    (never_withdraws, C.test_what_nobody_waits_for_any_more_is_not_started, ()),
    (never_withdraws, C.test_a_running_handler_is_told_that_nobody_waits_any_more, ()),
    (cancels_what_was_answered, C.test_a_handler_that_was_answered_is_not_cancelled, ()),
    (forgets_what_was_sent_when_it_stops, C.test_stop_finishes_what_it_started_and_takes_nothing_new, ()),
    (takes_one_more_after_stop, C.test_stop_finishes_what_it_started_and_takes_nothing_new, ()),
    (splits_topics, C.test_every_receiver_of_a_topic_gets_each_message, ()),
    (copies_for_every_member_of_a_group, C.test_a_group_shares_one_copy, ()),
]


CAUGHT = (AssertionError, pytest.fail.Exception, RpcTimeout, KeyError, ValueError)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: Patch) -> None:
    monkeypatch.setattr(site_module, "PATIENCE", 1.5)


def run(test: Callable[..., None], arguments: tuple[Any, ...], mutate: Callable[[], None]) -> None:
    with Site(f"memory://{uuid4().hex}") as site:
        mutate()
        test(Conformance(), site, *arguments)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("mutate", "test", "arguments"), MUTANTS, ids=[mutate.__name__ for mutate, _, _ in MUTANTS]
)
def test_the_suite_catches_a_backend_that(
    mutate: Callable[[Patch], None],
    test: Callable[..., None],
    arguments: tuple[Any, ...],
    monkeypatch: Patch,
) -> None:
    with pytest.raises(CAUGHT):
        run(test, arguments, lambda: mutate(monkeypatch))


@pytest.mark.parametrize(
    ("test", "arguments"),
    sorted({(test, arguments) for _, test, arguments in MUTANTS}, key=lambda pair: pair[0].__name__),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_lets_one_pass_that_is_not_broken(test: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    run(test, arguments, lambda: None)
