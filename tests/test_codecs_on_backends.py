"""Codecs, compression and `returns` between clients and workers."""

from __future__ import annotations

import asyncio
import enum
import importlib.metadata
import logging
import pickle
import threading
import time
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest

import rpc
from rpc import AsyncRpcClient, RpcClient, RpcReceiver, SerializationError, SettingsError, expose, job, on
from rpc.backends.memory import MemoryBackend
from rpc.codecs import Codec, codec_named, register
from rpc.core.codecs import JSON, PICKLE
from rpc.settings import Settings
from rpc.testing import patch
from rpc.transport import Message

NAMES = ["json", "msgpack", "json+types", "pickle"]
EVERYTHING = Settings(accept=(*NAMES, f"{__name__}.REVERSED"), keep_results=60.0)
REVERSED = Codec(
    "reversed",
    "application/x-reversed",
    lambda value: JSON.encode(value)[::-1],
    lambda body: JSON.decode(body[::-1]),
    keeps_types=False,
)
PATIENCE = 30.0


class Size(enum.Enum):
    SMALL = "small"


@dataclass
class Order:
    item: str
    price: Decimal
    size: Size = Size.SMALL
    when: date | None = None


class Model(pydantic.BaseModel):
    total: int


ORDER = Order("tea", Decimal("1.10"), when=date(2030, 1, 2))


def taxed(order: Order) -> Order:
    return Order(order.item, order.price * 2, order.size, order.when)


def echo(request):
    request.respond(request.data)


@job(fork=True)
def forked(order: Order) -> Order:
    return taxed(order)


@job(fork=True)
def responding(request):
    request.respond(request.data)


def failing(request):
    raise ValueError("no")


JOBS = {"taxed": taxed, "echo": echo, "failing": failing, "total": lambda: {"total": 3}}


@pytest.mark.parametrize("codec", [*NAMES, REVERSED], ids=[*NAMES, "one's own"])
def test_each_codec_carries_calls_results_and_errors(rpc_worker, codec):
    client = rpc_worker(JOBS, settings=EVERYTHING)
    with RpcClient(backend=client.backend, codec=codec) as own:
        assert own.call_and_wait("taxed", [ORDER], returns=Order).data == taxed(ORDER)
        assert own.call_and_wait("taxed", {"order": ORDER}, returns=Order | None).data == taxed(ORDER)
        assert own.submit("echo", {"a": [1]}).result(PATIENCE).data == {"a": [1]}
        with pytest.raises(rpc.RemoteError, match=r"^ValueError: no$"):
            own.call_and_wait("failing")
        with pytest.raises(rpc.InvalidParams, match=r"order: Expected `.*Order|object`, got `int`"):
            own.call_and_wait("taxed", [5])


