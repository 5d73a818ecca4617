"""OpenRPC documents of jobs (https://spec.open-rpc.org/): names, parameters, results and errors.

What OpenRPC has no words for is in extensions: `x-rpc-style` ("request": a handler that takes any data),
`x-rpc-kind` of a parameter that is not simply positional or named, `x-rpc-stream` of a handler that yields,
and `x-rpc-events`, an AsyncAPI document of the listeners.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

from .. import errors
from ..core.jobs import Job
from ..core.parameters import function_of, hints
from ..core.values import to_wire
from ..errors import RpcError, ServiceNotFound
from .documents import Document
from .schemas import REFERENCE, Schema, Schemas

OPENRPC = "1.4.1"
NO_VERSION = "0.0.0"
"""What a document of several services has for one."""

STYLE, KIND, STREAM, EVENTS = "x-rpc-style", "x-rpc-kind", "x-rpc-stream", "x-rpc-events"

ERRORS = "#/components/errors/"
ANSWERED = (
    "RemoteError",
    "InvalidParams",
    "SerializationError",
    "RpcTimeout",
    "TimeLimitExceeded",
    "WorkerLost",
)
"""What any job may be answered with, beside that which says that nobody has it."""

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional-only",
    inspect.Parameter.VAR_POSITIONAL: "variadic",
    inspect.Parameter.KEYWORD_ONLY: "named-only",
    inspect.Parameter.VAR_KEYWORD: "variadic-named",
}
_ITERATORS = (abc.Iterator, abc.Generator, abc.AsyncIterator, abc.AsyncGenerator)
_ITERABLES = (abc.Iterable, abc.AsyncIterable)


def openrpc(jobs: Mapping[str, Job], *, title: str, version: str, events: Document | None = None) -> Document:
    """The document of these jobs; `events` is the AsyncAPI document of what is heard beside them."""
    schemas = Schemas()
    methods = [_method(jobs[name], schemas) for name in sorted(jobs)]
    document: Document = {
        "openrpc": OPENRPC,
        "info": {"title": title, "version": version},
        "methods": methods,
        "components": {"schemas": schemas.components(), "errors": _error_table()},
    }
    return document if events is None else {**document, EVENTS: events}


def schema_hash(document: Document) -> str:
    """The SHA-256 of a document, as 64 hexadecimal digits: documents that say the same have the same one."""
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


def methods_of(document: Document, service: str) -> list[Any]:
    """The methods in a document that are of one service and those below it, or that are one job."""
    return [
        each
        for each in document["methods"]
        if each["name"] == service or each["name"].startswith(f"{service}.")
    ]


def selected(document: Document, service: str) -> Document:
    """The part of a document that is about one service with those below it, or about one job. Raises
    ServiceNotFound."""
    methods = methods_of(document, service)
    if not methods:
        raise ServiceNotFound(f"nobody offers a service or a job that is named {service!r}")
    parts = document["components"]
    schemas = parts["schemas"]
    needed = dict.fromkeys(_referred(methods, schemas))
    kept = {**parts, "schemas": {name: each for name, each in schemas.items() if name in needed}}
    return {**document, "methods": methods, "components": kept}


def merged(documents: Sequence[Document], neutral: str | None = None) -> Document:
    """One document of what several workers offer; of methods and classes with one name, the first counts. So
    it does of title and version, but if the titles differ, and `neutral` is given: then that is the title."""
    first = documents[0]
    methods = {each["name"]: each for document in reversed(documents) for each in document["methods"]}
    schemas = _together(documents, "components", "schemas")
    together = {
        **first,
        "info": _info(documents, neutral),
        "methods": [methods[name] for name in sorted(methods)],
        "components": {**first["components"], "schemas": schemas},
    }
    if heard := [document[EVENTS] for document in documents if EVENTS in document]:
        together[EVENTS] = {
            **heard[0],
            "info": _info(heard, neutral),
            "channels": _together(heard, "channels"),
            "operations": _together(heard, "operations"),
            "components": {"schemas": _together(heard, "components", "schemas")},
        }
    return together


def differing(documents: Mapping[str, Document]) -> dict[str, list[str]]:
    """The names of the methods of which several documents say different things, with the keys of these: of
    those that say the same, that of the first."""
    said: dict[str, list[tuple[Any, str]]] = {}
    for key, document in documents.items():
        for each in document["methods"]:
            known = said.setdefault(each["name"], [])
            if all(other != each for other, _ in known):
                known.append((each, key))
    return {name: [key for _, key in known] for name, known in sorted(said.items()) if len(known) > 1}


def _info(documents: Sequence[Document], neutral: str | None) -> dict[str, Any]:
    titles = {document["info"]["title"] for document in documents}
    if neutral is None or len(titles) == 1:
        return documents[0]["info"]  # type: ignore[no-any-return]
    return {"title": neutral, "version": NO_VERSION}


def _together(documents: Sequence[Document], *path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for document in reversed(documents):
        part: Any = document
        for step in path:
            part = part[step]
        found |= part
    return dict(sorted(found.items()))


def _referred(schema: Any, named: Mapping[str, Schema]) -> Iterator[str]:
    """The names of the classes that a schema refers to, and those that these do."""
    stack, found = [schema], set[str]()
    while stack:
        match stack.pop():
            case dict(each):
                reference = each.get("$ref", "")
                name = reference.removeprefix(REFERENCE)
                if isinstance(reference, str) and name != reference and name not in found and name in named:
                    found.add(name)
                    yield name
                    stack.append(named[name])
                stack.extend(each.values())
            case list(each):
                stack.extend(each)


def told(documented: Any) -> dict[str, str]:
    """`summary` and `description` of a function or a class: the first sentence of its docstring, and all of
    it."""
    text = inspect.getdoc(documented) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    if not first:
        return {}
    summary = re.split(r"(?<=[.!?]) ", first, maxsplit=1)[0]
    return {"summary": summary} if summary == text else {"summary": summary, "description": text}


def _method(job: Job, schemas: Schemas) -> Schema:
    found = hints(job.handler)[0]
    produced = _produced(job, found.get("return", Any))
    method: Schema = {"name": job.name, **told(function_of(job.handler))}
    if job.is_typed:
        method |= _parameters(job, found, schemas)
    else:
        method |= {"params": [], STYLE: "request"}
    result = Any if not job.is_typed and produced.result in (None, NoneType) else produced.result
    method["result"] = {"name": "result", "schema": schemas.of(result)}
    if produced.is_stream:
        method[STREAM] = {"items": schemas.of(produced.items)}
        if produced.sent is not Any:
            method[STREAM]["sent"] = schemas.of(produced.sent)
    failures = (*ANSWERED, "StreamBroken") if produced.is_stream else ANSWERED
    method["errors"] = [{"$ref": f"{ERRORS}{name}"} for name in failures]
    return method


class _Produced(NamedTuple):
    """What comes of a call, as annotations."""

    result: Any
    is_stream: bool = False
    items: Any = Any
    sent: Any = Any


def _produced(job: Job, annotation: Any) -> _Produced:
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin not in _ITERATORS and not (job.is_generator and origin in _ITERABLES):
        return _Produced(Any, is_stream=True) if job.is_generator else _Produced(annotation)
    defaults: list[Any] = [Any, None, None]
    items, sent, result = [*args, *defaults[len(args) :]]
    return _Produced(result, True, items, Any if sent in (None, NoneType) else sent)


def _parameters(job: Job, found: Mapping[str, Any], schemas: Schemas) -> Schema:
    """`params`, of which those that are required come first, and `paramStructure`."""
    parameters = inspect.signature(job.handler).parameters.values()
    kinds = {each.kind for each in parameters}
    structure = "either"
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}:
        structure = "by-position"
    elif kinds & {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}:
        structure = "by-name"
    params = [_parameter(each, found.get(each.name, Any), schemas) for each in parameters]
    return {"paramStructure": structure, "params": sorted(params, key=lambda each: not each["required"])}


def _parameter(parameter: inspect.Parameter, annotation: Any, schemas: Schemas) -> Schema:
    is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if is_variadic:
        container: Any = list if parameter.kind is parameter.VAR_POSITIONAL else dict
        annotation = container[annotation] if container is list else container[str, annotation]
    described: Schema = {
        "name": parameter.name,
        "required": parameter.default is parameter.empty and not is_variadic,
        "schema": schemas.of(annotation),
    }
    if parameter.kind in _KINDS:
        described[KIND] = _KINDS[parameter.kind]
    if parameter.default is not parameter.empty:
        with suppress(Exception):  # the default is the user's: it may be no value
            default = msgspec.to_builtins(
                parameter.default, enc_hook=to_wire, str_keys=True, order="deterministic"
            )
            described["schema"]["default"] = msgspec.json.decode(msgspec.json.encode(default))
    return described


def _error_table() -> dict[str, Schema]:
    """Every error of this library that has a code of its own."""
    return {
        name: {"code": each.code, "message": told(each)["summary"]}
        for name, each in sorted(vars(errors).items())
        if isinstance(each, type)
        and issubclass(each, RpcError)
        and each is not RpcError
        and "code" in vars(each)
    }
