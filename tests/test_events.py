"""Events: which listener hears what, as what, and what becomes of one that fails. On memory; between
processes in test_events_processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from threading import Event as Flag
from threading import Thread
from typing import Any, cast
from uuid import uuid4

import msgspec
import pytest
from in_memory import LONG, until

from rpc import AsyncRpcClient, Event, RpcClient, RpcReceiver, RpcTimeout, SettingsError, expose, on
from rpc.backends.memory import MemoryBackend
from rpc.core.filters import Filter
from rpc.core.jobs import JobOptions
from rpc.events import Subscription, event_address
from rpc.inspection import DeadLetters
from rpc.settings import Settings
from rpc.transport import Message


class Hall:
    """Where receivers listen, in threads, and a client publishes."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url, self._stack = url, stack
        self.backend = MemoryBackend(url)
        self.client = stack.enter_context(RpcClient(backend=self.backend, timeout=LONG))
        self.heard: list[Any] = []

    def serve(self, *listeners: Any, settings: Settings | None = None) -> RpcReceiver:
        receiver = RpcReceiver(services=listeners, jobs={}, backend=self.url, settings=settings)
        begun = Flag()
        receiver.hook("on_connect")(begun.set)
        thread = Thread(target=receiver.start, daemon=True)
        thread.start()

        def end() -> None:
            receiver.stop()
            thread.join(LONG)
            assert not thread.is_alive()

        self._stack.callback(end)
        assert begun.wait(LONG)
        return receiver

    def hear(self, event: str, **options: Any) -> Any:
        """A listener that writes down the data."""

        @on(event, **options)
        def hear(data: Any) -> None:
            self.heard.append(data)

        return hear

    def letters(self, subscription: str) -> list[Any]:
        return cast("DeadLetters", self.backend).dead_letters(subscription)


@pytest.fixture
def hall() -> Iterator[Hall]:
    with ExitStack() as stack:
        yield Hall(f"memory://{uuid4().hex}", stack)


# What is heard.


@pytest.mark.parametrize(("pattern", "hears"), [
    ("order", ["order"]),
    ("order.created", ["order.created"]),
    ("order.*", ["order.created", "order.created.eu", "order.paid"]),
    ("order.*.eu", ["order.created.eu"]),
    ("order.c*", ["order.created", "order.created.eu"]),
], ids=str)  # fmt: skip
def test_a_pattern_hears_what_it_says(hall: Hall, pattern: str, hears: list[str]) -> None:
    @on(pattern)
    def hear(event: Event) -> None:
        hall.heard.append(event.topic)

    hall.serve(hear, hall.hear("order.end"))
    for event in "order", "order.created", "order.created.eu", "order.paid", "orders.created":
        hall.client.publish(event)
    hall.client.publish("order.end", ["end"])
    until(lambda: ["end"] in hall.heard)
    assert [each for each in hall.heard if each not in (["end"], "order.end")] == hears


def test_a_listener_that_asks_for_the_event_gets_all_of_it(hall: Hall) -> None:
    @on("boom")
    def named(event) -> None:  # type: ignore[no-untyped-def]
        hall.heard.append(event)

    @on("boom")
    def annotated(it: Event) -> None:
        hall.heard.append(it)

    hall.serve(named, annotated)
    id = hall.client.publish("boom", {"place": "x"}, headers={"colour": "red"})
    until(lambda: len(hall.heard) == 2)
    assert hall.heard == [Event("boom", {"place": "x"}, {"colour": "red"}, id)] * 2


def test_nothing_is_published_as_an_empty_dict(hall: Hall) -> None:
    hall.serve(hall.hear("boom"))
    hall.client.publish("boom")
    until(lambda: hall.heard == [{}])


@dataclass
class Order:
    number: int
    due: date


class Line(msgspec.Struct):
    items: list[int]


