"""Clients with types, as Python source: of each service a class, whose methods are what it exposes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

from .documents import Document, Schema
from .openrpc import KIND, STREAM, STYLE
from .types import Names, Types, docstring, identifier, literal, property_names

_LOCAL = ("self", "_call", "_given", "_item", "_items", "_placed", "_result", "_services")
"""What methods need themselves."""
_ROOT = "Client"
_LONGEST = 100
"""Characters of a line."""


def stubs(document: Document) -> str:
    """The source of a module with the classes `Client` and `AsyncClient`, which take an RpcClient and an
    AsyncRpcClient, or what their `service()` returns, and those of services and of values. The document is as
    `documents.checked` has it."""
    return _Module(document).source()


@dataclass
class _Node:
    """A service, or a namespace of them; the root of all has no name."""

    name: str = ""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    below: dict[str, _Node] = field(default_factory=dict)

    def add(self, path: list[str], method: dict[str, Any]) -> None:
        first, *rest = path
        if not rest:
            self.methods[first] = method
            return
        name = f"{self.name}.{first}" if self.name else first
        self.below.setdefault(first, _Node(name)).add(rest, method)

    def nodes(self) -> Iterator[_Node]:
        """All of them, those below before those above."""
        for each in self.below.values():
            yield from each.nodes()
        yield self

    @property
    def class_name(self) -> str:
        words = self.name.replace("-", ".").replace("_", ".").split(".")
        return identifier("".join(word[:1].upper() + word[1:] for word in words)) if self.name else _ROOT


class _Module:
    def __init__(self, document: Document) -> None:
        self._info, methods = document["info"], document["methods"]
        root = _Node()
        for each in methods:
            root.add(each["name"].split("."), each)
        self._nodes = [*root.nodes()]
        members = {part for each in methods for part in each["name"].split(".")}
        parameters = {param["name"] for each in methods for param in each["params"]}
        schemas = document["components"].get("schemas", {})
        names = Names({"data", *_LOCAL, *map(identifier, members | parameters | property_names(schemas))})
        self.types = Types(schemas, names)
        self._classes = {
            (each.name, is_async): names.new(f"{'Async' if is_async else ''}{each.class_name}")
            for each in self._nodes
            for is_async in (False, True)
        }
        self._helpers: dict[str, str] = {}
        """Functions that methods need, by name."""

    def source(self) -> str:
        """The whole of it."""
        services = [self._service(each, is_async) for is_async in (False, True) for each in self._nodes]
        classes = [*self.types.definitions()]
        body = "\n\n".join(f"{each}\n" for each in (*classes, *self._helpers.values(), *services))
        about = docstring(
            f"A client of {self._info['title']}, version {self._info['version']}.\n\n"
            "Made by `rpc stubs`: to change it, make it anew."
        )
        imports = "\n".join(self.types.imports(body))
        return f"{about}\n\nfrom __future__ import annotations\n\n{imports}\n\n\n{body}"

    def builtin(self, name: str) -> str:
        """The name by which one of Python's own is known."""
        return self.types.imported("builtins", name)

    def _service(self, node: _Node, is_async: bool) -> str:
        client = self.types.imported("rpc", "AsyncRpcClient" if is_async else "RpcClient")
        services = self.types.imported("rpc.proxies", "Services")
        is_one = f"{self.builtin('isinstance')}(client, {services})"
        members = Names(_LOCAL)
        begin = [
            f"def __init__(self, client: {client} | {services}) -> None:",
            f"    self._services = client if {is_one} else client.services",
        ]
        for name, each in node.below.items():
            begin.append(f"    self.{members.new(name)} = {self._classes[each.name, is_async]}(client)")
        about = docstring(f"The service {node.name}." if node.name else "All that there is.")
        methods = [
            _Method(self, members.new(name), each, is_async).source() for name, each in node.methods.items()
        ]
        body = "\n\n".join([about, "\n".join(begin), *methods])
        return f"class {self._classes[node.name, is_async]}:\n{indent(body, '    ')}"

    def named(self, given: dict[str, str], has_unset: bool) -> str:
        """Named arguments of a call: what they are, by their names."""
        if not has_unset and all(name == value for name, value in given.items()):
            return ", ".join(f"{name}={value}" for name, value in given.items())
        kind = f"{self.builtin('dict')}[{self.builtin('str')}, {self.types.imported('typing', 'Any')}]"
        unset = self.types.imported("msgspec", "UNSET")
        self._helpers["_given"] = (
            f"def _given(arguments: {kind}) -> {kind}:\n"
            f"    return {{name: each for name, each in arguments.items() if each is not {unset}}}"
        )
        return f"**_given({{{', '.join(f'{literal(name)}: {value}' for name, value in given.items())}}})"

    def placed(self, given: list[str], has_unset: bool) -> str:
        """Positional arguments of a call."""
        if not has_unset:
            return ", ".join(given)
        any_, unset = self.types.imported("typing", "Any"), self.types.imported("msgspec", "UNSET")
        list_, len_, error = map(self.builtin, ("list", "len", "TypeError"))
        self._helpers["_placed"] = (
            f"def _placed(*arguments: {any_}) -> {list_}[{any_}]:\n"
            f"    given = [each for each in arguments if each is not {unset}]\n"
            f"    if {unset} in arguments[: {len_}(given)]:\n"
            f'        raise {error}("arguments go by their places: one is missing before another")\n'
            "    return given"
        )
        return f"*_placed({', '.join(given)})"


