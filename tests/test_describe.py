"""What workers say of themselves to whoever asks all of them."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timezone
from typing import Any, NoReturn

import pytest
from async_calls import run
from in_memory import LONG, Site, until

from rpc import (
    AsyncRpcClient,
    Identity,
    MethodNotFound,
    NoReceivers,
    RemoteError,
    Request,
    RpcClient,
    RpcReceiver,
    ServiceNotFound,
    Unsupported,
    cron,
    every,
    expose,
    on,
)
from rpc.backends.memory import MemoryBackend
from rpc.core.codecs import JSON
from rpc.core.protocol import encode_error, encode_result
from rpc.describe import Discovery, Gathering, WorkerInfo, names
from rpc.settings import Settings
from rpc.transport import LOST, Address, Message


class Example:
    name = "example"

    @expose
    def foo(self, number: int, *rest: str, key: str | None = None) -> list[Any]:
        return [number, rest, key]

    @expose
    def quoted(self, text: str = "it's", other: Any = ("a", b"b")) -> str:
        return text

    @on("order.*", group="accountant")
    def hear(self, data: Any) -> None:
        raise ValueError

    @on("boom")
    def hear_too(self, data: Any) -> None:
        """Nothing to do."""

    @every(seconds=3600)
    def tick(self) -> None:
        """Nothing to do."""

    def hidden(self) -> None:
        """Nothing to do."""


def add(request: Request) -> int:
    return sum(request.data)


@cron("0 3 * * *", zone=timezone.utc, singleton=True)
def nightly() -> None:
    """Nothing to do."""


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


def described(client: RpcClient, count: int = 1) -> list[WorkerInfo]:
    """What so many workers say of themselves, as soon as all of them do."""
    found: list[WorkerInfo] = []

    def complete() -> bool:
        found[:] = client.describe(wait=0.2)
        return len(found) == count

    until(complete)
    return found


def test_a_worker_says_what_it_offers(site: Site) -> None:
    site.serve({"add": add}, services=[Example, nightly], queues=["high", "low"], concurrency=3)
    (worker,) = described(site.client())
    assert (worker.host, worker.pid) == (socket.gethostname(), os.getpid())
    assert (worker.queues, worker.concurrency) == (("high", "low"), 3)
    assert worker.jobs == {
        "add": "(request: Request) -> int",
        "example.foo": "(number: int, *rest: str, key: str | None = None) -> list[Any]",
        "example.quoted": """(text: str = "it's", other: Any = ('a', b'b')) -> str""",
    }
    assert worker.services == {
        "example": {name: worker.jobs[f"example.{name}"] for name in ("foo", "quoted")}
    }
    assert [(each.event, each.name, each.group, each.durable) for each in worker.listeners] == [
        ("order.*", "example.hear", "accountant", False),
        ("boom", "example.hear_too", None, False),
    ]
    assert worker.timers == {
        "example.tick": "every 3600 s",
        "test_describe.nightly": "cron 0 3 * * * UTC, by one worker at a time",
    }


def test_names_of_namespaces_are_whole(site: Site) -> None:
    site.serve({"a.b.c": add, "d": add})
    (worker,) = described(site.client())
    assert list(worker.services) == ["a.b"]
    assert list(names([worker])) == ["a.b.c", "d"]


def test_failures_of_listeners_are_counted(site: Site) -> None:
    site.serve({}, services=[Example])
    client = site.client()
    described(client)
    for number in range(3):
        client.publish("order.created", {"number": number})
    client.publish("boom")
    until(lambda: [each.failures for each in described(client)[0].listeners] == [3, 0])


def test_every_worker_answers_for_itself(site: Site) -> None:
    for number in range(1, 4):
        site.serve({f"job{number}": add}, concurrency=number)
    workers = described(site.client(), 3)
    assert len({worker.id for worker in workers}) == 3
    assert sorted(worker.concurrency for worker in workers) == [1, 2, 3]
    assert set(names(workers)) == {"job1", "job2", "job3"}
    assert workers == described(site.client(), 3)


def test_a_worker_whose_slots_are_all_taken_answers_too(site: Site) -> None:
    done = threading.Event()
    site.serve({"wait": lambda: done.wait(LONG)})
    client = site.client()
    waiting = client.submit("wait")
    assert [list(worker.jobs) for worker in described(client)] == [["wait"]]
    done.set()
    assert waiting.result(LONG).data is True


def test_nobody_is_nobody(site: Site) -> None:
    assert site.client().describe(wait=0.05) == []
    with ExitStack() as stack:
        again = Site(stack)
        again.url = site.url
        again.serve({"add": add})
        described(site.client())
    assert site.client().describe(wait=0.05) == []


class Knowing(MemoryBackend):
    """Says at once that nobody serves, as RabbitMQ does of what was never declared."""

    def request(self, to: Address, message: Message) -> NoReturn:
        raise NoReceivers(f"nobody has ever served {to}")


def test_nobody_is_nobody_where_the_broker_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def request(self: object, to: Address, message: Message) -> NoReturn:
        raise NoReceivers(f"nobody has ever served {to}")

    async def main() -> None:
        async with AsyncRpcClient(backend=Knowing()) as client:
            monkeypatch.setattr(type(client._async), "request", request)
            assert await client.describe() == []

    assert RpcClient(backend=Knowing()).describe() == []
    run(main)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_whatever_codec_the_client_has(site: Site, codec: str) -> None:
    site.serve({"add": add})
    assert described(site.client(codec=codec))[0].jobs == {"add": "(request: Request) -> int"}


def test_whatever_codec_a_worker_accepts(site: Site) -> None:
    for accept in "json", "msgpack":
        site.serve({accept: add}, settings=Settings(accept=(accept,)))
    for codec in "json", "msgpack":
        assert set(names(described(site.client(codec=codec), 2))) == {"json", "msgpack"}


def test_an_async_client_asks_as_well(site: Site) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=site.url) as client:
            assert await client.describe(wait=0.2) == described(site.client())

    site.serve({"add": add}, services=[Example])
    described(site.client())
    run(main)


def test_a_default_that_cannot_be_shown_hides_no_worker(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("odd")

    default = Odd()

    def odd(number: Any = default) -> None:
        """Nothing to do."""

    site.serve({"odd": odd, "add": lambda a, /, b=1: a + b})
    assert described(site.client())[0].jobs == {"odd": "(...)", "add": "(a, /, b=1)"}
    assert "cannot be shown" in caplog.text


def test_a_receiver_says_the_same_without_being_asked() -> None:
    receiver = RpcReceiver(jobs={"add": add}, services=[Example()], backend="memory://")
    assert receiver.describe().id == receiver.id
    assert list(receiver.describe().jobs) == ["add", "example.foo", "example.quoted"]


def test_what_is_no_answer_of_a_worker_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    gathering = Gathering()
    headers = {"content-type": JSON.content_type}
    gathering.add(Message(b"", {LOST: "its worker died"}))
    assert not caplog.records
    for body in encode_result("1", {"id": 1}, JSON), encode_error("1", MethodNotFound("no"), JSON), b"{":
        gathering.add(Message(body, headers))
    assert len(caplog.records) == 3
    assert gathering.workers == []


def test_a_backend_without_topics_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBackend, "features", frozenset())
    receiver = RpcReceiver(jobs={"add": add}, backend="memory://")
    assert receiver.describe().jobs == {"add": "(request: Request) -> int"}
    for ask in RpcClient(backend="memory://").describe, lambda: dir(RpcClient(backend="memory://").services):
        with pytest.raises(Unsupported, match="no feature 'topics'"):
            ask()


def test_the_name_of_the_question_is_no_job(site: Site) -> None:
    site.serve({"add": add})
    with pytest.raises(Exception, match=r"no service is named 'rpc'") as caught:
        site.client().call_and_wait("rpc.describe")
    assert not isinstance(caught.value, RemoteError)


def test_callables_of_all_kinds_are_shown(site: Site) -> None:
    class Callable_:
        def __call__(self, number: int) -> None:
            """Nothing to do."""

    kinds: dict[str, Callable[..., Any]] = {"object": Callable_(), "builtin": len}
    site.serve(kinds)
    assert described(site.client())[0].jobs == {"object": "(number: int) -> None", "builtin": "(obj, /)"}


class Stock:
    name = "stock"

    @expose
    def count(self, item: str) -> int:
        return len(item)


def test_a_document_of_one_service_has_the_title_and_version_of_who_offers_it(site: Site) -> None:
    site.serve(
        {"only": add}, services=[Stock], identity=Identity(domain="shop", type="stock", version="10.0.0")
    )
    site.serve({}, services=[Stock], identity=Identity(domain="shop", type="stock", version="9.0.0"))
    site.serve({}, services=[Example], identity=Identity(domain="shop", type="example", version="1.2.0"))
    client = site.client()
    described(client, 3)
    about = {name: client.discover(name, wait=0.2)["info"] for name in ("stock", "example", "only")}
    assert about == {
        "stock": {"title": "stock", "version": "9.0.0"},
        "example": {"title": "example", "version": "1.2.0"},
        "only": {"title": "stock", "version": "10.0.0"},
    }
    whole = client.discover(wait=0.2)
    assert whole["info"] == {"title": "shop", "version": "0.0.0"}
    assert whole["x-rpc-events"]["info"] == {"title": "example", "version": "1.2.0"}
    with pytest.raises(ServiceNotFound, match="'nosuch'"):
        client.discover("nosuch", wait=0.2)


def discovered(workers: list[WorkerInfo], *documents: dict[str, Any]) -> Discovery:
    """What these workers, each with a schema that is its id, said of themselves."""
    discovery = Discovery(workers)
    for worker, document in zip(workers, documents, strict=True):
        reply = Message(encode_result("1", document, JSON), {"content-type": JSON.content_type})
        discovery.add(worker.id, reply)
    return discovery


def worker(id: str, service: str = "", version: str = "") -> WorkerInfo:
    return WorkerInfo(id, "host", int(id), (), 1, {}, service=service, version=version, schema=id)


def says(result: str, *names: str, title: str = "rpc") -> dict[str, Any]:
    methods = [{"name": name, "params": [], "result": {"name": result, "schema": {}}} for name in names]
    info = {"title": title, "version": "1"}
    return {"openrpc": "1.4.1", "info": info, "methods": methods, "components": {}}


def test_it_does_not_matter_who_answers_first() -> None:
    workers = [worker("1", "a.b.c", "1.10.0"), worker("2", "a.b.c", "1.9.0"), worker("3"), worker("4")]
    documents = [says(each.id, "foo") for each in workers]
    one = discovered(workers, *documents)
    other = discovered(workers[::-1], *documents[::-1])
    for service in None, "foo":
        assert json.dumps(one.document(service)) == json.dumps(other.document(service))
    assert one.document("foo")["methods"][0]["result"]["name"] == "3"
    assert discovered(workers[:2], *documents[:2]).document("foo")["methods"][0]["result"]["name"] == "2"


@pytest.mark.parametrize(
    ("services", "title"),
    [(["a.b.c", "a.d.c"], "a"), (["a.b.c", "b.d.c"], "rpc"), (["default.b.c", ""], "rpc")],
)
def test_a_document_of_several_types_has_a_neutral_title(services: list[str], title: str) -> None:
    workers = [worker(str(number), name, "1.0.0") for number, name in enumerate(services)]
    document = discovered(workers, says("r", "foo", title="b"), says("r", "foo", title="d")).document(None)
    assert document["info"] == {"title": title, "version": "0.0.0"}


def test_who_does_not_agree_is_named_and_may_have_a_health_check_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers = [worker("1", "a.b.c", "1.0.0"), worker("2", "a.d.c", "2.0.0"), worker("3", "a.d.c", "2.0.1")]
    discovered(workers, *(says(each.id, "health_check") for each in workers)).document(None)
    assert not caplog.records
    told = [says("r", "foo"), says("r", "foo", "other"), says("odd", "foo", "other")]
    odd = discovered(workers, *told)
    odd.document("foo")
    (text,) = caplog.messages
    assert text.startswith("workers do not agree on foo (a.b.c 1.0.0 at host:1, a.d.c 2.0.1 at host:3): ")
    odd.document("other")
    assert "other (a.d.c 2.0.0 at host:2, a.d.c 2.0.1 at host:3)" in caplog.messages[1]
    discovered([worker("1"), worker("2")], says("a", "foo"), says("b", "foo")).document(None)
    assert "foo (host:1, host:2)" in caplog.messages[2]