def test_data_is_converted_to_what_the_listener_wants(hall: Hall) -> None:
    @on("order")
    def hear(order: Order) -> None:
        hall.heard.append(order)

    @on("line")
    async def hear_line(line: Line, more: int = 5) -> None:
        hall.heard.append(line)

    hall.serve(hear, hear_line)
    hall.client.publish("order", {"number": 1, "due": date(2030, 1, 31)})
    until(lambda: hall.heard == [Order(1, date(2030, 1, 31))])
    hall.client.publish("line", {"items": [1, 2]})
    until(lambda: hall.heard[1:] == [Line([1, 2])])


def test_one_function_may_hear_several_events_and_a_service_has_listeners(hall: Hall) -> None:
    class Shop:
        name = "shop"

        @on("order.created")
        @on("order.paid")
        def either(self, data: Any) -> None:
            hall.heard.append(data["n"])

        @expose
        def count(self) -> int:
            return len(hall.heard)

    hall.serve(Shop)
    hall.client.publish("order.created", {"n": 1})
    hall.client.publish("order.paid", {"n": 2})
    until(lambda: hall.client.services.shop.count() == 2)
    assert hall.heard == [1, 2]


def test_each_worker_hears_it_and_one_of_a_group(hall: Hall) -> None:
    for _ in range(3):
        hall.serve(hall.hear("boom"), hall.hear("boom", group="team"), hall.hear("boom", group="other"))
    for n in range(10):
        hall.client.publish("boom", [n])
    until(lambda: len(hall.heard) == 50)
    hall.client.publish("boom", ["end"])
    until(lambda: len(hall.heard) == 55)
    assert all(hall.heard.count([n]) == 5 for n in range(10))


def test_nobody_listens_and_nothing_happens(hall: Hall) -> None:
    hall.client.publish("boom", {"n": 1})
    hall.serve(hall.hear("boom"))
    hall.client.publish("boom", {"n": 2})
    until(lambda: hall.heard == [{"n": 2}])


def test_a_handler_may_publish_and_its_headers_go_with_it(hall: Hall) -> None:
    class Shop:
        name = "shop"

        @expose
        def order(self) -> str:
            return hall.client.publish("order.created", {"n": 1}, headers={"own": "b"})

        @on("order.created")
        def hear(self, event: Event) -> None:
            hall.heard.append((event.id, dict(event.headers)))
            hall.client.publish("order.done")

        @on("order.done")
        def done(self, data: Any) -> None:
            hall.heard.append("done")

    hall.serve(Shop)
    id = hall.client.call_and_wait("shop.order", headers={"x-request": "a"}).data
    until(lambda: hall.heard == [(id, {"own": "b", "request": "a"}), "done"])


async def _published(hall: Hall) -> None:
    async with AsyncRpcClient(backend=hall.backend) as client:
        await client.publish("boom", {"n": 1}, headers={"colour": "red"})


def test_an_event_loop_publishes_too(hall: Hall) -> None:
    import asyncio

    hall.serve(hall.hear("boom"))
    asyncio.run(_published(hall))
    until(lambda: hall.heard == [{"n": 1}])


def test_what_is_no_event_is_logged_and_the_next_one_is_heard(
    hall: Hall, caplog: pytest.LogCaptureFixture
) -> None:
    hall.serve(hall.hear("boom"))
    for body in b"", b"{", b'{"jsonrpc":"2.0"}', b"[" * 5000:
        hall.backend.send(event_address("boom"), Message(body, {"id": "odd"}))
    hall.client.publish("boom", {"n": 1})
    until(lambda: hall.heard == [{"n": 1}])
    assert caplog.text.count("refused an event (odd)") == 4


# Failures.


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("colour", ["function", "coroutine"])
def test_one_that_raises_is_logged_and_counted_and_the_others_hear_the_event(
    hall: Hall, caplog: pytest.LogCaptureFixture, error: BaseException, colour: str
) -> None:
    class Shop:
        name = "shop"

        @on("boom")
        def before(self, data: Any) -> None:
            hall.heard.append("before")

        if colour == "function":

            @on("boom")
            def fail(self, data: Any) -> None:
                raise error
        else:

            @on("boom")
            async def fail(self, data: Any) -> None:
                raise error

        @on("boom")
        def later(self, data: Any) -> None:
            hall.heard.append("later")

    hall.serve(Shop)
    id = hall.client.publish("boom")
    hall.client.publish("boom")
    until(lambda: hall.heard == ["before", "later"] * 2)
    assert caplog.text.count("listener shop.fail failed: event 'boom'") == 2
    assert id in caplog.text
    (worker,) = hall.client.describe()
    assert {each.name: each.failures for each in worker.listeners} == {
        "shop.before": 0,
        "shop.fail": 2,
        "shop.later": 0,
    }


