"""Later, only once, and where there is no room: what a client makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from enum import Enum, IntEnum
from functools import partial
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from in_memory import LONG, Flaky, Site, until

from rpc import (
    QueueFull,
    RemoteError,
    RpcClient,
    RpcReceiver,
    SettingsError,
    Unsupported,
)
from rpc.backends.memory import MemoryBackend
from rpc.settings import Settings


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


# What another backend does not do.


def test_what_the_backend_cannot_do_is_refused_before_anything_is_sent() -> None:
    with RpcClient(backend="amqp://127.0.0.1:1") as client:
        for way in client.call, client.call_and_wait, client.submit:
            with pytest.raises(Unsupported, match=r"'idempotency'; redis:, rq\+redis: and memory: have it"):
                way("work", idempotency_key="k")


# Delays.

SLEW = 0.01
"""Seconds by which the clock on the wall may be corrected meanwhile."""
ZONES = {
    "aware": lambda seconds: datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=seconds),
    "utc": lambda seconds: datetime.now(timezone.utc) + timedelta(seconds=seconds),
    "naive": lambda seconds: datetime.now() + timedelta(seconds=seconds),
}


@pytest.mark.parametrize("zone", ZONES)
def test_a_time_is_meant_in_its_zone_and_without_one_locally(site: Site, zone: str) -> None:
    came: list[float] = []
    site.serve({"note": lambda: came.append(time.time())})
    at = ZONES[zone](0.3)
    site.client().call("note", at=at)
    until(lambda: came)
    assert -SLEW < came[0] - at.timestamp() < LONG / 2


def test_a_delay_counts_from_the_sending(site: Site) -> None:
    came: list[str] = []
    client = site.client()
    client.call("note", ["later"], delay=0.3)
    client.call("note", ["now"])
    began = time.monotonic()
    site.serve({"note": came.append})
    until(lambda: came == ["now", "later"])
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("zone", ZONES)
def test_what_is_past_is_done_at_once(site: Site, zone: str) -> None:
    came: list[int] = []
    site.serve({"note": lambda: came.append(1)})
    site.client().call("note", at=ZONES[zone](-3600))
    until(lambda: came)


@pytest.mark.parametrize("options", [
    {"delay": -1}, {"delay": float("nan")}, {"delay": float("inf")}, {"delay": 5, "ttl": 5},
    {"delay": 1, "at": datetime.now()}, {"at": datetime.now() + timedelta(days=1), "ttl": 60},
], ids=["negative", "nan", "infinite", "ttl", "both", "time and ttl"])  # fmt: skip
def test_delays_that_make_no_sense_are_refused(site: Site, options: Any) -> None:
    with pytest.raises(ValueError, match="delay"):
        site.client().call("note", **options)
    assert not any(site.client().backend.hub.waiting.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "backend", ["memory", *(pytest.param(each, marks=pytest.mark.redis) for each in ("redis", "rq"))]
)
def test_a_delayed_call_with_a_key_is_done_once(backend: str, request: pytest.FixtureRequest) -> None:
    came: list[str] = []
    with ExitStack() as stack:
        site = Site(stack, request.getfixturevalue(f"{backend}_url"))
        client = site.client()
        for text in "first", "second":
            client.call("note", [text], delay=0.2, idempotency_key="order 17")
        site.serve({"note": came.append})
        assert client.call_and_wait("note", ["third"], idempotency_key="order 17").data is None
        assert came == ["first"]


# Idempotency keys, above the backends: what a handler in request style responds goes to all.


def test_a_response_goes_to_all_who_ask_with_the_key(site: Site) -> None:
    done: list[bool] = []
    site.serve({"pay": lambda request: done.append(request.respond({"paid": request.data["cents"]}))})
    client = site.client()
    first = client.call_and_wait("pay", {"cents": 5}, idempotency_key="order 17")
    second = client.submit("pay", {"cents": 7}, idempotency_key="order 17").result(LONG)
    assert (first.data, second.data) == ({"paid": 5}, {"paid": 5})
    assert first.id != second.id
    assert done == [True]


def test_a_response_that_nobody_waited_for_goes_to_who_asks_later(site: Site) -> None:
    site.serve({"pay": lambda request: request.respond("paid")})
    client = site.client()
    client.call("pay", idempotency_key="order 17")
    assert client.call_and_wait("pay", idempotency_key="order 17").data == "paid"


def test_a_failure_goes_to_all_who_ask_with_the_key(site: Site) -> None:
    flaky = Flaky(1)
    site.serve({"flaky": flaky})
    for _ in range(2):
        with pytest.raises(RemoteError, match="not now"):
            site.client().call_and_wait("flaky", idempotency_key="k")
    assert flaky.attempts == [1]


# Room.


def test_a_client_waits_for_room_or_for_nothing_else(site: Site) -> None:
    with pytest.raises(SettingsError, match="when_full is 'raise' or 'wait', not 'hope'"):
        site.client(when_full="hope")


WAYS: dict[str, Callable[[RpcClient, Any], Any]] = {
    "call": lambda client, data: client.call("note", data),
    "call_and_wait": lambda client, data: client.call_and_wait("note", data).data,
    "submit": lambda client, data: client.submit("note", data).result(LONG).data,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_client_may_wait_until_there_is_room(site: Site, way: str) -> None:
    came: list[str] = []
    client = site.client(1, when_full="wait")
    client.call("note", ["first"])
    waiting = Thread(target=WAYS[way], args=[client, ["second"]])
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    site.serve({"note": came.append})
    until(lambda: came == ["first", "second"])
    waiting.join(LONG)
    assert not waiting.is_alive()


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_waits_in_vain_for_room_is_told_when_its_time_is_up(site: Site, way: str) -> None:
    client = site.client(1, when_full="wait", timeout=0.4)
    client.call("note", ["first"])
    began = time.monotonic()
    with pytest.raises(QueueFull):
        WAYS[way](client, ["second"])
    assert 0.3 < time.monotonic() - began < LONG


@pytest.mark.parametrize("way", WAYS)
def test_otherwise_it_is_told_at_once(site: Site, way: str) -> None:
    client = site.client(1)
    client.call("note", ["first"])
    with pytest.raises(QueueFull, match="max_length"):
        WAYS[way](client, ["second"])


def test_what_has_waited_for_room_is_not_done_later_for_that(site: Site) -> None:
    came: list[str] = []
    client = site.client(1, when_full="wait")
    client.call("note", ["first"])
    at = datetime.now() + timedelta(seconds=LONG / 2)
    waiting = Thread(target=lambda: client.call("note", ["second"], at=at))
    waiting.start()
    waiting.join(0.5)
    site.serve({"note": came.append})
    until(lambda: client.backend.hub.delayed)  # type: ignore[attr-defined]
    waiting.join(LONG)
    (due,) = (when for when, _, _ in client.backend.hub.delayed)  # type: ignore[attr-defined]
    assert due - time.monotonic() < LONG / 2 - 0.4


class LateBackend(MemoryBackend):
    """Says only with the reply that there is no room, as a backend may that sends without a confirmation."""

    full = True
    asynchronous = None  # has none of its own

    def request(self, to: Any, message: Any) -> Any:
        return _Refusal() if self.full else super().request(to, message)


class _Refusal:
    def receive(self, timeout: float | None) -> Any:
        raise QueueFull("no room")

    def close(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("way", ["call_and_wait", "submit"])
def test_room_is_waited_for_also_where_the_reply_says_that_there_is_none(site: Site, way: str) -> None:
    backend = LateBackend(site.url)
    site.serve({"note": lambda text: text})
    answers: list[Any] = []
    client = site.client(backend=backend, when_full="wait")
    waiting = Thread(target=lambda: answers.append(WAYS[way](client, ["x"])))
    waiting.start()
    waiting.join(0.1)
    assert answers == []
    backend.full = False
    until(lambda: answers == ["x"])
    waiting.join(LONG)


def test_a_submitted_call_that_waits_for_room_can_be_cancelled(site: Site) -> None:
    backend = LateBackend(site.url)
    done: list[str] = []
    client = site.client(backend=backend, when_full="wait")
    future = client.submit("note", ["cancelled"])
    assert future.cancel()
    backend.full = False
    client.close()
    site.serve({"note": done.append})
    site.client().call_and_wait("note", ["last"])
    assert done == ["last"]


def test_at_its_timeout_such_a_call_is_told_that_there_is_no_room(site: Site) -> None:
    client = site.client(backend=LateBackend(site.url), when_full="wait", timeout=0.3)
    assert isinstance(client.submit("note").exception(LONG), QueueFull)


# Routes.


@pytest.mark.parametrize("way", ["call_and_wait", "submit", "call"])
def test_a_call_takes_the_first_route_that_its_name_fits_unless_it_names_a_queue(
    site: Site, way: str
) -> None:
    done: list[str] = []
    for name in "default", "stock", "one":
        jobs = dict.fromkeys(("stock.take", "stock.count", "add"), partial(done.append, name))
        site.serve(jobs, queues=[name])
    settings = Settings(routes={"stock.count": "one", "stock.*": "stock"})
    client = site.client(settings=settings)
    calls = [("stock.take", None), ("stock.count", None), ("add", None), ("stock.take", "default")]
    for number, (name, queue) in enumerate(calls):
        getattr(client, way)(name, queue=queue)
        until(lambda sent=number + 1: len(done) == sent)
    assert done == ["stock", "one", "default", "default"]


KEYED: list[Callable[[RpcClient, Any], Any]] = [
    lambda client, key: client.call_and_wait("count", idempotency_key=key).data,
    lambda client, key: client.submit("count", idempotency_key=key).result(LONG).data,
    lambda client, key: client.services.shop.count.options(idempotency_key=key)(),
    lambda client, key: client.call("count", idempotency_key=key),
]


class Colour(str, Enum):
    red = "r"


class Size(IntEnum):
    large = 17


@pytest.mark.parametrize("url", [
    "memory://keys", "redis://127.0.0.1:1", "rq+redis://127.0.0.1:1", "amqp://127.0.0.1:1",
])  # fmt: skip
@pytest.mark.parametrize("call", KEYED, ids=["call_and_wait", "submit", "proxy", "call"])
def test_what_is_no_key_is_refused_in_the_same_words(url: str, call: Any) -> None:
    """Nobody is there: what is sent would raise another error."""
    with RpcClient(backend=url) as client:
        for bad in True, 1.5, b"k", ("a",), {}, object(), "\ud800", "ä" * 513, 10**5000, datetime.now():
            with pytest.raises(
                ValueError, match="an idempotency key is a str of at most 1024 bytes in UTF-8"
            ):
                call(client, bad)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def with_keys(request: pytest.FixtureRequest) -> Iterator[RpcClient]:
    """A client, on a backend with the feature `idempotency`, of jobs that count how often they are called."""
    calls = dict.fromkeys(("count", "refund"), 0)

    def counting(name: str) -> Callable[[], str]:
        def called() -> str:
            calls[name] += 1
            return f"{name} {calls[name]}"

        return called

    jobs = {name: counting(name) for name in calls}
    backend = request.getfixturevalue(f"{request.param}_url")
    receiver = RpcReceiver(jobs=jobs, backend=backend)
    thread = Thread(target=receiver.run)
    thread.start()
    with RpcClient(backend=backend, timeout=LONG) as client:
        yield client
    receiver.stop()
    thread.join()


@pytest.mark.parametrize("same", [
    (17, "17", Size.large), (UUID(int=5), str(UUID(int=5))), (Colour.red, "r"), ("",), ("ä" * 512,), (-3,),
    ("a\nb",),
], ids=["int", "uuid", "enum", "empty", "long", "negative", "newline"])  # fmt: skip
def test_any_str_int_or_uuid_is_a_key(with_keys: RpcClient, same: tuple[Any, ...]) -> None:
    for key in same * 2:
        assert with_keys.call_and_wait("count", idempotency_key=key).data == "count 1"


def test_a_key_belongs_to_a_job(with_keys: RpcClient) -> None:
    for _ in range(2):
        assert with_keys.call_and_wait("count", idempotency_key="order 17").data == "count 1"
        assert with_keys.call_and_wait("refund", idempotency_key="order 17").data == "refund 1"
