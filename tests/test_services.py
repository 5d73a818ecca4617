"""What of an object, a class or a module becomes a job, and what its caller is told if nothing does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from in_memory import Site

from rpc import (
    AsyncRequest,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    RemoteError,
    Request,
    RpcReceiver,
    SerializationError,
    ServiceNotFound,
    SettingsError,
    cron,
    every,
    expose,
    job,
    on,
    service,
)
from rpc.services import RESERVED_METHODS


class Example:
    name = "example"

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    @expose
    def foo(self) -> str:
        return "bar"

    @expose
    def both(self, *args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    @expose
    def greet(self, name: str = "you") -> str:
        return f"{self.greeting} {name}"

    @expose
    def typed(self, count: int, key: str | None = None) -> list[Any]:
        return [count, key]

    @expose
    async def coroutine(self, number: int) -> int:
        return number * 2

    @expose
    def by_request(self, request: Request) -> None:
        request.respond([request.name, request.data, request.kwargs])

    @expose
    async def by_async_request(self, request: AsyncRequest) -> Any:
        return (await request.call_and_wait("example.foo")).data

    @expose
    def raises(self, *args: Any) -> None:
        raise KeyError(*args)

    @expose
    def asserts(self) -> None:
        assert not self.greeting

    @expose
    def odd(self) -> Any:
        return print

    def not_exposed(self) -> None:
        """Is for others in its process."""

    def _private(self) -> None:
        """Is for itself."""


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def call(site: Site) -> Callable[..., Any]:
    """Call a method of `Example`: the data of the response."""
    site.serve({}, services=[Example], concurrency=2)
    client = site.client()
    return lambda name, data=None, **options: client.call_and_wait(name, data, **options).data


# Calls.


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((), {"key": 2}),
        ((1, "two", None, [3], {"four": 4.5}), {"key": {"a": [1]}, "other": None}),
        (({"a": 1},), {}),
        (([1, 2],), {}),
        ((), {"args": 1, "kwargs": 2, "self": 3, "name": 4, "data": 5, "timeout": 6}),
    ],
)
def test_positional_and_named_arguments_arrive_as_they_were(
    site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    def both(*args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    module = SimpleNamespace(name="example", both=expose(both))
    site.serve({}, services=[module])
    assert site.client().services.example.both(*args, **kwargs) == [list(args), kwargs]


def test_methods_of_every_style_are_jobs(call: Callable[..., Any]) -> None:
    assert call("example.foo") == "bar"
    assert call("example.greet", {"name": "me"}) == "hello me"
    assert call("example.typed", [1]) == [1, None]
    assert call("example.coroutine", [21]) == 42
    assert call("example.by_request", {"a": 1}) == ["example.by_request", {"a": 1}, {}]
    assert call("example.by_async_request") == "bar"


def test_a_method_in_request_style_gets_positional_and_named_arguments(site: Site) -> None:
    site.serve({}, services=[Example])
    assert site.client().services.example.by_request(1, key=2) == ["example.by_request", [1], {"key": 2}]


@pytest.mark.parametrize("data", [["1"], [], {"count": 1, "nosuch": 2}, {"count": 1, "key": 3}])
def test_arguments_of_typed_methods_are_validated(call: Callable[..., Any], data: Any) -> None:
    with pytest.raises(InvalidParams, match=r"count|nosuch|key"):
        call("example.typed", data)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("example.nosuch", MethodNotFound, r"service 'example' has no method 'nosuch'"),
        ("example._private", MethodNotFound, r"service 'example' has no method '_private'"),
        ("example.__init__", MethodNotFound, r"service 'example' has no method '__init__'"),
        ("example.greeting", MethodNotFound, r"service 'example' has no method 'greeting'"),
        ("example.not_exposed", MethodNotExposed, r"service 'example' does not expose 'not_exposed'"),
        ("nosuch.foo", ServiceNotFound, r"no service is named 'nosuch' here"),
        ("example.foo.bar", ServiceNotFound, r"no service is named 'example.foo' here"),
        ("nosuch", MethodNotFound, r"no job is named 'nosuch' here"),
    ],
)
def test_the_ways_not_to_be_exposed_are_different_errors(
    call: Callable[..., Any], name: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(MethodNotFound, match=text) as caught:
        call(name)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("name", "data", "type", "message"),
    [
        ("example.raises", None, "KeyError", ""),
        ("example.raises", ["a"], "KeyError", "'a'"),
        ("example.asserts", None, "AssertionError", None),
    ],
)
def test_what_a_method_raises_is_a_remote_error_even_without_a_text(
    call: Callable[..., Any], name: str, data: Any, type: str, message: str | None
) -> None:
    with pytest.raises(RemoteError) as caught:
        call(name, data)
    assert caught.value.type == type
    assert message is None or caught.value.message == message
    assert str(caught.value).startswith(type)


def test_a_result_that_cannot_be_encoded_is_told(call: Callable[..., Any]) -> None:
    with pytest.raises(SerializationError, match="the result cannot be encoded"):
        call("example.odd")


def test_options_of_a_job_go_with_a_method(site: Site) -> None:
    class Flaky:
        name = "flaky"
        attempts = 0

        @expose
        @job(retries=2, backoff=0.001)
        def fetch(self) -> int:
            self.attempts += 1
            if self.attempts < 3:
                raise ConnectionError
            return self.attempts

    site.serve({}, services=[Flaky])
    assert site.client().services.flaky.fetch() == 3


# What is a service.


def test_an_instance_keeps_its_state_and_a_class_is_made(site: Site) -> None:
    site.serve({}, services=[Example("good day")])
    assert site.client().services.example.greet("you") == "good day you"


def test_a_class_that_needs_arguments_is_refused() -> None:
    class Needy:
        name = "needy"

        def __init__(self, needed: int) -> None:
            """Nothing to do."""

    with pytest.raises(SettingsError, match=r"Needy cannot be made without arguments.*give an instance"):
        service(Needy)


def test_a_class_that_cannot_be_made_says_where() -> None:
    class Broken:
        name = "broken"

        def __init__(self) -> None:
            raise OSError("no database")

    with pytest.raises(SettingsError, match=r"\(OSError: no database \(.*test_services\.py, line \d+\)\)"):
        service(Broken)


def test_what_offers_nothing_is_called_as_it_is_called() -> None:
    class Empty:
        name = "empty"

    with pytest.raises(SettingsError, match=r"test_services\.test_what_.*\.Empty offers nothing: mark"):
        service(Empty)
    with pytest.raises(SettingsError, match=r"test_services\._unmarked offers nothing"):
        service(_unmarked)


def _unmarked() -> None:
    """It has no mark."""


def made_module(**members: Any) -> ModuleType:
    module = ModuleType("shop.prices")
    for name, member in members.items():
        member.__module__ = module.__name__
        setattr(module, name, member)
    return module


def test_a_module_is_named_by_its_last_part_and_has_only_its_own_functions() -> None:
    @expose
    def price(item: str) -> int:
        return len(item)

    def helper() -> None:
        """Is not exposed."""

    module = made_module(price=price, helper=helper)
    module.imported = Path.cwd  # type: ignore[attr-defined]
    module.Example = Example  # type: ignore[attr-defined]
    module.foreign = expose(lambda: 1)  # type: ignore[attr-defined]
    found = service(module)
    assert found.name == "prices"
    assert list(found.jobs) == ["prices.price"]
    assert found.hidden == {"prices.helper"}
    module.name = "catalogue"  # type: ignore[attr-defined]
    assert list(service(module).jobs) == ["catalogue.price"]


def test_under_a_name_all_public_functions_are_exposed_but_the_restricted(site: Site) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    def secret() -> str:
        return "secret"

    def _private() -> str:
        return "private"

    module = made_module(add=add, secret=secret, _private=_private)
    found = service(module, name="tools.math", restricted=["secret"])
    assert list(found.jobs) == ["tools.math.add"]
    site.serve({}, services=[found])
    client = site.client()
    assert client.services.tools.math.add(1, b=2) == 3
    assert client.services["tools.math"].add(1, 2) == 3
    for name in "secret", "_private":
        with pytest.raises(MethodNotFound, match=name):
            client.call_and_wait(f"tools.math.{name}")
    with pytest.raises(ServiceNotFound, match="'tools'"):
        client.services.tools.add(1, 2)


def test_a_name_given_here_is_used_instead_and_marks_still_count() -> None:
    found = service(Example, name="other", restricted=["foo"])
    assert found.name == "other"
    assert "other.greet" in found.jobs
    assert "other.foo" not in found.jobs
    assert "other.not_exposed" in found.hidden
    assert service(found) is found


def test_to_restrict_what_is_not_there_is_a_mistake() -> None:
    with pytest.raises(SettingsError, match="has no nosuch to be restricted"):
        service(Example, restricted=["nosuch"])


def test_a_function_can_be_a_service_under_a_name() -> None:
    @expose
    def alone() -> int:
        return 1

    assert list(service(alone, name="a").jobs) == ["a.alone"]
    with pytest.raises(SettingsError, match="has no `name`"):
        service(alone)


# Marks.


class Kinds:
    name = "kinds"

    @expose
    @staticmethod
    def static_above() -> int:
        return 1

    @staticmethod
    @expose
    def static_below() -> int:
        return 2

    @expose
    @classmethod
    def class_above(cls) -> str:
        return cls.name

    @classmethod
    @expose
    def class_below(cls) -> str:
        return cls.name

    @expose
    @functools.lru_cache  # noqa: B019 - what is tested ends with the process
    def cached(self) -> int:
        return 3

    @expose
    def with_an_argument(self, number: int) -> int:
        return number

    partly = functools.partialmethod(with_an_argument, 4)


class Heir(Kinds):
    @expose
    def another(self) -> int:
        return 5

    def static_below(self) -> int:  # type: ignore[override]
        return 6


def test_every_kind_of_method_may_be_marked(site: Site) -> None:
    site.serve({}, services=[Kinds])
    kinds = site.client().services.kinds
    assert [kinds.static_above(), kinds.static_below(), kinds.cached()] == [1, 2, 3]
    assert [kinds.class_above(), kinds.class_below()] == ["kinds", "kinds"]
    assert kinds.with_an_argument(5) == 5


def test_other_marks_may_be_above_static_and_class_methods_too() -> None:
    class Marked:
        @on("boom")
        @on("bang")
        @staticmethod
        def hear(data: Any) -> None:
            """Nothing to do."""

        @every(seconds=3600)
        @classmethod
        def tick(cls) -> None:
            """Nothing to do."""

        @expose
        @job(retries=2)
        @staticmethod
        def work() -> None:
            """Nothing to do."""

        name = "marked"

    found = RpcReceiver(services=[Marked], backend="memory://")
    worker = found.describe()
    assert {each.event for each in worker.listeners} == {"boom", "bang"}
    assert list(worker.timers) == ["marked.tick"]
    assert found.jobs["marked.work"].options.retries == 2


def test_marks_are_inherited_and_a_method_without_one_takes_them_away() -> None:
    found = service(Heir)
    assert {"kinds.static_above", "kinds.another"} <= set(found.jobs)
    assert "kinds.static_below" in found.hidden


def test_a_decorator_that_keeps_attributes_keeps_the_mark() -> None:
    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    class Decorated:
        name = "decorated"

        @decorated
        @expose
        def below(self) -> int:
            return 1

        @expose
        @decorated
        def above(self) -> int:
            return 2

    assert list(service(Decorated).jobs) == ["decorated.above", "decorated.below"]


class Cached:
    """As frameworks have them: a descriptor without `__set__`."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self.function(instance)


