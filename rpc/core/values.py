"""Which objects are values: what they are on the wire, and how an annotation gets them back from it.

msgspec encodes most of them itself. The rest of them is here: what the application has registered, a few
classes of the standard library, and pydantic's models, for which pydantic is not imported. Nothing else is
encoded: what an object happens to hold is not what it means, and may be nobody's business.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from types import NoneType, SimpleNamespace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, get_args, get_origin

import msgspec

from ..errors import InvalidParams
from .members import with_values

T = TypeVar("T")


class _Kind(NamedTuple):
    """A class of values that msgspec does not know."""

    to: Callable[[Any], Any]
    """What an instance is on the wire."""
    back: Callable[[Any], Any] | None = None
    """An instance of what is on the wire; None if there is no way back."""
    wire: Any = None
    """Or the annotation of what the class itself is called with."""


def _moment(value: time | datetime) -> time:
    return time(value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold)


_TEXTS = (IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface, PurePath)
_FAMILIAR: dict[type, _Kind] = {each: _Kind(str, wire=str) for each in _TEXTS} | {
    deque: _Kind(list, wire=list),
    OrderedDict: _Kind(dict, wire=dict),
    SimpleNamespace: _Kind(lambda value: _public(vars(value))),
    # Instances of subclasses become some of the class itself, whatever they override.
    str: _Kind(lambda value: str.__add__(value, ""), wire=str),
    int: _Kind(int.__pos__, wire=int),
    float: _Kind(float.__pos__, wire=float),
    bytes: _Kind(lambda value: bytes.__add__(value, b""), wire=bytes),
    Decimal: _Kind(Decimal, wire=Decimal),
    datetime: _Kind(lambda value: datetime.combine(date(value.year, value.month, value.day), _moment(value))),
    date: _Kind(lambda value: date(value.year, value.month, value.day)),
    time: _Kind(_moment),
    timedelta: _Kind(lambda value: timedelta(value.days, value.seconds, value.microseconds)),
}
"""Classes of the standard library. Those with a `wire` are called with what is there, as their subclasses."""
_registered: dict[type, _Kind] = {}
_DECODED = (dict, list, str, int, float, bool, NoneType, bytes, datetime, complex)
"""What codecs decode by themselves."""


def public_attributes(value: Any) -> dict[str, Any]:
    """The data attributes of a plain object without a leading underscore, those of its classes first, by
    name. Properties and methods are not evaluated. TypeError if there are none, and for what is not plain:
    callables, exceptions, files, whatever the standard library defines."""
    kind = type(value)
    if kind is object or callable(value) or any(map(_is_of_the_library, kind.__mro__[:-1])):
        raise TypeError(refusal(kind))
    attributes = {
        name: attribute
        for ancestor in reversed(kind.__mro__[:-1])
        for name, attribute in vars(ancestor).items()
        if not hasattr(attribute, "__get__")
    }
    attributes |= {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
    found = _public(attributes | getattr(value, "__dict__", {}))
    if not found:
        raise TypeError(f"a value of type {class_name(kind)} has no public attributes")
    return found


def register(
    kind: type[T],
    to: Callable[[T], Any] = public_attributes,
    from_: Callable[[Any], T] | None = None,
) -> None:
    """Have instances of a class, and of its subclasses, encoded as what `to` makes of them: by default their
    public attributes. `from_` makes one of what was decoded, for parameters that are annotated with just this
    class. Registering a class again replaces what was said of it. Raises TypeError for what is no class, and
    ValueError for a class that is encoded in another way, which cannot be changed."""
    if not isinstance(kind, type):
        raise TypeError(f"{kind!r} is no class")
    if issubclass(kind, _NATIVE) or not isinstance(
        msgspec.inspect.type_info(kind), msgspec.inspect.CustomType
    ):
        raise ValueError(  # noqa: TRY004 - it is a class, but the wrong one
            f"{class_name(kind)} is encoded already, and cannot be encoded otherwise"
        )
    _registered[kind] = _Kind(to, from_)


def registered(kind: type) -> tuple[type, Callable[[Any], Any], Callable[[Any], Any] | None] | None:
    """The class as which this one is registered, which may be an ancestor, with its `to` and `from_`; None if
    there is none."""
    for ancestor in kind.__mro__:
        if ancestor in _FAMILIAR or ancestor in _NATIVE or (ancestor is object and is_model(kind)):
            return None
        if known := _registered.get(ancestor):
            return ancestor, known.to, known.back
    return None


_NATIVE = (dict, list, tuple, set, frozenset, Enum)


def to_wire(value: Any) -> Any:
    """What an object is on the wire that msgspec does not encode; TypeError if it is no value."""
    kind = type(value)
    for ancestor in kind.__mro__:
        if ancestor is object and is_model(kind):
            return value.model_dump(mode="json", by_alias=True)
        if known := _registered.get(ancestor) or _FAMILIAR.get(ancestor):
            return known.to(value)
    raise TypeError(refusal(kind))


class Conversion(NamedTuple):
    """How what was decoded becomes what an annotation wants. Made by `conversion`."""

    kind: Any
    options: dict[str, Any]
    """Of `msgspec.convert`: those that are needed, as each of them takes its time."""

    def __call__(self, value: Any, name: str) -> Any:
        """InvalidParams, which begins with the name of the parameter, says why it cannot."""
        try:
            return msgspec.convert(value, self.kind, **self.options)
        except msgspec.ValidationError as error:
            return self._again(value, name, error)
        except Exception as error:  # the type is the user's: making one may raise anything
            raise InvalidParams(f"{name}: {type(error).__name__}: {error}") from error

    def _again(self, value: Any, name: str, error: msgspec.ValidationError) -> Any:
        try:
            return with_values(value, error, lambda lowered: msgspec.convert(lowered, self.kind, **ANY_KIND))
        except msgspec.ValidationError as refusal:
            raise InvalidParams(f"{name}: {refusal}") from None
        except Exception as refusal:  # as above
            raise InvalidParams(f"{name}: {type(refusal).__name__}: {refusal}") from refusal


def conversion(kind: Any) -> Conversion:
    """The conversion to this annotation. TypeError if nothing that travels can become what it says; NameError
    if a part of it cannot be resolved."""
    types = types_in(kind)
    customs = [each.cls for each in types if isinstance(each, msgspec.inspect.CustomType)]
    for custom in customs:
        if not _can_be_made(custom):
            raise TypeError(
                f"nothing that is decoded becomes a {class_name(custom)}: use a dataclass, or give "
                "rpc.codecs.register the class and a `from_`"
            )
    mappings = [each for each in types if isinstance(each, msgspec.inspect.DictType)]
    has_keys = any(not isinstance(each.key_type, msgspec.inspect.StrType) for each in mappings)
    return Conversion(kind, ANY_KIND if customs or has_keys else {})


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of on the wire, each with the step of a path that leads there."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]", each
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, each in enumerate(value):
            yield f"[{index}]", each
    elif fields := field_names(type(value)):
        for name in fields:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)
    else:
        with suppress(Exception):  # it has no parts, then
            if type(on_wire := to_wire(value)) is not type(value):
                yield "", on_wire


def field_names(kind: type) -> list[str]:
    """The fields of a dataclass, a `msgspec.Struct` or an attrs class; none of another class."""
    attrs = [each.name for each in getattr(kind, "__attrs_attrs__", ())]
    return [*getattr(kind, "__struct_fields__", ()), *getattr(kind, "__dataclass_fields__", ()), *attrs]


def _made(kind: Any, value: Any) -> Any:
    """An instance of what msgspec does not know. ValueError is what it adds the path to."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if not args and isinstance(value, origin):  # some codecs give back what it was
        return value
    try:
        known = _known(origin)
        if known and known.back:
            return known.back(value)
        if known:
            return origin(_convert(value, known.wire[args] if args else known.wire))
        if is_model(origin):
            return origin.model_validate_json(msgspec.json.encode(value))
        if args:  # such as Iterable[int]
            return _convert(value, list[args] if issubclass(list, origin) else dict[args])  # type: ignore[misc,valid-type]
    except Exception as error:  # the class is the user's: making one may raise anything
        raise ValueError(reason_of(error)) from error
    return value  # msgspec looks whether it is an instance


