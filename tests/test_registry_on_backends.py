"""Services on every kind of backend: they give signs of life, are looked for, watched, and called."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from async_calls import run
from in_memory import LONG, until

from rpc import (
    AsyncRpcClient,
    BackendUnavailable,
    Identity,
    MethodNotFound,
    NoReceivers,
    Request,
    RpcClient,
    RpcError,
    RpcReceiver,
    ServiceChange,
    ServiceInfo,
    Unsupported,
    VersionMismatch,
    expose,
)
from rpc.backends import backend_from_url
from rpc.backends.memory import MemoryBackend
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.core.registry import SIGN, Registry, Wanted
from rpc.describe import ALL_WORKERS
from rpc.registry.announcing import SIGNS
from rpc.registry.lookup import SETTLED, Lookup
from rpc.settings import Settings
from rpc.transport import Address, Delivery, Message

SIGN_EVERY = 0.3


def calc(version: str = "1.0.0", id: str = "eu", domain: str = "math") -> Identity:
    return Identity(domain=domain, type="calc", id=id, version=version)


class Calc:
    """Says who did it."""

    name = "calc"

    def __init__(self, label: str = "") -> None:
        self.label = label

    @expose
    def multiply(self, x: int, y: int) -> int:
        return x * y

    @expose
    def who(self) -> str:
        return self.label


class Fabric:
    """Services in threads, and a client."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self.url, self._stack = url, stack
        self.client = stack.enter_context(RpcClient(backend=url, timeout=LONG))
        self.seen: list[ServiceChange] = []
        self._change = threading.Condition()

    def start(self, identity: Identity, label: str = "", **options: Any) -> RpcReceiver:
        arrived = threading.Event()
        options.setdefault("services", [Calc(label)])
        settings = Settings(keep_alive=SIGN_EVERY)
        receiver = RpcReceiver(backend=self.url, settings=settings, identity=identity, **options)
        thread = threading.Thread(target=lambda: receiver.run(arrived=arrived.set))
        thread.start()

        def end() -> None:
            receiver.stop()
            thread.join(LONG)
            assert not thread.is_alive()

        receiver.end = end  # type: ignore[attr-defined]
        self._stack.callback(end)
        assert arrived.wait(LONG)
        return receiver

    def watch(self, **wanted: Any) -> None:
        self._stack.enter_context(self.client.watch_services(self.see, **wanted))

    def see(self, change: ServiceChange) -> None:
        with self._change:
            self.seen.append(change)
            self._change.notify_all()

    def until_seen(self, kind: str, label: Callable[[ServiceInfo], bool] = lambda service: True) -> None:
        with self._change:
            assert self._change.wait_for(
                lambda: any(each.kind == kind and label(each.service) for each in self.seen), LONG
            ), self.seen

    def listed(self, count: int, **wanted: Any) -> list[ServiceInfo]:
        """A worker that has just come, or a busy one, may need a second look."""
        end = time.monotonic() + LONG
        while len(found := self.client.list_services(**wanted)) != count:
            assert time.monotonic() < end, found
        return found


@pytest.fixture
def fabric(plain_url: str) -> Iterator[Fabric]:
    with ExitStack() as stack:
        yield Fabric(stack, plain_url)


def test_a_service_is_listed_with_all_that_its_signs_say(fabric: Fabric) -> None:
    receiver = fabric.start(calc("1.4.0"), concurrency=2, coroutines=3)
    (found,) = fabric.listed(1)
    assert (found.domain, found.type, found.id, found.version) == ("math", "calc", "eu", "1.4.0")
    assert (found.instance, found.capacity, found.interval) == (receiver.id, 5, SIGN_EVERY)
    assert (found.identity, found.name) == (receiver.identity, "math.calc.eu")
    assert found.idle is None
    assert fabric.client.service(type="calc", domain="math").calc.multiply(5, 7) == 35
    assert fabric.listed(1)[0].idle is not None