def test_no_property_is_evaluated() -> None:
    asked = []

    class Lazy:
        name = "lazy"

        @property
        def plain(self) -> None:
            asked.append("property")

        @functools.cached_property
        def cached(self) -> None:
            asked.append("cached_property")

        @Cached
        def own(self) -> None:
            asked.append("descriptor")

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("_"):
                asked.append(name)
            raise AttributeError(name)

        def __dir__(self) -> list[str]:
            return [*super().__dir__(), "made_up"]

        @expose
        def foo(self) -> None:
            """Is all that there is."""

    found = service(Lazy())
    assert list(found.jobs) == ["lazy.foo"]
    assert found.hidden == set()
    assert asked == []


# Names.


def exposing(**names: str) -> Any:
    """A service of this name, with a method of that one."""
    return SimpleNamespace(name=names["name"], **{names.get("method", "foo"): expose(lambda: 1)})


@pytest.mark.parametrize("method", sorted(RESERVED_METHODS))
def test_what_proxies_have_themselves_is_reserved(method: str) -> None:
    with pytest.raises(SettingsError, match=rf"example\.{method}: nothing must be named so"):
        service(exposing(name="example", method=method))
    with pytest.raises(SettingsError, match="nothing must be named so"):
        service(exposing(name=f"example.{method}"))
    assert service(exposing(name=method)).name == method


