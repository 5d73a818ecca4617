"""Values to bytes and back, and what is refused."""

from __future__ import annotations

import enum
import io
import ipaddress
import math
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc import SerializationError, SettingsError
from rpc.codecs import accepted, codec_named, register
from rpc.core import values
from rpc.core.codecs import JSON, MSGPACK, Accepted, Codec
from rpc.core.protocol import Call, encode_call, encode_result

with_both_codecs = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@with_both_codecs
@settings(deadline=None)
@given(value=JSON_LIKE)
def test_a_json_like_value_comes_back_as_it_was(codec, value):
    assert repr(codec.decode(codec.encode(value))) == repr(value)


@with_both_codecs
@settings(deadline=None)
@given(body=st.binary() | JSON_LIKE.map(JSON.encode) | JSON_LIKE.map(MSGPACK.encode))
@example(body=b"[" * 100_000)
@example(body=b"\x91" * 100_000)
@example(body=b'"\\ud800"')
@example(body=b"\xa1\xff").via("a text that is no UTF-8")
@example(body=b"\x81\x80\x01").via("a map as the key of a map")
@example(body=b"\xdd\xff\xff\xff\xff").via("four thousand million items announced")
@example(body=b"\xd4\x05\x01").via("an extension type")
def test_any_bytes_are_a_plain_value_or_a_serialization_error(codec, body):
    try:
        value = codec.decode(body)
    except SerializationError:
        return
    assert is_plain(value)


def is_plain(value):
    match value:
        case dict():
            return all(map(is_plain, [*value.keys(), *value.values()]))
        case list() | tuple():
            return all(map(is_plain, value))
        case _:
            return value is None or type(value) in (bool, int, float, str, bytes, datetime)


@pytest.mark.parametrize(("value", "as_json"), [
    (datetime(2030, 1, 2, tzinfo=timezone.utc), "2030-01-02T00:00:00Z"), (UUID(int=1), f"{UUID(int=1)}"),
    (Decimal("1.10"), "1.10"), (b"\xff", "/w=="), ((1, (2,)), [1, [2]]), ({3}, [3]),
    ({1: "one"}, {"1": "one"}), (math.nan, None), (2**70, 2**70), (Path("etc"), "etc"), (deque([1]), [1]),
    (ipaddress.ip_address("127.0.0.1"), "127.0.0.1"), (ipaddress.ip_network("::/8"), "::/8"),
    (OrderedDict(a=1), {"a": 1}), (SimpleNamespace(), {}),
], ids=repr)  # fmt: skip
def test_what_json_lacks_has_a_documented_form(value, as_json):
    assert JSON.decode(JSON.encode(value)) == as_json


@pytest.fixture
def registry(monkeypatch):
    """What a test registers, it alone does."""
    monkeypatch.setattr(values, "_registered", {})


class Colour(enum.Enum):
    RED = object()


class Service:
    name = "test"
    Purpose = "For test only"
    empty = None
    _settings = "private"

    def __init__(self, value):
        self.value = value
        self._token = self.__key = "private"

    def method(self): ...

    @classmethod
    def made(cls): ...

    @staticmethod
    def helped(): ...

    @property
    def costly(self):
        raise AssertionError("evaluated")


class Slotted:
    __slots__ = ("__mangled", "_hidden", "unset", "x")

    def __init__(self):
        self.x, self._hidden, self.__mangled = 1, 2, 3


class Private:
    __slots__ = ("_cents",)

    def __init__(self):
        self._cents = 5


class Blob(pydantic.BaseModel):
    data: bytes


class SlottedToo(Slotted):
    __slots__ = "y"
    x_class = 3

    def __init__(self):
        super().__init__()
        self.y = 2


class Renamed(Service):
    Purpose = "another"

    def __init__(self):
        super().__init__("v")
        self.name = "mine"


class Order(pydantic.BaseModel):
    item: str
    count: int = pydantic.Field(default=1, alias="howMany")
    when: date = date(2030, 1, 1)
    link: pydantic.HttpUrl = pydantic.HttpUrl("http://x.y/")

    @pydantic.computed_field
    @property
    def total(self) -> int:
        return self.count * 2