def test_services_are_listed_by_what_is_asked_for(fabric: Fabric) -> None:
    fabric.start(calc("1.0.0"))
    fabric.start(calc("2.0.0", id="us"))
    fabric.start(Identity(type="other"), jobs={"echo": lambda request: request.respond(1)}, services=[])
    assert [each.name for each in fabric.listed(3)] == [
        "default.other.default",
        "math.calc.eu",
        "math.calc.us",
    ]
    assert [each.id for each in fabric.listed(1, version=">=2")] == ["us"]
    assert [each.type for each in fabric.listed(1, domain="default")] == ["other"]
    assert fabric.client.list_services(type="cal") == []
    with pytest.raises(ValueError, match="no version"):
        fabric.client.list_services(version="new")
    with pytest.raises(ValueError, match="is no type"):
        fabric.client.list_services(type="a.b")
    with pytest.raises(ValueError, match="1 is no version"):
        fabric.client.service(type="calc", version=1)  # type: ignore[arg-type]


def test_a_worker_that_is_no_service_is_not_listed(plain_url: str) -> None:
    with ExitStack() as stack:
        fabric = Fabric(stack, plain_url)
        receiver = fabric.start(Identity())
        assert fabric.client.list_services() == []
        assert receiver.queues == ("high", "default", "low")
        assert [each.id for each in fabric.client.describe()] == [receiver.id]


def test_only_those_that_are_well_are_listed_on_request(fabric: Fabric) -> None:
    class Ill:
        def health_check(self) -> bool:
            raise ConnectionError("the database does not answer")

    fabric.start(calc())
    fabric.start(calc(id="ill"), jobs={"health_check": Ill().health_check})
    fabric.listed(2)
    assert [each.id for each in fabric.listed(1, health_check=True)] == ["eu"]


def test_replicas_share_the_calls_and_one_alone_can_be_called(fabric: Fabric) -> None:
    one, two = fabric.start(calc(), "one"), fabric.start(calc(), "two")
    fabric.listed(2)
    both = fabric.client.service(type="calc", id="eu", domain="math")
    futures = [both.calc.who.submit() for _ in range(200)]
    assert {each.result(LONG) for each in futures} == {"one", "two"}
    for receiver, label in ((one, "one"), (two, "two")):
        just_one = fabric.client.service(instance=receiver.id)
        assert [just_one.calc.who() for _ in range(3)] == [label] * 3
        assert just_one.health_check() is True


def test_the_version_that_is_wanted_does_it_also_where_replicas_have_several(fabric: Fabric) -> None:
    fabric.start(calc("1.9.0"), "old")
    fabric.start(calc("2.0.0"), "new")
    fabric.start(calc("2.1.0", id="us"), "us")
    fabric.listed(3)
    new = fabric.client.service(type="calc", domain="math", version=">=2")
    assert {new.calc.who() for _ in range(20)} <= {"new", "us"}
    old = fabric.client.service(type="calc", domain="math", id="eu", version="<2")
    assert {old.calc.who() for _ in range(5)} == {"old"}


def test_a_worker_of_another_version_does_not_do_it(fabric: Fabric) -> None:
    receiver = fabric.start(calc("1.0.0"))
    own = receiver.queues[0]
    with pytest.raises(VersionMismatch, match=r"wants version >=2, and this is 1\.0\.0"):
        fabric.client.call_and_wait("calc.multiply", [1, 2], queue=own, headers={"version": ">=2"})
    with pytest.raises(VersionMismatch, match="no version"):
        fabric.client.call_and_wait("calc.multiply", [1, 2], queue=own, headers={"version": "new"})
    assert fabric.client.call_and_wait("calc.multiply", [1, 2], queue=own, headers={"version": "1"}).data == 2


