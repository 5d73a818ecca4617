"""Clients with types: what they do, and what type checkers say of them."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import is_dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_memory import LONG, Site

from rpc import AsyncRpcClient, Identity, InvalidParams, RpcClient, RpcReceiver
from rpc.contract.documents import checked
from rpc.contract.stubs import stubs

from .shop import Shop, raw


@pytest.fixture
def source() -> str:
    receiver = RpcReceiver(jobs={"raw": raw}, services=[Shop], backend="memory://")
    return stubs(checked(receiver.discover()))


def loaded(source: str, path: Path) -> ModuleType:
    """The module, under a name of its own: classes are looked up by that of their module."""
    name = f"stubs_{uuid4().hex}"
    (path / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, path / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made(source: str, tmp_path: Path) -> Iterator[ModuleType]:
    module = loaded(source, tmp_path)
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        found = Site(stack)
        found.serve({"raw": raw}, services=[Shop])
        yield found


def test_calls_arrive_and_values_come_back(site: Site, made: Any) -> None:
    client = made.Client(site.client())
    shop = client.shop.main
    item = made.Item(name="tea", price=Decimal("1.5"), colour=made.Colour.DARK_BLUE)
    assert shop.buy(item, 2, paid=made.Cash(given=5.0)) == "2 x tea (dark_blue) by Cash"
    assert shop.buy(item, paid=made.Card(number="1", from_=date(2030, 1, 1))) == "1 x tea (dark_blue) by Card"
    (found,) = shop.list(["tea"])
    assert found == made.Item(name="tea", price=Decimal("1.50"), until=datetime(2030, 1, 2, 3))
    assert shop.sum(1, 2, 3, 4, more=5) == 15
    assert shop.where(made.Address(street="s", zip="1"), at=(1, 2)) == (0, "s")
    assert shop.move(uuid4()) == made.Card(number="1234", from_=date(2029, 1, 1))
    assert shop.nothing(data=b"x") is None
    assert shop.unannotated("one") == "one"
    assert shop.class_({"a": 1}) == {"a": 1}
    assert client.raw([1, 2]) == client.raw({"a": 1, "b": 2}) == {"got": 2}
    assert client.raw() == {"got": 0}
    assert made.ShopMain(site.client()).sum(1) == 1


def test_one_service_is_called_by_its_type(made: Any) -> None:
    async def awaited(url: str) -> None:
        async with AsyncRpcClient(backend=url) as client:
            calls = made.AsyncClient(await client.service(type="shop", wait_for_receiver=LONG))
            assert await calls.shop.main.sum(1, 2) == 3
            assert [each.name async for each in calls.shop.main.tail(1)] == ["0"]

    with ExitStack() as stack:
        site = Site(stack)
        site.serve({"raw": raw}, services=[Shop], identity=Identity(type="shop"))
        client = made.Client(site.client().service(type="shop", wait_for_receiver=LONG))
        assert client.shop.main.sum(1, 2) == 3
        assert [each.name for each in client.shop.main.tail(1)] == ["0"]
        assert client.raw({"a": 1}) == {"got": 1}
        asyncio.run(awaited(site.url))


def test_streams_are_generators(site: Site, made: Any) -> None:
    shop = made.Client(site.client()).shop.main
    assert [each.name for each in shop.tail(2)] == ["0", "1"]
    assert list(shop.ticks(to=3)) == [{"tick": 0}, {"tick": 1}, {"tick": 2}]
    assert list(shop.talk()) == ["hello"]
    tail = shop.tail(1000)
    assert next(tail) == made.Item(name="0", price=Decimal(0))
    tail.close()


def test_the_same_is_awaited(site: Site, made: Any) -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=site.url) as client:
            calls = made.AsyncClient(client)
            assert await calls.shop.main.sum(1, 2) == 3
            (found,) = await calls.shop.main.list()
            assert found.until == datetime(2030, 1, 2, 3)
            assert [each.name async for each in calls.shop.main.tail(2)] == ["0", "1"]
            assert await calls.raw({"a": 1}) == {"got": 1}

    asyncio.run(main())


def test_a_worker_still_says_what_is_wrong(site: Site, made: Any) -> None:
    with pytest.raises(InvalidParams, match="quantity"):
        made.Client(site.client()).shop.main.buy(
            made.Item(name="t", price=Decimal(1)), 0, paid=made.Cash(given=1)
        )


RIGHT = """
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

from client import AsyncClient, Card, Cash, Client, Colour, Item

from rpc import AsyncRpcClient, RpcClient


def main(client: Client) -> None:
    item = Item(name="tea", price=Decimal(1), colour=Colour.RED)
    receipt: str = client.shop.main.buy(item, 2, paid=Cash(given=1.0))
    items: list[Item] = client.shop.main.list(["tea"], "some")
    total: float = client.shop.main.sum(1, 2.5, 3, more=4)
    tail: Iterator[Item] = client.shop.main.tail(3)
    paid: Cash | Card = client.shop.main.move(__import__("uuid").uuid4())
    print(receipt, items, total, tail, paid, client.raw({"a": 1}), client.shop.main.class_(x=1))


