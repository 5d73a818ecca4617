"""Classes that go by a name on the wire, in the codecs that keep them.

Nothing is imported for a name: a class is known here because the application registered it, or because an
annotation of a handler or `returns=` names it, or one of its own fields.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import msgspec

from .values import class_name, is_model, types_in

_by_name: dict[str, type] = {}
_names: dict[type, str] = {}
"""Names that were given to classes: of the others it is that which they have in Python."""


def is_record(kind: type) -> bool:
    """Whether instances of a class are made of named parts, or are members of an enum."""
    if not isinstance(kind, type):
        return False
    is_struct = issubclass(kind, Enum | msgspec.Struct) or is_dataclass(kind)
    return is_struct or hasattr(kind, "__attrs_attrs__") or is_named_tuple(kind) or is_model(kind)


def is_named_tuple(kind: type) -> bool:
    """Whether it is a tuple whose items have names."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def know(kind: type, name: str | None = None) -> None:
    """Have a class known by its name, or another one, together with those that its fields are annotated with.
    The last class of a name counts."""
    if name is not None:
        _names[kind] = name
    _by_name[name_of(kind)] = kind
    know_all_in(kind)


def know_all_in(annotation: Any) -> None:
    """The same for the classes that an annotation names. One that cannot be resolved names none."""
    try:
        kinds = [getattr(each, "cls", None) for each in types_in(annotation)]
    except Exception:  # to resolve an annotation may raise anything; whoever needs the class is told
        return
    for kind in kinds:
        if kind is None or not is_record(kind) or _by_name.get(name_of(kind)) is kind:
            continue
        _by_name[name_of(kind)] = kind
        if is_model(kind):
            for field in kind.model_fields.values():
                know_all_in(field.annotation)


def name_of(kind: type) -> str:
    """The name that instances of a class have on the wire."""
    return _names.get(kind) or class_name(kind)


def class_named(name: str) -> type:
    """The class of this name; LookupError if none is known."""
    if found := _by_name.get(name):
        return found
    short = name.rpartition(".")[2]
    raise LookupError(
        f"class {name[:200]!r} is not known here: rpc.codecs.register({short[:80]}), or an annotation of a "
        "handler or returns= that names it, makes it known"
    )
