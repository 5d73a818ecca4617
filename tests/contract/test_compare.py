"""What changed between two documents, and which of it breaks callers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, make_dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from rpc import Request, RpcReceiver, SettingsError
from rpc.contract.compare import changes
from rpc.contract.openrpc import openrpc
from rpc.contract.subset import Subset
from rpc.core.jobs import jobs_from
from rpc.settings import Settings

from .shop import Address, Card, Cash, Colour, Item, Place, Shop
from .specifications import resolved


def document(handler: Callable[..., Any] | None) -> dict[str, Any]:
    return openrpc(jobs_from({} if handler is None else {"job": handler}), title="t", version="1")


def told(old: Any, new: Any) -> list[tuple[bool, str]]:
    return [(each.is_breaking, each.text) for each in changes(document(old), document(new))]


def taking(kind: Any) -> Callable[..., Any]:
    def handler(value: Any) -> None: ...

    handler.__annotations__ = {"value": kind, "return": None}
    return handler


def giving(kind: Any) -> Callable[..., Any]:
    def handler() -> Any: ...

    handler.__annotations__ = {"return": kind}
    return handler


def a_b(a: int, b: int) -> None: ...
def b_a(b: int, a: int) -> None: ...
def a_c(a: int, c: int) -> None: ...
def a_only(a: int) -> None: ...
def a_b_optional(a: int, b: int = 0) -> None: ...
def a_between(a: int, c: int = 1, b: int = 0) -> None: ...
def a_b_named(a: int, *, b: int) -> None: ...
def a_b_placed(a: int, b: int, /) -> None: ...
def a_others(a: int, **others: int) -> None: ...
def a_rest(a: int, *rest: int) -> None: ...
def a_list(a: int, rest: list[int] = ()) -> None: ...  # type: ignore[assignment]
def any_data(request: Request) -> None: ...
def stream(a: int) -> Iterator[int]:
    yield a


def stream_of_texts(a: int) -> Iterator[str]:
    yield str(a)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (a_b, None, [(True, "the method is gone")]),
        (None, a_b, [(False, "the method is new")]),
        (a_b, a_b, []),
        (a_only, a_b, [(True, "parameter 'b' is new, and required")]),
        (a_only, a_b_optional, [(False, "parameter 'b' is new")]),
        (a_b, a_only, [(True, "parameter 'b' is gone")]),
        (a_b, a_others, [(True, "parameter 'b' is gone")]),
        (a_b_named, a_others, [(False, "parameter 'b' is gone")]),
        (a_rest, a_list, [(True, "parameter 'rest' takes any number of arguments no more")]),
        (
            a_list,
            a_rest,
            [
                (True, "rest cannot be given by position any more"),
                (True, "rest cannot be given by name any more"),
            ],
        ),
        (a_b_optional, a_b, [(True, "parameter 'b' is required now")]),
        (a_b, a_b_optional, [(False, "parameter 'b' is no longer required")]),
        (a_b, b_a, [(True, "the order of positional parameters was a, b, and is b, a")]),
        (a_b, a_b_named, [(True, "b cannot be given by position any more")]),
        (a_b_named, a_b, []),
        (a_b, a_b_placed, [(True, "a, b cannot be given by name any more")]),
        (a_b_placed, a_b, []),
        (any_data, a_b, [(True, "it took any data, and takes parameters now")]),
        (
            a_b,
            any_data,
            [
                (True, "the result is wider (null, now anything): anything is not null"),
                (False, "it takes any data now"),
            ],
        ),
        (
            stream,
            stream_of_texts,
            [(True, "what it yields is wider (integer, now string): string is not integer")],
        ),
    ],
)
def test_changes_of_parameters(old: Any, new: Any, expected: list[tuple[bool, str]]) -> None:
    found = told(old, new)
    assert found[: len(expected)] == expected
    assert not any(is_breaking for is_breaking, _ in found[len(expected) :])


def test_a_parameter_in_between_changes_the_order() -> None:
    assert (True, "the order of positional parameters was a, b, and is a, c, b") in told(
        a_b_optional, a_between
    )


def test_a_stream_is_no_value() -> None:
    assert (True, "it is a stream now") in told(a_only, stream)
    assert (True, "it is a stream no more") in told(stream, a_only)


class Fewer(enum.Enum):
    RED = "red"


def order(*fields: Any) -> Any:
    return make_dataclass("Order", fields, kw_only=True)


SMALL = order(("a", int))
MORE = order(("a", int), ("b", int, 0))
NEEDED = order(("a", int), ("b", int))


@pytest.mark.parametrize(
    ("narrow", "wide", "why"),
    [
        (int, float, "number is not integer"),
        (int, int | None, "null is not integer"),
        (int, int | str, "string is not integer"),
        (Fewer, Colour, '"dark-blue" not among "red"'),
        (Literal["a"], Literal["a", "b"], '"b" not among "a"'),
        (Literal["a"], str, 'string is not "a"'),
        (datetime, str, "format is not given, not date-time"),
        (list[int], list[float], "[]: number is not integer"),
        (dict[str, int], dict[str, int | None], ".*: null is not integer"),
        (tuple[int, int], tuple[int, float], "[1]: number is not integer"),
        (tuple[int, int], list[int], "minItems is not given, not 2; maxItems is not given, not 2"),
        (NEEDED, MORE, ".b: is required"),
        (NEEDED, SMALL, ".b: is required"),
        (Annotated[int, msgspec.Meta(ge=1)], int, "minimum is not given, not 1"),
        (Annotated[int, msgspec.Meta(le=5)], Annotated[int, msgspec.Meta(le=6)], "maximum is 6, not 5"),
        (Cash, Cash | Card, ".given: is required"),
        (int, Any, "anything is not integer"),
    ],
)
def test_what_takes_less_or_may_be_more_is_breaking(narrow: Any, wide: Any, why: str) -> None:
    """Each way round."""
    for old, new in ((taking(wide), taking(narrow)), (giving(narrow), giving(wide))):
        ((is_breaking, text),) = told(old, new)
        assert is_breaking
        assert text.endswith(f": {why}"), text
    for old, new in ((taking(narrow), taking(wide)), (giving(wide), giving(narrow))):
        ((is_breaking, text),) = told(old, new)
        assert not is_breaking
        assert (" is wider (" in text) == (new.__annotations__.keys() == {"value", "return"})


@dataclass
class Tree:
    name: str
    below: list[Tree]


@dataclass
class Leafy:
    name: str
    below: list[Leafy]
    size: int | None = None


KINDS: list[Any] = [
    *(int, float, str, bool, None, Any, date, datetime, bytes),
    *(list[int], list[int | None], list[str], list[Any], set[int], tuple[int, str], tuple[int, ...]),
    *(dict[str, int], dict[str, float], dict[str, Any], dict[str, list[str]]),
    *(int | None, int | str, float | None, int | str | None, list[int] | int),
    *(Colour, Fewer, Literal[1], Literal[1, 2], Colour | None, Literal["red"]),
    *(Item, Cash, Card, Cash | Card, Place, Address, Tree, Leafy, SMALL, MORE, NEEDED, SMALL | None),
    *(Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=0, le=10)]),
    *(Annotated[str, msgspec.Meta(max_length=3)], Annotated[str, msgspec.Meta(pattern="^r")]),
    *(Annotated[list[int], msgspec.Meta(min_length=1)],),
]
VALUES: list[Any] = [
    *(0, 1, 2, 11, -1, 0.5, 1.0, "", "a", "red", "dark-blue", "long text", True, False, None),
    *([], [1], [1, 1], [1, "a"], [None], ["a"], [0.5], [1, 2, 3], {}, {"a": 1}, {"a": 0.5}, {"a": None}),
    *({"a": 1, "b": 2}, {"a": ["x"]}, {"type": "Cash", "given": 1.0}),
    *({"type": "Card", "number": "1"}, {"type": "Card", "number": "1", "from": "2029-01-01"}),
    *({"name": "t", "price": "1"}, {"name": "t", "price": "1", "colour": "red", "parts": []}),
    *({"name": "t", "below": []}, {"name": "t", "below": [{"name": "u", "below": []}]}),
    *({"name": "t", "below": [], "size": 1}, {"street": "s", "zip": "1"}),
]


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_what_is_said_to_be_a_part_is_one(number: int) -> None:
    """Against a validator, with values of all kinds, but for members that no schema names; and everything is
    a part of itself and of anything."""
    narrow = document(taking(KINDS[number]))
    mine = narrow["methods"][0]["params"][0]["schema"]
    is_mine = resolved(narrow, mine).is_valid
    for other in KINDS:
        wide = document(taking(other))
        theirs = wide["methods"][0]["params"][0]["schema"]
        subset = Subset(narrow["components"]["schemas"], wide["components"]["schemas"])
        why = subset.difference(mine, theirs)
        if other is KINDS[number] or other is Any:
            assert why == ""
        if why == "":
            is_theirs = resolved(wide, theirs).is_valid
            assert [each for each in VALUES if is_mine(each) and not is_theirs(each)] == []


def test_a_class_that_failed_once_fails_again() -> None:
    """Also if it was assumed to fit while it contained itself."""
    old, new = document(giving(Tree)), document(giving(Leafy))
    subset = Subset(new["components"]["schemas"], old["components"]["schemas"])
    leafy, tree = ({"$ref": f"#/components/schemas/{name}"} for name in ("Leafy", "Tree"))
    assert subset.difference(leafy, tree) == ""
    narrow, wide = (
        {"type": "object", "properties": {"a": {"$ref": "#/c/A"}, "z": {"type": kind}}}
        for kind in ("string", "null")
    )
    subset = Subset({"A": narrow}, {"A": wide})
    reference = {"$ref": "#/c/A"}
    for _ in range(2):
        assert subset.difference(reference, reference) == ".z: string is not null"


def test_documents_of_other_makers_are_compared() -> None:
    def foreign(schema: Any) -> dict[str, Any]:
        method = {"name": "a", "params": [{"name": "p", "schema": schema}], "paramStructure": "by-name"}
        return {"methods": [method], "components": {}}

    found = changes(foreign({"type": ["string", "null"]}), foreign({"oneOf": [{"type": "string"}]}))
    assert [(each.is_breaking, str(each)) for each in found] == [
        (True, "a: parameter 'p' is narrower (string | null, now string): null is not string")
    ]
    assert changes(foreign(True), foreign({})) == []
    assert changes(foreign({"allOf": [{"type": "string"}]}), foreign({"type": "string"})) == []


def contract(path: Path, *services: Any, **jobs: Any) -> str:
    found = RpcReceiver(jobs=jobs, services=services, backend="memory://").discover()
    (path / "openrpc.json").write_bytes(msgspec.json.encode(found))
    return str(path / "openrpc.json")


def test_a_worker_that_breaks_its_contract_is_not_made(tmp_path: Path) -> None:
    settings = Settings(contract=contract(tmp_path, job=a_b))
    RpcReceiver(jobs={"job": a_b_optional, "new": a_b}, backend="memory://", settings=settings)
    with pytest.raises(SettingsError) as caught:
        RpcReceiver(jobs={"job": b_a, "new": a_b}, backend="memory://", settings=settings)
    assert str(caught.value) == (
        f"what is offered breaks the contract {settings.contract}: "
        "job: the order of positional parameters was a, b, and is b, a"
    )


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_a_contract_that_cannot_be_read_is_an_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "openrpc.json").write_text(text)
    settings = Settings(contract=str(tmp_path / "openrpc.json"))
    with pytest.raises(SettingsError, match=r"^RPC_CONTRACT: .*openrpc\.json"):
        RpcReceiver(jobs={"job": a_b}, backend="memory://", settings=settings)


def test_a_service_keeps_its_own_contract(tmp_path: Path) -> None:
    settings = Settings(contract=contract(tmp_path, Shop))
    RpcReceiver(services=[Shop], backend="memory://", settings=settings)
