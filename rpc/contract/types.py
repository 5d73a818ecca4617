"""Python's types for JSON schemas, as text: annotations, and the classes that they name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from keyword import iskeyword
from textwrap import indent
from typing import Any, NamedTuple

from .documents import Schema

_FORMATS = {
    "date-time": ("datetime", "datetime"),
    "date": ("datetime", "date"),
    "time": ("datetime", "time"),
    "duration": ("datetime", "timedelta"),
    "uuid": ("uuid", "UUID"),
    "decimal": ("decimal", "Decimal"),
}
_PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
_FORMS = {bool: "boolean", int: "integer", float: "number", str: "string"}
_UNFIT = re.compile(r'["\\\x00-\x1f]')
_CHOICES = ("anyOf", "oneOf")


class _Part(NamedTuple):
    """One of the types of a union."""

    text: str
    form: str
    """Its type in JSON; "" if it may be any."""
    values: tuple[Any, ...] = ()
    """If only these are of it."""
    is_class: bool = False
    is_tagged: bool = False
    """Whether an object tells its class."""

    def written(self, value: Any) -> str | None:
        """How a value of this type is written; None if that cannot be told."""
        if self.values:
            text = literal(value)
            return None if value not in self.values else f"{self.text}({text})" if self.is_class else text
        if value is None:
            return "None" if self.form in ("", "null") else None
        kinds = (_FORMS.get(type(value)), "number" if type(value) is int else None)
        is_plain = not self.form or (self.form in kinds and self.text.rstrip("_") in _PLAIN.values())
        return literal(value) if is_plain and not isinstance(value, list | dict) else None


class Names:
    """Identifiers, each of which means one thing in a file; `taken` are those that mean something already."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {*taken}

    def new(self, wanted: str) -> str:
        """An identifier that is like this name, and free."""
        name = identifier(wanted)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def identifier(name: str) -> str:
    """The name as an identifier: `from_` of `from`. With two underscores in front it would be private to its
    class."""
    found = re.sub("^__+", "_", re.sub(r"\W", "_", name, flags=re.ASCII)) or "_"
    return f"_{found}" if found[0].isdigit() else f"{found}_" if iskeyword(found) else found


def literal(value: Any) -> str:
    """A text, a number, a boolean or None, as source."""
    text = repr(value)
    return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text


def docstring(text: str) -> str:
    """The lines of a docstring that says this."""
    shown = "".join(each if each.isprintable() or each == "\n" else literal(each)[1:-1] for each in text)
    escaped = shown.replace("\\", "\\\\").replace('"""', '\\"\\"\\"').strip()
    end = "\n" if "\n" in escaped or escaped.endswith('"') else ""
    return f'"""{escaped}{end}"""'