@pytest.mark.parametrize("codec", ["json+types", "pickle"])
def test_what_keeps_types_keeps_them(rpc_worker, codec):
    client = rpc_worker(JOBS, settings=EVERYTHING)
    data = {"a": (1, {2}), "b": {3: b"4"}, "c": [ORDER, 1j, Size.SMALL], "$d": frozenset()}
    with RpcClient(backend=client.backend, codec=codec) as own:
        assert own.call_and_wait("echo", data).data == data
        assert own.call_and_wait("taxed", [ORDER]).data == taxed(ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("codec", NAMES)
def test_each_codec_goes_into_child_processes_and_back(rpc_worker, codec):
    client = rpc_worker({"forked": forked, "responding": responding}, settings=EVERYTHING)
    with RpcClient(backend=client.backend, codec=codec) as own:
        assert own.call_and_wait("forked", [ORDER], returns=Order).data == taxed(ORDER)
        assert own.call_and_wait("responding", {"a": [1]}).data == {"a": [1]}


@pytest.mark.parametrize("codec", NAMES)
def test_each_codec_is_read_when_the_result_is_asked_for_later(rpc_worker, codec):
    client = rpc_worker(JOBS, settings=EVERYTHING)
    with RpcClient(backend=client.backend, codec=codec, compress="gzip:10B") as own:
        id = own.call("echo", {"a": ["text"] * 100}, keep=60)
        end = time.monotonic() + PATIENCE
        while own.job(id).state != "succeeded":
            assert time.monotonic() < end
            time.sleep(0.01)
        assert own.job(id).result == {"a": ["text"] * 100}
        if codec == "pickle":  # another client does not unpickle what it finds
            with pytest.raises(
                SerializationError, match="'application/x-python-pickle' is not accepted here"
            ):
                client.job(id).result  # noqa: B018


def taxing(request):
    for order in request.items:
        answer = yield taxed(order if isinstance(order, Order) else msgspec.convert(order, Order))
        assert answer is None
    return {"done": True}


def repeating():
    got = yield "begun"
    while got is not None:
        got = yield got


@pytest.mark.parametrize("codec", [*NAMES, REVERSED], ids=[*NAMES, "one's own"])
def test_each_codec_carries_streams_both_ways(rpc_worker, codec):
    register(Order)
    client = rpc_worker({"taxing": taxing, "repeating": repeating}, settings=EVERYTHING, concurrency=2)
    with RpcClient(backend=client.backend, codec=codec, compress="gzip:10B") as own:
        got = [*own.stream("taxing", items=[ORDER] * 3, window=2)]
        assert [each if isinstance(each, Order) else msgspec.convert(each, Order) for each in got] == [
            taxed(ORDER)
        ] * 3
        stream = own.stream("repeating")
        assert next(stream) == "begun"
        assert stream.send({"a": [1]}) == {"a": [1]}
        stream.close()


def uploaded(request):
    yield from request.items


@pytest.mark.parametrize(("codec", "got"), [("json", "YWJj"), ("msgpack", b"abc"), ("json+types", b"abc")])
def test_bytes_are_the_same_whichever_way_they_travel(rpc_worker, codec, got):
    """As docs/codecs.md and docs/streams.md have it."""
    client = rpc_worker({"echo": echo, "uploaded": uploaded, "sized": sized}, settings=EVERYTHING)
    with RpcClient(backend=client.backend, codec=codec) as own:
        assert own.call_and_wait("echo", {"a": b"abc"}).data == {"a": got}
        assert [*own.stream("uploaded", items=[b"abc"])] == [got]
        assert [*own.stream("uploaded", items=[b"abc"], returns=bytes)] == [b"abc"]
        assert own.call_and_wait("sized", [b"abc"], returns=bytes).data == b"abcabc"


def sized(body: bytes) -> bytes:
    assert type(body) is bytes
    return body * 2


@pytest.mark.parametrize("codec", NAMES)
def test_each_codec_carries_events(rpc_receiver, codec):
    heard: list[Any] = []

    class Listening:
        @on("order.created")
        def created(self, order: Order) -> None:
            heard.append(order)

    receiver = rpc_receiver(services=[Listening()], settings=EVERYTHING)
    with RpcClient(backend=receiver.backend, codec=codec, compress="gzip:10B") as own:
        own.publish("order.created", ORDER)
        end = time.monotonic() + PATIENCE
        while not heard:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert heard == [ORDER]


def test_pickle_is_refused_at_once_unless_it_is_named(rpc_worker):
    client = rpc_worker(JOBS, settings=Settings())
    ran = []

    class Evil:
        def __reduce__(self):
            return ran.append, (1,)

    own = RpcClient(backend=client.backend, codec="pickle")
    with own, pytest.raises(SerializationError) as refusal:
        own.call_and_wait("echo", [Evil()])
    assert str(refusal.value) == (
        "'application/x-python-pickle' is not accepted here, but application/json, application/msgpack, "
        "application/json+types: see RPC_ACCEPT"
    )
    assert ran == []


def test_a_worker_that_reads_one_codec_alone_says_so_at_once(rpc_worker):
    client = rpc_worker(JOBS, settings=Settings(accept=("json",)))
    with (
        RpcClient(backend=client.backend, codec="msgpack") as own,
        pytest.raises(
            SerializationError, match=r"'application/msgpack' .* but application/json: see RPC_ACCEPT"
        ),
    ):
        own.call_and_wait("echo", {})


class Answering(MemoryBackend):
    """Answers in a codec that nobody asked for."""

    def request(self, to, message):
        replies = super().request(to, message)
        body = pickle.dumps({"jsonrpc": "2.0", "id": message.id, "result": 1})
        replies.receive = lambda timeout: Message(
            body, {"id": message.id, "content-type": PICKLE.content_type}
        )
        return replies


@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types"])
def test_a_client_unpickles_no_reply_unless_it_pickles_itself(codec):
    with (
        RpcClient(backend=Answering("memory://"), codec=codec) as client,
        pytest.raises(SerializationError, match="'application/x-python-pickle' is not accepted here"),
    ):
        client.call_and_wait("echo", {})


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("codec", NAMES)
def test_large_bodies_travel_smaller_both_ways(rpc_worker, codec, encoding, monkeypatch):
    client = rpc_worker({"echo": echo, "grow": lambda: "a" * 100_000}, settings=EVERYTHING)
    seen = []
    feed = rpc.core.conversation.Conversation.feed
    monkeypatch.setattr(
        rpc.core.conversation.Conversation,
        "feed",
        lambda self, reply: seen.extend([self.request, reply]) or feed(self, reply),
    )
    with RpcClient(backend=client.backend, codec=codec, compress=encoding) as own:
        assert own.call_and_wait("echo", ["a" * 100_000]).data == ["a" * 100_000]
        assert own.call_and_wait("grow").data == "a" * 100_000
    assert [message.headers.get("content-encoding") for message in seen] == [
        encoding,
        encoding,
        None,
        encoding,
    ]
    assert all(len(message.body) < 2000 for message in seen)
    client.call_and_wait("echo", ["a" * 100_000])  # asked for nothing of the kind
    assert "content-encoding" not in seen[-1].headers


@pytest.mark.parametrize(("of_worker", "of_client", "name"), [(50_000, None, "echo"), (None, 50_000, "grow")])
def test_what_is_too_large_when_it_is_decompressed_is_refused(rpc_worker, of_worker, of_client, name):
    settings = Settings(max_message_bytes=of_worker) if of_worker else Settings()
    client = rpc_worker({"echo": echo, "grow": lambda: "a" * 100_000}, settings=settings)
    refused = pytest.raises(SerializationError, match="more than 50000 bytes when it is decompressed")
    with RpcClient(backend=client.backend, compress="gzip", max_message_bytes=of_client) as own, refused:
        own.call_and_wait(name, ["a" * 100_000] if name == "echo" else None)


class Shop:
    name = "shop"

    @expose
    def total(self) -> dict[str, int]:
        return {"total": 3}

    @expose
    def sizes(self) -> list[str]:
        return ["small"]


def test_returns_converts_and_validates_what_comes_back(rpc_receiver):
    receiver = rpc_receiver(jobs=JOBS, services=[Shop()])
    with RpcClient(backend=receiver.backend) as client:
        assert client.call_and_wait("total", returns=Model).data == Model(total=3)
        assert client.submit("total", returns=dict[str, int]).result(PATIENCE).data == {"total": 3}
        assert [each.data for each in client.map("total", [{}, {}], returns=Model)] == [Model(total=3)] * 2
        assert client.services.shop.total.options(returns=Model)() == Model(total=3)
        assert client.services.shop.sizes.options(returns=list[Size]).submit().result(PATIENCE) == [
            Size.SMALL
        ]
        client.services.shop.sizes.options(returns=list[Size]).call()
        with pytest.raises(
            SerializationError, match=r"result of 'total': Expected `array`, got `object`: .* `returns`"
        ):
            client.call_and_wait("total", returns=list[int])
        with pytest.raises(SerializationError, match=r"Expected `int`, got `str` - at `\$\[0\]`"):
            client.submit("shop.sizes", returns=list[int]).result(PATIENCE)
        with pytest.raises(
            ValueError, match=r"returns=threading\.\w+|returns=.*: nothing that is decoded becomes"
        ):
            client.call_and_wait("total", returns=logging.Logger)


def test_returns_is_the_same_in_event_loops(rpc_receiver):
    receiver = rpc_receiver(jobs=JOBS, services=[Shop()])

    async def asked():
        async with AsyncRpcClient(backend=receiver.backend) as client:
            assert (await client.call_and_wait("total", returns=Model)).data == Model(total=3)
            assert (await client.submit("total", returns=Model)).data == Model(total=3)
            assert [each.data async for each in client.map("total", [{}], returns=Model)] == [Model(total=3)]
            assert await client.services.shop.total.options(returns=Model)() == Model(total=3)
            with pytest.raises(SerializationError, match="`returns`"):
                await client.call_and_wait("total", returns=list[int])

    asyncio.run(asked())


def test_a_handler_says_what_its_own_calls_return(rpc_receiver):
    def through(request):
        request.respond(request.call_and_wait("total", returns=Model).data.total)

    receiver = rpc_receiver(jobs={**JOBS, "through": through}, concurrency=2)
    with RpcClient(backend=receiver.backend) as client:
        assert client.call_and_wait("through").data == 3


def test_a_codec_is_found_by_its_entry_point_or_its_path(monkeypatch):
    class EntryPoint:
        name = "own"

        @staticmethod
        def load():
            return REVERSED

    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [EntryPoint] if group == "rpc.codecs" else []
    )
    assert codec_named("own") is REVERSED
    assert (
        codec_named(f"{__name__}.REVERSED") is REVERSED
        or codec_named(f"{__name__}.REVERSED").name == "reversed"
    )
    with pytest.raises(SettingsError, match="there are json, msgpack, json\\+types, pickle, own"):
        codec_named("nosuch")
    for wrong, why in (
        ("no.such.CODEC", "ModuleNotFoundError"), ("tests.in_memory.nosuch", "AttributeError"),
        (f"{__name__}.Size", "not a rpc.codecs.Codec"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=why):
            codec_named(wrong)


@pytest.mark.parametrize("settings", [Settings(accept=("json", "nosuch")), Settings(compress="br")])
def test_wrong_settings_are_told_before_anything_is_served(settings):
    with pytest.raises(SettingsError, match=r"nosuch|no compression"):
        RpcReceiver(jobs=JOBS, backend="memory://", settings=settings)


@pytest.mark.parametrize("codec", NAMES)
def test_patched_calls_go_through_the_codec_of_the_client(codec):
    with patch({"taxed": taxed}) as patched, RpcClient(backend="memory://", codec=codec) as client:
        assert client.call_and_wait("taxed", [ORDER], returns=Order).data == taxed(ORDER)
    assert [call.name for call in patched.calls] == ["taxed"]


@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types", "pickle"])
def test_nothing_is_sent_of_what_cannot_be_encoded(codec):
    backend = MemoryBackend("memory://")
    with RpcClient(backend=backend, codec=codec) as client:
        for send in client.call, client.call_and_wait, client.submit, client.publish:
            with pytest.raises(SerializationError, match=r"^data\.a\[1\]: .*(lock|RLock)"):
                send("echo", {"a": [1, threading.Lock()]})
    assert list(backend.entries("default")) == []
