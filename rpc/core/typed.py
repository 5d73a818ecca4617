"""JSON that keeps the types of values: what JSON has no form of is an object of one member, `{"$date": "…"}`.

An object whose only member has a name that begins with `$` means that, and nothing else: a dict that would
look so, or has keys that are no texts, is `{"$dict": [[key, value], …]}`. An instance of a class is
`{"$object": [name of the class, its fields]}`, and comes back where a class is known by that name.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from types import NoneType
from typing import Any
from uuid import UUID

import msgspec

from .known import class_named, is_named_tuple, name_of
from .values import class_name, field_names, is_model, reason_of, refusal, registered, restored, to_wire

DICT, OBJECT = "$dict", "$object"
_AS_THEY_ARE = (str, int, bool, NoneType, msgspec.Raw)
_CONTAINERS = (dict, list, set, frozenset, tuple)


def _time_text(value: time) -> str:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise TypeError(f"a time in {value.tzinfo} has no offset without a date, and cannot be encoded")
    return value.isoformat()


def _base64(value: Any) -> str:
    return b64encode(value).decode()


def _items(value: Any) -> list[Any]:
    return [to_tagged(each) for each in value]


_TAGS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("$datetime", datetime.isoformat),
    date: ("$date", date.isoformat),
    time: ("$time", _time_text),
    timedelta: ("$timedelta", msgspec.to_builtins),
    Decimal: ("$decimal", str),
    UUID: ("$uuid", str),
    complex: ("$complex", lambda value: [to_tagged(value.real), to_tagged(value.imag)]),
    bytes: ("$bytes", _base64),
    memoryview: ("$bytes", _base64),
    bytearray: ("$bytearray", _base64),
    tuple: ("$tuple", _items),
    set: ("$set", _items),
    frozenset: ("$frozenset", _items),
    type(Path()): ("$path", str),
    **dict.fromkeys((IPv4Address, IPv6Address), ("$ipaddress", str)),
    **dict.fromkeys((IPv4Network, IPv6Network), ("$ipnetwork", str)),
    **dict.fromkeys((IPv4Interface, IPv6Interface), ("$ipinterface", str)),
}
"""By the class itself: an instance of a subclass is one of the class, as in JSON."""


def to_tagged(value: Any) -> Any:
    """What a value is in JSON. Raises TypeError for what is no value, and whatever its class raises."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is list:
        return _items(value)
    if kind is dict:
        return _of_dict(value)
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if found := _TAGS.get(kind):
        return {found[0]: found[1](value)}
    return _of_class(value, kind)


def _of_dict(value: dict[Any, Any]) -> Any:
    if any(type(key) is not str for key in value) or (len(value) == 1 and next(iter(value))[:1] == "$"):
        return {DICT: [[to_tagged(key), to_tagged(each)] for key, each in value.items()]}
    return {key: to_tagged(each) for key, each in value.items()}


def _of_class(value: Any, kind: type) -> Any:
    if issubclass(kind, Enum):
        return _object(kind, value.value)
    if is_named_tuple(kind):
        return _object(kind, [*value])
    if field_names(kind):
        return _object(kind, _payload(value, kind))
    if known := registered(kind):
        ancestor, to, back = known
        return to_tagged(to(value)) if back is None else _object(ancestor, to(value))
    if is_model(kind):
        return {OBJECT: [name_of(kind), _of_model(value)]}
    for container in _CONTAINERS:
        if issubclass(kind, container):
            return to_tagged(container(value))
    on_wire = to_wire(value)
    if type(on_wire) is kind:
        raise TypeError(refusal(kind))
    return to_tagged(on_wire)


def _object(kind: type, payload: Any) -> dict[str, Any]:
    return {OBJECT: [name_of(kind), to_tagged(payload)]}


def _payload(value: Any, kind: type) -> Any:
    """What an instance is made of again: its fields, as msgspec names them."""
    msgspec.inspect.type_info(kind)  # else one could not be made: TypeError, or NameError
    if not issubclass(kind, msgspec.Struct):
        return _fields_of(value)
    info = msgspec.inspect.type_info(kind)
    fields = [(each.encode_name, getattr(value, each.name)) for each in info.fields]  # type: ignore[attr-defined]
    if not info.array_like:  # type: ignore[attr-defined]
        return {name: each for name, each in fields if each is not msgspec.UNSET}
    tag = info.tag  # type: ignore[attr-defined]
    return [*([] if tag is None else [tag]), *(each for _, each in fields)]


