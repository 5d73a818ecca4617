"""`rpc.testing.patch`: answers to calls, without a broker."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

import rpc
from rpc import (
    AsyncRpcClient,
    BackendUnavailable,
    InvalidParams,
    NoReceivers,
    QueueFull,
    RemoteError,
    Request,
    RpcClient,
    RpcTimeout,
    SerializationError,
    SettingsError,
    Unsupported,
    WorkerLost,
    job,
)
from rpc.logs import RpcLogHandler
from rpc.testing import patch

NOWHERE = "redis://127.0.0.1:1/0"
LONG = 10.0


class Custom(Exception):
    pass


def handler(request: Request) -> None:
    request.respond({"seen": request.data})


async def coroutine(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


@job(retries=3, backoff=60)
def flaky() -> None:
    raise ConnectionError("not now")


ANSWERS: dict[str, Any] = {
    "example.foo": 5,
    "example.none": None,
    "example.data": {"a": [1, 2]},
    "example.calc": lambda a, b=1: a + b,
    "example.typed": lambda request: request.data,
    "example.handler": handler,
    "example.coroutine": coroutine,
    "example.flaky": flaky,
    "example.bad": ValueError("x"),
    "example.empty": KeyError,
    "example.custom": Custom("y"),
    "example.late": RpcTimeout("too late"),
    "example.lost": WorkerLost("gone"),
    "example.remote": RemoteError("Odd", "text", {"a": 1}),
    "example.odd": len,
    "example.set": {print},
    "plain": "plain",
}


@pytest.fixture
def client() -> Iterator[RpcClient]:
    with RpcClient(backend=NOWHERE) as client:
        yield client


Ask = Callable[..., Any]


async def awaited(way: str, name: str, *args: Any, **kwargs: Any) -> Any:
    async with AsyncRpcClient(backend=NOWHERE) as client:
        if way == "proxy":
            return await client.services[name](*args, **kwargs)
        if way == "proxy's submit":
            return await client.services[name].submit(*args, **kwargs)
        data = list(args) or kwargs
        if way == "map":
            [answer] = [response.data async for response in client.map(name, [data])]
            return answer
        return (await getattr(client, way)(name, data)).data


def blocking(way: str, name: str, *args: Any, **kwargs: Any) -> Any:
    with RpcClient(backend=NOWHERE) as client:
        if way == "proxy":
            return client.services[name](*args, **kwargs)
        if way == "proxy's submit":
            return client.services[name].submit(*args, **kwargs).result(LONG)
        data = list(args) or kwargs
        if way == "map":
            [answer] = [response.data for response in client.map(name, [data])]
            return answer
        if way == "submit":
            return client.submit(name, data).result(LONG).data
        return client.call_and_wait(name, data).data


@pytest.fixture(params=["call_and_wait", "submit", "map", "proxy", "proxy's submit"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["blocking", "awaited"])
def ask(way: str, request: pytest.FixtureRequest) -> Ask:
    """Call something with a client that has no broker, in each of the ways that there are."""
    if request.param == "blocking":
        return lambda *args, **kwargs: blocking(way, *args, **kwargs)
    return lambda *args, **kwargs: asyncio.run(awaited(way, *args, **kwargs))


# Answers.


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "answer"),
    [
        ("example.foo", (), {}, 5),
        ("example.foo", (1, [2]), {}, 5),
        ("example.none", (), {}, None),
        ("example.data", (), {"a": 1}, {"a": [1, 2]}),
        ("example.calc", (1,), {}, 2),
        ("example.calc", (), {"a": 1, "b": 5}, 6),
        ("example.typed", (), {"a": 1}, {"a": 1}),
        ("example.handler", (), {"a": 1}, {"seen": {"a": 1}}),
        ("example.coroutine", (21,), {}, 42),
        ("plain", (), {}, "plain"),
    ],
)
def test_what_was_declared_is_answered(ask: Ask, name: str, args: Any, kwargs: Any, answer: Any) -> None:
    with patch(ANSWERS) as patched:
        assert ask(name, *args, **kwargs) == answer
    assert patched.calls == [(name, args, kwargs)]
    assert (patched.calls[0].name, patched.calls[0].args, patched.calls[0].kwargs) == (name, args, kwargs)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("example.bad", RemoteError, r"^ValueError: x$"),
        ("example.empty", RemoteError, r"^KeyError$"),
        ("example.custom", RemoteError, r"^Custom: y$"),
        ("example.flaky", RemoteError, r"^ConnectionError: not now$"),
        ("example.remote", RemoteError, r"^Odd: text$"),
        ("example.late", RpcTimeout, r"^too late$"),
        ("example.lost", WorkerLost, r"^gone$"),
        ("example.calc", InvalidParams, r"example.calc: missing a required argument: 'a'"),
        ("example.set", SerializationError, r"the result cannot be encoded"),
    ],
)
def test_what_was_declared_to_fail_does(ask: Ask, name: str, error: type[Exception], text: str) -> None:
    with patch(ANSWERS), pytest.raises(error, match=text) as caught:
        ask(name)
    assert type(caught.value) is error


@pytest.mark.parametrize("error", [NoReceivers("n"), QueueFull("q"), BackendUnavailable("b")])
def test_errors_of_ours_are_themselves_also_from_callables(error: Exception) -> None:
    def fail() -> None:
        raise error

    for answer in error, type(error), fail:
        with patch({"a": answer}), RpcClient(backend=NOWHERE) as client, pytest.raises(type(error)) as caught:
            client.call_and_wait("a")
        assert str(caught.value) == ("" if answer is type(error) else str(error))


def test_details_of_a_remote_error_arrive(client: RpcClient) -> None:
    with patch(ANSWERS), pytest.raises(RemoteError) as caught:
        client.services.example.remote()
    assert (caught.value.type, caught.value.message, caught.value.data) == ("Odd", "text", {"a": 1})


def test_mocks_are_callables_too(client: RpcClient) -> None:
    mocked = MagicMock(return_value=3)
    with patch({"a.b": mocked}):
        assert client.services.a.b(1, key=2) == 3
    mocked.assert_called_once_with(1, key=2)


def test_values_go_through_the_codec(ask: Ask) -> None:
    given = {"a": (1, 2)}
    with patch({"value": given, "echo": lambda *args: args}) as patched:
        assert ask("value") == {"a": [1, 2]}
        assert ask("echo", (1, 2), {3: "x"}) == [[1, 2], {"3": "x"}]
        with pytest.raises(SerializationError):
            ask("echo", print)
    assert [call.name for call in patched.calls] == ["value", "echo"]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_each_codec_is_understood(codec: str) -> None:
    with patch(ANSWERS), RpcClient(backend=NOWHERE, codec=codec) as client:
        assert client.services.example.calc(1, b=2) == 3


def test_calls_that_nobody_waits_for_are_noted_and_done(client: RpcClient) -> None:
    done: list[Any] = []

    async def main() -> None:
        async with AsyncRpcClient(backend=NOWHERE) as client:
            assert await client.call("work", [3])
            assert await client.services.work.call(4)

    with patch({"work": done.append, "bad": ValueError}) as patched:
        assert client.call("work", [1])
        assert client.services.work.call(2)
        client.call("bad")
        asyncio.run(main())
    assert done == [1, 2, 3, 4]
    assert [call.args for call in patched.calls if call.name == "work"] == [(1,), (2,), (3,), (4,)]


def test_positional_and_named_arguments_are_noted(client: RpcClient) -> None:
    with patch({"a.b": None}) as patched:
        client.services.a.b(1, [2], key={"c": 3})
    assert patched.calls == [("a.b", (1, [2]), {"key": {"c": 3}})]


def test_events_are_noted_and_nobody_is_there(client: RpcClient) -> None:
    async def main() -> list[Any]:
        async with AsyncRpcClient(backend=NOWHERE) as client:
            await client.publish("order.paid")
            return await client.describe()

    with patch({}) as patched:
        client.publish("boom", {"place": "x"})
        assert client.describe() == []
        assert dir(client.services) == []
        assert asyncio.run(main()) == []
        with pytest.raises(Unsupported, match=r"^not patched: server\(\)"):
            client.subscribe("boom")
    assert patched.published == [("boom", {"place": "x"}), ("order.paid", {})]
    assert patched.calls == []


def test_what_else_was_asked_for_is_noted(client: RpcClient) -> None:
    with patch({"a.b": None}) as patched:
        headers = {"x-user": "ann"}
        client.call(
            "a.b", [1], queue="slow", delay=60, keep=5, idempotency_key=7, order_key="k", headers=headers
        )
        client.call_and_wait("a.b")
    full, bare = patched.calls
    assert full == ("a.b", (1,), {})
    assert (full.queue, full.headers, full.delay, full.keep) == ("slow", headers, 60.0, 5.0)
    assert (full.idempotency_key, full.order_key) == ("7", "k")
    assert (bare.queue, bare.headers, bare.delay, bare.keep) == ("default", {}, None, None)
    assert (bare.idempotency_key, bare.order_key) == (None, None)


# Streams.


def counting(request: Request) -> Any:
    for item in request.items:
        yield item * 2


def replying() -> Any:
    got = yield 1
    while True:
        got = yield got


def failing() -> Any:
    yield 1
    raise ValueError("x")


async def in_a_loop(number: int) -> Any:
    for each in range(number):
        yield each


STREAMS = {
    "list": [1, [2], "c"],
    "generator": lambda number: (each for each in range(number)),
    "async": in_a_loop,
    "replying": replying,
    "counting": counting,
    "failing": failing,
    "bad": RpcTimeout("too late"),
    "plain": 5,
}


async def streamed(name: str, *args: Any, **options: Any) -> list[Any]:
    async with AsyncRpcClient(backend=NOWHERE) as client, client.stream(name, [*args], **options) as items:
        return [each async for each in items]


def taken(name: str, *args: Any, **options: Any) -> list[Any]:
    with RpcClient(backend=NOWHERE) as client, client.stream(name, [*args], **options) as items:
        return [*items]


@pytest.fixture(params=["blocking", "awaited"])
def stream(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    if request.param == "blocking":
        return taken
    return lambda *args, **options: asyncio.run(streamed(*args, **options))


def test_streams_are_answered(stream: Callable[..., list[Any]]) -> None:
    with patch(STREAMS) as patched:
        assert stream("list") == [1, [2], "c"]
        assert stream("generator", 300, window=10) == [*range(300)]
        assert stream("async", 3) == [0, 1, 2]
        assert stream("counting", items=[1, 2, 3]) == [2, 4, 6]
        assert stream("plain") == []
        with pytest.raises(RemoteError, match="ValueError: x"):
            stream("failing")
        with pytest.raises(RpcTimeout, match="too late"):
            stream("bad")
    assert patched.calls[:2] == [("list", (), {}), ("generator", (300,), {})]


def test_a_stream_talks_with_what_answers_it(client: RpcClient) -> None:
    with patch(STREAMS), client.stream("replying") as items:
        assert [next(items), items.send("a"), items.send("b")] == [1, "a", "b"]
        with pytest.raises(KeyError):
            items.throw(KeyError("c"))


def test_a_stream_that_was_not_declared_fails(stream: Callable[..., list[Any]]) -> None:
    with pytest.raises(AssertionError, match="nosuch"), patch({}):
        stream("nosuch")


def test_a_list_is_still_what_a_call_returns(client: RpcClient) -> None:
    with patch(STREAMS):
        assert client.call_and_wait("list").data == [1, [2], "c"]


def test_progress_is_told(client: RpcClient) -> None:
    told: list[Any] = []

    def slow(request: Request) -> None:
        request.progress(0.5, "half")
        request.respond(1)

    with patch({"slow": slow}):
        assert client.call_and_wait("slow", on_progress=told.append).data == 1
    assert [(each.fraction, each.text) for each in told] == [(0.5, "half")]


# What would ask a broker.


@pytest.mark.parametrize("made", ["before", "inside"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.job("x"),
        lambda client: client.jobs(),
        lambda client: client.queues(),
        lambda client: client.cancel("x"),
        lambda client: client.retry("x"),
        lambda client: client.list_services(),
        lambda client: client.logs(),
        lambda client: client.watch_services(print),
        lambda client: client.backend.dead_letters("default"),
        lambda client: client.at("http://127.0.0.1:1").hello(),
    ],
)
def test_what_is_not_answered_asks_nobody(ask: Callable[[RpcClient], Any], made: str) -> None:
    before = RpcClient(backend=NOWHERE)
    with patch({}), before, RpcClient(backend=NOWHERE) as inside:
        client = before if made == "before" else inside
        with pytest.raises(Unsupported, match=r"^not patched: \w+\(\)"):
            ask(client)


def test_coroutines_ask_nobody_either() -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=NOWHERE) as client:
            for ask in (lambda: client.job("x"), client.jobs, client.at("http://127.0.0.1:1").hello):
                with pytest.raises(Unsupported, match=r"^not patched: "):
                    await ask()

    with patch({}):
        asyncio.run(main())


def test_after_the_patch_a_client_that_was_made_inside_asks_again() -> None:
    with patch({}):
        client = RpcClient(backend="memory://")
    with client:
        assert client.job("x").state == "unknown"
        assert client.list_services() == []


def test_logs_are_sent_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with patch({}) as patched:
        handler = RpcLogHandler(backend=NOWHERE)
        handler.emit(logging.makeLogRecord({"msg": "hello"}))
        handler.close()
    assert patched.published == []
    assert not caplog.records


# What was not declared.


def test_what_was_not_declared_fails_where_it_is_called(ask: Ask) -> None:
    def test() -> None:
        with patch({"example.foo": 5}):
            with pytest.raises(AssertionError, match=r"does not declare: example\.bar$"):
                ask("example.bar", 1)
            with pytest.raises(AssertionError, match=r"does not declare: example\.foo\.more$"):
                ask("example.foo.more")

    with pytest.raises(AssertionError, match=r"does not declare: example\.bar, example\.foo\.more$"):
        test()


@pytest.mark.parametrize("call", ["call", "submit", "call_and_wait"])
def test_and_at_the_end_if_it_was_swallowed(client: RpcClient, call: str) -> None:
    def swallowing() -> None:
        try:
            asked = getattr(client, call)("nosuch")
            if call == "submit":
                asked.exception(LONG)  # else close() may cancel it before it is sent
        except AssertionError:
            logging.getLogger(__name__).info("is what some programs do")
        client.close()

    with pytest.raises(AssertionError, match="nosuch"), patch({}):
        swallowing()


def test_another_error_is_not_hidden_by_it(client: RpcClient) -> None:
    def failing() -> None:
        with pytest.raises(AssertionError):
            client.call("nosuch")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), patch({}):
        failing()


# Where it is in force.


def test_clients_are_patched_however_old_they_are_and_only_inside(client: RpcClient) -> None:
    async def main() -> None:
        before = AsyncRpcClient(backend="memory://")
        with patch(ANSWERS):
            inside = AsyncRpcClient(backend="memory://")
            for each in before, inside:
                assert await each.services.example.foo() == 5
        for each in before, inside:
            with pytest.raises(RpcTimeout):
                await each.call_and_wait("example.foo", timeout=0.05)
            await each.close()

    asyncio.run(main())
    with RpcClient(backend="memory://") as before:
        with patch(ANSWERS):
            inside = RpcClient(backend="memory://")
            assert [each.services.example.foo() for each in (before, inside, client)] == [5] * 3
            assert [each.submit("plain").result(LONG).data for each in (before, inside)] == ["plain"] * 2
        for each in before, inside:
            with pytest.raises(RpcTimeout):
                each.call_and_wait("example.foo", timeout=0.05)
            with pytest.raises(RpcTimeout):
                each.submit("example.foo", timeout=0.05).result(LONG)
        inside.close()
    with pytest.raises(BackendUnavailable):
        client.call_and_wait("example.foo", timeout=0.5)


def test_what_the_backend_cannot_do_it_cannot_do_here() -> None:
    rabbit = RpcClient(backend="amqp://127.0.0.1:1")
    with patch(ANSWERS), pytest.raises(Unsupported, match="idempotency"):
        rabbit.call("plain", idempotency_key="k")
    with patch(ANSWERS), RpcClient(backend="memory://") as client:
        client.call("plain", idempotency_key="k")


def test_settings_are_read_as_ever() -> None:
    settings = ModuleType("settings")
    settings.RPC_BACKEND, settings.RPC_CODEC = NOWHERE, "msgpack"  # type: ignore[attr-defined]
    with patch(ANSWERS), RpcClient(settings=settings) as client:
        assert client.services.example.foo() == 5


def test_an_answer_may_make_calls_itself(client: RpcClient) -> None:
    answers = {"inner": lambda number: number + 1, "outer": lambda: client.services.inner(1)}
    with patch(answers) as patched:
        assert client.services.outer() == 2
    assert [call.name for call in patched.calls] == ["outer", "inner"]


def test_one_within_another_adds_to_it(client: RpcClient) -> None:
    example = client.services.example
    with patch({"example.foo": 1, "example.bar": 2}) as outer:
        with patch({"example.foo": 10}) as inner:
            assert [example.foo(), example.bar()] == [10, 2]
        assert [example.foo(), example.bar()] == [1, 2]
    assert [call.name for call in outer.calls] == ["example.bar", "example.foo", "example.bar"]
    assert [call.name for call in inner.calls] == ["example.foo"]
    with pytest.raises(AssertionError, match="nosuch"), patch({}), patch({}):
        client.call("nosuch")


@patch({"example.foo": 7})
def test_it_is_a_decorator(client: RpcClient) -> None:
    assert client.services.example.foo() == 7


def test_it_decorates_coroutine_functions_and_methods(client: RpcClient) -> None:
    patched = patch({"example.foo": 7})

    @patched
    async def main(number: int) -> Any:
        await asyncio.sleep(0)
        async with AsyncRpcClient(backend=NOWHERE) as client:
            return await client.services.example.foo(number)

    class Tests:
        @patched
        def test(self, number: int) -> Any:
            return client.services.example.foo(number)

    assert (asyncio.run(main(1)), main.__name__) == (7, "main")
    assert [call.args for call in patched.calls] == [(1,)]
    assert Tests().test(2) == 7
    assert [call.args for call in patched.calls] == [(2,)]
    with pytest.raises(BackendUnavailable):
        client.call_and_wait("example.foo", timeout=0.5)


def test_what_would_be_over_before_it_runs_is_not_decorated() -> None:
    def generator() -> Any:
        yield

    async def asynchronous() -> Any:
        yield

    for odd in generator, asynchronous, type("Tests", (), {}):
        with pytest.raises(TypeError, match="use `with patch"):
            patch({})(odd)


def test_classes_can_be_looked_at_meanwhile() -> None:
    with patch({}):
        assert {name for name, _ in inspect.getmembers(RpcClient)} >= {"call", "backend"}
    assert not hasattr(RpcClient, "backend")


def test_one_that_is_in_force_cannot_be_again() -> None:
    patched = patch({})
    with patched, patch({}), pytest.raises(RuntimeError, match="in force already"), patched:
        pass


@pytest.mark.parametrize("name", ["", "1st", "a b", "../a"])
def test_a_name_that_no_call_can_have_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="is no job name"):
        patch({name: 1})


def test_it_is_where_it_is_said_to_be() -> None:
    assert rpc.testing.patch is patch
    with pytest.raises(AttributeError, match="nosuch"):
        _ = rpc.testing.nosuch
