"""How the arguments of a call become those of a handler in typed style."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache, partial, update_wrapper, wraps
from ipaddress import IPv4Address
from numbers import Number
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from rpc import InvalidParams, SettingsError
from rpc.codecs import register
from rpc.core import values
from rpc.core.codecs import CODECS
from rpc.core.jobs import jobs_from
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


@pytest.mark.parametrize("kind", ["Undefined", "int.undefined", "not an expression", "int[5]"])
def test_an_annotation_that_cannot_be_resolved_is_logged_and_left_out_alone(kind, caplog):
    def handler(place, when: date, *rest):
        return place, when, rest

    handler.__annotations__["place"] = kind
    assert called(handler, ["as it came", "2030-01-02", 1]) == ("as it came", date(2030, 1, 2), (1,))
    assert caplog.text.count("place is not validated") == 1
    assert len(caplog.records) == 1


def test_a_class_whose_own_annotations_cannot_be_resolved_is_left_out_alone(caplog):
    @dataclass
    class Later:
        of: Undefined  # noqa: F821 - as if it were imported for type checkers only

    assert called(annotated(Later), [{"of": 1}]) == {"of": 1}
    assert "place is not validated" in caplog.text


class Code(str):
    """Of a subclass of a builtin."""


class Money:
    def __init__(self, cents):
        self.cents = cents

    def __eq__(self, other):
        return type(other) is Money and self.cents == other.cents

    def __repr__(self):
        return f"Money({self.cents})"

    __hash__ = None


class Unready:
    """Registered, but there is no way back."""


class Plain:
    """What nothing becomes."""


@dataclass
class Holder:
    held: list[Plain]


class Tea(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    leaves: set[str]
    picked: date | None = None


class Pot(pydantic.RootModel[list[Tea]]):
    """Of pydantic, but no object."""


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(values, "_registered", {})
    register(Money, lambda money: money.cents, Money)


@dataclass
class Account:
    owner: str = "nobody"
    limits: list[int] = field(default_factory=list)
    opened: int = field(default=1, init=False)


@attrs.define
class Offer:
    price: int = 1
    notes: dict[int, str] = attrs.Factory(dict)


GREEN = Tea(leaves={"green"}, picked=date(2030, 1, 2))
SENT = {"leaves": ["green"], "picked": "2030-01-02"}


@pytest.mark.parametrize(("kind", "sent", "got"), [
    (Path, "/etc", Path("/etc")), (PurePosixPath, "etc", PurePosixPath("etc")),
    (list[Path], ["a"], [Path("a")]),
    (IPv4Address, "10.0.0.1", IPv4Address("10.0.0.1")), (deque, [1, "a"], deque([1, "a"])),
    (deque[date], ["2030-01-02"], deque([date(2030, 1, 2)])), (OrderedDict, {"b": 1}, OrderedDict(b=1)),
    (OrderedDict[int, Path], {"1": "a"}, OrderedDict({1: Path("a")})), (Code, "ab", Code("ab")),
    (Iterable[date], ["2030-01-02"], [date(2030, 1, 2)]), (Iterable, [1], [1]), (Number, 1.5, 1.5),
    (dict[int, str], {"1": "a"}, {1: "a"}),
    (dict[date, dict[int, int]], {"2030-01-02": {"1": 2}}, {date(2030, 1, 2): {1: 2}}),
    (Money, 5, Money(5)), (dict[str, Money | None], {"a": 5, "b": None}, {"a": Money(5), "b": None}),
    (Tea, SENT, GREEN), (Tea | None, None, None), (Tea | None, SENT, GREEN), (list[Tea], [SENT], [GREEN]),
    (dict[str, Tea], {"a": SENT}, {"a": GREEN}), (Pot, [SENT], Pot([GREEN])),
    (Account, Account(), Account()), (Offer, Offer(notes={1: "a"}), Offer(notes={1: "a"})),
], ids=str)  # fmt: skip
def test_what_msgspec_does_not_know_is_converted_too(kind, sent, got, registry):
    for codec in CODECS.values():
        result = called(annotated(kind), codec.decode(codec.encode({"place": sent})))
        assert result == called(annotated(kind), codec.decode(codec.encode([sent]))) == got
        assert type(result) is type(got)


@pytest.mark.parametrize(("kind", "sent", "why"), [
    (Path, 5, "Expected `str`, got `int`"),
    (list[Path], ["a", 1], r"Expected `str`, got `int` - at `\$\[1\]`"),
    (IPv4Address, "10.0.0", "Expected 4 octets"), (IPv4Address, 5, "Expected `str`"),
    (Code, 1, "Expected `str`"),
    (deque[int], ["1"], "Expected `int`"), (Iterable[int], ["1"], "Expected `int`"),
    (Number, "1", "Expected `Number`"),
    (dict[int, str], {"a": "b"}, "Expected `int`"), (Money, None, "Expected `int`"),
    (Tea, {"leaves": 5}, "leaves: Input should be a valid array"), (Tea, "tea", "Input should be an object"),
    (Tea, {"picked": "soon"}, "leaves: Field required; picked: Input should be a valid date"),
    (list[Tea], [SENT, {}], r"leaves: Field required - at `\$\[1\]`"),
], ids=str)  # fmt: skip
def test_what_is_converted_too_is_also_validated(kind, sent, why, registry):
    register(Money, None, lambda cents: Money(msgspec.convert(cents, int)))
    with pytest.raises(InvalidParams, match=rf"^place: {why}") as refusal:
        called(annotated(kind), [sent])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("kind", "named"), [
    (Plain, "Plain"), (list[Plain], "Plain"), (dict[str, Plain | None], "Plain"), (Holder, "Plain"),
    (Callable[[int], int], "Callable"), (type[int], "type"), (Tea | int, "Tea"),
    (SimpleNamespace, "SimpleNamespace"),
    (list[int] | tuple[int, ...], "tuple"), (Unready, "Unready"),
], ids=str)  # fmt: skip
def test_a_job_that_requires_what_nothing_becomes_is_refused_when_it_is_mapped(kind, named, registry):
    register(Unready)
    with pytest.raises(SettingsError, match=f"job 'work': parameter place: .*{named}"):
        jobs_from({"work": annotated(kind)})
    assert jobs_from({"work": lambda place: place})


def test_what_nothing_becomes_and_is_not_required_cannot_be_sent(caplog):
    def handler(a: int, plain: Plain = None, odd: list[int] | tuple[int, ...] = ()):
        return a, plain, odd

    made = Plain()
    assert called(partial(handler, plain=made), {"a": 1}) == (1, made, ())
    assert "callers cannot give its parameter plain" in caplog.text
    for sent in {"plain": {}}, {"odd": [1]}:
        with pytest.raises(InvalidParams, match=next(iter(sent))):
            called(handler, {"a": 1, **sent})


def test_variadic_arguments_of_which_nothing_can_be_said_are_as_they_came(caplog):
    def handler(*rest: Plain, **named: Plain):
        return rest, named

    assert called(handler, [1], {"a": 2}) == ((1,), {"a": 2})
    assert caplog.text.count("is not validated") == 2


def test_what_a_handler_returns_may_be_anything(caplog):
    def handler() -> Plain: ...

    jobs_from({"work": handler})
    assert not caplog.text


class Traced:
    def __init__(self, function):
        self.function = function
        update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def keyed(prices: dict[int, date]):
    return prices


@pytest.mark.parametrize("handler", [
    keyed, partial(keyed), lru_cache(keyed), Traced(keyed), wraps(keyed)(lambda *a, **k: keyed(*a, **k)),
    partial(Traced(keyed)),
], ids=["function", "partial", "cache", "object", "function around", "partial of an object"])  # fmt: skip
def test_keys_are_converted_whatever_is_around_the_handler(handler):
    bound = Parameters(handler).bind(Call("work", {"prices": {"1": "2030-01-02"}}, None))
    assert bound == ((), {"prices": {1: date(2030, 1, 2)}})
