"""Who a service is: its domain, its type, its id, and its version; and which versions somebody wants."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

PART = re.compile(r"[A-Za-z0-9_-]{1,63}")
NAMELESS = "default"
"""The domain, and the id, of what says none."""
LONGEST = 120
"""Characters of a full name, which names queues, too; and of a version."""
MOST_WANTED = 200
"""Characters that say which versions are wanted."""
RESERVED = "rpc"
"""No domain: topics of ours begin so."""
NO_VERSION = "{!r:.80} is no version of a service: a text MAJOR.MINOR.PATCH, as 1.4.0"

_NUMBER, _BUILD = r"(0|[1-9]\d{0,8})", r"[0-9A-Za-z-]+"
_PRE = r"(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
_SEMANTIC = re.compile(
    rf"(?P<numbers>{_NUMBER}(\.{_NUMBER}){{2}})(-(?P<pre>{_PRE}(\.{_PRE})*))?(\+{_BUILD}(\.{_BUILD})*)?",
    re.ASCII,
)
_SHORT = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_WANTED = re.compile(r"\s*(?P<how>==|!=|>=|<=|>|<|)\s*(?P<version>\S+)\s*")
_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

Order = tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a service is. Those with one domain, type and id are replicas, and share their work. Raises
    ValueError that names the part which is none."""

    domain: str = NAMELESS
    type: str = ""
    """ "" for a worker that says none: it has queues that others named, and none of its own."""
    id: str = NAMELESS
    version: str = "0.0.0"
    """MAJOR.MINOR.PATCH, as https://semver.org has it."""

    def __post_init__(self) -> None:
        for part in ("domain", "type", "id"):
            if part != "type" or self.type:
                check_part(part, getattr(self, part))
        if self.domain == RESERVED:
            raise ValueError(f"{RESERVED!r} is no domain of a service: it is reserved")
        if not isinstance(self.version, str):
            raise ValueError(NO_VERSION.format(self.version))  # noqa: TRY004
        ordered(self.version)
        if len(f"{self}.{self.version}") > LONGEST:
            raise ValueError(f"the parts of a service are together at most {LONGEST} long")

    def __str__(self) -> str:
        return f"{self.domain}.{self.type}.{self.id}"

    @property
    def headers(self) -> dict[str, str]:
        """What the headers of its events say of it."""
        said = {} if self.domain == NAMELESS else {"domain": self.domain}
        if self.type:
            said |= {"service_type": self.type, "service_id": self.id, "service_version": self.version}
        return said

    @property
    def queues(self) -> tuple[str, ...]:
        """Those that it serves: its own, which it shares with its replicas; that of all of its type; and that
        of its replicas that have its version. None if it is no service."""
        if not self.type:
            return ()
        return str(self), f"{self.domain}.{self.type}", f"{self}.{self.version.replace('+', '_')}"


def check_part(part: str, value: object) -> None:
    """Raises ValueError if it is no domain, type or id, whichever `part` it is."""
    if not isinstance(value, str) or not PART.fullmatch(value):
        raise ValueError(
            f"{value!r:.80} is no {part} of a service: letters, digits, '_' and '-', at most 63 of them"
        )


@lru_cache(1024)
def ordered(version: str) -> Order:
    """What compares as https://semver.org orders versions; ValueError if it is none."""
    found = _SEMANTIC.fullmatch(version) if len(version) <= LONGEST else None
    if not found:
        raise ValueError(NO_VERSION.format(version))
    pre = found["pre"].split(".") if found["pre"] else []
    parts = tuple((not each.isdigit(), int(each) if each.isdigit() else 0, each) for each in pre)
    return tuple(map(int, found["numbers"].split("."))), not pre, parts


@lru_cache(1024)
def wanted(versions: str) -> Callable[[str], bool]:
    """Whether a version is one of these: `1.4.0`, `>=1.2`, `>=1.2,<2`, `!=1.3.1`; what is left out of a
    version is 0. Raises ValueError."""
    if len(versions) > MOST_WANTED:
        raise ValueError(f"{versions!r:.80} is too long: at most {MOST_WANTED} characters say versions")
    checks: list[tuple[Callable[[Any, Any], bool], Order]] = []
    for each in versions.split(","):
        found = _WANTED.fullmatch(each)
        if not found:
            raise ValueError(f"{versions!r:.80} says no versions: as '>=1.2,<2', or '1.4.0'")
        version = found["version"]
        if _SHORT.fullmatch(version):
            version += ".0" * (2 - version.count("."))
        checks.append((_COMPARED[found["how"]], ordered(version)))

    def fits(version: str) -> bool:
        order = ordered(version)
        return all(compared(order, other) for compared, other in checks)

    return fits
