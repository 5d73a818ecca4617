"""OpenRPC documents that are read: of a worker, or in a file. Whoever uses one finds what it expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

Document = dict[str, Any]
Schema = dict[str, Any] | bool


class _Described(msgspec.Struct):
    """A parameter, or a result."""

    name: str
    schema: Schema


class _Method(msgspec.Struct):
    name: str
    params: list[_Described]
    result: _Described | None = None


class _Info(msgspec.Struct):
    title: str
    version: str


class _Components(msgspec.Struct):
    schemas: dict[str, Schema] = {}


class _OpenRpc(msgspec.Struct):
    openrpc: str
    info: _Info
    methods: list[_Method]
    components: _Components = msgspec.field(default_factory=_Components)


def checked(value: Any) -> Document:
    """An OpenRPC document in which nothing but schemas is referred to, and whose parts are what they are to
    be as far as this library needs them. ValueError if it is none."""
    try:
        document = {**msgspec.convert(value, Document)}
        document.setdefault("components", {})
        document["methods"] = _in_place(msgspec.convert(document.get("methods"), list[Any]), document)
        msgspec.convert(document, _OpenRpc)
        document["components"] = {"schemas": {}, **document["components"]}
    except (msgspec.ValidationError, LookupError, TypeError) as error:
        raise ValueError(f"it is no OpenRPC document: {error}") from error
    return document


def read(path: str | Path) -> Document:
    """The document in a file. ValueError, which names it, if there is none."""
    try:
        return checked(json.loads(Path(path).read_bytes()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: it is no OpenRPC document: not JSON: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _in_place(part: Any, document: Document, depth: int = 3) -> Any:
    """Methods, their parameters and results, in place of references to them. LookupError if one leads
    nowhere."""
    if isinstance(part, list):
        return [_in_place(each, document, depth) for each in part]
    if not isinstance(part, dict):
        return part
    if isinstance(reference := part.get("$ref"), str):
        if depth == 0:
            raise LookupError(f"{reference!r} leads to a reference")
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return _in_place(found, document, depth - 1)
    return {
        key: _in_place(each, document, depth) if key in ("params", "result") else each
        for key, each in part.items()
    }