def outline(value: Any) -> Any:
    """The fields of an instance by their names, or the form that it has in JSON; of another, it itself."""
    if field_names(type(value)):
        return _fields_of(value)
    with suppress(TypeError):  # it has no other form
        return to_wire(value)
    return value


def _fields_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in field_names(type(value)) if hasattr(value, name)}


def _of_model(value: Any) -> Any:
    """What one of pydantic's models is made of again."""
    kind = type(value)
    if getattr(kind, "__pydantic_root_model__", False):
        return to_tagged(value.root)
    raw = {_alias(name, field): getattr(value, name) for name, field in kind.model_fields.items()}
    payload = {alias: _of_field(raw, alias, kind) for alias in raw}
    return _of_texts(payload | {name: to_tagged(each) for name, each in (value.model_extra or {}).items()})


def _alias(name: str, field: Any) -> str:
    """By which it is validated."""
    alias = field.validation_alias or field.alias
    return alias if isinstance(alias, str) else name


def _of_field(raw: dict[str, Any], alias: str, kind: Any) -> Any:
    """A field of a model; if its class is pydantic's own, in the form that it has in JSON, if it is made of
    that again."""
    try:
        return to_tagged(raw[alias])
    except TypeError:
        dumped = kind.model_validate(raw).model_dump(mode="json", by_alias=True).get(alias)
        if kind.model_validate({**raw, alias: dumped}) != kind.model_validate(raw):
            raise
        return to_tagged(dumped)


def _of_texts(tagged: dict[str, Any]) -> Any:
    if len(tagged) == 1 and next(iter(tagged))[:1] == "$":
        return {DICT: [[*each] for each in tagged.items()]}
    return tagged


def from_tagged(value: Any) -> Any:
    """The value that JSON stands for. Raises ValueError, and whatever a class raises, for what stands for
    none."""
    kind = type(value)
    if kind is list:
        return [from_tagged(each) for each in value]
    if kind is not dict:
        return value
    if len(value) == 1:
        ((tag, inner),) = value.items()
        if tag[:1] == "$":
            return _untagged(tag, inner)
    return {key: from_tagged(each) for key, each in value.items()}


def _untagged(tag: str, inner: Any) -> Any:
    known = _BACK.get(tag)
    if known is None:
        raise ValueError(f"{tag[:80]!r} stands for nothing here")
    kind, back = known
    if type(inner) is not kind:
        raise ValueError(f"{tag!r} goes with {'an array' if kind is list else 'a string'}")
    return back(inner)


def _parts(value: list[Any]) -> list[Any]:
    return [from_tagged(each) for each in value]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text)


def _float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError("'$float' goes with 'nan', 'inf' or '-inf'")
    return float(text)


def _complex(parts: list[Any]) -> complex:
    real, imaginary = _parts(parts)
    return complex(real, imaginary)


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    return {from_tagged(key): from_tagged(each) for key, each in pairs}


def _of_known_class(parts: list[Any]) -> Any:
    name, payload = parts
    kind = class_named(str(name))
    try:
        return _instance(kind, from_tagged(payload))
    except LookupError:
        raise
    except Exception as error:  # the class is the user's: making one may raise anything
        raise ValueError(f"{class_name(kind)}: {reason_of(error)}") from error


def _instance(kind: Any, payload: Any) -> Any:
    if issubclass(kind, Enum):
        return kind(payload)
    if is_named_tuple(kind) or field_names(kind):
        return restored(payload, kind)
    if (known := registered(kind)) and known[2]:
        return known[2](payload)
    return kind.model_validate(payload)


_BACK: Mapping[str, tuple[type, Callable[[Any], Any]]] = {
    "$datetime": (str, _moment),
    "$date": (str, date.fromisoformat),
    "$time": (str, time.fromisoformat),
    "$timedelta": (str, lambda text: msgspec.convert(text, timedelta)),
    "$decimal": (str, Decimal),
    "$uuid": (str, UUID),
    "$float": (str, _float),
    "$complex": (list, _complex),
    "$bytes": (str, _bytes),
    "$bytearray": (str, lambda text: bytearray(_bytes(text))),
    "$tuple": (list, lambda items: tuple(_parts(items))),
    "$set": (list, lambda items: set(_parts(items))),
    "$frozenset": (list, lambda items: frozenset(_parts(items))),
    "$path": (str, Path),
    "$ipaddress": (str, ip_address),
    "$ipnetwork": (str, ip_network),
    "$ipinterface": (str, ip_interface),
    DICT: (list, _dict),
    OBJECT: (list, _of_known_class),
}
