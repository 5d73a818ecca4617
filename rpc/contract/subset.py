"""Whether every value of one JSON schema is one of another, and if not, why. Where that cannot be told, it is
not.

Objects are read as their receivers read them: what a schema does not name is not sent, or not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .documents import Schema

_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EXACT = ("pattern", "format", "contentEncoding", "multipleOf", "uniqueItems")
_CHOICES = ("anyOf", "oneOf")
_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
}


class Subset:
    """Compares schemas of two documents, given those that each refers to by name."""

    def __init__(self, narrow: Mapping[str, Schema], wide: Mapping[str, Schema]) -> None:
        self._narrow, self._wide = narrow, wide
        self._assumed: set[tuple[str, str]] = set()
        self._failed: dict[tuple[str, str], str] = {}

    def difference(self, narrow: Schema, wide: Schema) -> str:
        """Why not every value of the schema `narrow` is one of `wide`, with the path to where that is; "" if
        each is."""
        names = _reference(narrow), _reference(wide)
        if not all(names):
            return self._difference(narrow, wide)
        if names in self._assumed:  # a class that contains itself: as good as the rest of it
            return ""
        if names not in self._failed:
            self._assumed.add(names)
            why = self._difference(narrow, wide)
            self._assumed.remove(names)
            if not why:
                return ""
            self._failed[names] = why
        return self._failed[names]

    def _difference(self, narrow: Schema, wide: Schema) -> str:
        narrow, wide = _resolved(narrow, self._narrow), _resolved(wide, self._wide)
        if wide is True or narrow is False:
            return ""
        if wide is False or narrow is True:
            return f"{shown(narrow)} is not {shown(wide)}"
        if parts := _alternatives(narrow):
            return next(filter(None, (self.difference(each, wide) for each in parts)), "")
        if (values := _values(narrow)) is not None:
            odd = [json.dumps(each) for each in values if not self._admits(wide, each)]
            return f"{', '.join(odd)} not among {shown(wide)}" if odd else ""
        if options := _alternatives(wide):
            whys = [self.difference(narrow, each) for each in options]
            return "" if "" in whys else f"{shown(narrow)} is not {shown(wide)}"
        return self._of_plain(narrow, wide)

    def _of_plain(self, narrow: dict[str, Any], wide: dict[str, Any]) -> str:
        """Of schemas that are neither unions nor, but for the wide one, enumerations."""
        parts = [self.difference(narrow, each) for each in wide.get("allOf", ())]
        if any(parts):
            return next(filter(None, parts))
        if any(not self.difference(each, wide) for each in narrow.get("allOf", ())):
            return ""
        kinds = narrow.get("type"), wide.get("type")
        other_kind = kinds[1] is not None and kinds[0] != kinds[1] and kinds != ("integer", "number")
        if other_kind or _values(wide) is not None:
            return f"{shown(narrow)} is not {shown(wide)}"
        odd = [key for key in _LEAST if key in wide and narrow.get(key, float("-inf")) < wide[key]]
        odd += [key for key in _MOST if key in wide and narrow.get(key, float("inf")) > wide[key]]
        odd += [key for key in _EXACT if key in wide and narrow.get(key) != wide[key]]
        if odd:
            return "; ".join(f"{key} is {narrow.get(key, 'not given')}, not {wide[key]}" for key in odd)
        return self._of_items(narrow, wide) or self._of_members(narrow, wide)

    def _of_items(self, narrow: dict[str, Any], wide: dict[str, Any]) -> str:
        listed = [each["items"] for each in (narrow, wide) if isinstance(each.get("items"), list)]
        for at in range(max(map(len, listed), default=0) + 1):
            if why := self.difference(_item(narrow, at), _item(wide, at)):
                return _at(f"[{at if listed else ''}]", why)
        return ""

    def _of_members(self, narrow: dict[str, Any], wide: dict[str, Any]) -> str:
        required = {*narrow.get("required", ())}
        for name in wide.get("required", ()):
            if name not in required:
                return _at(f".{name}", "is required")
        mine, theirs = narrow.get("properties", {}), wide.get("properties", {})
        others = wide.get("additionalProperties", True)
        for name, each in mine.items():
            if why := self.difference(each, theirs.get(name, others)):
                return _at(f".{name}", why)
        why = (
            self.difference(narrow.get("additionalProperties", not mine), others)
            if others is not False
            else ""
        )
        return _at(".*", why) if why else ""

    def _admits(self, schema: Schema, value: Any) -> bool:
        """Whether a value of an enumeration is one of a schema of the wide document."""
        schema = _resolved(schema, self._wide)
        if isinstance(schema, bool):
            return schema
        if parts := _alternatives(schema):
            return any(self._admits(each, value) for each in parts)
        if (values := _values(schema)) is not None:
            return any(_same(each, value) for each in values)
        if any(key in schema for key in (*_EXACT, *_LEAST, *_MOST, "allOf")):
            return False
        return "type" not in schema or schema["type"] in _TYPES[type(value)]


def shown(schema: Schema) -> str:
    """A schema in some words, for people."""
    if isinstance(schema, bool) or not schema:
        return "anything" if schema is not False else "nothing"
    if reference := _reference(schema):
        return reference.rpartition("/")[2]
    if (values := _values(schema)) is not None:
        return " | ".join(map(json.dumps, values))
    if parts := _alternatives(schema):
        return " | ".join(map(shown, parts))
    kind, title = schema.get("type"), schema.get("title")
    if kind == "array":
        items = schema.get("items", True)
        within = ", ".join(map(shown, items)) if isinstance(items, list) else shown(items)
        return f"array of {within}" if not isinstance(items, list) else f"array of [{within}]"
    if kind == "object":
        others = schema.get("additionalProperties")
        return title or (f"object of {shown(others)}" if isinstance(others, dict) else "object")
    if kind is None:
        return title or "anything"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _at(step: str, why: str) -> str:
    return f"{step}{why}" if why[:1] in (".", "[") else f"{step}: {why}"


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """The values of an enumeration."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _reference(schema: Schema) -> str:
    found = schema.get("$ref", "") if isinstance(schema, dict) else ""
    return found if isinstance(found, str) else ""


def _resolved(schema: Schema, named: Mapping[str, Schema]) -> Schema:
    for _ in range(len(named) + 1):
        if not (reference := _reference(schema)):
            break
        schema = named.get(reference.rpartition("/")[2], False)
    return True if schema == {} else schema


def _alternatives(schema: dict[str, Any]) -> list[Schema]:
    """The schemas of which a union consists; none if it is no union."""
    if isinstance(types := schema.get("type"), list):
        return [{**schema, "type": each} for each in types]
    return next((schema[choice] for choice in _CHOICES if choice in schema), [])


def _item(schema: dict[str, Any], at: int) -> Schema:
    """The schema of the item of an array at this place."""
    found: Schema = schema.get("items", True)
    if isinstance(found, list):
        found = found[at] if at < len(found) else schema.get("additionalItems", True)
    return found


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: true is no 1."""
    return type(one) is type(other) and bool(one == other)