def test_a_listener_that_exits_ends_only_itself(hall: Hall) -> None:
    @on("boom")
    def leave(data: Any) -> None:
        sys.exit()

    hall.serve(leave, hall.hear("boom"))
    for n in range(3):
        hall.client.publish("boom", [n])
    until(lambda: hall.heard == [[0], [1], [2]])


@pytest.mark.parametrize("durable", [False, True])
def test_one_that_asked_for_it_is_tried_again(hall: Hall, durable: bool) -> None:
    @on("boom", group="team" if durable else None, durable=durable, retries=2, backoff=0.001)
    def flaky(event: Event) -> None:
        hall.heard.append(event.id)
        if len(hall.heard) < 3:
            raise ConnectionError("not now")

    hall.serve(flaky)
    id = hall.client.publish("boom", {"n": 1})
    until(lambda: hall.heard == [id] * 3)
    assert not hall.letters(shelf("boom", "team"))


def shelf(pattern: str, group: str) -> str:
    """The queue of a durable group."""
    return Subscription(pattern, group, True, JobOptions()).address().subscription_queue.name


@pytest.mark.parametrize(("error", "attempts"), [(ConnectionError, 3), (KeyError, 1)])
def test_a_durable_one_that_fails_each_time_is_a_dead_letter(
    hall: Hall, error: type[Exception], attempts: int
) -> None:
    @on("boom", group="team", durable=True, retries=2, backoff=0.001, retry_on=ConnectionError)
    def hopeless(data: Any) -> None:
        hall.heard.append(data["n"])
        if data["n"] == 1:
            raise error("each time")

    hall.serve(hopeless)
    hall.client.publish("boom", {"n": 1})
    until(lambda: hall.heard.count(1) == attempts)
    hall.client.publish("boom", {"n": 2})
    until(lambda: 2 in hall.heard)
    assert hall.heard.count(1) == attempts
    letters = hall.letters(shelf("boom", "team"))
    assert [letter.why for letter in letters] == (["ConnectionError: each time"] if attempts == 3 else [])
    if letters:
        assert hall.backend.revive(letters[0])
        until(lambda: hall.heard.count(1) == 6)