async def awaited(client: AsyncClient) -> None:
    items: list[Item] = await client.shop.main.list()
    tail: AsyncIterator[Item] = client.shop.main.tail(3)
    print(items, [each.name async for each in tail])


main(Client(RpcClient()))
asyncio.run(awaited(AsyncClient(AsyncRpcClient())))
"""
WRONG = """
from client import AsyncClient, Client, Item


def wrong(client: Client) -> None:
    client.shop.main.list(3)
    client.shop.main.list(["a"], "none")
    client.shop.main.buy("tea")
    client.shop.main.nosuch()
    number: int = client.shop.main.list()
    client.shop.main.where(None, None, None, None)
    for each in client.shop.main.tail(2):
        each.colour.nosuch


async def also_wrong(client: AsyncClient) -> None:
    items: list[Item] = client.shop.main.list()
"""
MISTAKES = {6, 7, 8, 9, 10, 11, 13, 17}
"""Lines."""


def mypy(*files: str) -> list[str]:
    return ["mypy", "--strict", "--no-error-summary", "--cache-dir", "cache", *files]


def pyright(*files: str) -> list[str]:
    version = [sys.executable, "-m", "pyright", "--version"]
    if subprocess.run(version, capture_output=True, check=False).returncode:
        pytest.skip("needs pyright, which fetches itself, and Node, when it is run first")
    return ["pyright", "--pythonpath", sys.executable, *files]


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_accept_it_and_find_wrong_calls(
    checker: Callable[..., list[str]], source: str, tmp_path: Path
) -> None:
    (tmp_path / "client.py").write_text(source)
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)

    def says(*files: str) -> str:
        command = [sys.executable, "-m", *checker(*files)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode else ""

    assert says("client.py", "right.py") == ""
    lines = [line.partition("wrong.py:")[2] for line in says("wrong.py").splitlines() if "error" in line]
    assert {int(line.partition(":")[0]) for line in lines if line} == MISTAKES


def foreign(schemas: Any = None, *methods: Any) -> str:
    info = {"title": "t", "version": "1"}
    components = {"schemas": schemas or {}}
    return stubs(checked({"openrpc": "1.4.1", "info": info, "methods": [*methods], "components": components}))


def parameter(schema: Any, **more: Any) -> dict[str, Any]:
    return {"name": "m", "params": [{"name": "p", "schema": schema, "required": True, **more}]}


@pytest.mark.parametrize(
    ("schema", "annotation"),
    [
        (True, "Any"),
        ({}, "Any"),
        ({"type": "integer"}, "int"),
        ({"type": ["string", "null"]}, "str | None"),
        ({"oneOf": [{"type": "null"}, {"type": "number"}]}, "float | None"),
        ({"enum": ["a", 1, None]}, 'Literal["a"] | Literal[1] | None'),
        ({"const": True}, "bool"),
        ({"enum": [1.5, 2.5]}, "float"),
        ({"anyOf": [{"type": "string"}, {"type": "string", "format": "date"}]}, "str"),
        ({"anyOf": [{"type": "array"}, {"type": "array", "items": {"type": "string"}}]}, "list[Any]"),
        (
            {"anyOf": [{"$ref": "#/components/schemas/A"}, {"$ref": "#/components/schemas/B"}]},
            "dict[str, Any]",
        ),
        ({"anyOf": [{"$ref": "#/components/schemas/A"}, True]}, "Any"),
        ({"allOf": [{"$ref": "#/components/schemas/A"}]}, "A"),
        ({"$ref": "#/components/schemas/Loop"}, "list[Any]"),
        ({"$ref": "#/components/schemas/nosuch"}, "Any"),
        (
            {"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
            "tuple[str, int]",
        ),
        ({"type": "array", "items": [{"type": "string"}]}, "list[Any]"),
        ({"type": "object"}, "dict[str, Any]"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "dict[str, int]"),
        ({"type": "string", "contentEncoding": "base64"}, "bytes"),
        ({"type": "string", "format": "email"}, "str"),
    ],
)
def test_schemas_of_others_are_types(schema: Any, annotation: str, tmp_path: Path) -> None:
    properties = {"type": "object", "properties": {"x": {"type": "integer"}}}
    loop = {"type": "array", "items": {"$ref": "#/components/schemas/Loop"}}
    source = foreign({"A": properties, "B": properties, "Loop": loop}, parameter(schema))
    assert f"def m(self, p: {annotation}) -> Any:" in source
    loaded(source, tmp_path)


def test_names_that_python_has_are_others(tmp_path: Path) -> None:
    names = ["from", "a-b", "a_b", "1st", "self", "str", "_services"]
    params = [{"name": name, "schema": {"type": "string"}} for name in names]
    method = {"name": "class.import.x", "params": params, "paramStructure": "by-name"}
    source = foreign(
        {"Any": {"type": "object", "properties": {"str": {"type": "string"}}}}, method, parameter({})
    )
    module: Any = loaded(source, tmp_path)
    calls: list[Any] = []

    class Fake:
        services = {"class.import.x": lambda **given: calls.append(given)}  # noqa: RUF012

    module.Client(Fake()).class_.import_.x(
        from_="f", a_b="1", a_b_="2", _1st="3", self_="4", str="5", _services_="6"
    )
    assert calls == [dict(zip(names, ["f", "1", "2", "3", "4", "5", "6"], strict=True))]
    assert module.Any(str="x").str == "x"


def test_what_others_take_by_position_is_sent_so(tmp_path: Path) -> None:
    params = [{"name": name, "schema": {}} for name in ("a", "b")]
    source = foreign(None, {"name": "m", "params": params, "paramStructure": "by-position"})
    calls: list[Any] = []

    class Fake:
        services = {"m": lambda *given: calls.append(given)}  # noqa: RUF012

    module: Any = loaded(source, tmp_path)
    module.Client(Fake()).m(1)
    module.Client(Fake()).m(1, b=2)
    assert calls == [(1,), (1, 2)]
    with pytest.raises(TypeError, match="one is missing"):
        module.Client(Fake()).m(b=2)


def test_what_others_write_stays_text(tmp_path: Path) -> None:
    evil = '"""\nimport os\nraise SystemExit("\0\ud800\u2028\\'
    schemas = {
        "E": {"enum": [evil, "'", '"']},
        "T": {
            "type": "object",
            "description": evil,
            "properties": {"type": {"const": evil}, "a'b": {"type": "string", "default": evil}},
            "required": ["type"],
        },
        "U": {"type": "object", "properties": {evil: {}}},
    }
    method = {"name": f"a.{evil}", "params": [{"name": evil, "schema": {"enum": [evil], "default": evil}}]}
    document = {
        "openrpc": "1.4.1",
        "info": {"title": evil, "version": evil},
        "methods": [{**method, "summary": evil, "description": evil}],
        "components": {"schemas": schemas},
    }
    module: Any = loaded(stubs(checked(document)), tmp_path)
    assert [each.value for each in module.E] == [evil, "'", '"']
    assert "raise SystemExit" in (inspect.getdoc(module.T) or "")
    assert module.T().a_b == evil


NAMES = st.sampled_from(
    ["a", "b", "list", "str", "Any", "class", "a-b", "UNSET", "date", "__init__", "Ü", "1"]
)
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["a", "", "date", "\n"])