@pytest.mark.parametrize("name", ["rpc", "rpc.inside"])
def test_what_is_ours_is_reserved(name: str) -> None:
    with pytest.raises(SettingsError, match=f"'{name}' is reserved"):
        service(exposing(name=name))


def test_names_of_jobs_that_are_ours_are_reserved(memory_url: str) -> None:
    jobs = {"rpc.discover": len, "add": len, "rpc.mine": len}
    with pytest.raises(
        SettingsError, match=r"^rpc\.discover, rpc\.mine: what begins with 'rpc\.' is reserved"
    ):
        RpcReceiver(jobs=jobs, backend=memory_url)
    assert {"rpc", "rpcs.mine"} <= {
        *RpcReceiver(jobs={"rpc": len, "rpcs.mine": len}, backend=memory_url).jobs
    }


@pytest.mark.parametrize("names", [
    {"name": "example", "method": "_foo"}, {"name": "_example"}, {"name": "a._b"},
])  # fmt: skip
def test_what_is_private_is_not_exposed(names: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="private"):
        service(exposing(**names))


@pytest.mark.parametrize("name", ["1st", "a b", "a..b", "a.", ".a", "é", "a" * 125, "../a"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"no job name|has no `name`"):
        service(exposing(name=name))


@pytest.mark.parametrize("name", [None, "", 5, lambda: "a"])
def test_what_exposes_methods_needs_a_name_that_is_a_text(name: Any) -> None:
    with pytest.raises(SettingsError, match="exposes methods, but has no `name`"):
        service(exposing(name=name))


def receiver(*services: Any, **options: Any) -> RpcReceiver:
    return RpcReceiver(services=services, backend="memory://", **options)


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="two services are named 'example'"):
        receiver(Example, Example("again"))