def test_a_call_to_what_nobody_serves_ends_at_once(fabric: Fabric) -> None:
    fabric.start(calc())
    fabric.listed(1)
    client = fabric.client
    for nobody in (
        client.service(type="stock"),
        client.service(type="calc", domain="math", version=">=2"),
        client.service(type="calc"),  # of another domain
        client.service(instance="none"),
    ):
        with pytest.raises(NoReceivers, match="no service runs"):
            nobody.calc.multiply(1, 2)
        with pytest.raises(NoReceivers):
            nobody.calc.multiply.call(1, 2)
    with pytest.raises(MethodNotFound):
        client.service(type="calc", domain="math").calc.divide(1, 2)


def test_a_call_after_the_last_one_has_stopped_ends_at_once(fabric: Fabric) -> None:
    """Though the client knew it, and was not told."""
    receiver = fabric.start(calc("1.0.0"))
    fabric.listed(1)
    wanted = ({"id": "eu"}, {"version": ">=1"}, {})
    for each in wanted:
        assert fabric.client.service(type="calc", domain="math", **each).calc.multiply(2, 3) == 6
    receiver.end()  # type: ignore[attr-defined]
    for each in wanted:
        with pytest.raises(NoReceivers):
            fabric.client.service(type="calc", domain="math", **each).calc.multiply(2, 3)


def test_a_call_waits_for_a_service_if_it_is_told_to(fabric: Fabric) -> None:
    late = fabric.client.service(type="calc", domain="math", wait_for_receiver=LONG)
    asked = threading.Thread(target=lambda: answers.append(late.calc.multiply(2, 3)))
    answers: list[int] = []
    asked.start()
    fabric.start(calc())
    asked.join(LONG)
    assert answers == [6]


def test_what_a_client_asks_for_is_checked(fabric: Fabric) -> None:
    for wrong, why in (
        ({}, "which service"),
        ({"id": "eu"}, "of one type apart"),
        ({"type": "x", "version": "v"}, "no version"),
    ):
        with pytest.raises(ValueError, match=why):
            fabric.client.service(**wrong)


def test_services_are_watched(fabric: Fabric) -> None:
    first = fabric.start(calc(), "first")
    fabric.watch(domain="math")
    fabric.until_seen("up", lambda service: service.instance == first.id)
    second = fabric.start(calc("1.1.0", id="us"))
    fabric.start(Identity(type="other"), services=[Calc()])
    fabric.until_seen("up", lambda service: service.instance == second.id)
    second.end()  # type: ignore[attr-defined]
    fabric.until_seen("down", lambda service: service.instance == second.id)
    assert {each.service.domain for each in fabric.seen} == {"math"}
    assert [each.kind for each in fabric.seen if each.service.instance == first.id] == ["up"]


PLACES = [
    ("shop", "orders", "eu"),
    ("shop", "orders", "us"),
    ("shop", "stock", "eu"),
    ("bank", "orders", "eu"),
]


def test_each_of_several_callbacks_is_told_what_fits_all_its_filters(memory_url: str) -> None:
    """Of who comes, and of who goes."""
    parts = ("domain", "type", "id")
    wanted = [
        dict(zip(parts, each, strict=True))
        for each in product((None, "shop", "bank"), (None, "orders", "stock"), (None, "eu", "us"))
    ]
    with ExitStack() as stack:
        fabric = Fabric(stack, memory_url)
        told: list[list[tuple[str, str]]] = [[] for _ in wanted]
        for heard, filters in zip(told, wanted, strict=True):

            def tell(change: ServiceChange, heard: list[Any] = heard) -> None:
                heard.append((change.service.name, change.kind))

            stack.enter_context(fabric.client.watch_services(tell, **filters))
        receivers = [fabric.start(Identity(domain=domain, type=type, id=id)) for domain, type, id in PLACES]
        until(lambda: len(told[0]) == len(PLACES))  # the one without filters
        for receiver in receivers:
            receiver.end()  # type: ignore[attr-defined]
        for heard, filters in zip(told, wanted, strict=True):
            fitting = [
                each
                for each in PLACES
                if all(a in (None, b) for a, b in zip(filters.values(), each, strict=True))
            ]
            expected = sorted((".".join(each), kind) for each in fitting for kind in ("up", "down"))
            until(lambda heard=heard, expected=expected: sorted(heard) == expected)


