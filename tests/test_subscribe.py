"""Subscriptions of clients, on each kind of backend: what they hear, what is done again, who is told that he
is too slow, and what it costs."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from core.test_filters import MESSAGES, TABLE
from in_memory import until

from rpc import (
    AsyncEventStream,
    AsyncRpcClient,
    Cancelled,
    Event,
    EventStream,
    RpcClient,
    RpcReceiver,
    RpcTimeout,
    SettingsError,
    SubscriberLagged,
    Unsupported,
    on,
)
from rpc.events import subscribed
from rpc.inspection import Counts, DeadLetters, QueueInfo
from rpc.loops import process
from rpc.streams.arrivals import Arrivals
from rpc.testing.site import eventually
from rpc.transport import Address, Subscriptions

LONG = 20.0
"""Seconds: far longer than anything here takes."""
SHORT = 0.02
"""Seconds in which nothing is expected."""


class Place:
    """Clients of one backend."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url, self._stack = url, stack
        self.event = f"e{uuid4().hex[:8]}"
        self.client = self.another()

    def another(self) -> RpcClient:
        return self._stack.enter_context(RpcClient(backend=self.url, timeout=LONG))

    def subscribe(self, **options: Any) -> EventStream:
        return self._stack.enter_context(self.another().subscribe(self.event, **options))

    def publish(self, *values: Any, **options: Any) -> list[str]:
        return [self.client.publish(self.event, value, **options) for value in values]


def place_of(url: str) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(url, stack)


@pytest.fixture
def place(plain_url: str) -> Iterator[Place]:
    yield from place_of(plain_url)


@pytest.fixture
def able(any_url: str) -> Iterator[Place]:
    """On those that keep things."""
    yield from place_of(any_url)


@pytest.fixture
def broker(any_broker_url: str) -> Iterator[Place]:
    """Those that do not do all at once under a lock of their own."""
    yield from place_of(any_broker_url)


@pytest.fixture
def here(memory_url: str) -> Iterator[Place]:
    yield from place_of(memory_url)


def taken(stream: EventStream, number: int) -> list[Any]:
    return [stream.get(LONG).data for _ in range(number)]


# What is heard.


def test_the_table_of_headers_is_true_here(place: Place) -> None:
    heard: dict[str, list[int]] = {}
    done = threading.Event()

    def listener(match: Any, headers: Any) -> Any:
        @on(place.event, headers=headers, match=match)
        def hear(data: Any) -> None:
            if data != "end":
                heard.setdefault(f"{match} {headers}", []).append(data)

        return hear

    @on(place.event)
    def all_of_them(data: Any) -> None:  # the last listener
        if data == "end":
            done.set()

    listeners = [listener(match, headers) for match, headers, _ in TABLE]
    receiver, begun = (
        RpcReceiver(jobs={}, services=[*listeners, all_of_them], backend=place.url),
        threading.Event(),
    )
    receiver.hook("on_connect")(begun.set)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        assert begun.wait(LONG)
        for number, headers in enumerate(MESSAGES):
            place.publish(number, headers=headers)
        place.publish("end")
        assert done.wait(LONG)
    finally:
        receiver.stop()
        thread.join(LONG)
    assert heard == {f"{match} {headers}": wanted for match, headers, wanted in TABLE if wanted}


def test_what_is_published_after_it_is_heard_in_order_and_as_it_was(place: Place) -> None:
    stream = place.subscribe(headers={"kind": 1})
    values = [{"n": 1}, [1], "text", 17, True, None, b"\xff\x00"]
    for value in values:
        place.publish("not wanted", headers={"kind": True})
        place.publish(value, headers={"kind": 1.0, "name": "ü"})
    found = [stream.get(LONG) for _ in values]
    assert [each.data for each in found] == values
    assert all(each.headers == {"kind": 1.0, "name": "ü"} and each.topic == place.event for each in found)
    with pytest.raises(RpcTimeout, match=r"no event came within 0\.02 s"):
        stream.get(SHORT)


