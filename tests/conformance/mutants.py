"""Ways to break a backend: each is a backend around another one, whose promises it does not keep.

They know nothing of what they are around but the interface (`rpc.transport`), so that the authors of other
backends can use them, too: with a `BrokenSite` of their URL, a mutant, and the test that is to fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rpc.errors import BackendUnavailable, Cancelled, QueueFull, RpcTimeout
from rpc.inspection import DeadLetter
from rpc.testing.site import Site
from rpc.transport import (
    DELAY,
    IDEMPOTENCY_KEY,
    ORDER_KEY,
    Address,
    Delivery,
    Handler,
    Message,
    Replies,
    Server,
    queue,
    topic,
    unpacked,
)

A_WHILE = 0.3
"""Seconds in which what is waiting comes."""


class Shared:
    """What the mutants of one site know in common."""

    def __init__(self) -> None:
        self.sent = 0
        self.firsts: dict[str, Any] = {}
        """What is known of the first message with an idempotency key."""
        self.in_hand: dict[str, GivenDelivery] = {}
        self.owners: dict[str, str] = {}
        """Of locks."""
        self.queues: set[str] = set()
        self.is_busy = self.is_full = False
        self.failures = iter([BackendUnavailable("away")])


class GivenReplies:
    """What comes back for one request, as it is."""

    def __init__(self, backend: Mutant, inner: Replies, message: Message) -> None:
        self.backend, self.inner, self.message = backend, inner, message

    def receive(self, timeout: float | None) -> Message:
        return self.inner.receive(timeout)

    def close(self) -> None:
        self.inner.close()


class GivenDelivery:
    """A delivery, as it is."""

    def __init__(self, server: GivenServer, inner: Delivery) -> None:
        self.server, self.inner = server, inner
        self.message, self.to = inner.message, inner.to
        self.has_ended = False

    @property
    def cancelled(self) -> bool:
        return self.inner.cancelled

    @cancelled.setter
    def cancelled(self, cancelled: bool) -> None:
        self.inner.cancelled = cancelled

    @property
    def on_cancel(self) -> Callable[[], object] | None:
        return self.inner.on_cancel

    @on_cancel.setter
    def on_cancel(self, action: Callable[[], object] | None) -> None:
        self.inner.on_cancel = action

    def reply(self, message: Message) -> bool:
        return self.inner.reply(message)

    def finish(self, last: Message | None) -> None:
        if not self.has_ended:
            self.end()
            self.inner.finish(last)

    def forbid_redelivery(self) -> None:
        self.inner.forbid_redelivery()

    def postpone(self, seconds: float, message: Message) -> None:
        self.inner.postpone(seconds, message)
        self.end()

    def bury(self, why: str, last: Message | None) -> None:
        self.end()
        self.inner.bury(why, last)

    def end(self) -> None:
        """It is not in hand any more."""
        self.has_ended = True
        self.server.backend.shared.in_hand.pop(self.message.id, None)


class GivenServer:
    """A server, as it is."""

    delivery: type[GivenDelivery] = GivenDelivery

    def __init__(
        self, backend: Mutant, addresses: Sequence[Address], handler: Handler, **options: Any
    ) -> None:
        self.backend, self.addresses, self.handler, self.options = backend, addresses, handler, options
        self.inner: Server = self.made()

    def made(self) -> Server:
        """Another one that does what this does."""
        return self.backend.inner.server(self.addresses, self.handle, **self.options)

    def handle(self, inner: Delivery) -> None:
        delivery = self.delivery(self, inner)
        self.backend.shared.in_hand[delivery.message.id] = delivery
        self.call(delivery)

    def call(self, delivery: GivenDelivery) -> None:
        self.handler(delivery)

    def run(self) -> None:
        self.inner.run()

    def stop(self) -> None:
        self.inner.stop()

    def hand_back(self) -> None:
        self.inner.hand_back()

    def run_for_a_while(self) -> None:
        """Another one takes what is there."""
        another = self.made()
        threading.Timer(A_WHILE, another.stop).start()
        another.run()


class Mutant:
    """A backend, as it is: each mutant changes one thing."""

    replies: type[GivenReplies] = GivenReplies
    served: type[GivenServer] = GivenServer

    def __init__(self, backend: Any, shared: Shared) -> None:
        self.inner, self.shared = backend, shared

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def changed(self, message: Message) -> Message:
        """What is sent in place of a message."""
        return message

    def send(self, to: Address, message: Message) -> None:
        if to.kind == "queue":
            self.shared.queues.add(to.name)
        self.inner.send(to, self.changed(message))

    def request(self, to: Address, message: Message) -> Replies:
        return self.replies(self, self.inner.request(to, self.changed(message)), message)

    def in_vain(self, message: Message) -> Replies:
        """The way back of a request that nobody gets."""
        return self.replies(self, self.inner.request(queue("nowhere"), message), message)

    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return self.served(self, addresses, handler, **options)


class BrokenSite(Site):
    """A site whose backends are broken in the same way."""

    def __init__(self, url: str, mutant: type[Mutant], **options: Any) -> None:
        super().__init__(url, **options)
        self._mutant, self._shared = mutant, Shared()

    def backend(self, **options: Any) -> Any:
        return self._mutant(super().backend(**options), self._shared)


# Requests and replies.


class LosesEveryThird(Mutant):
    def request(self, to: Address, message: Message) -> Replies:
        self.shared.sent += 1
        return self.in_vain(message) if self.shared.sent % 3 == 0 else super().request(to, message)


class SendsTwice(Mutant):
    def send(self, to: Address, message: Message) -> None:
        for number in range(2):
            super().send(to, message.replace(id=f"{message.id}-{number}"))


class DecodesBodies(Mutant):
    def changed(self, message: Message) -> Message:
        return Message(message.body.decode("utf-8", "replace").encode(), message.headers)


class DropsHeaders(Mutant):
    def changed(self, message: Message) -> Message:
        known = {"id", "ttl", "reply-to"}
        return Message(message.body, {name: text for name, text in message.headers.items() if name in known})


class MixesUpReplies(Mutant):
    class replies(GivenReplies):
        last: Replies | None = None

        def receive(self, timeout: float | None) -> Message:
            theirs, type(self).last = type(self).last or self.inner, self.inner
            return theirs.receive(timeout)


class ReordersReplies(Mutant):
    class replies(GivenReplies):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.come: list[Message] = []

        def receive(self, timeout: float | None) -> Message:
            while True:
                try:
                    self.come.append(self.inner.receive(0.05 if self.come else timeout))
                except RpcTimeout:
                    if not self.come:
                        raise
                    return self.come.pop()


class HoldsRepliesUntilTheEnd(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.early: list[Message] = []

            def reply(self, message: Message) -> bool:
                self.early.append(message)
                return self.message.reply_to is not None

            def finish(self, last: Message | None) -> None:
                for message in self.early:
                    super().reply(message)
                super().finish(last)


# Time.


class RoundsTimeoutsToSeconds(Mutant):
    class replies(GivenReplies):
        def receive(self, timeout: float | None) -> Message:
            return self.inner.receive(timeout and float(int(timeout)))


class DiesOfATimeout(Mutant):
    class replies(GivenReplies):
        def receive(self, timeout: float | None) -> Message:
            try:
                return self.inner.receive(timeout)
            except RpcTimeout:
                self.close()
                raise


class NeverUpdatesTtl(Mutant):
    def changed(self, message: Message) -> Message:
        return message.replace(**{"x-ttl": message.headers.get("ttl")})

    class served(GivenServer):
        def call(self, delivery: GivenDelivery) -> None:
            delivery.message = delivery.message.replace(ttl=delivery.message.headers.get("x-ttl"))
            super().call(delivery)


# Queues.


class IsLastInFirstOut(Mutant):
    class served(GivenServer):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.come: list[GivenDelivery] = []
            super().__init__(*args, **{**options, "coroutines": 1000})

        def call(self, delivery: GivenDelivery) -> None:
            self.come.append(delivery)
            threading.Timer(A_WHILE, self.call_the_newest).start()

        def call_the_newest(self) -> None:
            super().call(self.come.pop())


class IgnoresPriority(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return super().server(addresses[::-1], handler, **options)


class RunsOneAtATime(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return super().server(addresses, handler, **{**options, "threads": 1})


class RunsMoreThanItMay(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return super().server(addresses, handler, **{**options, "threads": options.get("threads", 1) + 1})


class DiesOfAHandlerThatRaises(Mutant):
    class served(GivenServer):
        def call(self, delivery: GivenDelivery) -> None:
            try:
                super().call(delivery)
            except ValueError:
                delivery.finish(None)
                self.stop()


# Ends.


class NeverWithdraws(Mutant):
    class replies(GivenReplies):
        def close(self) -> None:
            pass


class CancelsWhatWasAnswered(Mutant):
    class replies(GivenReplies):
        def close(self) -> None:
            super().close()
            if (delivery := self.backend.shared.in_hand.get(self.message.id)) and delivery.on_cancel:
                delivery.on_cancel()


class CancelsEverybody(Mutant):
    class replies(GivenReplies):
        def close(self) -> None:
            super().close()
            for delivery in [*self.backend.shared.in_hand.values()]:
                delivery.cancelled = True
                if delivery.on_cancel:
                    delivery.on_cancel()


class ForgetsWhatWasSentWhenItStops(Mutant):
    class served(GivenServer):
        def run(self) -> None:
            super().run()
            self.handler = lambda delivery: delivery.finish(None)
            self.run_for_a_while()


class TakesOneMoreAfterStop(Mutant):
    class served(GivenServer):
        def run(self) -> None:
            super().run()
            self.run_for_a_while()


class NeverSaysThatItHasEnded(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        told = options.pop("on_change", lambda connected: None)
        return super().server(addresses, handler, **options, on_change=lambda connected: told(True))


# Handlers that return before they have finished.


class FinishesNothingLater(Mutant):
    class served(GivenServer):
        def call(self, delivery: GivenDelivery) -> None:
            super().call(delivery)
            delivery.finish(None)


class FinishesOnlyInItsThread(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.thread = threading.get_ident()

            def finish(self, last: Message | None) -> None:
                super().finish(last if threading.get_ident() == self.thread else None)


class FinishesTwice(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def finish(self, last: Message | None) -> None:
                if last:
                    self.reply(last)
                super().finish(last)


class TakesNote(GivenServer):
    """Remembers what it took, in that order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.taken: list[Any] = []
        super().__init__(*args, **options)

    class delivery(GivenDelivery):
        def __init__(self, server: Any, inner: Delivery) -> None:
            super().__init__(server, inner)
            server.taken.append(self)


