"""The codec `json+types`: what comes back is what was sent."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections import OrderedDict, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc import RpcError, SerializationError
from rpc.codecs import register
from rpc.core import known, values
from rpc.core.codecs import JSON, TYPED
from rpc.core.known import know_all_in
from rpc.core.parameters import Parameters
from rpc.core.protocol import Call, decode_call, encode_call


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, date(2030, 1, 2))


class Size(enum.IntEnum):
    SMALL = 1


class May(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: Any = None


@dataclasses.dataclass
class Line:
    ends: tuple[Point, ...]
    kind: Size
    sizes: dict[Size, list[Size]]
    free: Any
    length: complex = 1j
    when: datetime | None = None


class Wire(msgspec.Struct, rename="camel", tag="wire"):
    the_point: Point | None
    any_thing: Any = None
    left_out: int | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True, tag=True):
    a: int
    b: Any


@attrs.define
class Offer:
    _price: Decimal
    notes: Any = None


class Tea(pydantic.BaseModel):
    name: str = pydantic.Field(alias="leafName")
    size: Size = Size.SMALL
    when: date | None = None
    link: pydantic.HttpUrl = pydantic.HttpUrl("http://x.y/")
    origin: Any = None

    @pydantic.computed_field
    @property
    def total(self) -> int:
        return 2


class Teas(pydantic.RootModel[list[Tea]]):
    pass


class Loose(pydantic.BaseModel, extra="allow"):
    a: int


class Named(typing.NamedTuple):
    a: int
    point: Point


Untyped = namedtuple("Untyped", "a b")
CLASSES = (Colour, Size, May, Point, Line, Wire, Row, Offer, Tea, Teas, Loose, Named, Untyped)


class Money:
    def __init__(self, cents: Any) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return type(other) is Money and self.cents == other.cents

    __hash__ = None


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers, it alone does."""
    for module, name in (values, "_registered"), (known, "_by_name"), (known, "_names"):
        monkeypatch.setattr(module, name, {})
    for kind in CLASSES:
        register(kind)


def back(value):
    return TYPED.decode(TYPED.encode(value))


def is_same(one, other):
    """Whether both are equal, and of the same classes, all the way down."""
    if type(one) is not type(other):
        return False
    match one:
        case dict():
            return len(one) == len(other) and all(
                any(is_same(pair, twin) for twin in other.items()) for pair in one.items()
            )
        case list() | tuple():
            return len(one) == len(other) and all(map(is_same, one, other))
        case set() | frozenset():
            return len(one) == len(other) and all(any(is_same(each, twin) for twin in other) for each in one)
        case float() | complex() | Decimal():
            return repr(one) == repr(other)  # -0.0 and NaN, too
    fields = values.field_names(type(one))
    return all(is_same(getattr(one, each), getattr(other, each)) for each in fields) and (
        bool(fields) or one == other
    )


# Whole seconds: Python 3.10 reads an offset of a part of one as none.
OFFSETS = st.none() | st.integers(-82800, 82800).map(lambda seconds: timezone(timedelta(seconds=seconds)))
HASHABLE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.uuids()
    | st.decimals() | st.dates() | st.datetimes(timezones=OFFSETS) | st.times(timezones=OFFSETS)
    | st.timedeltas() | st.complex_numbers() | st.ip_addresses() | st.sampled_from([*Colour, *Size])
    | st.sampled_from([May.READ, May.READ | May.WRITE, Path("a/b")])
    | st.sampled_from([ip_network("::/8"), ip_interface("1.2.3.4/8")])
)  # fmt: skip
QUIET = HASHABLE.filter(lambda value: not isinstance(value, Decimal) or not value.is_snan())
KEYS = st.recursive(
    QUIET,
    lambda inner: (
        st.tuples(inner) | st.frozensets(inner, max_size=3) | st.builds(Point, st.integers(), inner)
    ),
    max_leaves=4,
)
VALUES = st.recursive(
    HASHABLE | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["$set", "$", "$dict"]), inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(KEYS, max_size=3)
        | st.builds(Point, st.integers(-(2**63), 2**63 - 1), inner)
        | st.builds(Offer, st.just(Decimal("1.10")), inner)
        | st.builds(Wire, st.none() | st.builds(Point, st.just(1), inner), inner)
        | st.builds(Row, st.just(1), inner)
        | st.builds(Untyped, inner, inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=VALUES)
