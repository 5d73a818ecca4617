"""Services: objects, classes and modules whose exposed methods are jobs `service.method`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partialmethod
from types import ModuleType
from typing import Any, TypeVar

from .core.jobs import JOB_NAME, marking
from .errors import SettingsError
from .settings import described

F = TypeVar("F", bound=Callable[..., Any])

RESERVED_SERVICES = frozenset({"rpc"})
RESERVED_METHODS = frozenset({"call", "options", "stream", "submit"})
"""What a proxy has itself."""


MARKS = ("__rpc_on__", "__rpc_timers__")
"""What `on`, `every` and `cron` leave behind."""


def expose(method: F) -> F:
    """Let clients call a method of a service, or a function of a module that is one."""
    return marking("__rpc_exposed__", True)(method)


@dataclass(frozen=True)
class Service:
    """What a receiver finds in an object. Made by `service()`."""

    name: str
    """ "" if it exposes nothing, or under no name."""
    jobs: dict[str, Callable[..., Any]]
    hidden: frozenset[str]
    """The names of other methods."""
    members: tuple[tuple[str, Callable[..., Any]], ...]
    """All functions and methods, with names for people: those that listen or tick are among them."""


def service(source: Any, *, name: str | None = None, restricted: Iterable[str] = ()) -> Service:
    """What an object, a class (of which one is made), or a module offers: the methods that are marked with
    `expose`, under `name`, or under the `name` that it has itself. Given a name here, what marks nothing
    exposes all its public functions but the `restricted` ones. With the name "", they are jobs under their
    own names: for a worker that is one service, and called by its type. Raises SettingsError.
    """
    if isinstance(source, Service):
        return source
    if isinstance(source, str):
        raise SettingsError(f"{source!r} is no service: dotted paths are for RPC_SERVICES")
    if isinstance(source, type):
        source = _made(source)
    members = dict(_members(source))
    exposed = {key: each for key, each in members.items() if getattr(each, "__rpc_exposed__", False)}
    if name is not None and not exposed:
        exposed = {key: each for key, each in members.items() if not key.startswith("_")}
    restricted = frozenset(restricted)
    if unknown := restricted - members.keys():
        raise SettingsError(f"{_called(source)} has no {', '.join(sorted(unknown))} to be restricted")
    exposed = {key: each for key, each in exposed.items() if key not in restricted}
    label = _own_name(source) if name is None else name
    if exposed:
        if name != "":
            _check(label, exposed, source)
    elif not any(hasattr(each, mark) for each in members.values() for mark in MARKS):
        raise SettingsError(f"{_called(source)} offers nothing: mark methods with expose, on, every or cron")
    hidden = {key for key in members if not key.startswith("_")} - exposed.keys() - restricted
    return Service(
        label if exposed else "",
        {f"{label}.{key}".lstrip("."): each for key, each in exposed.items()},
        frozenset(f"{label}.{key}".lstrip(".") for key in hidden if exposed),
        tuple((f"{label or _place(source)}.{key}", each) for key, each in members.items()),
    )


def health_check() -> bool:
    """Whether this service is well: a job that each service has, unless it has one of this name itself."""
    return True


def gathered(
    services: Iterable[Service], jobs: dict[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """The jobs of services, with others; SettingsError if a name is used twice, or ours, and if one of the
    others would tick or listen, as members of services do."""
    services = [*services]
    if ours := [name for name in jobs if name.partition(".")[0] in RESERVED_SERVICES and "." in name]:
        raise SettingsError(f"{', '.join(ours)}: what begins with 'rpc.' is reserved: name it otherwise")
    members = [member for each in services for _, member in each.members]
    for name, handler in jobs.items():
        if handler not in members and any(hasattr(handler, mark) for mark in MARKS):
            raise SettingsError(
                f"job {name!r} is marked with on, every or cron, but only what services have "
                f"listens and ticks: name {handler.__module__!r} in RPC_SERVICES"
            )
    together, names = dict(jobs), set[str]()
    for each in services:
        if each.name and each.name in names:
            raise SettingsError(f"two services are named {each.name!r}")
        names.add(each.name)
        if twice := together.keys() & each.jobs.keys():
            raise SettingsError(f"{', '.join(sorted(twice))}: registered twice")
        together |= each.jobs
    return together


def _made(kind: type) -> Any:
    try:
        return kind()
    except Exception as error:  # the class is the user's
        raise SettingsError(
            f"service {kind.__name__} cannot be made without arguments ({described(error)}): give an instance"
        ) from error


def _members(source: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and methods by name; no property is asked for its value."""
    if inspect.isroutine(source):
        yield source.__name__, source
        return
    for key in dir(source):
        if key.startswith("__"):
            continue
        if not _is_method(inspect.getattr_static(source, key, None)):
            continue
        member = getattr(source, key)
        if not isinstance(source, ModuleType) or getattr(member, "__module__", "") == source.__name__:
            yield key, member


def _is_method(static: Any) -> bool:
    if isinstance(static, staticmethod | classmethod | partialmethod):
        return True
    # To `isroutine`, a cached_property is one: it has a __get__, and no __set__.
    return inspect.isroutine(static) and callable(static)


def _own_name(source: Any) -> str:
    default = source.__name__.rpartition(".")[2] if isinstance(source, ModuleType) else ""
    name = getattr(source, "name", default)
    return name if isinstance(name, str) else default


def _called(source: Any) -> str:
    """How the user knows it."""
    if isinstance(source, ModuleType):
        return source.__name__
    kind = source if inspect.isroutine(source) else type(source)
    return f"{kind.__module__}.{kind.__qualname__}"


def _place(source: Any) -> str:
    """What tells the members of nameless things apart, also those of several programs: the locks of timers
    have their names."""
    if inspect.isroutine(source):
        return str(source.__module__)
    return f"{type(source).__module__}.{type(source).__qualname__}"


def _check(name: str, exposed: dict[str, Any], source: Any) -> None:
    if not name:
        raise SettingsError(f"{_called(source)} exposes methods, but has no `name`")
    first, *others = name.split(".")
    if first in RESERVED_SERVICES:
        raise SettingsError(f"{name!r} is reserved: name the service otherwise")
    for method in exposed:
        if RESERVED_METHODS.intersection([*others, method]):
            raise SettingsError(f"{name}.{method}: nothing must be named so, because proxies have it")
        if any(part.startswith("_") for part in [first, *others, method]):
            raise SettingsError(f"{name}.{method}: what begins with '_' is private, and not for clients")
        if not JOB_NAME.fullmatch(f"{name}.{method}") or not all([first, *others]):
            raise SettingsError(f"'{name}.{method}' is no job name")
