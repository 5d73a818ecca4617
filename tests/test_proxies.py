"""Services as they look to a caller, with memory between it and its workers."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from functools import wraps
from typing import Any

import pytest
from async_calls import run
from async_calls import until as until_async
from in_memory import LONG, Site, until

from rpc import (
    AsyncRpcClient,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    RemoteError,
    Request,
    RpcClient,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    expose,
    service,
)
from rpc.backends.memory.hubs import HUBS
from rpc.transport import queue


class Example:
    name = "example"

    def __init__(self) -> None:
        self.noted: list[Any] = []
        self.cancelled: list[str] = []

    @expose
    def foo(self, number: int = 1, key: int = 0) -> int:
        return number + key

    @expose
    def none(self) -> None:
        """Returns nothing."""

    @expose
    def note(self, value: Any) -> None:
        self.noted.append(value)

    @expose
    def fail(self) -> None:
        raise KeyError

    @expose
    def seen(self, request: Request) -> Any:
        return {**request.headers, "id": request.id}

    @expose
    def count(self, request: Request) -> int:
        self.noted.append(request.id)
        return len(self.noted)

    @expose
    def until_cancelled(self, request: Request) -> None:
        self.noted.append(request.id)
        until(lambda: request.cancelled)
        self.cancelled.append(request.id)

    def hidden(self) -> None:
        """Is not for clients."""


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def example(site: Site) -> Example:
    """A service that is served, in a namespace too."""
    found = Example()
    site.serve({"plain": lambda: "plain"}, services=[found, service(Example, name="deep.in.space")])
    return found


@pytest.fixture
def client(site: Site) -> RpcClient:
    return site.client()


def waiting(site: Site, name: str = "default") -> int:
    return len(HUBS[site.url, "rpc"].waiting[queue(name)])


# Calls that block.


@pytest.mark.usefixtures("example")
def test_to_call_a_proxy_is_to_wait_for_the_value(client: RpcClient) -> None:
    example = client.services.example
    assert example.foo() == 1
    assert example.foo(2) == 2
    assert example.foo(2, key=3) == 5
    assert example.foo(key=3) == 4
    assert example.none() is None
    assert client.services["example"].foo(7) == 7
    assert client.services.plain() == "plain"


@pytest.mark.usefixtures("example")
def test_a_namespace_is_as_deep_as_it_likes(client: RpcClient) -> None:
    space = getattr(client.services.deep, "in").space
    assert space.foo(1) == 1
    assert client.services["deep.in.space"].foo(1, 1) == 2
    with pytest.raises(ServiceNotFound, match=r"'deep\.in'"):
        getattr(client.services.deep, "in").foo()


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("way", ["call", "submit"])
@pytest.mark.parametrize(
    ("path", "args", "error", "text"),
    [
        ("example.nosuch", (), MethodNotFound, "service 'example' has no method 'nosuch'"),
        ("example.hidden", (), MethodNotExposed, "service 'example' does not expose 'hidden'"),
        ("nosuch.foo", (), ServiceNotFound, "no service is named 'nosuch' here"),
        ("example.foo", ("x",), InvalidParams, "number: Expected `int`, got `str`"),
        ("example.fail", (), RemoteError, "^KeyError$"),
    ],
)
def test_errors_are_those_of_calls(
    client: RpcClient, way: str, path: str, args: Any, error: type[Exception], text: str
) -> None:
    proxy = client.services[path]
    with pytest.raises(error, match=text) as caught:
        proxy(*args) if way == "call" else proxy.submit(*args).result(LONG)
    assert type(caught.value) is error


def test_what_cannot_be_encoded_fails_at_once_and_nothing_is_sent(site: Site, client: RpcClient) -> None:
    method = client.services.example.foo
    for way in method, method.submit, method.call:
        with pytest.raises(SerializationError):
            way(print)
        with pytest.raises(SerializationError):
            way(1, key={print})
    assert waiting(site) == 0


# Futures, and calls that nobody waits for.


@pytest.mark.usefixtures("example")
def test_a_future_is_of_the_value(client: RpcClient) -> None:
    called = []
    future = client.services.example.foo.submit(2, key=3)
    assert isinstance(future, Future)
    future.add_done_callback(called.append)
    assert future.result(LONG) == 5
    assert future.done()
    until(lambda: called == [future])
    failed = client.services.example.fail.submit()
    error = failed.exception(LONG)
    assert isinstance(error, RemoteError)
    assert error.type == "KeyError"


def test_a_future_may_be_waited_for_in_vain(client: RpcClient) -> None:
    future = client.services.example.foo.options(timeout=0.05).submit()
    with pytest.raises(RpcTimeout, match=r"example\.foo.*within 0\.05 s"):
        future.result(LONG)


def test_to_cancel_a_future_reaches_the_worker(site: Site, client: RpcClient, example: Example) -> None:
    future = client.services.example.until_cancelled.submit()
    until(lambda: example.noted)
    assert future.cancel()
    until(lambda: example.cancelled == example.noted)
    withdrawn = client.services.example.note.options(queue="nobody").submit("withdrawn")
    until(lambda: waiting(site, "nobody") == 1)
    withdrawn.cancel()
    until(lambda: waiting(site, "nobody") == 0)


@pytest.mark.usefixtures("example")
def test_what_is_cancelled_before_it_began_leaves_nothing_behind(client: RpcClient) -> None:
    for _ in range(50):
        client.services.example.foo.submit().cancel()
    assert client.services.example.foo() == 1


def test_a_call_is_not_waited_for(client: RpcClient, example: Example) -> None:
    id = client.services.example.count.call()
    until(lambda: example.noted == [id])
    client.services.example.fail.call()
    client.services.example.options(timeout=1).note.call("x")
    until(lambda: example.noted == [id, "x"])


# Options.


@pytest.mark.usefixtures("example")
def test_options_are_those_of_a_call(client: RpcClient, example: Example) -> None:
    with pytest.raises(RpcTimeout, match=r"within 0\.05 s"):
        client.services.example.foo.options(timeout=0.05, queue="nobody")()
    seen = client.services.example.options(headers={"x-a": "1"}).seen.options(headers={"x-b": "2"})()
    assert (seen.get("x-a"), seen["x-b"]) == (None, "2")
    assert client.services.example.options(headers={"x-a": "1"}).seen()["x-a"] == "1"
    count = client.services.example.count.options(idempotency_key="k")
    assert [count(), count.submit().result(LONG), client.services.example.count()] == [1, 1, 2]


@pytest.mark.usefixtures("example")
def test_options_change_no_other_proxy(client: RpcClient) -> None:
    foo = client.services.example.foo
    hurried = foo.options(timeout=0.05, queue="nobody")
    assert foo() == 1
    assert hurried.options(queue="default", timeout=LONG)(2) == 2


def test_there_are_no_other_options(client: RpcClient) -> None:
    with pytest.raises(TypeError, match=r"no options: name, retries; there are at, delay, .*, ttl"):
        client.services.example.foo.options(timeout=1, retries=1, delay=2, name="x")


@pytest.mark.parametrize("kind", [RpcClient, AsyncRpcClient])
def test_a_proxy_takes_all_options_of_its_client(site: Site, kind: Any) -> None:
    """A method of the client that gets another option gives it to proxies, too."""

    def of(method: Any) -> dict[str, Any]:
        found = inspect.signature(method).parameters.values()
        return {each.name: each.default for each in found if each.kind is each.KEYWORD_ONLY}

    class Noting(kind):  # type: ignore[misc]
        @wraps(kind.call)
        def call(self, *args: Any, **options: Any) -> Any:
            return options

        @wraps(kind.call_and_wait)
        def call_and_wait(self, *args: Any, **options: Any) -> Any:
            return options

        def invoke(self, *args: Any, **options: Any) -> Any:
            return options

        invoke_soon = invoke

    proxy = Noting(backend=site.url).services.example.foo
    sent, waited = of(kind.call), of(kind.call_and_wait)
    assert of(kind.submit) == waited
    assert {"keep", "ttl", "delay", "at"} <= sent.keys()
    assert proxy.options(**sent, timeout=1).call() == sent
    assert proxy.options(**waited)() == proxy.options(**waited).submit() == waited
    for option in sent.keys() - waited.keys():
        for wait in proxy.options(**{option: 1}), proxy.options(**{option: 1}).submit:
            with pytest.raises(TypeError, match=rf"^example\.foo: call_and_wait has no option {option}$"):
                wait()


@pytest.mark.usefixtures("example")
def test_a_method_is_called_later_and_its_outcome_kept(client: RpcClient) -> None:
    foo = client.services.example.foo
    id = foo.options(keep=60, delay=0.05).call(2, key=3)
    until(lambda: client.job(id).state == "succeeded")
    assert client.job(id).result == 5
    assert client.job(foo.options(delay=60).call()).state == "scheduled"


# What there is, and what there is not.


@pytest.mark.usefixtures("example")
def test_dir_lists_what_is_served_now(client: RpcClient) -> None:
    until(lambda: dir(client.services))
    assert dir(client.services) == ["deep", "example"]
    methods = ["count", "fail", "foo", "none", "note", "seen", "until_cancelled"]
    assert dir(client.services.example) == sorted([*methods, "call", "options", "stream", "submit"])
    assert dir(client.services.deep) == ["call", "in", "options", "stream", "submit"]
    assert dir(client.services.nosuch) == ["call", "options", "stream", "submit"]


def test_a_typo_on_a_client_is_an_attribute_error(client: RpcClient) -> None:
    for name in "servces", "example", "call_and_wiat":
        with pytest.raises(AttributeError, match=name):
            getattr(client, name)
        with pytest.raises(AttributeError, match=name):
            getattr(AsyncRpcClient(backend="memory://"), name)


def test_what_is_private_is_no_proxy(client: RpcClient) -> None:
    for each in client.services, client.services.example, client.services.example.foo:
        for name in "_private", "__len__", "_repr_html_", "__wrapped__":
            with pytest.raises(AttributeError, match=f"{name}.*is private"):
                getattr(each, name)
        for protocol in iter, len, list, bytes, pickle.dumps:
            with pytest.raises((TypeError, AttributeError)):
                protocol(each)


def test_a_proxy_says_what_it_is_and_nothing_is_sent(site: Site, client: RpcClient) -> None:
    assert repr(client.services.example.foo) == "<proxy of example.foo>"
    assert waiting(site) == 0


@pytest.mark.usefixtures("example")
def test_a_proxy_can_be_copied(client: RpcClient) -> None:
    assert copy.copy(client.services.example.foo.options(timeout=LONG))(2) == 2
    assert copy.copy(client.services).example.foo(3) == 3


# In an event loop.


def test_the_proxies_of_an_async_client_are_awaited(site: Site, example: Example) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=site.url, timeout=LONG) as client:
            services = client.services
            assert await services.example.foo(2, key=3) == 5
            assert await getattr(services.deep, "in").space.options(timeout=LONG).foo(1) == 1
            future = services.example.foo.submit(4)
            assert await future == 4
            assert await services.example.note.call("sent")
            await until_async(lambda: example.noted == ["sent"])
            for path, error in (
                ("example.nosuch", MethodNotFound),
                ("example.hidden", MethodNotExposed),
                ("nosuch.foo", ServiceNotFound),
                ("example.fail", RemoteError),
            ):
                for way in services[path], services[path].submit:
                    with pytest.raises(error):
                        await way()
            with pytest.raises(RpcTimeout):
                await services.example.foo.options(timeout=0.05, queue="nobody")()
            assert dir(services) == []
            await client.describe()
            assert dir(services) == ["deep", "example"]
            assert "foo" in dir(services.example)

    run(main)


def test_what_cannot_be_encoded_fails_at_once_in_an_event_loop_too(site: Site) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=site.url) as client:
            with pytest.raises(SerializationError):
                client.services.example.foo.submit(print)
            with pytest.raises(SerializationError):
                await client.services.example.foo(print)
            with pytest.raises(SerializationError):
                await client.services.example.foo.call(print)
            assert waiting(site) == 0

    run(main)


def test_to_cancel_a_task_reaches_the_worker(site: Site, example: Example) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=site.url, timeout=LONG) as client:
            future = client.services.example.until_cancelled.submit()
            await until_async(lambda: example.noted)
            future.cancel()
            await until_async(lambda: example.cancelled == example.noted)
            for _ in range(20):
                client.services.example.foo.submit().cancel()

    run(main)


@pytest.mark.usefixtures("example")
def test_a_handler_calls_services_as_a_part_of_its_request(site: Site) -> None:
    client = site.client()
    site.serve({"outer": lambda: client.services.example.seen()}, queues=["outer"])
    seen = client.call_and_wait("outer", queue="outer", headers={"x-tenant": "acme"}).data
    assert seen["x-tenant"] == "acme"
