"""Names, and the handlers that they are mapped to, in whichever style they are written."""

from __future__ import annotations

import asyncio
import inspect
from functools import lru_cache, partial, wraps
from types import SimpleNamespace

import pytest

import rpc
from rpc import MethodNotFound, Request, SettingsError, job
from rpc.core.jobs import Job, jobs_from
from rpc.core.protocol import Call
from rpc.transport import Message


def request_with(data, **headers):
    delivery = SimpleNamespace(message=Message().replace(**headers), cancelled=False)
    return Request(delivery, Call("work", data), 5.0, lambda request, data: (request, data))


def outcome(handler, data):
    job = Job("work", handler)
    value = job.bound(Call("work", data), request_with(data))()
    assert job.is_coroutine == inspect.isawaitable(value)
    return asyncio.run(value) if job.is_coroutine else value


def by_annotation(order: Request):
    return order.data["a"]


def by_another_annotation(order: rpc.Request):
    return order.data["a"]


def annotated_otherwise(request: dict):
    return request.data["a"]


def positional_only(request, /):
    return request.data["a"]


def defaulted(request=None):
    return request.data["a"]


async def coroutine(request):
    return request.data["a"]


async def typed_coroutine(a: int):
    return a


class Handlers:
    def method(self, request):
        return request.data["a"]

    async def coroutine_method(self, request):
        return request.data["a"]

    __call__ = method


class AsyncHandler:
    async def __call__(self, a: int):
        return a


@pytest.mark.parametrize("handler", [
    by_annotation, by_another_annotation, annotated_otherwise, positional_only, defaulted,
    lambda request: request.data["a"], lambda a: a, Handlers().method, Handlers(), AsyncHandler(),
    partial(lambda b, request: request.data[b], "a"), coroutine, typed_coroutine, Handlers().coroutine_method,
    AsyncHandler().__call__, partial(coroutine), partial(typed_coroutine), partial(AsyncHandler()),
])  # fmt: skip
def test_a_handler_may_be_anything_that_can_be_called(handler):
    assert outcome(handler, {"a": 7}) == 7


def for_type_checkers(order: Undefined.Request):  # noqa: F821 - imported for type checkers only
    return order.data["a"]


def for_type_checkers_too(order: AsyncRequest):  # noqa: F821
    return order.data["a"]


@pytest.mark.parametrize("handler", [for_type_checkers, for_type_checkers_too, partial(for_type_checkers)])
def test_a_request_that_is_imported_for_type_checkers_is_known_by_its_name(handler, caplog):
    assert outcome(handler, {"a": 7}) == 7
    assert not caplog.text


@job(retries=3)
def tried(a):
    return a


class Tried:
    @job(retries=3)
    def __call__(self, a):
        return a


@pytest.mark.parametrize("handler", [
    tried, partial(tried), partial(partial(tried), 1), wraps(tried)(lambda a: a), lru_cache(tried), Tried(),
    partial(Tried()), Tried().__call__,
    job(retries=3)(partial(defaulted)), job(retries=3)(wraps(annotated_otherwise)(lambda a: a)),
])  # fmt: skip
def test_a_job_has_its_options_whatever_is_around_its_handler(handler):
    assert Job("work", handler).options.retries == 3


@pytest.mark.parametrize(("handler", "kind"), [
    (coroutine, rpc.AsyncRequest), (partial(coroutine), rpc.AsyncRequest),
    (partial(AsyncHandler()), rpc.AsyncRequest),
    (wraps(coroutine)(lambda request: coroutine(request)), rpc.AsyncRequest), (defaulted, Request),
])  # fmt: skip
def test_whoever_awaits_gets_a_request_that_is_awaited(handler, kind):
    assert Job("work", handler).request_type is kind


@pytest.mark.parametrize(("handler", "data"), [
    (lambda *, request: request, {"request": 7}), (lambda request, b: request, {"request": 7, "b": 1}),
    (lambda *request: request[0], [7]), (lambda **request: request["a"], {"a": 7}), (lambda: 7, {}),
], ids=["keyword-only", "one of two", "variadic", "named variadic", "none"])  # fmt: skip
def test_a_handler_that_does_not_take_the_request_alone_takes_arguments(handler, data):
    assert outcome(handler, data) == 7


@pytest.mark.parametrize("name", ["", "1a", "a b", "../a", "a/b", "a\n", ".a", "aé", "a" * 129])
def test_a_bad_name_is_refused(name):
    with pytest.raises(SettingsError, match="is no job name"):
        Job(name, print)


@pytest.mark.parametrize("name", ["a", "_a", "a.b-c_1", "A" * 128])
def test_a_good_name_is_taken(name):
    assert list(jobs_from({name: lambda: None})) == [name]


@pytest.mark.parametrize("handler", [None, "os.system", 5, max], ids=repr)
def test_what_cannot_be_called_with_known_arguments_is_refused_with_its_name(handler):
    with pytest.raises(SettingsError, match="'work'"):
        jobs_from({"work": handler})


@pytest.mark.parametrize("name", ["nosuch", "os.system", "../add", "__class__", "", "x" * 9999])
def test_only_mapped_names_are_found(name):
    jobs = jobs_from({"add": lambda: None, "os": lambda: None})
    assert jobs.find("add") is jobs["add"]
    with pytest.raises(MethodNotFound, match="is named") as refusal:
        jobs.find(name)
    assert len(str(refusal.value)) < 200


def test_there_are_two_modes_of_delivery():
    with pytest.raises(ValueError, match="at-least-once, at-most-once"):
        job(delivery="exactly-once")


def test_a_request_shows_what_came_with_it():
    request = request_with({"respond": 1}, id="1", reply_to="2", deliveries=2, token="t", signature="s")

    assert (request.data, request.id, request.response_key) == ({"respond": 1}, "1", "2")
    assert (request.redelivered, request.deadline, request.headers["signature"]) == (True, 5.0, "s")
    assert "token" not in request.headers
    assert request.cancelled is False
    assert request.respond("answer") == (request, "answer")


def test_a_request_that_nobody_waits_for_has_no_response_key():
    assert request_with({}).response_key is None
    assert request_with({}).redelivered is False