def nothing() -> None: ...


def heard(event: Any) -> None: ...


@pytest.mark.parametrize(
    "marked", [every(seconds=1)(nothing), cron("* * * * *")(nothing), on("order.created")(heard)]
)
def test_what_would_tick_or_listen_as_a_job_alone_is_refused(marked: Any) -> None:
    refusal = r"job 'it' is marked with .*: name '[a-z.]*test_services' in RPC_SERVICES"
    with pytest.raises(SettingsError, match=refusal):
        receiver(jobs={"it": marked})
    module = ModuleType(marked.__module__)
    module.it = marked  # type: ignore[attr-defined]
    receiver(module, jobs={"it": marked})


def test_a_job_and_a_method_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"example\.foo: registered twice"):
        receiver(Example, jobs={"example.foo": print, "add": print})
    with pytest.raises(SettingsError, match=r"a\.b\.foo: registered twice"):
        receiver(service(exposing(name="b", method="foo"), name="a.b"), jobs={"a.b.foo": print})


def test_what_has_only_listeners_needs_no_name() -> None:
    class Listening:
        @on("boom")
        def hear(self, data: Any) -> None:
            """Nothing to do."""

        def helper(self) -> None:
            """Is not for clients."""

    assert service(Listening).jobs == {}
    found = receiver(Listening, Listening(), Example).jobs
    assert set(found) == set(service(Example).jobs)
    with pytest.raises(ServiceNotFound):
        found.find("Listening.helper")


def test_a_dotted_path_is_for_the_settings_alone() -> None:
    with pytest.raises(SettingsError, match=r"'shop\.Example' is no service: .* RPC_SERVICES"):
        receiver("shop.Example", jobs={"add": print})


# Settings.

SHOP = """
from rpc import expose, service

class Shop:
    name = "shop"

    @expose
    def kind(self):
        return "class"

class Other(Shop):
    name = "other"

instance = Other()
under_a_name = service(Shop, name="third.shop")
"""
PRICES = """
from rpc import expose

@expose
def kind():
    return "module"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "shop_package").mkdir()
    (tmp_path / "shop_package" / "__init__.py").write_text(SHOP)
    (tmp_path / "shop_package" / "prices.py").write_text(PRICES)
    (tmp_path / "shop_module.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("shop_")]:
        del sys.modules[name]


def settings(url: str, *services: Any) -> ModuleType:
    module = ModuleType("settings")
    module.RPC_BACKEND, module.RPC_SERVICES = url, services  # type: ignore[attr-defined]
    return module


@pytest.mark.usefixtures("shop")
def test_settings_name_classes_instances_modules_and_services() -> None:
    paths = ["shop_package.Shop", "shop_package.instance", "shop_package.prices", "shop_package.under_a_name"]
    receiver = RpcReceiver(settings=settings("memory://", *paths, exposing(name="direct")))
    assert set(receiver.jobs) == {"shop.kind", "other.kind", "prices.kind", "third.shop.kind", "direct.foo"}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nosuch", "ModuleNotFoundError"),
        ("nosuch.Shop", "ModuleNotFoundError"),
        ("shop_module.Nosuch", r"shop_module has no Nosuch$"),
        ("shop_package.nosuch", r"shop_package has no nosuch$"),
    ],
)
def test_a_path_that_leads_nowhere_is_named_with_its_module(path: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"settings: RPC_SERVICES is '{path}'.*{text}"):
        RpcReceiver(settings=settings("memory://", path))


def test_what_offers_nothing_is_refused() -> None:
    class Forgotten:
        name = "forgotten"

        def method(self) -> None:
            """Nobody marked it."""

    with pytest.raises(SettingsError, match="offers nothing"):
        service(Forgotten)