def schemas(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries({}, optional=parts)

    return st.one_of(
        made(anyOf=st.lists(children, max_size=3), default=SCALARS),
        made(type=st.just("array"), items=children | st.lists(children, max_size=2), minItems=st.just(2)),
        made(
            type=st.just("object"),
            properties=st.dictionaries(NAMES, children, max_size=3),
            required=st.lists(NAMES, max_size=3),
            additionalProperties=children,
            default=st.just({}),
        ),
    )


SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {}, optional={"enum": st.lists(SCALARS, min_size=1, max_size=3), "default": SCALARS}
    )
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "number", "boolean", "null"])},
        optional={"format": st.sampled_from(["date", "uuid", "x"]), "default": SCALARS},
    )
    | NAMES.map(lambda name: {"$ref": f"#/components/schemas/{name}"}),
    schemas,
    max_leaves=6,
)
PARAMETERS = st.lists(
    st.fixed_dictionaries({"name": NAMES, "schema": SCHEMAS, "required": st.booleans()}),
    max_size=3,
    unique_by=lambda each: each["name"],
).map(lambda params: sorted(params, key=lambda each: not each["required"]))
METHODS = st.fixed_dictionaries(
    {"name": st.lists(NAMES, min_size=1, max_size=3).map(".".join), "params": PARAMETERS},
    optional={
        "paramStructure": st.sampled_from(["by-name", "by-position", "either"]),
        "result": st.fixed_dictionaries({"name": NAMES, "schema": SCHEMAS}),
        "x-rpc-stream": st.fixed_dictionaries({"items": SCHEMAS}),
        "x-rpc-style": st.just("request"),
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(components=st.dictionaries(NAMES, SCHEMAS, max_size=4), methods=st.lists(METHODS, max_size=4))
def test_of_whatever_document_it_is_a_module_whose_classes_msgspec_takes(
    components: Any, methods: Any, tmp_path: Path
) -> None:
    module = loaded(foreign(components, *methods), tmp_path)
    for each in vars(module).values():
        if isinstance(each, type) and is_dataclass(each):
            msgspec.json.schema(each)
    del sys.modules[module.__name__]


def test_only_what_is_used_is_imported(source: str, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(source)
    command = ["ruff", "check", "--isolated", "--select", "F", "client.py"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"All checks passed!\n")


def test_a_client_of_nothing_is_a_module(tmp_path: Path) -> None:
    assert loaded(foreign(), tmp_path).Client
    assert RpcClient