@example(value={"$set": [1]})
@example(value={"$date": {"$object": ["a", {}]}})
@example(value=[-0.0, math.nan])
def test_whatever_it_carries_comes_back_equal_and_of_its_class(value):
    assert is_same(back(value), value)


@pytest.mark.parametrize("value", [
    Line((Point(1), Point(2, y={3})), Size.SMALL, {Size.SMALL: [Size.SMALL]}, Colour.PAIR),
    Wire(Point(1, Colour.RED), left_out=5), Row(1, (2,)), Offer(Decimal("1.10"), b"x"), Named(1, Point(2)),
    Tea(leafName="green", when=date(2030, 1, 2), origin={Decimal(1): Size.SMALL}),
    Teas([Tea(leafName="a")]), Loose(a=1, b={2}), Untyped(1, [2]),
    ip_address("fe80::1"), Path("/etc"), May.READ | May.WRITE, timedelta.max, timedelta.min, datetime.max,
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_instances_of_known_classes_come_back(value):
    (got,) = back([value])
    assert type(got) is type(value)
    assert got == value


def test_the_time_of_a_zone_comes_back_with_its_offset():
    when = datetime(2030, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert back(when) == when
    assert back(when).utcoffset() == timedelta(hours=2)
    with pytest.raises(SerializationError, match="has no offset without a date"):
        TYPED.encode(time(1, tzinfo=ZoneInfo("Europe/Berlin")))


def test_what_is_made_by_functions_comes_back_by_functions():
    with pytest.raises(SerializationError, match=r"Money cannot be encoded: use a dataclass, or rpc\.codecs"):
        TYPED.encode(Money(5))
    register(Money, lambda money: {"cents": money.cents}, lambda given: Money(given["cents"]), name="money")
    assert back({"a": Money(Decimal(5))}) == {"a": Money(Decimal(5))}
    assert JSON.decode(TYPED.encode(Money(5))) == {"$object": ["money", {"cents": 5}]}
    register(Money, lambda money: money.cents)
    assert back([Money(5)]) == [5]


def test_others_have_the_form_that_they_have_in_json():
    texts = type("Text", (str,), {})
    given = [texts("a"), OrderedDict(b=1), SimpleNamespace(c=1), PurePosixPath("d"), memoryview(b"e")]
    assert back(given) == ["a", {"b": 1}, {"c": 1}, "d", b"e"]


@dataclasses.dataclass
class Unknown:
    x: int = 1


class Inner(pydantic.BaseModel):
    x: int


class Outer(pydantic.BaseModel):
    inner: list[Inner]


def test_a_class_that_nobody_has_named_is_an_error_that_says_what_to_do():
    body = TYPED.encode([Unknown()])
    with pytest.raises(
        SerializationError, match=rf"class '{__name__}\.Unknown' is not known here"
    ) as refusal:
        TYPED.decode(body)
    assert "rpc.codecs.register(Unknown)" in str(refusal.value)
    assert JSON.decode(body) == [{"$object": [f"{__name__}.Unknown", {"x": 1}]}]


@pytest.mark.parametrize(("annotation", "value"), [
    (list[Unknown] | None, Unknown()), (dict[str, Outer], Outer(inner=[Inner(x=1)])), (Outer, Inner(x=1)),
], ids=str)  # fmt: skip
def test_an_annotation_makes_classes_known_and_those_of_their_fields(annotation, value):
    know_all_in(annotation)
    assert back([value]) == [value]


def handler(size: Size, points: list[Point], tea: Tea, line: Line, anything, names: dict[Size, Any]):
    return size


def test_a_handler_gets_what_its_annotations_say_whatever_kept_the_types():
    line = Line((Point(1),), Size.SMALL, {Size.SMALL: []}, Size.SMALL)
    data = {
        "size": Size.SMALL, "points": [Point(1, {2})], "tea": Tea(leafName="a"), "line": line,
        "anything": (Size.SMALL, Decimal(1)), "names": {Size.SMALL: Size.SMALL},
    }  # fmt: skip
    call = decode_call(encode_call(Call("work", data), "7", TYPED), TYPED)
    _, got = Parameters(handler).bind(call)
    assert got == data
    assert type(got["names"][Size.SMALL]) is Size


@pytest.mark.parametrize(("body", "why"), [
    ({"$nosuch": 1}, "'\\$nosuch' stands for nothing here"), ({"$set": "ab"}, "goes with an array"),
    ({"$date": 5}, "goes with a string"), ({"$date": "soon"}, "soon"), ({"$set": [[]]}, "unhashable"),
    ({"$decimal": "x"}, "Decimal|conversion|ConversionSyntax"), ({"$float": "1.5"}, "'nan', 'inf' or '-inf'"),
    ({"$bytes": "?"}, "base64|padding|alphabet|data"), ({"$object": ["a"]}, "values to unpack"),
    ({"$object": [f"{__name__}.Point", {"x": "one"}]}, r"Point: Expected `int`, got `str`"),
    ({"$object": [f"{__name__}.Tea", {}]}, "Tea: leafName: Field required"),
    ({"$object": [f"{__name__}.Colour", "blue"]}, "'blue' is not a valid Colour"),
    ({"$object": [["os.system"], "ls"]}, "is not known here"),
    ({"$object": ["os.system", "ls"]}, "is not known here"),
    ({"$dict": [[1]]}, "values to unpack"), ({"$complex": ["a", "b"]}, "complex"),
], ids=str)  # fmt: skip
def test_what_stands_for_nothing_is_refused(body, why):
    with pytest.raises(SerializationError, match=f"not readable as json\\+types: .*({why})"):
        TYPED.decode(JSON.encode(body))


TAGS = st.sampled_from(
    ["$set", "$dict", "$object", "$tuple", "$decimal", "$bytes", "$complex", "$timedelta", "$nosuch"]
)
TREES = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from([f"{__name__}.Point", "1e999999", "P1D", "nan"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TAGS | st.text(max_size=3), inner, max_size=2)
    ),
)


@settings(deadline=None)
@given(body=st.binary() | TREES.map(JSON.encode))
@example(body=b'{"$set":' * 50_000 + b"1" + b"}" * 50_000)
@example(body=b'{"$tuple":[' * 900 + b"1" + b"]}" * 900)
def test_any_bytes_are_a_value_or_an_error_of_ours(body):
    try:
        value = TYPED.decode(body)
    except RpcError:
        return
    TYPED.encode(value)


@dataclasses.dataclass
class Deep:
    price: Any


class Secret(pydantic.BaseModel):
    key: pydantic.SecretStr


@dataclasses.dataclass
class Given:
    x: dataclasses.InitVar[int]


LOOP: list[Any] = []
LOOP.append({"a": (LOOP,)})


@pytest.mark.parametrize(("value", "path"), [
    ({"a": [Deep({"b c": (Money(1),)})]}, r"data\.a\[0\]\.price\['b c'\]\[0\]: .*Money cannot be encoded"),
    ({"key": Secret(key="s")}, r"data\.key"), ({"f": print}, r"data\.f: .*builtin_function"),
    ([Given(1)], r"data\[0\]"), ({"loop": LOOP}, "contains itself"),
    ({"text": "\ud800"}, r"data\.text: .*surrogates"), ([10**5000], r"data\[0\]"),
], ids=["class", "secret", "function", "init-only", "loop", "surrogate", "digits"])  # fmt: skip
def test_what_cannot_be_encoded_is_said_with_the_path_to_it(value, path):
    with pytest.raises(SerializationError, match=path):
        encode_call(Call("work", value), "7", TYPED)


@pytest.mark.parametrize(("data", "params"), [
    (Point(1, {2}), {"x": 1, "y": {2}}), (Loose(a=1), {"a": 1}), ((1, {2}), [1, {2}]),
    ({"$set": 1}, {"$set": 1}),
], ids=str)  # fmt: skip
def test_data_is_a_dict_or_a_list_whatever_is_given(data, params):
    got = decode_call(encode_call(Call("work", data), "7", TYPED), TYPED).params
    assert got == params