def test_data_that_does_not_fit_is_not_tried_again(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    @on("order", group="team", durable=True, retries=5, backoff=0.001)
    def hear(order: Order) -> None:
        hall.heard.append(order)

    hall.serve(hear)
    hall.client.publish("order", {"number": "x"})
    letters = until_some(hall, shelf("order", "team"))
    assert "number" in letters[0].why
    assert caplog.text.count("listener test_events.hear failed") == 1


class Textless(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_an_error_that_has_no_text_does_not_lose_the_event(hall: Hall) -> None:
    @on("boom", group="team", durable=True, retries=1, backoff=0.001)
    def fail(data: Any) -> None:
        raise Textless

    hall.serve(fail)
    hall.client.publish("boom")
    assert until_some(hall, shelf("boom", "team"))[0].why.startswith("Textless")


def until_some(hall: Hall, queue: str) -> list[Any]:
    until(lambda: hall.letters(queue))
    return hall.letters(queue)


def test_what_is_to_be_tried_again_is_forgotten_at_a_stop_and_does_not_keep_it(hall: Hall) -> None:
    @on("boom", retries=5, backoff=3000)
    def fail(data: Any) -> None:
        hall.heard.append(1)
        raise ValueError

    receiver = hall.serve(fail)
    hall.client.publish("boom")
    until(lambda: hall.heard)
    receiver.stop()  # and the fixture waits for its end


def test_a_listener_that_takes_long_does_not_delay_other_topics(hall: Hall) -> None:
    begun, released = Flag(), Flag()

    @on("slow")
    def slow(data: Any) -> None:
        begun.set()
        assert released.wait(LONG)

    hall.serve(slow, hall.hear("boom"))
    hall.client.publish("slow")
    assert begun.wait(LONG)
    hall.client.publish("boom", ["fast"])
    until(lambda: hall.heard == [["fast"]])
    assert hall.client.describe()
    released.set()


# Durable groups.


def test_a_durable_group_hears_what_came_while_it_was_away_however_much(hall: Hall) -> None:
    hall.serve(hall.hear("boom", group="team", durable=True)).stop()
    bounded = RpcClient(backend=MemoryBackend(hall.url, max_length=1))
    for n in range(5):
        bounded.publish("boom", [n])
    hall.serve(hall.hear("boom", group="team", durable=True))
    until(lambda: hall.heard == [[n] for n in range(5)])


def test_groups_and_patterns_that_look_alike_are_different_subscriptions() -> None:
    one = Subscription("b.b.c", "a", False, JobOptions()).address()
    other = Subscription("b.c", "a.b", False, JobOptions()).address()
    assert one.name == other.name
    assert one != other


# What is refused.


@pytest.mark.parametrize(
    "event", ["", ".a", "a.", "a..b", "*", "*.a", "or*", "rpc", "rpc.x", "a b", "ä", "9"]
)
def test_what_is_no_event_is_refused(event: str) -> None:
    with pytest.raises(ValueError, match="is no event"):
        on(event)
    with pytest.raises(ValueError, match="is no event"):
        event_address(event)


def test_a_topic_that_is_ours_is_said_to_be(hall: Hall) -> None:
    with pytest.raises(ValueError, match="'rpc' is reserved"):
        on("rpc.x")
    with pytest.raises(ValueError, match="not 'rpc'"):
        hall.client.publish("rpc.x")


def test_a_pattern_is_not_published(hall: Hall) -> None:
    with pytest.raises(ValueError, match="is no event"):
        hall.client.publish("order.*")


@pytest.mark.parametrize("options", [
    {"durable": True}, {"group": "no name"}, {"group": "x" * 128}, {"group": "x" * 120, "durable": True},
    {"retries": -1}, {"retry_on": "ValueError"},
], ids=str)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"name|group|retries|retry_on"):
        on("boom", **options)


def test_a_group_that_has_no_name_is_said_as_it_was_given() -> None:
    with pytest.raises(ValueError, match="'no name' is no group"):
        on("boom", group="no name")


def test_a_listener_gets_one_argument() -> None:
    def none() -> None: ...
    def two(a: int, b: int) -> None: ...
    def named(*, data: int) -> None: ...

    for function in none, two, named:
        with pytest.raises(SettingsError, match="one argument"):
            RpcReceiver(services=[on("boom")(function)], backend="memory://")


def test_a_durable_group_has_one_listener() -> None:
    options: dict[str, Any] = {"group": "team", "durable": True}

    class Shop:
        one = on("boom", **options)(lambda self, data: None)
        two = on("boom", **options)(lambda self, data: None)

    with pytest.raises(SettingsError, match="two listeners"):
        RpcReceiver(services=[Shop], backend="memory://")


def test_what_is_no_header_is_refused(hall: Hall) -> None:
    with pytest.raises(ValueError, match="header 'n' is a str"):
        hall.client.publish("boom", headers={"n": None})  # type: ignore[dict-item]


@pytest.mark.parametrize("data", ["text", 17, True, None, b"\xff", [1], {"n": 1}], ids=repr)
def test_any_value_is_heard_as_it_is(hall: Hall, data: Any) -> None:
    hall.serve(hall.hear("boom"))
    hall.client.publish("boom", data)
    until(lambda: hall.heard == [data])


# Filters, and who publishes.


def test_a_listener_hears_what_its_headers_match(hall: Hall) -> None:
    hall.serve(
        hall.hear("order.*", headers={"region": "eu", "rush": True}),
        hall.hear("order.*", headers={"region": "eu"}, match="any", group="team"),
    )
    headers: dict[str, Any] = {"region": "eu", "rush": True}
    hall.client.publish("order.a", ["both"], headers=headers)
    hall.client.publish("order.a", ["any"], headers={"region": "eu", "rush": 1})
    hall.client.publish("order.a", ["none"], headers={"rush": True})
    hall.client.publish("order.a", ["end"], headers=headers)
    until(lambda: hall.heard.count(["end"]) == 2)
    assert sorted(hall.heard) == [["any"], ["both"], ["both"], ["end"], ["end"]]
    assert headers == {"region": "eu", "rush": True}


def test_members_of_a_group_want_the_same_headers() -> None:
    class Shop:
        one = on("boom", group="team", headers={"a": 1})(lambda self, data: None)
        other = on("boom", group="team", headers={"a": 1.0})(lambda self, data: None)

    RpcReceiver(services=[Shop], backend="memory://")

    class Another(Shop):
        third = on("boom", group="team", headers={"a": True})(lambda self, data: None)

    with pytest.raises(SettingsError, match=r"members of group 'team' of 'boom' want different headers"):
        RpcReceiver(services=[Another], backend="memory://")


def test_groups_of_one_name_with_other_headers_do_not_get_what_is_for_the_other(hall: Hall) -> None:
    hall.serve(hall.hear("boom", group="team", headers={"a": 1}))
    hall.serve(hall.hear("boom", group="team", headers={"a": 2}))
    for n in range(20):
        hall.client.publish("boom", [n], headers={"a": n % 2 + 1})
    until(lambda: len(hall.heard) == 20)
    assert sorted(hall.heard) == [[n] for n in range(20)]


@pytest.mark.parametrize(
    ("pattern", "group"), [("order.*", "a..b"), ("order.x.*", "a."), ("order", "x.__0__")]
)
def test_the_address_of_a_group_tells_pattern_group_and_filter(pattern: str, group: str) -> None:
    bare = Subscription(pattern, group)
    filtered = Subscription(pattern, group, filter=Filter.of({"a": 1}))
    assert Subscription.of(bare.address()) == (pattern, group, "")
    assert Subscription.of(filtered.address("shop")) == (pattern, group, filtered.filter.digest)


def test_who_publishes_is_told_and_can_be_matched(hall: Hall) -> None:
    shop = Settings(domain="shop", service_type="till", service_id="t1", service_version="1.2.0")
    wanted: dict[str, Any] = {"service_type": "till", "service_version": None}
    with (
        RpcClient(settings=shop, backend=hall.url) as client,
        client.subscribe("boom", headers=wanted) as stream,
    ):
        client.publish("boom", headers={"service_id": "forged", "own": 1})
        assert stream.get(LONG).headers == {
            "own": 1,
            "domain": "shop",
            "service_type": "till",
            "service_id": "t1",
            "service_version": "1.2.0",
        }


def test_domains_do_not_hear_each_other(hall: Hall) -> None:
    with ExitStack() as stack:
        heard: dict[str, Any] = {}
        for domain in "default", "one", "other":
            own = RpcClient(settings=Settings(domain=domain), backend=hall.url)
            client = stack.enter_context(own)
            heard[domain] = client, stack.enter_context(client.subscribe("boom"))
        for domain, (client, _) in heard.items():
            client.publish("boom", [domain])
        assert {domain: each.get(LONG).data for domain, (_, each) in heard.items()} == {
            domain: [domain] for domain in heard
        }
        for _, each in heard.values():
            with pytest.raises(RpcTimeout):
                each.get(0.01)


def test_a_worker_listens_in_its_domain(hall: Hall) -> None:
    hall.serve(hall.hear("boom"), settings=Settings(domain="shop"))
    hall.client.publish("boom", ["outside"])
    with RpcClient(settings=Settings(domain="shop"), backend=hall.url) as client:
        client.publish("boom", ["inside"])
    until(lambda: hall.heard == [["inside"]])


def test_logs_are_quiet_when_all_is_well(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    hall.serve(hall.hear("boom"))
    hall.client.publish("boom", {"n": 1})
    until(lambda: hall.heard)
    assert not caplog.records