class Types:
    """The types of a document's schemas, which it has by their names. Remembers what is to be imported."""

    def __init__(self, schemas: Mapping[str, Schema], names: Names) -> None:
        self._schemas, self._names = schemas, names
        self._classes = {name: names.new(name) for name, each in schemas.items() if _is_class(each)}
        self._imports: dict[tuple[str, str], str] = {}
        self._open: list[str] = []

    def imported(self, module: str, name: str) -> str:
        """The name by which something of a module is known in this file."""
        if (module, name) not in self._imports:
            self._imports[module, name] = self._names.new(name)
        return self._imports[module, name]

    def imports(self, body: str) -> Iterator[str]:
        """The lines that import what was asked for, and what this source has indeed."""
        found: dict[str, list[str]] = {}
        words = {*re.findall(r"\w+", body)}
        for (module, name), known in sorted(self._imports.items()):
            if known in words and (module != "builtins" or known != name):
                found.setdefault(module, []).append(name if known == name else f"{name} as {known}")
        for module, names in found.items():
            yield f"from {module} import {', '.join(names)}"

    def of(self, schema: Schema) -> str:
        """The annotation."""
        return _joined(self._parts(schema))

    def optional(self, schema: Schema) -> tuple[str, str]:
        """The annotation of what need not be given, and its default; UNSET if that cannot be written."""
        parts = self._parts(schema)
        if isinstance(schema, dict) and "default" in schema:
            written = [each.written(schema["default"]) for each in parts]
            if default := next(filter(None, written), None):
                return _joined(parts), default
        return f"{_joined(parts)} | {self.imported('msgspec', 'UnsetType')}", self.imported(
            "msgspec", "UNSET"
        )

    def definitions(self) -> Iterator[str]:
        """The classes: enums first, as defaults of others are members of them."""
        classes = [(known, self._schemas[name]) for name, known in self._classes.items()]
        described = [(known, each) for known, each in classes if isinstance(each, dict)]
        yield from (self._enum(known, each) for known, each in described if "enum" in each)
        yield from (self._class(known, each) for known, each in described if "enum" not in each)

    def _builtin(self, name: str) -> str:
        return self.imported("builtins", name)

    def _any(self) -> _Part:
        return _Part(self.imported("typing", "Any"), "")

    def _parts(self, schema: Schema) -> list[_Part]:
        found = [*dict.fromkeys(self._all_parts(schema))]
        if anything := [each for each in found if not each.form]:
            return anything[:1]
        kept = []
        for form in dict.fromkeys(each.form for each in found):
            same = [each for each in found if each.form == form]
            several = len(same) > 1 and not all(each.is_tagged for each in same)
            kept += [self._general(form)] if several else same
        return sorted(kept, key=lambda each: each.form == "null")

    def _general(self, form: str) -> _Part:
        """The type of everything that has a form in JSON: what it is could not be told."""
        if form == "array":
            return _Part(f"{self._builtin('list')}[{self._any().text}]", form)
        if form == "object":
            return _Part(f"{self._builtin('dict')}[{self._builtin('str')}, {self._any().text}]", form)
        return _Part(self._builtin(_PLAIN[form]), form)

    def _all_parts(self, schema: Schema) -> Iterator[_Part]:
        if isinstance(schema, bool):
            yield self._any()
        elif isinstance(reference := schema.get("$ref"), str):
            yield from self._referred(reference.rpartition("/")[2])
        elif choice := next((schema[key] for key in _CHOICES if key in schema), None):
            for each in choice:
                yield from self._all_parts(each)
        elif "enum" in schema or "const" in schema:
            yield from self._literals(schema.get("enum", [schema.get("const")]))
        elif len(schema.get("allOf", ())) == 1:
            yield from self._all_parts(schema["allOf"][0])
        elif isinstance(kinds := schema.get("type"), list):
            for kind in kinds:
                yield self._of_type(kind, schema)
        else:
            yield self._of_type(kinds, schema)

    def _referred(self, name: str) -> Iterator[_Part]:
        schema = self._schemas.get(name, True)
        if isinstance(schema, dict) and name in self._classes:
            if values := schema.get("enum"):
                yield _Part(self._classes[name], _FORMS[type(values[0])], tuple(values), is_class=True)
            else:
                yield _Part(self._classes[name], "object", is_class=True, is_tagged=_tag(schema) is not None)
        elif name in self._open:  # not a class, and it contains itself
            yield self._any()
        else:
            self._open.append(name)
            yield from self._all_parts(schema)
            self._open.pop()

    def _literals(self, values: list[Any]) -> Iterator[_Part]:
        """A Literal of those of each type that may be in one."""
        by_type: dict[type, list[Any]] = {}
        for each in values:
            by_type.setdefault(type(each), []).append(each)
        for kind, listed in by_type.items():
            if kind is type(None):
                yield _Part("None", "null")
            elif kind in (str, int):
                name = self.imported("typing", "Literal")
                yield _Part(f"{name}[{', '.join(map(literal, listed))}]", _FORMS[kind], tuple(listed))
            else:
                yield self._general(_FORMS[kind]) if kind in _FORMS else self._any()

    def _of_type(self, kind: str | None, schema: dict[str, Any]) -> _Part:
        match kind:
            case "null":
                return _Part("None", kind)
            case "string" if "contentEncoding" in schema:
                return _Part(self._builtin("bytes"), kind)
            case "string" if schema.get("format") in _FORMATS:
                return _Part(self.imported(*_FORMATS[schema["format"]]), kind)
            case "string" | "integer" | "number" | "boolean":
                return _Part(self._builtin(_PLAIN[kind]), kind)
            case "array":
                return _Part(self._array(schema), kind)
            case "object" if isinstance(others := schema.get("additionalProperties"), dict):
                return _Part(f"{self._builtin('dict')}[{self._builtin('str')}, {self.of(others)}]", kind)
            case "object":
                return self._general(kind)
        return self._any()

    def _array(self, schema: dict[str, Any]) -> str:
        items = schema.get("items", True)
        if not isinstance(items, list):
            return f"{self._builtin('list')}[{self.of(items)}]"
        if schema.get("minItems") != len(items) or not items:
            return self._general("array").text
        return f"{self._builtin('tuple')}[{', '.join(map(self.of, items))}]"

    def _enum(self, known: str, schema: dict[str, Any]) -> str:
        names = Names(("mro",))
        lines = _described(schema)
        for value in schema["enum"]:
            wanted = identifier(value).upper().strip("_") if isinstance(value, str) else f"VALUE_{value}"
            lines.append(f"{names.new(wanted)} = {literal(value)}")
        return _block(f"class {known}({self.imported('enum', 'Enum')}):", lines)

    def _class(self, known: str, schema: dict[str, Any]) -> str:
        """A dataclass; a Struct, if it says of which class it is, or if Python has other names for fields."""
        tag = _tag(schema)
        properties = {name: each for name, each in schema["properties"].items() if not tag or name != tag[0]}
        names = Names()
        fields = {name: names.new(name) for name in properties}
        is_struct = tag is not None or any(name != field for name, field in fields.items())
        lines = _described(schema)
        for name, each in properties.items():
            is_required = name in schema.get("required", ())
            lines.append(self._field(name, fields[name], each, is_required, is_struct))
        if not is_struct:
            head = f"@{self.imported('dataclasses', 'dataclass')}(kw_only=True)\nclass {known}:"
        else:
            tagged = f", tag_field={literal(tag[0])}, tag={literal(tag[1])}" if tag else ""
            head = f"class {known}({self.imported('msgspec', 'Struct')}, kw_only=True{tagged}):"
        return _block(head, lines)

    def _field(self, name: str, known: str, schema: Schema, is_required: bool, is_struct: bool) -> str:
        options = {} if name == known else {"name": literal(name)}
        annotation = self.of(schema)
        empty = schema.get("default") if isinstance(schema, dict) else None
        if not is_required and empty in ([], {}) and empty is not None:
            options["default_factory"] = self._builtin(type(empty).__name__)
        elif not is_required:
            annotation, options["default"] = self.optional(schema)
        if not options:
            return f"{known}: {annotation}"
        if options.keys() == {"default"}:
            return f"{known}: {annotation} = {options['default']}"
        field = self.imported("msgspec" if is_struct else "dataclasses", "field")
        return (
            f"{known}: {annotation} = {field}({', '.join(f'{key}={each}' for key, each in options.items())})"
        )