ORDER = {"item": "tea", "howMany": 1, "when": "2030-01-01", "link": "http://x.y/", "total": 2}


@dataclass
class Point:
    x: int
    y: Service


def service(value):
    return {"name": "test", "Purpose": "For test only", "empty": None, "value": value}


@with_both_codecs
@pytest.mark.parametrize(("value", "attributes"), [
    (Service("v"), service("v")),
    (Service(Service("v")), service(service("v"))),
    ({"list": [Service(1), Service((Service(2),))]}, {"list": [service(1), service([service(2)])]}),
    (Renamed(), {**service("v"), "name": "mine", "Purpose": "another"}),
    (Slotted(), {"x": 1}),
    (SlottedToo(), {"x": 1, "y": 2, "x_class": 3}),
    (SimpleNamespace(a=1, _b=2), {"a": 1}),
    (Point(1, Service(2)), {"x": 1, "y": service(2)}),
], ids=["flat", "nested", "in lists", "overridden", "slots", "slots too", "namespace", "mixed"])  # fmt: skip
def test_an_object_of_a_registered_class_becomes_its_public_attributes(codec, value, attributes, registry):
    register(Service)
    register(Slotted)
    assert codec.decode(codec.encode(value)) == attributes


@with_both_codecs
@pytest.mark.parametrize(
    "value",
    [Private(), print, Path, object(), io.StringIO("text")],
    ids=["private", "function", "class", "object()", "text buffer"],
)
def test_registering_everything_lets_nothing_travel_that_has_no_public_attributes(codec, value, registry):
    register(object)
    values = [Service(1), Path("etc"), type("Text", (str,), {})("text"), Order(item="tea")]
    assert codec.decode(codec.encode(values)) == [service(1), "etc", "text", ORDER]
    with pytest.raises(SerializationError, match=type(value).__name__):
        codec.encode([value])


@with_both_codecs
def test_a_registered_class_says_what_its_instances_and_those_of_subclasses_are(codec, registry):
    register(Slotted, lambda value: {"now": value.x})
    assert codec.decode(codec.encode([Slotted(), SlottedToo()])) == [{"now": 1}, {"now": 1}]
    register(SlottedToo, lambda value: value.y)
    assert codec.decode(codec.encode([Slotted(), SlottedToo()])) == [{"now": 1}, 2]


@pytest.mark.parametrize(
    "kind", [Point, dict, OrderedDict, str, bool, datetime, tuple, Colour, type("Own", (list,), {})]
)
def test_a_class_that_is_encoded_in_another_way_cannot_be_registered(kind, registry):
    with pytest.raises(ValueError, match="is encoded already"):
        register(kind, str)


def test_what_is_no_class_cannot_be_registered():
    with pytest.raises(TypeError, match="is no class"):
        register(5)


class Money:
    def __init__(self, cents):
        self.cents = cents


@with_both_codecs
def test_a_refusal_says_the_class_and_what_to_do(codec):
    with pytest.raises(
        SerializationError, match=rf"{__name__}\.Money .* dataclass, or rpc\.codecs\.register"
    ):
        codec.encode([Money(5)])


@dataclass
class Item:
    price: Any


class Priced(msgspec.Struct):
    price: Any


@attrs.define
class Offer:
    price: Any


@with_both_codecs
@pytest.mark.parametrize(("data", "path"), [
    ({"items": [Item(1), Item(2), Item(Money(3))]}, "data.items[2].price"),
    ([{"a b": {7: Money(1)}}], "data[0]['a b'][7]"),
    (Priced((1, Offer(Money(2)))), "data.price[1].price"), (SimpleNamespace(a=Money(1)), "data.a"),
    ({"lock": threading.Lock()}, "data.lock"), ({"sum": {"x": "\ud800"}}, "data.sum.x"),
    ({"x" * 9999: Money(1)}, "data.xxx"), (Money(1), "data"),
], ids=["dataclass", "keys", "struct", "namespace", "lock", "surrogate", "long", "itself"])  # fmt: skip
def test_a_refusal_says_the_path_to_what_is_refused(codec, data, path):
    with pytest.raises(SerializationError) as refusal:
        encode_call(Call("work", data), "7", codec)
    assert str(refusal.value).startswith(path)
    assert len(str(refusal.value)) < 400
    with pytest.raises(SerializationError) as refusal:
        encode_result("7", data, codec)
    assert str(refusal.value).startswith(path.replace("data", "result", 1))


