"""JSON schemas of annotations, as draft 7 has them, which OpenRPC and AsyncAPI ask for.

msgspec makes those of what it decodes, pydantic those of its own models.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
from msgspec import inspect

from ..core.values import is_model, wire_of

logger = logging.getLogger(__name__)

Schema = dict[str, Any]

REFERENCE = "#/components/schemas/"


class Schemas:
    """The schemas of a document. Those of classes stand apart, and are referred to."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Any, Schema]] = []
        self._models: dict[str, Schema] = {}
        """Those of pydantic, by name."""
        self._taken: set[str] = set()
        """Names of other classes."""

    def of(self, annotation: Any) -> Schema:
        """The schema of an annotation: it is empty until `components` was called, and for what has none."""
        schema: Schema = {}
        if annotation not in (Any, object):
            self._wanted.append((annotation, schema))
        return schema

    def components(self) -> dict[str, Schema]:
        """The schemas of classes by their names. Fills in those that `of` has returned."""
        wanted = [(annotation, schema) for annotation, schema in self._wanted if self._has_one(annotation)]
        self._models = {}
        made, named = self._made([annotation for annotation, _ in wanted])
        named = {**self._models, **named}
        for (annotation, schema), each in zip(wanted, made, strict=True):
            schema |= each
            _Formats(named).add(msgspec.inspect.type_info(annotation), schema)
        for schema in (*named.values(), *(schema for _, schema in wanted)):
            _to_draft_7(schema)
        return dict(sorted(named.items()))

    def _has_one(self, annotation: Any) -> bool:
        try:
            _, named = self._made([annotation])
            self._taken |= named.keys()
        except Exception as error:  # the class is the user's: to look at it may raise anything
            logger.warning("%r has no JSON schema: %s", annotation, error)
            return False
        return True

    def _made(self, annotations: list[Any]) -> tuple[list[Schema], dict[str, Schema]]:
        """The schemas of these, and by their names those of the classes in them."""
        made, named = msgspec.json.schema_components(
            annotations, schema_hook=self._of_custom, ref_template=f"{REFERENCE}{{name}}"
        )
        return [*made], named

    def _of_custom(self, kind: Any) -> Schema:
        """That of a class which msgspec does not know."""
        if is_model(kind):
            return self._of_model(kind)
        if (wire := wire_of(kind)) is not Any:
            return msgspec.json.schema(wire)
        return {"type": "array"} if kind is not object and issubclass(list, kind) else {}

    def _of_model(self, kind: Any) -> Schema:
        schema: Schema = kind.model_json_schema(ref_template=f"{REFERENCE}{{model}}")
        found = schema.pop("$defs", {})
        if "$ref" not in schema:  # it does not refer to itself
            name = re.sub(r"\W", "_", kind.__name__)
            found[name], schema = schema, {"$ref": f"{REFERENCE}{name}"}
        for name in [*found]:
            if name in self._taken or self._models.get(name, found[name]) != found[name]:
                other = f"{kind.__module__}.{name}"
                found[other] = found.pop(name)
                found, schema = _renamed(found, name, other), _renamed(schema, name, other)
        self._models |= found
        return schema


def _renamed(schema: Schema, name: str, other: str) -> Schema:
    """The schema with references to another name."""
    text = msgspec.json.encode(schema).decode()
    renamed: Schema = msgspec.json.decode(text.replace(f'"{REFERENCE}{name}"', f'"{REFERENCE}{other}"'))
    return renamed


def _to_draft_7(schema: Any) -> None:
    """What newer drafts have other words for."""
    if isinstance(schema, list):
        for each in schema:
            _to_draft_7(each)
    if not isinstance(schema, dict):
        return
    if "prefixItems" in schema:
        schema["additionalItems"] = schema.get("items", False)
        schema["items"] = schema.pop("prefixItems")
    schema.pop("discriminator", None)
    for each in schema.values():
        _to_draft_7(each)


class _Formats:
    """Adds what msgspec leaves out: the formats of times that need no zone, and defaults that are made anew
    each time."""

    def __init__(self, named: dict[str, Schema]) -> None:
        self._named, self._seen = named, set[str]()

    def add(self, info: Any, schema: Any) -> None:
        """`info` is how msgspec describes the type that this is the schema of."""
        match info:
            case inspect.Metadata(type=inner):
                self.add(inner, schema)
            case inspect.DateTimeType():
                schema.setdefault("format", "date-time")
            case inspect.TimeType():
                schema.setdefault("format", "time")
            case inspect.TupleType(item_types=types):
                for each, part in zip(types, schema.get("prefixItems", ()), strict=False):
                    self.add(each, part)
            case inspect.DictType(value_type=inner):
                self.add(inner, schema.get("additionalProperties", {}))
            case inspect.UnionType(types=types):
                for each in types:
                    self._add_in_union(each, schema)
            case _ if hasattr(info, "item_type"):
                self.add(info.item_type, schema.get("items", {}))
            case _ if hasattr(info, "fields"):
                self._add_in_class(info, schema)

    def _add_in_union(self, info: Any, schema: Schema) -> None:
        """A union has at most one type for each type of JSON, but for classes, which are referred to."""
        for part in schema.get("anyOf", ()):
            refers = part.get("$ref", "").rpartition("/")[2]
            is_class = hasattr(info, "fields") and refers.endswith(info.cls.__name__)
            if is_class or (not refers and part.get("type") == _JSON_TYPES.get(type(info))):
                self.add(info, part)

    def _add_in_class(self, info: Any, schema: Schema) -> None:
        name = schema.get("$ref", "").rpartition("/")[2]
        if name in self._seen or name not in self._named:
            return
        self._seen.add(name)
        properties = self._named[name].get("properties", {})
        for field in info.fields:
            described = properties.get(field.encode_name, {})
            if field.default_factory in _EMPTY:
                described.setdefault("default", _EMPTY[field.default_factory])
            self.add(field.type, described)


_EMPTY: dict[Any, Any] = {list: [], set: [], frozenset: [], tuple: [], dict: {}}


_JSON_TYPES: dict[type, str] = {
    inspect.DateTimeType: "string",
    inspect.TimeType: "string",
    inspect.DictType: "object",
    **dict.fromkeys(
        (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.TupleType, inspect.VarTupleType),
        "array",
    ),
}
