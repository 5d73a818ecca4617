"""What runs around handlers: hooks, and the chain that they are a part of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from copy import copy
from types import ModuleType
from typing import Any

import pytest
import redis
from in_memory import Site, until

from rpc import (
    AsyncRequest,
    InvalidParams,
    MethodNotFound,
    RemoteError,
    Request,
    RpcClient,
    RpcReceiver,
    SettingsError,
    Unauthorized,
    expose,
    job,
)
from rpc.core.middleware import HOOKS
from rpc.testing import RedisServer

CALLS = HOOKS[:3]


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


class Notes(list[Any]):
    """Hooks that note what they are told of."""

    def hooks(self, *names: str) -> dict[str, Callable[..., Any]]:
        def noting(name: str) -> Callable[..., Any]:
            def note(*arguments: Any) -> None:
                request, *outcome = arguments or [None]
                self.append((name, getattr(request, "name", None), *outcome))

            return note

        return {name: noting(name) for name in names or CALLS}


def typed(a: int, b: int = 1) -> int:
    return a + b


def returning(request: Request) -> Any:
    return request.data


def responding(request: Request) -> str:
    request.respond({"responded": request.data})
    return "ignored"


async def coroutine(a: int) -> int:
    return a


async def async_responding(request: AsyncRequest) -> None:
    request.respond("from a coroutine")


def fail(text: str = "no") -> None:
    raise ValueError(text)


async def async_fail() -> None:
    raise KeyError


JOBS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (typed, returning, responding, coroutine, async_responding, fail, async_fail)
}


def call_next_only(request: Request, call_next: Callable[[Request], Any]) -> Any:
    return call_next(request)


# Hooks.


@pytest.mark.parametrize("middleware", [[], [call_next_only]])
@pytest.mark.parametrize(
    ("name", "data", "result"),
    [
        ("typed", [1, 2], 3),
        ("returning", {"a": 1}, {"a": 1}),
        ("responding", {"a": 1}, {"responded": {"a": 1}}),
        ("coroutine", [5], 5),
        ("async_responding", None, "from a coroutine"),
    ],
)
def test_hooks_are_told_of_the_request_and_its_result(
    site: Site, name: str, data: Any, result: Any, middleware: Any
) -> None:
    notes = Notes()
    site.serve(JOBS, hooks=notes.hooks(), middleware=middleware)
    assert site.client().call_and_wait(name, data).data == result
    until(lambda: len(notes) == 2)
    assert notes == [("pre_call", name), ("post_success", name, result)]


@pytest.mark.parametrize("name", ["responding", "returning"])
def test_the_result_is_the_same_if_nobody_waits_for_it(site: Site, name: str) -> None:
    notes = Notes()
    site.serve(JOBS, hooks=notes.hooks("post_success"))
    client = site.client()
    client.call(name, {"a": 1})
    client.call_and_wait(name, {"a": 1})
    until(lambda: len(notes) == 2)
    assert notes[0] == notes[1]


@pytest.mark.parametrize(("name", "type"), [("fail", "ValueError"), ("async_fail", "KeyError")])
def test_hooks_are_told_of_the_error(site: Site, name: str, type: str) -> None:
    notes = Notes()
    site.serve(JOBS, hooks=notes.hooks())
    with pytest.raises(RemoteError):
        site.client().call_and_wait(name)
    (first, (hook, job_name, error)) = notes
    assert first == ("pre_call", name)
    assert (hook, job_name, error.__class__.__name__) == ("post_error", name, type)


def test_the_request_has_the_arguments_and_the_name_of_the_service(site: Site) -> None:
    class Example:
        name = "example"

        @expose
        def foo(self, *args: int, **kwargs: int) -> None:
            """Nothing to do."""

    told: list[Any] = []
    hook = lambda request, *_: told.append((request.name, request.data, request.kwargs))  # noqa: E731
    site.serve({}, services=[Example], hooks={"pre_call": hook, "post_success": hook})
    site.client().services.example.foo(1, 2, key=3)
    until(lambda: len(told) == 2)
    assert told == [("example.foo", [1, 2], {"key": 3})] * 2


def test_a_call_that_reaches_no_handler_reaches_no_hook(site: Site) -> None:
    notes = Notes()
    site.serve(JOBS, hooks=notes.hooks())
    client = site.client()
    with pytest.raises(MethodNotFound):
        client.call_and_wait("nosuch")
    with pytest.raises(InvalidParams):
        client.call_and_wait("typed", ["x"])
    assert notes == []


def test_each_attempt_is_told_of(site: Site) -> None:
    attempts = []

    @job(retries=1, backoff=0.001)
    def flaky(request: Request) -> str:
        attempts.append(request.attempt)
        if request.attempt == 1:
            raise ConnectionError
        return "done"

    notes = Notes()
    site.serve({"flaky": flaky}, hooks=notes.hooks())
    assert site.client().call_and_wait("flaky").data == "done"
    until(lambda: len(notes) == 4)
    assert [note[0] for note in notes] == ["pre_call", "post_error", "pre_call", "post_success"]


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, Odd])
@pytest.mark.parametrize("colour", ["plain", "coroutine"])
def test_a_hook_that_raises_is_logged_and_changes_nothing(
    site: Site, error: type[BaseException], colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(*_: Any) -> None:
        raise error("hook")

    async def in_a_loop(*_: Any) -> None:
        raise error("hook")

    notes = Notes()
    hook = plain if colour == "plain" else in_a_loop
    site.serve(JOBS, hooks={name: [hook, good] for name, good in notes.hooks().items()})
    client = site.client()
    assert client.call_and_wait("typed", [1]).data == 2
    assert client.call_and_wait("responding", [1]).data == {"responded": [1]}
    with pytest.raises(RemoteError, match=r"^ValueError: no$"):
        client.call_and_wait("fail")
    assert client.call_and_wait("typed", [2]).data == 3
    until(lambda: len(notes) == 8)
    for name in CALLS:
        assert f"hook {name} failed" in caplog.text


def test_hooks_may_be_coroutines(site: Site) -> None:
    told: list[Any] = []

    async def hook(request: Request, *outcome: Any) -> None:
        told.append((threading.current_thread().name, *outcome))

    site.serve(JOBS, hooks=dict.fromkeys(CALLS, hook))
    assert site.client().call_and_wait("typed", [1]).data == 2
    until(lambda: len(told) == 2)
    assert told == [("rpc-coroutines",), ("rpc-coroutines", 2)]


def test_several_hooks_of_one_name_are_told_in_their_order(site: Site) -> None:
    told: list[int] = []
    hooks = [lambda request, number=number: told.append(number) for number in range(5)]
    site.serve(JOBS, hooks={"pre_call": hooks})
    site.client().call_and_wait("typed", [1])
    assert told == [0, 1, 2, 3, 4]


def served(receiver: RpcReceiver, stack: ExitStack) -> None:
    thread = threading.Thread(target=receiver.start)
    thread.start()
    stack.callback(thread.join)
    stack.callback(receiver.stop)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_decorator_adds_a_hook(site: Site, when: str) -> None:
    notes: list[Any] = []
    receiver = RpcReceiver(jobs=JOBS, backend=site.url)
    client = site.client()

    def decorate() -> None:
        @receiver.hook("post_success")
        def note(request: Request, result: Any) -> None:
            notes.append((request.name, result))

        assert callable(note)

    with ExitStack() as stack:
        if when == "before":
            decorate()
        served(receiver, stack)
        if when == "after":
            client.call_and_wait("typed", [0])
            decorate()
        client.call_and_wait("typed", [1])
        until(lambda: notes == [("typed", 2)])


def test_hooks_and_middleware_come_from_the_settings_too(site: Site) -> None:
    notes = Notes()
    settings = ModuleType("settings")
    settings.RPC_BACKEND, settings.RPC_JOB_MAPPING = site.url, JOBS  # type: ignore[attr-defined]
    settings.RPC_HOOKS = {**notes.hooks(), "on_connect": "builtins.dict"}  # type: ignore[attr-defined]
    settings.RPC_MIDDLEWARE = [doubling, f"{__name__}.call_next_only"]  # type: ignore[attr-defined]
    with ExitStack() as stack:
        served(RpcReceiver(settings=settings), stack)
        assert site.client().call_and_wait("typed", [1]).data == 4
    assert notes == [("pre_call", "typed"), ("post_success", "typed", 4)]


def receiver(**options: Any) -> RpcReceiver:
    return RpcReceiver(**{"jobs": JOBS, "backend": "memory://", **options})


def test_there_are_no_other_hooks() -> None:
    with pytest.raises(SettingsError, match=r"cannot be the hook 'post_call'; hooks are pre_call, .*connect"):
        receiver(hooks={"post_call": print})
    with pytest.raises(SettingsError, match="5 cannot be the hook 'pre_call'"):
        receiver(hooks={"pre_call": [5]})
    with pytest.raises(SettingsError, match="cannot be the hook 'nosuch'"):
        receiver().hook("nosuch")(print)


# Middleware.


def doubling(request: Request, call_next: Callable[[Request], Any]) -> Any:
    return call_next(request) * 2


@pytest.mark.parametrize("name", ["typed", "coroutine"])
def test_the_chain_runs_from_the_outside_in_and_hooks_are_outside(site: Site, name: str) -> None:
    order: list[str] = []

    def wrapping(label: str) -> Callable[..., Any]:
        def wrap(request: Request, proceed: Callable[[Request], Any]) -> Any:
            order.append(f"{label} in")
            result = proceed(request)
            order.append(f"{label} out")
            return [label, result]

        return wrap

    notes = Notes()
    hooks = {hook: lambda *_, hook=hook: order.append(hook) for hook in CALLS}
    for hook, function in notes.hooks("post_success").items():
        hooks[hook] = [hooks[hook], function]  # type: ignore[assignment]
    site.serve(JOBS, hooks=hooks, middleware=[wrapping("a"), wrapping("b")])
    data = [1, 0] if name == "typed" else [1]
    assert site.client().call_and_wait(name, data).data == ["a", ["b", 1]]
    until(lambda: len(order) == 6)
    assert order == ["pre_call", "a in", "b in", "b out", "a out", "post_success"]
    assert notes == [("post_success", name, ["a", ["b", 1]])]


def test_what_was_responded_already_is_not_replaced(site: Site) -> None:
    seen: list[Any] = []

    def replacing(request: Request, call_next: Callable[[Request], Any]) -> Any:
        seen.append(call_next(request))
        return "replaced"

    site.serve(JOBS, middleware=[replacing])
    client = site.client()
    assert client.call_and_wait("responding", [1]).data == {"responded": [1]}
    assert client.call_and_wait("returning", [1]).data == "replaced"
    assert client.call_and_wait("async_responding").data == "from a coroutine"
    until(lambda: len(seen) == 3)
    assert seen == [{"responded": [1]}, [1], "from a coroutine"]


def test_a_middleware_may_answer_itself(site: Site) -> None:
    def cached(request: Request, call_next: Callable[[Request], Any]) -> Any:
        return "cached" if request.headers.get("x-cached") else call_next(request)

    site.serve(JOBS, middleware=[cached])
    client = site.client()
    assert client.call_and_wait("fail", headers={"x-cached": "1"}).data == "cached"
    assert client.call_and_wait("typed", [1]).data == 2


def test_what_a_middleware_raises_the_caller_gets(site: Site) -> None:
    def guard(request: Request, call_next: Callable[[Request], Any]) -> Any:
        if request.headers.get("x-user") != "ada":
            raise Unauthorized("who are you?")
        return call_next(request)

    def broken(request: Request, call_next: Callable[[Request], Any]) -> Any:
        call_next(request)
        raise LookupError("broken")

    notes = Notes()
    site.serve(JOBS, middleware=[guard, broken], hooks=notes.hooks())
    client = site.client()
    with pytest.raises(Unauthorized, match=r"^who are you\?$"):
        client.call_and_wait("typed", [1])
    with pytest.raises(RemoteError, match=r"^LookupError: broken$"):
        client.call_and_wait("typed", [1], headers={"x-user": "ada"})
    assert [note[0] for note in notes] == ["pre_call", "post_error"] * 2
    assert client.call_and_wait("responding", [1], headers={"x-user": "ada"}).data == {"responded": [1]}


def test_a_middleware_may_make_a_result_of_an_error(site: Site) -> None:
    def forgiving(request: Request, call_next: Callable[[Request], Any]) -> Any:
        try:
            return call_next(request)
        except (ValueError, KeyError) as error:
            return type(error).__name__

    notes = Notes()
    site.serve(JOBS, middleware=[forgiving], hooks=notes.hooks())
    client = site.client()
    assert client.call_and_wait("fail").data == "ValueError"
    assert client.call_and_wait("async_fail").data == "KeyError"
    until(lambda: len(notes) == 4)
    assert "post_error" not in [note[0] for note in notes]


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


def test_handlers_see_the_context_that_a_middleware_made(site: Site) -> None:
    def tenants(request: Request, call_next: Callable[[Request], Any]) -> Any:
        token = tenant.set(request.headers.get("x-tenant", "default"))
        try:
            return call_next(request)
        finally:
            tenant.reset(token)

    async def in_a_loop() -> str:
        return tenant.get()

    seen = []
    hooks = {"post_success": lambda *_: seen.append(tenant.get())}
    jobs = {"plain": lambda: tenant.get(), "coroutine": in_a_loop}
    site.serve(jobs, middleware=[tenants], hooks=hooks)
    client = site.client()
    for name in jobs:
        assert client.call_and_wait(name, headers={"x-tenant": "acme"}).data == "acme"
        assert client.call_and_wait(name).data == "default"
    until(lambda: seen == ["nobody"] * 4)


def test_calls_made_in_the_chain_are_a_part_of_the_request(site: Site) -> None:
    client = site.client()
    asked: list[Any] = []

    def inner(request: Request) -> Any:
        return [request.headers.get("x-tenant"), request.deadline is not None]

    def pending(request: Request, call_next: Callable[[Request], Any]) -> Any:
        if request.name == "outer":
            asked.append(request.call_and_wait("inner").data)
            asked.append(client.call_and_wait("inner").data)
        return call_next(request)

    def hook(request: Request) -> None:
        if request.name == "outer":
            asked.append(request.call_and_wait("inner").data)

    site.serve(
        {"outer": lambda: "outer", "inner": inner},
        concurrency=2,
        middleware=[pending],
        hooks={"pre_call": hook},
    )
    assert client.call_and_wait("outer", headers={"x-tenant": "acme"}).data == "outer"
    assert asked == [["acme", True]] * 3


@pytest.mark.parametrize("before", ["the handler", "another middleware"])
@pytest.mark.parametrize("name", ["typed", "returning", "coroutine"])
def test_another_request_is_refused_instead_of_being_ignored(site: Site, name: str, before: str) -> None:
    began: list[str] = []

    def exchanging(request: Request, call_next: Callable[[Request], Any]) -> Any:
        another = copy(request)
        another.data = [7]
        return call_next(another)

    def noting(request: Request, call_next: Callable[[Request], Any]) -> Any:
        began.append(request.name)
        return call_next(request)

    site.serve(JOBS, middleware=[exchanging] if before == "the handler" else [exchanging, noting])
    with pytest.raises(RemoteError, match="call_next takes the request that the middleware was given") as it:
        site.client().call_and_wait(name, [1])
    assert it.value.type == "TypeError"
    assert began == []


class Counting:
    """An object that can be called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: Request, call_next: Callable[[Request], Any]) -> Any:
        self.count += 1
        return call_next(request)


