"""How the arguments of a call become those of a handler in typed style."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial, wraps
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest

from rpc import InvalidParams
from rpc.core.parameters import Parameters
from rpc.core.protocol import Call


def called(handler, params=None, kwargs=None):
    args, named = Parameters(handler).bind(Call("work", params, kwargs))
    return handler(*args, **named)


def annotated(kind):
    def handler(place):
        return place

    handler.__annotations__ = {"place": kind}
    return handler


@dataclass
class Home:
    street: str
    number: int = 1


class Order(msgspec.Struct):
    id: UUID
    to: Home
    tags: set[str] = msgspec.field(default_factory=set)


class Picky(msgspec.Struct):
    number: int

    def __post_init__(self):
        raise KeyError("as it likes")


Colour = enum.Enum("Colour", {"RED": "red"})
SEVEN = UUID(int=7)


@pytest.mark.parametrize(("kind", "sent", "got"), [
    (int, 1, 1), (float, 1, 1.0), (str, "a", "a"), (bytes, "AP8=", b"\x00\xff"), (UUID, str(SEVEN), SEVEN),
    (datetime, "2030-01-02T03:04:05Z", datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
    (timedelta, "PT1M", timedelta(minutes=1)), (Decimal, "1.10", Decimal("1.10")),
    (Colour, "red", Colour.RED), (list[int], [1, 2], [1, 2]), (tuple[int, str], [1, "a"], (1, "a")),
    (set[int], [1, 1], {1}), (int | None, None, None), (int | None, 5, 5),
    (Any, {"any": ["thing"]}, {"any": ["thing"]}), (object, 1, 1),
    (dict[str, Home], {"mine": {"street": "a"}}, {"mine": Home("a")}),
    (Order, {"id": str(SEVEN), "to": {"street": "a", "number": 2}}, Order(SEVEN, Home("a", 2))),
], ids=str)  # fmt: skip
def test_an_argument_is_converted_to_its_annotation(kind, sent, got):
    result = called(annotated(kind), {"place": sent})
    assert result == called(annotated(kind), [sent]) == got
    assert type(result) is type(got)


@pytest.mark.parametrize(("kind", "sent"), [
    (int, "1"), (int, 1.5), (int, True), (int, None), (str, 1), (datetime, "soon"), (UUID, "7"),
    (list[int], [1, "2"]), (list[int], {"0": 1}), (int | None, "1"), (Colour, "blue"),
    (Annotated[int, msgspec.Meta(gt=0)], 0), (Home, {}), (Home, {"street": 1}), (Order, []),
    (Picky, {"number": 1}),
], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    "params", [lambda sent: {"place": sent}, lambda sent: [sent]], ids=["named", "array"]
)
def test_an_argument_that_does_not_fit_is_named(kind, sent, params):
    with pytest.raises(InvalidParams, match=r"^place: "):
        called(annotated(kind), params(sent))


def plain(a, b: int = "unset", *, c=3):
    return a, b, c


def gathering(a: int, *rest: int, **named: int):
    return a, rest, named


def first_only(a: int, /, b: int = 2):
    return a, b


@pytest.mark.parametrize(("handler", "params", "kwargs", "got"), [
    (plain, {"a": 1}, None, (1, "unset", 3)), (plain, [1], {}, (1, "unset", 3)),
    (plain, [1, 5], {"c": 6}, (1, 5, 6)), (plain, {"c": 6, "a": 1}, None, (1, "unset", 6)),
    (gathering, [1, 2, 3], {"x": 4}, (1, (2, 3), {"x": 4})),
    (gathering, {"a": 1, "x": 4}, None, (1, (), {"x": 4})), (first_only, [1], {"b": 3}, (1, 3)),
    (lambda: (), None, None, ()), (lambda: (), {}, None, ()), (lambda: (), [], None, ()),
])  # fmt: skip
def test_positional_and_named_arguments_find_their_parameters(handler, params, kwargs, got):
    assert called(handler, params, kwargs) == got


@pytest.mark.parametrize(("handler", "params", "kwargs", "culprit"), [
    (plain, None, None, "'a'"), (plain, {}, None, "'a'"), (plain, {"b": 1}, None, "'a'"),
    (plain, {"a": 1, "d": 4}, None, "'d'"), (plain, [1], {"a": 1}, "'a'"), (plain, [1, 2, 3], {}, "too many"),
    (plain, [1], {"d": 4}, "'d'"), (plain, {1: 2}, None, "keywords"), (gathering, {1: 2}, None, "keywords"),
    (gathering, [1, "2"], {}, "rest"), (gathering, {"a": 1, "x": "4"}, None, "named"),
    (first_only, {"a": 1}, None, "'a'"),
])  # fmt: skip
def test_arguments_that_find_no_parameter_are_named(handler, params, kwargs, culprit):
    with pytest.raises(InvalidParams, match=culprit):
        called(handler, params, kwargs)


class Shop:
    def order(self, amount: int):
        return amount

    @classmethod
    def opened(cls, amount: int):
        return amount

    @staticmethod
    def priced(amount: int):
        return amount

    __call__ = order


@wraps(Shop.priced)
def wrapped(*args, **kwargs):
    return Shop.priced(*args, **kwargs)


def ordered(customer: str, amount: int):
    return amount


@pytest.mark.parametrize("handler", [
    Shop().order, Shop.opened, Shop.priced, Shop(), wrapped, partial(ordered, "me"),
    partial(partial(ordered), "me"), partial(ordered, customer="me"),
], ids=["method", "classmethod", "static", "object", "wrapped", "partial", "twice", "named"])  # fmt: skip
def test_whatever_can_be_called_has_its_arguments_validated(handler):
    assert called(handler, {"amount": 1}) == 1
    with pytest.raises(InvalidParams, match=r"^amount: Expected `int`"):
        called(handler, {"amount": "1"})
    with pytest.raises(InvalidParams, match="'amount'"):
        called(handler, {})


@pytest.mark.parametrize(
    "kind", ["Undefined", "int.undefined", "not an expression", list[int] | tuple[int, ...]]
)
def test_an_annotation_that_cannot_be_used_is_logged_and_not_validated(kind, caplog):
    assert called(annotated(kind), ["as it came"]) == "as it came"
    assert "not validated" in caplog.text