def property_names(schemas: Mapping[str, Schema]) -> set[str]:
    """The names of the fields of all classes."""
    return {name for each in schemas.values() if _is_class(each) for name in _properties(each)}


def _properties(schema: Schema) -> Mapping[str, Schema]:
    return schema.get("properties", {}) if isinstance(schema, dict) else {}


def _is_class(schema: Schema) -> bool:
    if not isinstance(schema, dict):
        return False
    if "enum" in schema:
        return {type(each) for each in schema["enum"]} in ({str}, {int})
    names = schema.get("properties")  # msgspec has no fields with quotes or control characters
    return schema.get("type") == "object" and names is not None and not any(map(_UNFIT.search, names))


def _tag(schema: dict[str, Any]) -> tuple[str, str] | None:
    """The property by which an object tells its class, and its value."""
    for name, each in schema["properties"].items():
        if isinstance(each, dict) and name in schema.get("required", ()):
            values = [each["const"]] if "const" in each else each.get("enum", [])
            if len(values) == 1 and isinstance(values[0], str):
                return name, values[0]
    return None


def _joined(parts: Iterable[_Part]) -> str:
    return " | ".join(each.text for each in parts)


def _described(schema: dict[str, Any]) -> list[str]:
    """The docstring of a class, with a line after it."""
    return [docstring(schema["description"]) + "\n"] if schema.get("description") else []


def _block(head: str, lines: list[str]) -> str:
    return f"{head}\n{indent(chr(10).join(lines or ['pass']), '    ')}"
