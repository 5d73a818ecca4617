"""What changed between two OpenRPC documents, and which of it breaks callers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ..errors import SettingsError
from .documents import Document, read
from .openrpc import KIND, STREAM, STYLE
from .subset import Subset, shown

_VARIADIC = ("variadic", "variadic-named")


class Change(msgspec.Struct, frozen=True):
    """One difference."""

    method: str
    text: str
    """What is different, for people."""
    is_breaking: bool
    """Whether a call that was right before may fail now, or be answered with what nobody expects."""

    def __str__(self) -> str:
        return f"{self.method}: {self.text}"


def changes(old: Document, new: Document) -> list[Change]:
    """All differences, by method; those that break come first. Documents are as `documents.checked` has
    them."""
    before, after = _by_name(old["methods"]), _by_name(new["methods"])
    found = [Change(name, "the method is gone", True) for name in before if name not in after]
    found += [Change(name, "the method is new", False) for name in after if name not in before]
    comparison = _Comparison(old, new)
    for name in before:
        if name in after:
            told = comparison.of_methods(before[name], after[name])
            found += [Change(name, text, is_breaking) for text, is_breaking in told]
    return sorted(found, key=lambda change: (not change.is_breaking, change.method))


def must_keep(contract: str, offered: Document) -> None:
    """Raises SettingsError if what is offered breaks those who call as a document says that is in this file,
    or if there is no such file."""
    try:
        agreed = read(contract)
    except ValueError as error:
        raise SettingsError(f"RPC_CONTRACT: {error}") from error
    if broken := [str(change) for change in changes(agreed, offered) if change.is_breaking]:
        raise SettingsError(f"what is offered breaks the contract {contract}: {'; '.join(broken)}")


Told = Iterator[tuple[str, bool]]
"""What is different, and whether it breaks."""


class _Comparison:
    def __init__(self, old: Document, new: Document) -> None:
        before, after = (each["components"].get("schemas", {}) for each in (old, new))
        self._forwards, self._backwards = Subset(before, after), Subset(after, before)

    def of_methods(self, old: dict[str, Any], new: dict[str, Any]) -> Told:
        if STYLE in old and STYLE not in new:
            yield "it took any data, and takes parameters now", True
        elif STYLE not in old and STYLE in new:
            yield "it takes any data now", False
        elif STYLE not in old:
            yield from self._of_parameters(old, new)
        yield from self._of_values("the result", _result(old), _result(new), given=False)
        yield from self._of_streams(old.get(STREAM), new.get(STREAM))
        if old.get("deprecated", False) != new.get("deprecated", False):
            yield ("it is deprecated" if new.get("deprecated") else "it is no longer deprecated"), False

    def _of_parameters(self, old: dict[str, Any], new: dict[str, Any]) -> Told:
        before, after = _by_name(old["params"]), _by_name(new["params"])
        takes_others = "variadic-named" in {each.get(KIND) for each in after.values()}
        for name in before:
            if name not in after:
                yield f"parameter {name!r} is gone", not takes_others or name in _positions(old)
        for name, each in after.items():
            if name not in before:
                yield _added(name, each)
                continue
            if each.get("required") and not before[name].get("required"):
                yield f"parameter {name!r} is required now", True
            elif before[name].get("required") and not each.get("required"):
                yield f"parameter {name!r} is no longer required", False
            if before[name].get(KIND) in _VARIADIC and each.get(KIND) != before[name][KIND]:
                yield f"parameter {name!r} takes any number of arguments no more", True
            yield from self._of_values(
                f"parameter {name!r}", before[name]["schema"], each["schema"], given=True
            )
        yield from _of_order(old, new)

    def _of_streams(self, old: Any, new: Any) -> Told:
        if old is None and new is None:
            return
        if old is None or new is None:
            yield ("it is a stream no more" if new is None else "it is a stream now"), True
            return
        for what, key, given in (("what it yields", "items", False), ("what it is sent", "sent", True)):
            yield from self._of_values(what, old.get(key, True), new.get(key, True), given=given)

    def _of_values(self, what: str, old: Any, new: Any, *, given: bool) -> Told:
        """Of what callers give, which must be taken as before; or of what they get, which must be what it
        was."""
        lost, gained = self._forwards.difference(old, new), self._backwards.difference(new, old)
        breaks, more = (lost, gained) if given else (gained, lost)
        change = f"{shown(old)}, now {shown(new)}" if shown(old) != shown(new) else shown(new)
        if breaks:
            yield f"{what} is {'narrower' if given else 'wider'} ({change}): {breaks}", True
        elif more:
            yield f"{what} is {'wider' if given else 'narrower'} ({change})", False


def _added(name: str, parameter: dict[str, Any]) -> tuple[str, bool]:
    is_required = parameter.get("required", False)
    return f"parameter {name!r} is new" + (", and required" if is_required else ""), is_required


def _of_order(old: dict[str, Any], new: dict[str, Any]) -> Told:
    """Of how arguments may be given: by their places, or by their names."""
    before, after = _positions(old), _positions(new)
    if before != after[: len(before)] and {*before} <= {*after}:
        yield f"the order of positional parameters was {', '.join(before)}, and is {', '.join(after)}", True
    moved = [name for name in before if name not in after and name in _by_name(new["params"])]
    if moved:
        yield f"{', '.join(moved)} cannot be given by position any more", True
    named = [name for name in _named(old) if name not in _named(new) and name in _by_name(new["params"])]
    if named:
        yield f"{', '.join(named)} cannot be given by name any more", True


def _positions(method: dict[str, Any]) -> list[str]:
    kinds = (None, "positional-only")
    if method.get("paramStructure") == "by-name" and not any(KIND in each for each in method["params"]):
        return []
    return [each["name"] for each in method["params"] if each.get(KIND) in kinds]


def _named(method: dict[str, Any]) -> list[str]:
    if method.get("paramStructure") == "by-position" and not any(KIND in each for each in method["params"]):
        return []
    return [each["name"] for each in method["params"] if each.get(KIND) in (None, "named-only")]


def _by_name(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in parts}


def _result(method: dict[str, Any]) -> Any:
    return (method.get("result") or {"schema": True})["schema"]