def test_a_middleware_may_be_any_callable_that_is_not_a_coroutine_function(site: Site) -> None:
    class Asynchronous:
        async def __call__(self, request: Request, call_next: Callable[[Request], Any]) -> Any:
            """Nobody would await it."""

    counting = Counting()
    site.serve(JOBS, middleware=[counting, lambda request, rest: rest(request), counting.__call__])
    assert site.client().call_and_wait("typed", [1]).data == 2
    assert counting.count == 2
    for odd in Asynchronous(), Asynchronous().__call__, coroutine, 5, None:
        with pytest.raises(SettingsError, match="is no middleware"):
            receiver(middleware=[odd])


# Connections.


def test_hooks_are_told_when_a_receiver_begins_and_ends() -> None:
    notes = Notes()
    with ExitStack() as stack:
        Site(stack).serve(JOBS, hooks=notes.hooks("on_connect", "on_disconnect"))
        until(lambda: notes == [("on_connect", None)])
    assert notes == [("on_connect", None), ("on_disconnect", None)]


@pytest.mark.redis
@pytest.mark.parametrize("colour", ["plain", "coroutine"])
@pytest.mark.parametrize(("scheme", "waits"), [("", 0), ("rq+", 2)])
def test_hooks_are_told_of_a_connection_that_is_cut(
    rpc_redis: RedisServer, scheme: str, waits: int, colour: str
) -> None:
    notes: list[bool] = []

    async def connected() -> None:
        notes.append(True)

    async def disconnected() -> None:
        notes.append(False)

    coroutines = {"on_connect": connected, "on_disconnect": disconnected}
    plain = {"on_connect": lambda: notes.append(True), "on_disconnect": lambda: notes.append(False)}
    url = scheme + rpc_redis.url
    hooks = plain if colour == "plain" else coroutines
    with ExitStack() as stack:
        served(RpcReceiver(jobs=JOBS, backend=url, hooks=hooks), stack)
        client = stack.enter_context(RpcClient(backend=url))
        assert client.call_and_wait("typed", [1]).data == 2
        assert notes == [True]
        with redis.Redis.from_url(rpc_redis.url) as admin:

            def told_of_a_cut() -> bool:
                """Cuts all while the server waits for jobs: between two commands nobody notices."""
                waiting = [each["cmd"] for each in admin.client_list() if "b" in each["flags"]]
                if waiting.count("blpop") == waits and notes == [True]:
                    admin.client_kill_filter(_type="normal", skipme=True)
                return notes == [True, False, True]

            until(told_of_a_cut)
        assert client.call_and_wait("typed", [2]).data == 3
    assert notes == [True, False, True, False]
    assert "rpc-coroutines" not in {thread.name for thread in threading.enumerate()}


def test_a_hook_of_connections_that_raises_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise SystemExit("broken")

    with caplog.at_level(logging.ERROR), ExitStack() as stack:
        again = Site(stack)
        again.serve(JOBS, hooks={"on_connect": broken, "on_disconnect": broken})
        assert again.client().call_and_wait("typed", [1]).data == 2
    assert "hook on_connect failed" in caplog.text
    assert "hook on_disconnect failed" in caplog.text
