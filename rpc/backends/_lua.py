"""Scripts for Redis, each in a `.lua` file of its own beside the code that runs it."""

from __future__ import annotations

import re
from importlib.resources import files

_INCLUDE = re.compile(r"^-- include (\w+)\n", re.MULTILINE)


def lua(package: str, name: str, shared: str = "") -> str:
    """The script `lua/<name>.lua` of a package, with `lua/include/<other>.lua` in place of each line
    `-- include <other>`, the first time; what the package does not have, the package `shared` has."""
    folder = files(package) / "lua"
    included: set[str] = set()

    def text_of(path: str) -> str:
        found = folder / f"{path}.lua"
        if shared and not found.is_file():
            found = files(shared) / "lua" / f"{path}.lua"
        return _INCLUDE.sub(include, found.read_text())

    def include(found: re.Match[str]) -> str:
        if found[1] in included:
            return ""
        included.add(found[1])
        return text_of(f"include/{found[1]}")

    return text_of(name)
