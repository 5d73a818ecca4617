"""Scripts for Redis, each in a `.lua` file of its own beside the code that runs it."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_INCLUDE = re.compile(r"^-- include (\w+)\n", re.MULTILINE)


def lua(package: str, name: str, shared: str = "") -> str:
    """The script `lua/<name>.lua` of a package, with `lua/include/<other>.lua` in place of each line
    `-- include <other>`, the first time; what the package does not have, the package `shared` has."""
    included: set[str] = set()

    def text_of(path: str) -> str:
        return _INCLUDE.sub(include, _read(package, path, shared))

    def include(found: re.Match[str]) -> str:
        if found[1] in included:
            return ""
        included.add(found[1])
        return text_of(f"include/{found[1]}")

    return text_of(name)


@cache
def _read(package: str, path: str, shared: str) -> str:
    """One file: several scripts include it."""
    found = files(package) / "lua" / f"{path}.lua"
    if shared and not found.is_file():
        found = files(shared) / "lua" / f"{path}.lua"
    return found.read_text()