@pytest.mark.parametrize("kind", [KeyError, SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_a_callback_that_fails_is_logged_and_the_next_change_is_told(
    fabric: Fabric, caplog: Any, kind: type[BaseException]
) -> None:
    def fail(change: ServiceChange) -> None:
        fabric.see(change)
        raise kind("mine")

    with fabric.client.watch_services(fail):
        one = fabric.start(calc())
        fabric.until_seen("up")
        one.end()  # type: ignore[attr-defined]
        fabric.until_seen("down")
        two = fabric.start(calc())
        fabric.until_seen("up", lambda service: service.instance == two.id)
    assert "failed" in caplog.text


def test_a_watch_may_be_closed_by_its_callback(fabric: Fabric) -> None:
    closed = threading.Event()

    def close(change: ServiceChange) -> None:
        watch.close()
        closed.set()

    watch = fabric.client.watch_services(close)
    fabric.start(calc())
    assert closed.wait(LONG)


def test_an_async_client_does_the_same(fabric: Fabric) -> None:
    async def main() -> None:
        changes: asyncio.Queue[ServiceChange] = asyncio.Queue()
        async with AsyncRpcClient(backend=fabric.url, timeout=LONG) as client:
            with pytest.raises(NoReceivers):
                await client.service(type="calc", domain="math")
            watch = await client.watch_services(changes.put_nowait, type="calc")
            receiver = await asyncio.to_thread(fabric.start, calc())
            assert (await asyncio.wait_for(changes.get(), LONG)).service.instance == receiver.id
            calls = await client.service(type="calc", domain="math", wait_for_receiver=LONG)
            await client.describe()
            assert dir(calls) == ["calc", "health_check"]
            assert "multiply" in dir(calls.calc)
            assert await calls.calc.multiply(5, 7) == 35
            assert await calls.calc.multiply.submit(5, y=7) == 35
            assert [each.id for each in await client.list_services(health_check=True)] == ["eu"]
            await watch.close()
            async with await client.watch_services(changes.put_nowait, type="calc") as another:
                assert (await asyncio.wait_for(changes.get(), LONG)).kind == "up"
            assert not any(thread.is_alive() for each in (watch, another) for thread in each._threads)

    run(main)


def test_signs_that_are_none_cost_no_more_than_a_line(fabric: Fabric, caplog: Any) -> None:
    fabric.watch()
    bodies = b"", b"\xff", b"{}", b'{"jsonrpc":"2.0","method":"rpc.sign","params":{"instance":1}}'
    for number, body in enumerate(bodies):
        headers = {"id": f"forged-{number}", "content-type": "application/json"}
        fabric.client.backend.send(SIGNS, Message(body, headers))
    fabric.start(calc())
    fabric.until_seen("up")

    def lines() -> set[str]:
        """What is remembered may be read, and logged, twice."""
        return {each.message for each in caplog.records if each.name.startswith("rpc.registry")}

    until(lambda: len(lines()) >= len(bodies))
    assert len(lines()) == len(bodies)
    assert all(each.startswith("refused a sign of life: ") and "\n" not in each for each in lines())
    assert not [each for each in caplog.records if each.exc_info]


def test_two_who_listen_see_the_same(fabric: Fabric) -> None:
    def both() -> list[list[str]]:
        return [[each.instance for each in watch.services()] for watch in watches]

    with RpcClient(backend=fabric.url, timeout=LONG) as other:
        watches = [each.watch_services(fabric.see) for each in (fabric.client, other)]
        eu, us = fabric.start(calc()), fabric.start(calc(id="us"))
        until(lambda: both() == [[eu.id, us.id]] * 2)
        eu.end()  # type: ignore[attr-defined]
        until(lambda: both() == [[us.id]] * 2)
        assert [each.list_services()[0].instance for each in (fabric.client, other)] == [us.id] * 2


def test_two_hundred_proxies_are_no_more_connections_than_one(fabric: Fabric) -> None:
    """Descriptors and threads. A look-up in the background may have some for a moment."""

    def opened() -> int:
        return len(os.listdir("/proc/self/fd")) + threading.active_count()

    def call() -> None:
        service = fabric.client.service(type="calc", domain="math", wait_for_receiver=LONG)
        proxies.append(service)
        assert service.calc.multiply(2, 3) == 6

    proxies: list[Any] = []
    fabric.start(calc(), concurrency=1)
    for _ in range(10):
        call()
    before = opened()
    for _ in range(200):
        call()
    assert opened() < before + 20


def test_a_service_passes_what_a_job_of_its_own_queue_needs(fabric: Fabric) -> None:
    """Options, streams, and `dir()`."""

    def headers(request: Request) -> None:
        request.respond(dict(request.headers))

    def count(to: int) -> Any:
        yield from range(to)

    fabric.start(calc(), jobs={"headers": headers, "count": count})
    service = fabric.client.service(type="calc", domain="math", wait_for_receiver=LONG)
    assert dir(service) == ["calc", "count", "headers", "health_check"]
    assert dir(fabric.client.service(type="other", domain="math")) == []
    assert service.headers.options(headers={"x-user": "ada"})()["x-user"] == "ada"
    assert [*service.count.stream(3)] == [0, 1, 2]
    assert service.calc.multiply.submit(2, 2).result(LONG) == 4


def test_that_nobody_runs_is_told_by_the_future_of_what_is_submitted(fabric: Fabric) -> None:
    future = fabric.client.service(type="none").calc.who.submit()
    assert future.progress is None
    with pytest.raises(NoReceivers, match="type 'none'"):
        future.result(LONG)

    async def main() -> None:
        async with AsyncRpcClient(backend=fabric.url, timeout=LONG) as client:
            calls = await client.service(type="calc", domain="math", wait_for_receiver=LONG)
            client.lookup.forget(client.lookup.services(Wanted()))
            with pytest.raises(NoReceivers, match="type 'calc'"):
                await calls.calc.who.submit()

    fabric.start(calc())
    run(main)


def one_sign() -> ServiceInfo:
    calculator = {"domain": "math", "type": "calc", "id": "eu", "version": "1.0.0", "instance": "a"}
    heard = {"epoch": 1.0, "beat": 1, "interval": 5.0, "host": "h", "pid": 1, "started": 1.0}
    return ServiceInfo(**calculator, **heard)


def answered(delivery: Delivery, sign: ServiceInfo) -> Message:
    reply = {"jsonrpc": "2.0", "id": delivery.message.id, "result": sign}
    return Message(msgspec.json.encode(reply), delivery.message.headers)


def test_who_answers_twice_is_listed_once() -> None:
    """As where a request is sent again after a connection broke."""

    def answer(delivery: Delivery) -> None:
        delivery.reply(answered(delivery, one_sign()))
        delivery.finish(answered(delivery, one_sign()))

    url = f"memory://{uuid4().hex}"
    server = backend_from_url(url).server([ALL_WORKERS], answer)
    thread = threading.Thread(target=server.run)
    thread.start()
    with RpcClient(backend=url) as client:
        end = time.monotonic() + LONG
        while not (found := client.list_services()):
            assert time.monotonic() < end
    assert found == [one_sign()]
    server.stop()
    thread.join(LONG)


def test_whoever_is_known_is_waited_for() -> None:
    """Also if others answered long before."""
    backend, arrived = MemoryBackend(uuid4().hex), threading.Event()
    early, late = (msgspec.structs.replace(one_sign(), instance=name) for name in ("early", "late"))

    def answer_late(delivery: Delivery) -> None:
        arrived.wait(LONG)
        time.sleep(2 * SETTLED)
        delivery.finish(answered(delivery, late))

    def answer(delivery: Delivery) -> None:
        delivery.finish(answered(delivery, early))
        arrived.set()

    servers = [backend.server([ALL_WORKERS], each) for each in (answer, answer_late)]
    threads = [threading.Thread(target=each.run) for each in servers]
    for each in threads:
        each.start()
    lookup = Lookup(backend)
    for sign in early, late:
        lookup.told(call_message(sign.instance, SIGN, sign, Writing(JSON), ttl=None, replies=False))
    assert {each.instance for each in lookup.ask(LONG)} == {"early", "late"}
    for server, thread in zip(servers, threads, strict=True):
        server.stop()
        thread.join(LONG)


def test_who_knows_nobody_expects_those_that_the_broker_remembers(fabric: Fabric) -> None:
    lookup = Lookup(fabric.client.backend)
    remembers = "replay" in fabric.client.backend.features
    receiver = fabric.start(calc())
    end = time.monotonic() + LONG
    while lookup.expected() != ({receiver.id} if remembers else set()):
        assert time.monotonic() < end
    receiver.end()  # type: ignore[attr-defined]
    assert lookup.expected() == set()


class Remembering(MemoryBackend):
    """Signs of life that were given so many seconds ago, each with the seconds between two of them."""

    features = MemoryBackend.features | {"replay"}

    def __init__(self, **given: tuple[float, float]) -> None:
        super().__init__(uuid4().hex)
        self._given, self.asked = given, list[float]()

    def replay(self, to: Address, seconds: float) -> Iterator[Message]:
        self.asked.append(seconds)
        for name, (ago, interval) in self._given.items():
            if ago <= seconds:
                sign = msgspec.structs.replace(one_sign(), instance=name, interval=interval)
                yield call_message(name, SIGN, sign, Writing(JSON), ttl=None, replies=False)


def test_who_has_missed_several_signs_is_not_expected_to_answer() -> None:
    backend = Remembering(
        gone=(3.1, 1.0), runs=(2.9, 1.0), seldom=(14, 5.0), lately=(1, 60.0), often=(2, 0.5)
    )
    assert Lookup(backend).expected() == {"runs", "seldom", "lately"}
    assert sorted(backend.asked) == [1.5, 3.0, 15.0]


def test_what_anybody_says_of_its_signs_does_not_have_the_broker_asked_for_each() -> None:
    backend = Remembering(**{f"a{number}": (0.0, 0.1 + number / 1000) for number in range(5000)})
    assert len(Lookup(backend).expected()) == 5000
    assert len(backend.asked) <= 30


def test_a_restart_is_later_also_if_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = RpcReceiver(backend=f"memory://{uuid4().hex}", services=[Calc()], identity=calc())
    before = receiver._application.announcer.sign().epoch
    monkeypatch.setattr(time, "time", lambda: before - 100)
    receiver._application.announcer.start()
    assert before < receiver._application.announcer.sign().epoch < before + 1


def test_who_stops_while_all_are_asked_is_up_and_then_down() -> None:
    """Answers, and signs that are published, are heard by different threads."""
    url, told, sign = f"memory://{uuid4().hex}", SimpleQueue[ServiceChange](), one_sign()

    def answer(delivery: Delivery) -> None:
        delivery.finish(answered(delivery, sign))
        end = time.monotonic() + LONG
        while not watch._lookup.services(Wanted()):
            assert time.monotonic() < end
        bye = msgspec.structs.replace(sign, beat=-1)
        backend.send(SIGNS, call_message("bye", SIGN, bye, Writing(JSON), ttl=None, replies=False))

    backend = backend_from_url(url)
    server = backend.server([ALL_WORKERS], answer)
    thread = threading.Thread(target=server.run)
    with RpcClient(backend=url) as client:
        thread.start()
        watch = client.watch_services(told.put)
        assert [told.get(timeout=LONG).kind for _ in range(2)] == ["up", "down"]
    server.stop()
    thread.join(LONG)


def test_a_watch_that_cannot_begin_is_given_up_in_time() -> None:
    before = {*threading.enumerate()}
    with (
        RpcClient(backend="redis://127.0.0.1:1/0", timeout=0.2) as client,
        pytest.raises(BackendUnavailable, match=r"within 0\.2 s"),
    ):
        client.watch_services(print)
    for thread in {*threading.enumerate()} - before:
        thread.join(LONG)
        assert not thread.is_alive()


def test_who_closes_the_client_ends_what_it_watches(fabric: Fabric) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=fabric.url) as client:
            await client.watch_services(print)

    before = {*threading.enumerate()}
    with RpcClient(backend=fabric.url) as client:
        client.watch_services(print)
    run(main)
    assert not [each for each in threading.enumerate() if each.name == "rpc-watch" and each not in before]


def test_what_is_watched_in_an_event_loop_ends_with_it(memory_url: str) -> None:
    async def main() -> Any:
        return await AsyncRpcClient(backend=memory_url).watch_services(print)

    with ExitStack() as stack:
        watch = run(main)
        Fabric(stack, memory_url).start(calc())
        for thread in watch._threads:
            thread.join(LONG)
            assert not thread.is_alive()


def test_a_client_forgets_who_is_gone(fabric: Fabric) -> None:
    """Each process has a name of its own: with those that were, the table would grow for good."""
    lookup = fabric.client.lookup
    fabric.start(calc()).end()  # type: ignore[attr-defined]
    gone = fabric.start(calc())
    fabric.listed(1)
    gone.end()  # type: ignore[attr-defined]
    end = time.monotonic() + LONG
    while lookup.next_end() is not None:
        assert time.monotonic() < end
        fabric.client.list_services()


def test_a_thread_that_cannot_be_started_does_not_end_the_look_ups(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> threading.Thread:
        raise RpcError("no thread can be started")

    receiver = fabric.start(calc())
    fabric.listed(1)
    lookup, known = fabric.client.lookup, lambda: fabric.client.lookup.known(Wanted(type="calc"))
    monkeypatch.setattr(Registry, "is_fresh", lambda *_: False)
    with monkeypatch.context() as patched:
        patched.setattr("rpc.registry.lookup.started", refused)
        assert [each.instance for each in known()] == [receiver.id]
    end = time.monotonic() + LONG
    first = lookup.next_end() or 0.0
    while (lookup.next_end() or 0.0) <= first:  # it is heard of again
        assert time.monotonic() < end
        known()


def test_where_there_are_no_topics_it_is_said_so() -> None:
    class Bare(MemoryBackend):
        features = MemoryBackend.features - {"topics", "groups", "subscriptions"}

    with RpcClient(backend=Bare("bare")) as client:
        for call in (client.list_services, lambda: client.watch_services(print)):
            with pytest.raises(Unsupported, match="topics"):
                call()


def test_who_only_listens_rests(fabric: Fabric) -> None:
    """What it costs is CPU time, which a busy machine does not change: a loop that spins takes all of it.
    What other tests left behind in this process has its own."""

    def used() -> float:
        before = time.process_time()
        time.sleep(1)
        return time.process_time() - before

    of_others = used()
    fabric.watch()
    fabric.start(calc())
    fabric.until_seen("up")
    assert used() - of_others < 0.4


def test_who_asks_stops_when_nothing_can_come_any_more() -> None:
    """Its way back is gone, as after a broker's restart: each look at it says so at once."""

    class Gone:
        asked = 0

        def receive(self, timeout: float | None) -> Message:
            self.asked += 1
            assert self.asked < 10
            return Message(headers={"lost": "its way back is gone"})

        def close(self) -> None:
            """Nothing to do."""

    class Backend(MemoryBackend):
        def request(self, to: Any, message: Message) -> Any:
            return Gone()

    with RpcClient(backend=Backend("gone")) as client:
        assert client.list_services() == []