def test_members_of_a_group_share_and_groups_do_not(place: Place) -> None:
    streams = [place.subscribe(group=group) for group in ("team", "team", "others")]
    heard: list[list[Any]] = [[], [], []]

    def take(number: int) -> None:
        for event in streams[number]:
            heard[number].append(event.data)

    threads = [threading.Thread(target=take, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    place.publish(*range(20))
    until(lambda: len(heard[0]) + len(heard[1]) >= 20 and len(heard[2]) >= 20)
    for stream in streams:
        stream.close()
    for thread in threads:
        thread.join(LONG)
    assert sorted(heard[0] + heard[1]) == sorted(heard[2]) == [*range(20)]


def test_a_callback_that_raises_is_logged_and_the_next_one_is_heard(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    def hear(data: int) -> None:
        heard.append(data)
        if data < 2:
            raise ValueError(f"no {data}")

    place.subscribe(callback=hear)
    place.publish(0, "not a number", 1, 2)
    until(lambda: heard == [0, 1, 2])
    assert [record.exc_info is not None for record in caplog.records if "failed" in record.message] == [
        True
    ] * 3


def test_a_callback_that_raises_is_tried_again(place: Place) -> None:
    heard: list[Any] = []

    async def hear(event: Event) -> None:
        heard.append(event.data)
        if len(heard) < 3:
            raise ConnectionError("not now")

    place.subscribe(callback=hear, retries=5, backoff=0.001, retry_on=OSError)
    place.publish("again")
    until(lambda: heard == ["again"] * 3)


# What is kept.


def durable(place: Place, group: str, **options: Any) -> Address:
    return subscribed(place.event, group=group, durable=True, **options).address()


def shelf_of(place: Place, group: str, **options: Any) -> list[Any]:
    queue = durable(place, group, **options).subscription_queue.name
    return cast("DeadLetters", place.client.backend).dead_letters(queue)


def forget(place: Place, group: str, **options: Any) -> None:
    cast("Subscriptions", place.client.backend).unsubscribe(durable(place, group, **options))


def test_a_durable_group_hears_what_came_while_it_was_away(able: Place) -> None:
    with able.subscribe(group="team", durable=True) as stream:
        able.publish(1)
        assert stream.get(LONG).data == 1
    able.publish(2, 3)
    with able.subscribe(group="team", durable=True) as stream:
        assert taken(stream, 2) == [2, 3]
    forget(able, "team")


def test_a_durable_group_is_forgotten_as_unused_only_if_it_is(able: Place) -> None:
    to, backend = durable(able, "team"), cast("Subscriptions", able.client.backend)
    with able.subscribe(group="team", durable=True) as stream:
        assert not backend.unsubscribe(to, unused=True)
        able.publish(1)
        assert stream.get(LONG).data == 1
    able.publish(2)
    until(lambda: not backend.unsubscribe(to, unused=True))
    with able.subscribe(group="team", durable=True) as stream:
        assert stream.get(LONG).data == 2
    until(lambda: backend.unsubscribe(to, unused=True))
    able.publish(3)
    with able.subscribe(group="team", durable=True) as stream, pytest.raises(RpcTimeout):
        stream.get(SHORT)
    forget(able, "team")


@pytest.mark.parametrize("meanwhile", ["it is served", "it is served, and stopped", "something comes"])
def test_a_durable_group_that_is_used_while_it_is_forgotten_loses_nothing(
    broker: Place, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked at, and nobody used it."""
    to, backend = durable(broker, "team"), broker.client.backend
    group: dict[str, Any] = {"group": "team", "durable": True}
    broker.subscribe(**group).close()
    look, streams = cast("Counts", backend).queue_info, list[EventStream]()

    def looked(queue: str) -> QueueInfo:
        monkeypatch.undo()
        found = look(queue)
        if "served" in meanwhile:
            streams.append(broker.subscribe(**group))
        if "stopped" in meanwhile:
            streams.pop().close()
        broker.publish("late")
        return found

    until(lambda: not look(to.subscription_queue.name).workers)
    monkeypatch.setattr(backend, "queue_info", looked)
    assert not cast("Subscriptions", backend).unsubscribe(to, unused=True)
    stream = streams.pop() if streams else broker.subscribe(**group)
    assert stream.get(LONG).data == "late"
    forget(broker, "team")


def test_what_was_not_done_in_a_durable_group_comes_again(able: Place) -> None:
    failing = able.subscribe(group="team", durable=True)
    able.publish(1, 2)
    for _ in range(5):  # more than max_deliveries: nobody has died of it
        with suppress(ZeroDivisionError), failing:
            failing.get(LONG)
            raise ZeroDivisionError
        failing = able.subscribe(group="team", durable=True)
    failing.close()
    with able.subscribe(group="team", durable=True) as stream:
        assert sorted(taken(stream, 2)) == [1, 2]
    with able.subscribe(group="team", durable=True) as stream, pytest.raises(RpcTimeout):
        stream.get(SHORT)
    forget(able, "team")


def test_what_a_durable_callback_cannot_do_is_a_dead_letter(able: Place) -> None:
    attempts: list[Any] = []

    def hear(data: Any) -> None:
        attempts.append(data)
        if data == "bad":
            raise ConnectionError("not now")

    able.subscribe(group="team", durable=True, callback=hear, retries=1, backoff=0.001)
    able.publish("bad", "good")
    until(lambda: sorted(attempts) == ["bad", "bad", "good"])
    until(lambda: [each.why for each in shelf_of(able, "team")] == ["ConnectionError: not now"])
    forget(able, "team")


def test_a_durable_group_with_headers_keeps_what_it_wants(able: Place) -> None:
    options: dict[str, Any] = {"group": "team", "durable": True, "headers": {"a": 1}}
    able.subscribe(**options).close()
    for a in 1, 2, 1:
        able.publish(a, headers={"a": a})
    with able.subscribe(**options) as stream:
        assert taken(stream, 2) == [1, 1]
    forget(able, "team", headers={"a": 1})


def test_durable_groups_need_a_backend_that_keeps(zmq_url: str) -> None:
    @on("boom", group="team", durable=True)
    def hear(data: Any) -> None: ...

    able = "redis:, rq+redis:, amqp: and memory: have it"
    refused = f"has durable=True, but this backend has no feature 'subscriptions'; {re.escape(able)}"
    with RpcClient(backend=zmq_url) as client, pytest.raises(Unsupported, match=f"boom {refused}"):
        client.subscribe("boom", group="team", durable=True)
    with pytest.raises(Unsupported, match=rf"\.hear {refused}"):
        RpcReceiver(jobs={}, services=[hear], backend=zmq_url)


def test_a_backend_without_topics_is_refused_with_those_that_have_them(http_url: str) -> None:
    refused = (
        "boom listens to events, but this backend has no feature 'topics'; redis:, .* and memory: have it"
    )
    with RpcClient(backend=http_url) as client, pytest.raises(Unsupported, match=refused):
        client.subscribe("boom")


# Who is too slow.


def test_one_that_is_too_slow_is_told_how_many_it_has_missed_and_goes_on(place: Place) -> None:
    stream = place.subscribe(buffer=3)
    place.publish(*range(10))
    until(lambda: stream.missed == 7)
    with pytest.raises(SubscriberLagged, match="missed events: 7") as lag:
        next(stream)
    assert lag.value.missed == 7
    assert taken(stream, 3) == [7, 8, 9]
    place.publish(10)
    assert next(stream).data == 10


def test_a_callback_that_is_too_slow_is_logged(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []
    go_on = threading.Event()

    def hear(data: Any) -> None:
        heard.append(data)
        go_on.wait(LONG)

    stream = here.subscribe(buffer=2, callback=hear)
    here.publish(0)
    until(lambda: heard)
    here.publish(*range(1, 6))
    until(lambda: stream.missed == 3)
    go_on.set()
    until(lambda: heard == [0, 4, 5])
    assert "missed events: 3, as it was too slow" in caplog.text


def test_a_group_waits_for_its_members(here: Place) -> None:
    stream = here.subscribe(group="team", buffer=1)
    here.publish(*range(50))
    assert taken(stream, 50) == [*range(50)]


def test_one_that_was_cut_off_is_told_that_nobody_knows_what_it_missed(amqp_proxy: Any, caplog: Any) -> None:
    for place in place_of(amqp_proxy.url):
        stream = place.subscribe()
        place.publish(1)
        assert stream.get(LONG).data == 1
        amqp_proxy.proxy.cut()
        with pytest.raises(SubscriberLagged, match="nobody knows how many") as lag:
            stream.get(LONG)
        assert lag.value.missed is None
        place.publish(2)
        assert stream.get(LONG).data == 2


@pytest.fixture
def amqp_proxy() -> Iterator[Any]:
    from tests.rabbit import rabbit

    with rabbit() as broker:
        yield broker


# What was published before.


@pytest.fixture(params=["redis_url", "rq_url"])
def replaying(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield from place_of(request.getfixturevalue(request.param))


@pytest.mark.redis
def test_what_was_published_is_heard_again(replaying: Place) -> None:
    ids = replaying.publish(*range(600), headers={"a": 1})
    replaying.publish("not wanted")
    minute = timedelta(minutes=1)
    for since in minute, datetime.now() - minute, datetime.now(timezone.utc) - minute:
        stream = replaying.subscribe(since=since, buffer=1, headers={"a": 1})
        replaying.publish("new", headers={"a": 1})
        assert taken(stream, 601)[:600] == [*range(600)]
        stream.close()
    stream = replaying.subscribe(since=ids[-2], headers={"a": 1})
    assert taken(stream, 4) == [599, "new", "new", "new"]
    time.sleep(0.01)
    with replaying.subscribe(since=timedelta(0)) as stream, pytest.raises(RpcTimeout):
        stream.get(SHORT)


@pytest.mark.redis
def test_a_callback_hears_it_again_too(replaying: Place) -> None:
    heard: list[Any] = []
    first, *_ = replaying.publish(0, 1)
    replaying.subscribe(since=first, callback=lambda data: heard.append(data))
    replaying.publish(2)
    until(lambda: heard == [1, 2])


@pytest.mark.redis
def test_an_id_that_is_not_remembered_is_told(replaying: Place) -> None:
    replaying.publish(1)
    stream = replaying.subscribe(since="long ago")
    with pytest.raises(SubscriberLagged) as lag:
        stream.get(LONG)
    assert lag.value.missed is None
    assert taken(stream, 1) == [1]


@pytest.mark.redis
def test_no_event_comes_twice_or_is_lost_between_what_was_and_what_comes(replaying: Place) -> None:
    client, going = replaying.another(), threading.Event()
    count = 0

    def publish() -> None:
        nonlocal count
        while not going.is_set():
            client.publish(replaying.event, count)
            count += 1

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        until(lambda: count > 50)
        streams = [replaying.subscribe(since=timedelta(minutes=1), buffer=100_000) for _ in range(3)]
        until(lambda: count > 200)
    finally:
        going.set()
        thread.join(LONG)
    for stream in streams:
        assert taken(stream, count) == [*range(count)]


def test_a_backend_that_remembers_nothing_says_which_do(here: Place) -> None:
    with pytest.raises(Unsupported, match=r"no feature 'replay'; redis: and rq\+redis: have it"):
        here.client.subscribe("boom", since=timedelta(minutes=1))


# Its end.


def test_whoever_waits_is_told_of_the_end(place: Place) -> None:
    stream, ended = place.subscribe(), list[str]()

    def wait(what: Any) -> None:
        try:
            what()
        except (StopIteration, Cancelled) as error:
            ended.append(type(error).__name__)

    threads = [threading.Thread(target=wait, args=[what]) for what in (stream.__next__, stream.get)]
    for thread in threads:
        thread.start()
    stream.close()
    for thread in threads:
        thread.join(LONG)
    assert sorted(ended) == ["Cancelled", "StopIteration"]
    stream.close()
    assert [*stream] == []


def test_a_client_that_is_closed_ends_its_subscriptions(place: Place) -> None:
    client = place.another()
    streams = [client.subscribe(place.event, callback=print), client.subscribe(place.event, group="team")]
    client.close()
    assert not serving()
    with pytest.raises(Cancelled):
        streams[1].get(LONG)


def serving() -> list[str]:
    names = "rpc-subscription", "rpc-subscriber"
    return [each.name for each in threading.enumerate() if each.name in names]


def test_one_that_nobody_has_any_more_ends(here: Place) -> None:
    stream: EventStream | None = here.client.subscribe(here.event)
    assert serving() == ["rpc-subscription"]
    del stream
    until(lambda: not serving())


@pytest.mark.parametrize("group", [None, "team"])
def test_a_callback_may_close_it(here: Place, group: str | None) -> None:
    closed = threading.Event()

    def hear(data: Any) -> None:
        stream.close()
        closed.set()

    stream = here.subscribe(callback=hear, group=group)
    here.publish(1)
    assert closed.wait(LONG)
    until(lambda: not serving())


def test_it_belongs_to_its_process(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = here.client.subscribe(here.event)
    with monkeypatch.context() as forked:
        forked.setattr(process, "id", -1)
        with pytest.raises(RuntimeError, match="not to its forks"):
            stream.get(LONG)
        stream.close()
    here.publish(1)
    assert stream.get(LONG).data == 1


@pytest.mark.parametrize(("options", "error"), [
    ({"match": "none"}, "match is one of"),
    ({"headers": {"a": []}}, "header 'a' is"),
    ({"retries": 1}, "retries are for a callback"),
    ({"buffer": 0}, "buffer is a number from 1 on"),
    ({"event": None}, "None is no event: a name"),
    ({"durable": True}, "needs group="),
    ({"group": "a b"}, "is no group"),
    ({"since": timedelta(0), "group": "a"}, "a group goes on where it was"),
], ids=str)  # fmt: skip
def test_what_makes_no_sense_is_an_error(here: Place, options: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        here.client.subscribe(**{"event": "boom", **options})
    assert not serving()


@pytest.mark.redis
@pytest.mark.parametrize("since", [timedelta(-1), "", 5, datetime.min, timedelta(days=40_000)], ids=repr)
def test_what_is_no_time_is_an_error(redis_url: str, since: Any) -> None:
    with RpcClient(backend=redis_url) as client, pytest.raises(ValueError, match="since"):
        client.subscribe("boom", since=since)


def test_members_of_a_group_want_the_same_headers(here: Place) -> None:
    first = here.client.subscribe("boom", group="team", headers={"a": 1})
    here.client.subscribe("boom", group="team", headers={"a": 1.0}).close()
    here.client.subscribe("boom", group="others", headers={"a": 2}).close()
    with pytest.raises(SettingsError, match=r"members of group 'team' of 'boom' want different headers"):
        here.client.subscribe("boom", group="team", headers={"a": 2})
    first.close()
    here.client.subscribe("boom", group="team", headers={"a": 2}).close()


def test_a_callback_gets_one_argument(here: Place) -> None:
    with pytest.raises(SettingsError, match="one argument"):
        here.client.subscribe("boom", callback=lambda: None)


def test_a_callback_may_be_what_tells_nothing_of_its_arguments(here: Place) -> None:
    heard: deque[Any] = deque()
    here.subscribe(callback=heard.append)  # it does from Python 3.13 on
    here.publish(1)
    eventually(lambda: [*heard] == [1])


def test_no_broker_is_an_error_in_time() -> None:
    with RpcClient(backend="redis://127.0.0.1:1/0", timeout=0.3) as client, pytest.raises(ConnectionError):
        client.subscribe("boom")


def test_what_goes_to_a_callback_cannot_be_taken(here: Place) -> None:
    stream = here.subscribe(callback=print)
    with pytest.raises(RuntimeError, match="goes to its callback"):
        stream.get(LONG)


# What it costs.


@pytest.mark.redis
@pytest.mark.parametrize("options", [{}, {"group": "team"}, {"callback": print}], ids=str)
def test_it_costs_a_few_connections_and_threads(redis_url: str, options: Any) -> None:
    with redis.Redis.from_url(redis_url.partition("?")[0]) as admin, RpcClient(backend=redis_url) as client:
        client.publish("boom")
        before, threads = len(admin.client_list()), {*threading.enumerate()}
        stream = client.subscribe("boom", **options)
        client.publish("boom")
        if not options.get("callback"):
            stream.get(LONG)
        assert len(admin.client_list()) - before <= 3
        assert len({*threading.enumerate()} - threads) <= 5
        stream.close()
        until(lambda: threads >= {*threading.enumerate()})
        until(lambda: len(admin.client_list()) <= before + 1)  # one of the client's own


def test_all_subscriptions_of_a_client_end_at_once_though_one_takes_long(here: Place) -> None:
    held, come = threading.Event(), threading.Semaphore(0)

    def hold(data: Any) -> None:
        come.release()
        held.wait(LONG)

    left = [here.client.subscribe(here.event, callback=hold).hearing for _ in range(2)]
    here.publish(1)
    assert all(come.acquire(timeout=LONG) for _ in left)
    closing = threading.Thread(target=here.client.close)
    closing.start()
    until(lambda: all(each.is_closed for each in left))
    held.set()
    closing.join(LONG)
    assert not closing.is_alive()


# In event loops.


def test_an_event_loop_takes_it_as_an_async_iterator(place: Place) -> None:
    async def program() -> None:
        async with AsyncRpcClient(backend=place.url, timeout=LONG) as client:
            stream = await client.subscribe(place.event, headers={"a": 1})
            assert isinstance(stream, AsyncEventStream)
            with pytest.raises(RpcTimeout):
                await stream.get(SHORT)
            waiting = asyncio.create_task(stream.get())
            await asyncio.sleep(0)
            waiting.cancel()
            for n in range(3):
                await client.publish(place.event, n, headers={"a": n % 2})
                await client.publish(place.event, n, headers={"a": 1})
            found = []
            async with stream:
                async for event in stream:
                    found.append(event.data)
                    if len(found) == 4:
                        break
            assert found == [0, 1, 1, 2]
            with pytest.raises(Cancelled):
                await stream.get()

    asyncio.run(program())


def test_in_an_event_loop_a_callback_runs_there_and_may_close_it(place: Place) -> None:
    async def program() -> None:
        loop, heard, ended = asyncio.get_running_loop(), list[Any](), asyncio.Event()

        async def hear(data: Any) -> None:
            heard.append((data, asyncio.get_running_loop() is loop))
            if data == 2:
                await stream.close()
                ended.set()

        async with AsyncRpcClient(backend=place.url, timeout=LONG) as client:
            stream = await client.subscribe(place.event, callback=hear)
            for n in range(3):
                await client.publish(place.event, n)
            await asyncio.wait_for(ended.wait(), LONG)
        assert heard == [(n, True) for n in range(3)]

    asyncio.run(program())


def test_in_an_event_loop_one_that_lags_is_told_and_what_is_not_done_comes_again(here: Place) -> None:
    async def program() -> None:
        async with AsyncRpcClient(backend=here.url, timeout=LONG) as client:
            lagging = await client.subscribe(here.event, buffer=1)
            group = await client.subscribe(here.event, group="team", durable=True)
            for n in range(3):
                await client.publish(here.event, n)
            await asyncio.to_thread(until, lambda: lagging.missed == 2)
            with pytest.raises(SubscriberLagged):
                await lagging.get(LONG)
            assert (await anext(lagging)).data == 2
            with suppress(ZeroDivisionError):
                async with group:
                    assert (await group.get(LONG)).data == 0
                    raise ZeroDivisionError
            again = await client.subscribe(here.event, group="team", durable=True)
            assert sorted([(await again.get(LONG)).data for _ in range(3)]) == [0, 1, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(again)

    asyncio.run(program())
    assert not serving()


@pytest.mark.parametrize("callback", [False, True], ids=["iterator", "callback"])
def test_what_an_event_loop_left_that_has_ended_is_for_others(here: Place, callback: bool) -> None:
    async def hear(data: Any) -> None: ...

    async def program() -> AsyncEventStream:
        client = AsyncRpcClient(backend=here.url)
        left = hear if callback else None
        return await client.subscribe(here.event, group="team", durable=True, callback=left)

    left = asyncio.run(program())
    here.publish(1)
    until(lambda: left.hearing.is_closed)
    assert taken(here.subscribe(group="team", durable=True), 1) == [1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task cannot tell there who has cancelled it")
def test_what_an_event_loop_was_at_when_it_ended_is_for_others(here: Place) -> None:
    begun = threading.Event()

    async def hear(data: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def program() -> AsyncEventStream:
        client = AsyncRpcClient(backend=here.url)
        left = await client.subscribe(here.event, group="team", durable=True, callback=hear)
        await client.publish(here.event, 1)
        assert await asyncio.to_thread(begun.wait, LONG)
        return left

    left = asyncio.run(program())
    until(lambda: left.hearing.is_closed)
    assert taken(here.subscribe(group="team", durable=True), 1) == [1]


# Between the threads.


def test_what_came_before_the_past_was_read_comes_once() -> None:
    events = [Event("boom", n, {}, str(n)) for n in range(5)]
    arrivals = Arrivals(10)
    arrivals.put(events[2])
    arrivals.begin_with(events[:4])
    arrivals.put(events[3])
    arrivals.put(events[4])
    assert [arrivals.take() for _ in range(6)] == [*events, None]


def test_what_the_past_has_was_not_missed() -> None:
    events = [Event("boom", n, {}, str(n)) for n in range(5)]
    arrivals = Arrivals(1, has_past=True)
    for each in events[1:]:
        arrivals.put(each)
    assert arrivals.missed == 3
    arrivals.begin_with(events[:3])
    assert [arrivals.take() for _ in range(3)] == events[:3]
    with pytest.raises(SubscriberLagged, match="1"):  # the one between
        arrivals.take()
    assert (arrivals.take(), arrivals.take(), arrivals.missed) == (events[4], None, 1)


def test_logs_are_quiet_when_all_is_well(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    stream = here.subscribe()
    here.publish(1)
    assert taken(stream, 1) == [1]
    stream.close()
    assert not caplog.records