def _convert(value: Any, kind: Any) -> Any:
    return msgspec.convert(value, kind, **ANY_KIND)


def restored(value: Any, kind: Any) -> Any:
    """An instance of a class, of its fields, which have their own classes again. ValidationError, or whatever
    the class raises, says why there is none."""
    try:
        return _convert(value, kind)
    except msgspec.ValidationError as error:
        return with_values(value, error, lambda lowered: _convert(lowered, kind))


ANY_KIND: dict[str, Any] = {"dec_hook": _made, "str_keys": True}
"""Options of `msgspec.convert`. In JSON, keys are always texts."""


def reason_of(error: Exception) -> str:
    """Why an instance could not be made, in one line."""
    if type(error).__module__.startswith("pydantic"):  # its text has several lines, and a link
        details = error.errors()  # type: ignore[attr-defined]
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}".lstrip(": ") for each in details)
    return str(error) or type(error).__name__


def _can_be_made(kind: type) -> bool:
    if known := _known(kind):
        return bool(known.back or known.wire)
    try:
        return is_model(kind) or any(issubclass(each, kind) for each in _DECODED)
    except TypeError:  # a protocol that cannot be checked
        return False


def _known(kind: type) -> _Kind | None:
    if kind in _registered:
        return _registered[kind]
    return next((known for each, known in _FAMILIAR.items() if issubclass(kind, each)), None)


def wire_of(kind: type) -> Any:
    """The annotation of what instances of a class that msgspec does not know are on the wire; Any if that
    cannot be told."""
    known = _known(kind)
    return Any if known is None or known.wire is None else known.wire


def types_in(annotation: Any) -> list[Any]:
    """What an annotation consists of, as msgspec describes it. TypeError if that knows no such type,
    NameError if a part of it cannot be resolved."""
    return list(_types_in(msgspec.inspect.type_info(annotation), set()))


def _types_in(info: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(info, tuple):
        for each in info:
            yield from _types_in(each, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) and id(info) not in seen:
        seen.add(id(info))
        yield info
        for name in info.__struct_fields__:
            yield from _types_in(getattr(info, name), seen)


def is_model(kind: Any) -> bool:
    """Whether it is one of pydantic's models."""
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")


def _public(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attribute for name, attribute in attributes.items() if not name.startswith("_")}


_LIBRARY = {*sys.stdlib_module_names, "builtins"} - {"__main__"}


def _is_of_the_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARY and kind not in (Generic, Protocol)


def _slots(kind: type) -> list[str]:
    slots = (vars(ancestor).get("__slots__", ()) for ancestor in kind.__mro__)
    return [name for names in slots for name in ([names] if isinstance(names, str) else names)]


def class_name(kind: type) -> str:
    """The name of a class, with its module."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def refusal(kind: type) -> str:
    """Why instances of a class are not encoded."""
    text = f"a value of type {class_name(kind)} cannot be encoded"
    return text if _is_of_the_library(kind) else f"{text}: use a dataclass, or rpc.codecs.register"
