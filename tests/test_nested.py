"""Calls that a handler makes are a part of the request that it handles."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from in_memory import Site

from rpc import AsyncRequest, Request, RpcClient, RpcReceiver, RpcTimeout, nested
from rpc.core.protocol import Call
from rpc.errors import Unsupported
from rpc.transport import Message

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


def what_arrives(request: Request) -> dict[str, Any]:
    left = None if request.deadline is None else request.deadline - time.monotonic()
    return {"data": request.data, "headers": dict(request.headers), "left": left}


async def what_arrives_later(request: AsyncRequest) -> dict[str, Any]:
    return what_arrives(request)


def by_request(request: Request) -> Any:
    return request.call_and_wait("inner", {"a": 1}).data


async def by_async_request(request: AsyncRequest) -> Any:
    return (await request.call_and_wait("inner", {"a": 1})).data


def in_a_thread_of_its_own(request: Request) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(by_request(request)))
    thread.start()
    thread.join()
    return found[0]


WAYS = [by_request, by_async_request, in_a_thread_of_its_own]


@pytest.mark.parametrize("outer", WAYS)
def test_a_nested_call_inherits_the_deadline_the_trace_and_the_applications_headers(
    site: Site, outer: Callable[..., Any]
) -> None:
    site.serve({"outer": outer, "inner": what_arrives}, concurrency=2)
    headers = {**TRACE, "x-tenant": "acme"}
    inner = site.client().call_and_wait("outer", timeout=7, headers=headers).data
    assert inner["data"] == {"a": 1}
    assert {name: inner["headers"].get(name) for name in headers} == headers
    assert 0 < inner["left"] < 7


def test_headers_of_its_own_are_added(site: Site) -> None:
    def outer(request: Request) -> Any:
        return request.call_and_wait("inner", headers={"x-b": "2", "x-c": "3"}).data

    site.serve({"outer": outer, "inner": what_arrives}, concurrency=2)
    found = site.client().call_and_wait("outer", headers={"x-a": "1", "x-b": "1"}).data["headers"]
    assert {name: found[name] for name in found if name.startswith("x-")} == {
        "x-a": "1",
        "x-b": "2",
        "x-c": "3",
    }


@pytest.mark.parametrize("outer", ["plain", "coroutine"])
def test_a_job_can_be_sent_that_nobody_waits_for(site: Site, outer: str) -> None:
    ids = []

    def plain(request: Request) -> str:
        return request.call("inner", ["x"])

    async def coroutine(request: AsyncRequest) -> str:
        return await request.call("inner", ["x"])

    def inner(request: Request) -> None:
        ids.append((request.id, request.headers["x-a"], request.deadline))

    jobs = {"plain": plain, "coroutine": coroutine, "inner": inner}
    site.serve(jobs)
    client = site.client()
    id = client.call_and_wait(outer, headers={"x-a": "1"}).data
    client.call_and_wait("inner", headers={"x-a": "last"})
    assert ids[0] == (id, "1", None)


@pytest.mark.parametrize("outer", WAYS[:2])
def test_a_call_to_a_queue_that_this_worker_does_not_serve_says_so(
    site: Site, outer: Callable[..., Any]
) -> None:
    site.serve({"outer": outer, "inner": what_arrives}, concurrency=1, queues=["own"])
    with pytest.raises(RpcTimeout, match=r"does not serve queue 'default': see RPC_ROUTES$"):
        site.client(queue="own").call_and_wait("outer", timeout=3)


@pytest.mark.parametrize("outer", WAYS[:2])
def test_without_a_free_slot_it_fails_in_time_and_says_why(site: Site, outer: Callable[..., Any]) -> None:
    inner = what_arrives_later if inspect.iscoroutinefunction(outer) else what_arrives
    site.serve({"outer": outer, "inner": inner}, concurrency=1, coroutines=1)
    what = "coroutines" if inspect.iscoroutinefunction(outer) else "concurrency"
    with pytest.raises(RpcTimeout, match=rf"no free slot for it \({what}=1\).*RPC_{what.upper()}"):
        site.client().call_and_wait("outer", timeout=3)


def test_a_coroutine_that_waits_takes_no_slot_of_the_functions_that_it_calls(site: Site) -> None:
    site.serve({"outer": by_async_request, "inner": what_arrives}, concurrency=1, coroutines=2)
    assert site.client().call_and_wait("outer").data["data"] == {"a": 1}


def test_a_client_that_a_handler_has_inherits_as_well(site: Site) -> None:
    client = site.client()
    site.serve({"outer": lambda: client.call_and_wait("inner").data, "inner": what_arrives}, concurrency=2)
    assert client.call_and_wait("outer", headers={"x-a": "1"}).data["headers"]["x-a"] == "1"


@pytest.mark.parametrize("headers", [{"id": "1"}, {"tenant": "a"}, {"x-n": 1}, {"ttl": "9"}])
@pytest.mark.parametrize("way", ["call", "call_and_wait", "submit"])
def test_headers_that_are_not_the_applications_are_refused(
    site: Site, way: str, headers: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="x-"):
        getattr(site.client(), way)("inner", headers=headers)


def test_whoever_has_no_client_says_so() -> None:
    class Delivery:
        message = Message(b"", {"id": "1"})

    request = Request(Delivery(), Call("inner"), None, lambda request, data: True)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="client"):
        request.call("inner")


@pytest.mark.parametrize("colour", ["client", "async_client"])
def test_handlers_that_call_for_the_first_time_at_once_share_a_client(
    site: Site, monkeypatch: pytest.MonkeyPatch, colour: str
) -> None:
    def made(**options: Any) -> RpcClient:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # there is no other, if all is well
        return RpcClient(**options)

    both = threading.Barrier(2)
    monkeypatch.setattr(nested, "RpcClient", made)
    receiver = RpcReceiver(jobs={"inner": what_arrives}, backend=site.url)
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(lambda _: getattr(receiver._application.calls, colour), range(4)))
    assert len(set(map(id, clients))) == 1