class FinishesOnlyInOrder(Mutant):
    """What was taken later is finished when all that was taken before it is."""

    class served(TakesNote):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.lasts: dict[int, Message | None] = {}
            super().__init__(*args, **options)

        class delivery(TakesNote.delivery):
            def finish(self, last: Message | None) -> None:
                server: Any = self.server
                server.lasts.setdefault(id(self), last)
                while server.taken and id(server.taken[0]) in server.lasts:
                    first = server.taken.pop(0)
                    GivenDelivery.finish(first, server.lasts[id(first)])


class FinishesTheOldest(Mutant):
    """Whatever is finished, it is the oldest that is acknowledged."""

    class served(TakesNote):
        class delivery(TakesNote.delivery):
            def finish(self, last: Message | None) -> None:
                server: Any = self.server
                if server.taken:
                    GivenDelivery.finish(server.taken.pop(0), last)


class HasAlwaysRoomInHand(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return super().server(addresses, handler, **{**options, "coroutines": 10**6})


class ForgetsThatThereIsRoom(Mutant):
    """What was finished keeps its place."""

    class served(GivenServer):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.left = options.get("coroutines", 1)
            super().__init__(*args, **options)

        def call(self, delivery: GivenDelivery) -> None:
            self.left -= 1
            if self.left <= 0:
                self.stop()
            super().call(delivery)


class StartsAThreadForEach(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.over = threading.Event()

            def end(self) -> None:
                super().end()
                self.over.set()

        def call(self, delivery: GivenDelivery) -> None:
            def hold() -> None:
                GivenServer.call(self, delivery)
                over: threading.Event = delivery.over  # type: ignore[attr-defined]
                over.wait()

            threading.Thread(target=hold, daemon=True).start()


class EndsBeforeWhatIsInHand(Mutant):
    class served(GivenServer):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.stopped = threading.Event()
            super().__init__(*args, **options)

        def run(self) -> None:
            threading.Thread(target=super().run, daemon=True).start()
            self.stopped.wait()

        def stop(self) -> None:
            super().stop()
            self.stopped.set()


class HandsBack(Mutant):
    """None of them: it gives the feature `redelivers` to a backend that has `delay`, but for deaths."""

    deaths = 0
    tells = True

    def __init__(self, backend: Any, shared: Shared) -> None:
        super().__init__(backend, shared)
        self.features = backend.features | {"redelivers"}

    class served(GivenServer):
        def hand_back(self) -> None:
            backend: Any = self.backend
            for delivery in [*backend.shared.in_hand.values()]:
                message = delivery.message.replace(handed_back=1 if backend.tells else None)
                if backend.deaths:
                    message = message.replace(deliveries=max(1, message.deliveries) + backend.deaths)
                delivery.postpone(0.01, message)


class CountsWhatIsHandedBackAsADeath(HandsBack):
    deaths = 1


class ForgetsThatItWasBegun(HandsBack):
    tells = False


class KeepsWhatItShouldHandBack(HandsBack):
    class served(GivenServer):
        def hand_back(self) -> None:
            pass


# Topics, locks, presence.


class SplitsTopics(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return super().server([topic(each.name, "all") for each in addresses], handler, **options)


class CopiesForEveryMemberOfAGroup(Mutant):
    def server(self, addresses: Sequence[Address], handler: Handler, **options: Any) -> Server:
        return super().server([topic(each.name) for each in addresses], handler, **options)


class ForgetsASubscriptionThatNobodyServes(Mutant):
    class served(GivenServer):
        def run(self) -> None:
            super().run()
            for each in self.addresses:
                self.backend.inner.unsubscribe(each)


class KeepsWhatNobodySubscribesTo(Mutant):
    def unsubscribe(self, to: Address) -> None:
        pass


class SaysThatItArrivedWhereItWasSent(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.to = Address(self.to.kind, self.to.name)


class GivesALockToEverybody(Mutant):
    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return True


class LetsOthersReleaseALock(Mutant):
    def acquire(self, name: str, owner: str, lease: float) -> bool:
        has = bool(self.inner.acquire(name, owner, lease))
        if has:
            self.shared.owners[name] = owner
        return has

    def release(self, name: str, owner: str) -> None:
        self.inner.release(name, self.shared.owners.get(name, owner))


class NeverEndsALease(Mutant):
    def acquire(self, name: str, owner: str, lease: float) -> bool:
        return bool(self.inner.acquire(name, owner, lease + 1000))


class SaysThatEveryQueueIsServed(Mutant):
    def is_served(self, queue: str) -> bool:
        return True


class ForgetsWhomItServesWhileBusy(Mutant):
    def is_served(self, queue: str) -> bool:
        return not self.shared.in_hand and bool(self.inner.is_served(queue))


# Delays, and other attempts.


def without(header: str) -> type[Mutant]:
    """Senders lose a header."""

    class Lossy(Mutant):
        def changed(self, message: Message) -> Message:
            return message.replace(**{header: None})

    return Lossy


class DelaysNothing(without(DELAY)):  # type: ignore[misc]
    pass


class DeliversFirstWhatIsDueLast(Mutant):
    def changed(self, message: Message) -> Message:
        delay = message.headers.get(DELAY)
        return message.replace(**{DELAY: delay and str(1 - float(delay))})


class LosesWhatIsDelayed(Mutant):
    def send(self, to: Address, message: Message) -> None:
        if DELAY not in message.headers:
            super().send(to, message)

    class served(GivenServer):
        class delivery(GivenDelivery):
            def postpone(self, seconds: float, message: Message) -> None:
                self.finish(None)


class DeliversAgainWhatItWas(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def postpone(self, seconds: float, message: Message) -> None:
                super().postpone(seconds, self.message)


class FinishesTheNextAttempt(Mutant):
    """Who postponed a message still finishes it."""

    class served(TakesNote):
        class delivery(TakesNote.delivery):
            def finish(self, last: Message | None) -> None:
                server: Any = self.server
                newest = [each for each in server.taken if each.message.id == self.message.id][-1]
                GivenDelivery.finish(newest, last)


class PostponesNothing(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def postpone(self, seconds: float, message: Message) -> None:
                super().postpone(0.001, message)


class ForgetsThatItWasWithdrawn(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def postpone(self, seconds: float, message: Message) -> None:
                with suppress(Cancelled):
                    super().postpone(seconds, message)


# Dead letters.


class BuriesWithoutAnAnswer(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def bury(self, why: str, last: Message | None) -> None:
                super().bury(why, None)


class AcknowledgesWhatItCouldNotBury(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def bury(self, why: str, last: Message | None) -> None:
                for failure in self.server.backend.shared.failures:
                    self.finish(None)
                    raise failure
                super().bury(why, last)


class ShowsTheOldestLetterFirst(Mutant):
    def dead_letters(self, queue: str) -> list[DeadLetter]:
        return list(self.inner.dead_letters(queue))[::-1]


class ForgetsWhatHasExpired(Mutant):
    class served(GivenServer):
        def call(self, delivery: GivenDelivery) -> None:
            if delivery.message.ttl is None or delivery.message.ttl > 0:
                super().call(delivery)
            else:
                delivery.finish(None)


class ShowsTheLettersOfAllQueues(Mutant):
    def request(self, to: Address, message: Message) -> Replies:
        self.shared.queues.add(to.name)
        return super().request(to, message)

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        return [letter for name in self.shared.queues for letter in self.inner.dead_letters(name)]


class RevivesAndKeeps(Mutant):
    def revive(self, letter: DeadLetter) -> bool:
        unwanted = dict.fromkeys(("ttl", "reply-to", IDEMPOTENCY_KEY))
        self.inner.send(queue(letter.queue), unpacked(letter.frame).replace(**unwanted))
        return True


class SaysThatItDid(Mutant):
    def drop(self, letter: DeadLetter) -> bool:
        return bool(self.inner.drop(letter)) or True


class RevivesTheKeyToo(Mutant):
    def revive(self, letter: DeadLetter) -> bool:
        found = bool(self.inner.drop(letter))
        if found:
            self.inner.send(queue(letter.queue), unpacked(letter.frame))
        return found


# Order keys.


class IgnoresOrderKeys(without(ORDER_KEY)):  # type: ignore[misc]
    pass


class HasOneLineForAllKeys(Mutant):
    def changed(self, message: Message) -> Message:
        return message.replace(**{ORDER_KEY: message.headers.get(ORDER_KEY) and "same"})


class LetsOthersOvertakeARetry(Mutant):
    class served(GivenServer):
        class delivery(GivenDelivery):
            def postpone(self, seconds: float, message: Message) -> None:
                self.finish(None)
                self.server.backend.inner.send(self.to, message.replace(**{DELAY: seconds}))


# Idempotency keys.


class DoesAllWithAKey(without(IDEMPOTENCY_KEY)):  # type: ignore[misc]
    pass


class ConcernsTheSecond(Mutant):
    """The base of mutants that do something to a request with a key which is known."""

    def request(self, to: Address, message: Message) -> Replies:
        key = message.headers.get(IDEMPOTENCY_KEY)
        if key is None:
            return super().request(to, message)
        if (first := self.shared.firsts.get(key)) is not None:
            return self.second(first, to, message)
        return self.first(key, to, message)

    def first(self, key: str, to: Address, message: Message) -> Replies:
        self.shared.firsts[key] = to, message
        return super().request(to, message)

    def second(self, first: Any, to: Address, message: Message) -> Replies:
        return Mutant.request(self, to, message)


class AnswersOnlyTheFirst(ConcernsTheSecond):
    def second(self, first: Any, to: Address, message: Message) -> Replies:
        self.inner.send(to, message.replace(reply_to=None))
        return self.in_vain(message)


class SharesKeysAmongQueues(ConcernsTheSecond):
    def second(self, first: Any, to: Address, message: Message) -> Replies:
        return Mutant.request(self, first[0], message)


class LetsTheExpiredKeepTheirKey(ConcernsTheSecond):
    def second(self, first: Any, to: Address, message: Message) -> Replies:
        is_void = self.shared.sent == 0
        return self.in_vain(message) if is_void else Mutant.request(self, to, message)

    class served(GivenServer):
        def call(self, delivery: GivenDelivery) -> None:
            self.backend.shared.sent += IDEMPOTENCY_KEY in delivery.message.headers
            super().call(delivery)


class RemembersThatTheFirstWasRefused(ConcernsTheSecond):
    """What was found to have expired is the answer to all that come later."""

    def second(self, first: Any, to: Address, message: Message) -> Replies:
        return self.in_vain(message) if self.shared.is_busy else Mutant.request(self, to, message)

    class served(GivenServer):
        def run(self) -> None:
            self.backend.shared.is_busy = True
            super().run()


class ListensToTheFirstAloneForHowLong(ConcernsTheSecond):
    def second(self, first: Any, to: Address, message: Message) -> Replies:
        return Mutant.request(self, to, message.replace(ttl=first[1].headers.get("ttl")))


class WithdrawsWhatOthersWaitFor(ConcernsTheSecond):
    """All that have a key share the way back of the first one."""

    def first(self, key: str, to: Address, message: Message) -> Replies:
        replies = Mutant.request(self, to, message.replace(**{IDEMPOTENCY_KEY: None}))
        self.shared.firsts[key] = replies
        return replies

    def second(self, first: Any, to: Address, message: Message) -> Replies:
        replies: Replies = first
        return replies


# Bounds.


class HasAlwaysRoom(Mutant):
    def send(self, to: Address, message: Message) -> None:
        try:
            super().send(to, message)
        except QueueFull:
            self.shared.is_full = True


class CountsAllQueuesAsOne(Mutant):
    def send(self, to: Address, message: Message) -> None:
        try:
            super().send(to, message)
        except QueueFull:
            self.shared.is_full = True
            raise
        if self.shared.is_full:
            raise QueueFull