@with_both_codecs
def test_a_model_is_an_object_of_its_fields(codec):
    assert codec.decode(codec.encode([Order(item="tea")])) == [ORDER]


def test_pydantic_is_not_imported_for_that():
    program = (
        "import sys, rpc; rpc.RpcReceiver(jobs={'f': lambda a: a}, backend='memory://'); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "rpc.receiver" in ran.stdout
    assert "pydantic" not in ran.stdout


@with_both_codecs
@pytest.mark.parametrize("value", [
    "text", 5, 1.5, b"\x00", Decimal("1.10"), date(2030, 1, 2),
    datetime(2030, 1, 2, 3, 4, 5, 6, timezone.utc), datetime(2030, 1, 2), time(1, 2, 3, 4),
    timedelta(1, 2, 3),
], ids=repr)  # fmt: skip
def test_an_instance_of_a_subclass_of_a_builtin_travels_as_the_builtin(codec, value):
    special = type("Special", (type(value),), {"__str__": lambda self: self})
    match value:
        case datetime():
            made = special.combine(value.date(), value.timetz())
        case date() | time():
            made = special.fromisoformat(value.isoformat())
        case timedelta():
            made = special(value.days, value.seconds, value.microseconds)
        case _:
            made = special(value)
    assert type(made) is special
    assert codec.encode([made]) == codec.encode([value])


class Unreadable:
    def __getattribute__(self, name):
        raise RuntimeError("not now")


def containing_itself(service):
    service.value = {"deep": [service]}
    return service


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


LOOP = []
LOOP.append(LOOP)
UNSERIALISABLE = {
    "function": is_plain, "set of lambdas": {lambda: None}, "class": Service, "module": sys,
    "generator": (_ for _ in ()), "method": Service("v").method, "function within": SimpleNamespace(f=print),
    "object()": object(), "callable": type("Caller", (), {"__call__": print})(), "complex": 1j,
    "complex of one's own": type("Impedance", (complex,), {})(1j),
    "exception": type("Mistake", (Exception,), {})("text"), "text buffer": io.StringIO("text"),
    "standard output": sys.__stdout__, "fraction": Fraction(1, 2), "lone surrogate": "\ud800",
    "5001 digits": 10**5000, "unreadable": Unreadable(), "list in itself": LOOP,
    "object in itself": containing_itself(SimpleNamespace()), "too deep": nested(1_000_000),
    "plain object": Service(1), "slots": Slotted(), "private slots": Private(),
    "lazy text": gettext_lazy("Paid"), "lazy object": SimpleLazyObject(lambda: Service(1)),
    "lazy object of a builtin": SimpleLazyObject(lambda: 5),
    "secret": pydantic.SecretStr("s"), "model that cannot": Blob(data=b"\xff"),
}  # fmt: skip


@with_both_codecs
@pytest.mark.parametrize("what", UNSERIALISABLE)
def test_what_would_lose_its_meaning_is_refused(codec, what):
    value = UNSERIALISABLE[what]
    with pytest.raises(SerializationError):
        codec.encode([value])


def test_a_message_that_names_no_content_type_is_json():
    assert Accepted().codec(None) is JSON


@pytest.mark.parametrize(
    "content_type", ["application/x-python-pickle", "application/msgpack", "json", "x" * 9999]
)
def test_a_content_type_that_is_not_accepted_is_refused(content_type):
    with pytest.raises(SerializationError, match="is not accepted here, but application/json") as refusal:
        accepted(["json"]).codec(content_type)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("name", ["cloudpickle", "JSON", ""])
def test_there_is_no_such_codec(name):
    with pytest.raises(SettingsError, match="json, msgpack"):
        codec_named(name)


def test_a_codec_of_ones_own_is_taken_as_it_is():
    own = Codec("own", "application/x-own", repr, eval)
    assert codec_named(own) is Accepted([own]).codec("application/x-own") is own