class _Method:
    """One method of a class: its signature, and what it does."""

    def __init__(self, module: _Module, name: str, method: dict[str, Any], is_async: bool) -> None:
        self._module, self._types = module, module.types
        self._name, self._method, self._is_async = name, method, is_async
        self._is_request = STYLE in method
        self._unset = set[str]()
        """Names of parameters that may be left out, whose defaults are not known."""
        self._known: dict[str, str] = {}
        """Names of parameters -> those that they have here."""
        names = Names(_LOCAL)
        for each in method["params"]:
            self._known[each["name"]] = names.new(each["name"])

    def source(self) -> str:
        is_stream = STREAM in self._method
        parameters = self._request_parameters() if self._is_request else self._parameters()
        text = self._method.get("description") or self._method.get("summary")
        about = [docstring(text)] if text else []
        returned, lines = self._streamed() if is_stream else self._returned()
        head = _signature(
            f"{'async ' if self._is_async else ''}def {self._name}", ["self", *parameters], returned
        )
        return f"{head}\n" + indent("\n".join([*about, *lines]), "    ")

    def _request_parameters(self) -> list[str]:
        builtin, any_ = self._module.builtin, self._types.imported("typing", "Any")
        kinds = f"{builtin('dict')}[{builtin('str')}, {any_}] | {builtin('list')}[{any_}] | None"
        return [f"data: {kinds} = None"]

    def _of_kind(self, *kinds: str | None) -> list[dict[str, Any]]:
        params: list[dict[str, Any]] = self._method["params"]
        is_plain = not any(KIND in each for each in params)
        if is_plain and self._method.get("paramStructure") == "by-name":
            return params if "named-only" in kinds else []
        return [each for each in params if each.get(KIND) in kinds]

    def _parameters(self) -> list[str]:
        """As they are written in a signature."""
        first = [self._parameter(each) for each in self._of_kind("positional-only")]
        found = [*first, "/"] if first else []
        found += [self._parameter(each) for each in self._of_kind(None)]
        for each in self._of_kind("variadic"):
            found.append(f"*{self._known[each['name']]}: {self._inner(each['schema'], 'items')}")
        named = [self._parameter(each) for each in self._of_kind("named-only")]
        if named and not self._of_kind("variadic"):
            found.append("*")
        found += named
        for each in self._of_kind("variadic-named"):
            found.append(
                f"**{self._known[each['name']]}: {self._inner(each['schema'], 'additionalProperties')}"
            )
        return found

    def _inner(self, schema: Schema, key: str) -> str:
        return self._types.of(schema.get(key, True) if isinstance(schema, dict) else True)

    def _parameter(self, parameter: dict[str, Any]) -> str:
        known = self._known[parameter["name"]]
        if parameter.get("required"):
            return f"{known}: {self._types.of(parameter['schema'])}"
        annotation, default = self._types.optional(parameter["schema"])
        if default == self._types.imported("msgspec", "UNSET"):
            self._unset.add(parameter["name"])
        return f"{known}: {annotation} = {default}"

    def _arguments(self) -> str:
        """As they are written in a call."""
        positional, variadic = self._of_kind("positional-only", None), self._of_kind("variadic")
        named = self._of_kind("named-only")
        by_position = variadic or self._of_kind("positional-only")
        is_plain = not any(KIND in each for each in self._method["params"])
        if not by_position and not (is_plain and self._method.get("paramStructure") == "by-position"):
            positional, named = [], [*positional, *named]
        values = [self._known[each["name"]] for each in positional]
        has_unset = any(each["name"] in self._unset for each in positional)
        found = [self._module.placed(values, has_unset)] if values else []
        found += [f"*{self._known[each['name']]}" for each in variadic]
        given = {each["name"]: self._known[each["name"]] for each in named}
        if given:
            found.append(self._module.named(given, not self._unset.isdisjoint(given)))
        found += [f"**{self._known[each['name']]}" for each in self._of_kind("variadic-named")]
        return ", ".join(found)

    def _returned(self) -> tuple[str, list[str]]:
        """What it returns, and the lines that do so."""
        wait = "await " if self._is_async else ""
        result = self._types.of((self._method.get("result") or {"schema": True})["schema"])
        if self._is_request:
            lines, call = [f"_call = {self._proxy(result)}"], self._called("_call", wait)
        else:
            lines, call = [], f"{wait}{self._proxy(result)}({self._arguments()})"
        if result == "None":
            return result, [*lines, call]
        return result, [*lines, f"_result: {result} = {call}", "return _result"]

    def _called(self, call: str, wait: str = "") -> str:
        """The call of a handler that takes any data."""
        is_named = f"{self._module.builtin('isinstance')}(data, {self._module.builtin('dict')})"
        return f"{wait}{call}(**data) if {is_named} else {wait}{call}(*(data or ()))"

    def _streamed(self) -> tuple[str, list[str]]:
        begin, item = (
            "async " if self._is_async else "",
            self._types.of(self._method[STREAM].get("items", True)),
        )
        method = f"{self._proxy(item)}.stream"
        call = f"({self._called(method)})" if self._is_request else f"{method}({self._arguments()})"
        kind = self._types.imported("collections.abc", "AsyncGenerator" if self._is_async else "Generator")
        return f"{kind}[{item}, None{'' if self._is_async else ', None'}]", [
            f"{begin}with {call} as _items:",
            f"    {begin}for _item in _items:",
            "        yield _item",
        ]

    def _proxy(self, returned: str) -> str:
        """The method of the service, whose values are converted to this."""
        is_converted = returned not in ("None", self._types.imported("typing", "Any"))
        options = f".options(returns={returned})" if is_converted else ""
        return f"self._services[{literal(self._method['name'])}]{options}"


def _signature(head: str, parameters: list[str], returned: str) -> str:
    line = f"{head}({', '.join(parameters)}) -> {returned}:"
    if len(line) <= _LONGEST:
        return line
    listed = indent(",\n".join(parameters), "    ")
    return f"{head}(\n{listed}{'' if parameters[-1].startswith('**') else ','}\n) -> {returned}:"
