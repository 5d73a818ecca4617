"""Ways to break the memory backend, by the class that each is patched into."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rpc.backends import memory
from rpc.backends.memory import First, Hub, MemoryBackend, MemoryDelivery, MemoryReplies
from rpc.errors import BackendUnavailable, QueueFull, RpcTimeout
from rpc.transport import DELAY, IDEMPOTENCY_KEY, Address, DeadLetter, Handler, Message, queue, unpacked

Patch = pytest.MonkeyPatch


def loses_every_third(patch: Patch) -> None:
    put, count = Hub.put, iter(range(10**6))
    patch.setattr(Hub, "put", lambda *args: None if next(count) % 3 == 2 else put(*args))


def sends_twice(patch: Patch) -> None:
    put = Hub.put
    patch.setattr(Hub, "put", lambda *args: (put(*args), put(*args))[0])


def is_last_in_first_out(patch: Patch) -> None:
    def newest(self: MemoryBackend, lists: list[Any]) -> MemoryDelivery | None:
        with self.hub.changed:
            while not self._stopped:
                for deliveries in lists:
                    if deliveries:
                        return deliveries.pop()  # type: ignore[no-any-return]
                self.hub.changed.wait(0.01)
            return None

    patch.setattr(MemoryBackend, "_next", newest)


def ignores_priority(patch: Patch) -> None:
    following = MemoryBackend._next
    patch.setattr(MemoryBackend, "_next", lambda self, lists: following(self, lists[::-1]))


def decodes_bodies(patch: Patch) -> None:
    put = Hub.put

    def text(self: Hub, to: Address, message: Message, *rest: Any) -> None:
        put(self, to, Message(message.body.decode("utf-8", "replace").encode(), message.headers), *rest)

    patch.setattr(Hub, "put", text)


def drops_headers(patch: Patch) -> None:
    put, known = Hub.put, {"id", "ttl", "reply-to"}

    def few(self: Hub, to: Address, message: Message, *rest: Any) -> None:
        kept = {name: value for name, value in message.headers.items() if name in known}
        put(self, to, Message(message.body, kept), *rest)

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
        with self.hub.changed:
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
        for waiting in self.hub.waiting.values():
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


def without(header: str) -> Callable[[Patch], None]:
    """Senders lose a header."""

    def mutate(patch: Patch) -> None:
        put = Hub.put

        def lossy(self: Hub, to: Address, message: Message, *rest: Any) -> None:
            put(self, to, message.replace(**{header: None}), *rest)

        patch.setattr(Hub, "put", lossy)

    return mutate


def delays_nothing(patch: Patch) -> None:
    without(DELAY)(patch)


def delivers_first_what_is_due_last(patch: Patch) -> None:
    later = Hub.put_later
    patch.setattr(Hub, "put_later", lambda self, seconds, delivery: later(self, 1 - seconds, delivery))


def loses_what_is_delayed(patch: Patch) -> None:
    patch.setattr(Hub, "put_later", lambda *args: None)


def delivers_what_was_withdrawn_meanwhile(patch: Patch) -> None:
    patch.setattr(MemoryDelivery, "cancel", lambda self: None)


def delivers_again_what_it_was(patch: Patch) -> None:
    postpone = MemoryDelivery.postpone
    patch.setattr(
        MemoryDelivery, "postpone", lambda self, seconds, message: postpone(self, seconds, self.message)
    )


def postpones_nothing(patch: Patch) -> None:
    patch.setattr(MemoryDelivery, "postpone", lambda self, seconds, message: self.hub.put_later(0, self))


def buries_without_an_answer(patch: Patch) -> None:
    bury = MemoryDelivery.bury
    patch.setattr(MemoryDelivery, "bury", lambda self, why, last: bury(self, why, None))


def acknowledges_what_it_could_not_bury(patch: Patch) -> None:
    bury, failures = MemoryDelivery.bury, iter([BackendUnavailable("away")])

    def fragile(self: MemoryDelivery, why: str, last: Message | None) -> None:
        for failure in failures:
            raise failure
        bury(self, why, last)

    patch.setattr(MemoryDelivery, "bury", fragile)


def shows_the_oldest_letter_first(patch: Patch) -> None:
    shown = MemoryBackend.dead_letters
    patch.setattr(MemoryBackend, "dead_letters", lambda self, queue: shown(self, queue)[::-1])


def shows_the_letters_of_all_queues(patch: Patch) -> None:
    patch.setattr(
        MemoryBackend,
        "dead_letters",
        lambda self, queue: [letter for letters in self.hub.dead.values() for letter in letters],
    )


def revives_and_keeps(patch: Patch) -> None:
    drop = MemoryBackend.drop

    def keep(self: MemoryBackend, letter: DeadLetter) -> bool:
        found = drop(self, letter)
        self.hub.dead[letter.queue].append(letter)
        return found

    patch.setattr(MemoryBackend, "drop", keep)


def says_that_it_did(patch: Patch) -> None:
    drop = MemoryBackend.drop
    patch.setattr(MemoryBackend, "drop", lambda self, letter: drop(self, letter) or True)


def revives_the_key_too(patch: Patch) -> None:
    def revive(self: MemoryBackend, letter: DeadLetter) -> bool:
        found = self.drop(letter)
        if found:
            self.send(queue(letter.queue), unpacked(letter.frame))
        return found

    patch.setattr(MemoryBackend, "revive", revive)


def does_all_with_a_key(patch: Patch) -> None:
    without(IDEMPOTENCY_KEY)(patch)


def answers_only_the_first(patch: Patch) -> None:
    patch.setattr(First, "join", lambda self, message, replies: None)


def shares_keys_among_queues(patch: Patch) -> None:
    class Firsts(dict):  # type: ignore[type-arg]
        def get(self, place: Any, default: Any = None) -> Any:
            return super().get(place[1], default)

        def __setitem__(self, place: Any, first: Any) -> None:
            super().__setitem__(place[1], first)

    made = Hub.__init__

    def make(self: Hub) -> None:
        made(self)
        self.firsts = Firsts()

    patch.setattr(Hub, "__init__", make)
    patch.setattr(memory, "HUBS", defaultdict(Hub))


def lets_the_expired_keep_their_key(patch: Patch) -> None:
    patch.setattr(First, "is_void", lambda self: False)


def remembers_that_the_first_was_refused(patch: Patch) -> None:
    start = MemoryDelivery.start

    def begun(self: MemoryDelivery) -> None:
        start(self)
        self._begun = True

    patch.setattr(MemoryDelivery, "start", begun)


def listens_to_the_first_alone_for_how_long(patch: Patch) -> None:
    patch.setattr(MemoryDelivery, "extend", lambda self, ttl: None)


def withdraws_what_others_wait_for(patch: Patch) -> None:
    def close(self: MemoryReplies) -> None:
        for delivery in self.deliveries:
            if delivery in delivery.waiting:
                delivery.waiting.remove(delivery)

    patch.setattr(MemoryReplies, "close", close)


def has_always_room(patch: Patch) -> None:
    put = Hub.put
    patch.setattr(Hub, "put", lambda self, to, message, replies, most=0: put(self, to, message, replies))


def counts_all_queues_as_one(patch: Patch) -> None:
    put = Hub.put

    def crowded(self: Hub, to: Address, message: Message, replies: Any, most: int = 0) -> None:
        if most and sum(map(len, self.waiting.values())) >= most:
            raise QueueFull
        put(self, to, message, replies)

    patch.setattr(Hub, "put", crowded)


def forgets_a_subscription_that_nobody_serves(patch: Patch) -> None:
    put = Hub.put

    def live(self: Hub, to: Address, *rest: Any) -> None:
        kept, self.kept = self.kept, defaultdict(set)
        try:
            put(self, to, *rest)
        finally:
            self.kept = kept

    stopped = MemoryBackend.stop

    def stop(self: MemoryBackend) -> None:
        patch.setattr(Hub, "put", live)
        stopped(self)

    patch.setattr(MemoryBackend, "stop", stop)


def keeps_what_nobody_subscribes_to(patch: Patch) -> None:
    patch.setattr(MemoryBackend, "unsubscribe", lambda self, to: None)


def says_that_it_arrived_where_it_was_sent(patch: Patch) -> None:
    lists = Hub._lists
    patch.setattr(Hub, "_lists", lambda self, to: [(to, waiting) for _, waiting in lists(self, to)])
    patch.setattr(memory, "arriving", lambda to, handler: handler)


def gives_a_lock_to_everybody(patch: Patch) -> None:
    patch.setattr(MemoryBackend, "acquire", lambda self, name, owner, lease: True)


def lets_others_release_a_lock(patch: Patch) -> None:
    patch.setattr(MemoryBackend, "release", lambda self, name, owner: self.hub.locks.pop(name, None))


def never_ends_a_lease(patch: Patch) -> None:
    acquire = MemoryBackend.acquire
    patch.setattr(
        MemoryBackend, "acquire", lambda self, name, owner, lease: acquire(self, name, owner, 1000 + lease)
    )


def says_that_every_queue_is_served(patch: Patch) -> None:
    patch.setattr(MemoryBackend, "is_served", lambda self, queue: True)


def forgets_whom_it_serves_while_busy(patch: Patch) -> None:
    start = MemoryDelivery.start

    def starting(delivery: MemoryDelivery) -> None:
        delivery.hub.served.clear()
        start(delivery)

    patch.setattr(MemoryDelivery, "start", starting)


def never_says_that_it_has_ended(patch: Patch) -> None:
    serve = MemoryBackend.serve

    def silent(self: MemoryBackend, *args: Any) -> None:
        told = self.on_change
        self.on_change = told and (lambda connected: told(True))
        serve(self, *args)

    patch.setattr(MemoryBackend, "serve", silent)
