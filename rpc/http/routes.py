"""Rules: under which paths, and with which methods of HTTP, a job is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from ..core.jobs import marking
from ..core.parameters import function_of
from ..errors import SettingsError

F = TypeVar("F", bound=Callable[..., Any])
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MARK = "__rpc_routes__"


class Route(msgspec.Struct, frozen=True):
    """A rule."""

    path: str
    """With a slash in front; variables are written `{n}` or `{n:int}`, and become named arguments."""
    methods: tuple[str, ...] = ("POST",)


def route(path: str, *, methods: Sequence[str] = ("POST",)) -> Callable[[F], F]:
    """A decorator for functions that are jobs, or exposed methods: they are also called by requests for this
    path, with one of these methods of HTTP (GET, POST, PUT, PATCH, DELETE). Variables in it, as in
    `/user/{n:int}`, become named arguments: of the types that Starlette's paths have (str, int, float, uuid,
    path). Several may be above one function. Raises SettingsError for a method that is none."""
    upper = tuple(each.upper() for each in ([methods] if isinstance(methods, str) else methods))
    if not upper or not {*upper} <= {*METHODS}:
        raise SettingsError(f"route({path!r}): methods are some of {', '.join(METHODS)}, not {methods!r}")
    return marking(MARK, Route(path if path.startswith("/") else f"/{path}", upper), several=True)


def routes_of(handler: Callable[..., Any]) -> list[Route]:
    """The rules of a handler."""
    return [*getattr(handler, MARK, getattr(function_of(handler), MARK, ()))]
