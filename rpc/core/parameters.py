"""A handler's signature, read once: which style it has, and how a call's arguments become its own.

Arguments are converted and validated against the annotations by msgspec, strictly: "1" is no int.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

import msgspec

from ..errors import InvalidParams
from .protocol import Call

logger = logging.getLogger(__name__)

_PLAIN = {str, int, float, bool, bytes}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Parameters:
    """The parameters of a handler in typed style."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self._signature = inspect.signature(handler)
        parameters = self._signature.parameters.values()
        self._kinds = {
            name: kind for name, kind in _hints(handler).items() if _is_usable(name, kind, handler)
        }
        self._variadic = {
            p.name: p.kind
            for p in parameters
            if p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        }
        self._named = {p.name for p in parameters}
        self._required = {p.name for p in parameters if p.default is p.empty}
        self._all_named = all(p.kind in _NAMED for p in parameters)

    def bind(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and named arguments for the handler; InvalidParams says which is wrong and why."""
        params = call.params
        if self._all_named and (params is None or isinstance(params, dict)):
            named = params or {}
            keys = named.keys()
            if keys == self._named or (self._required <= keys <= self._named):
                return (), self._converted(named) if self._kinds else named
        try:
            if isinstance(params, list):
                bound = self._signature.bind(*params, **(call.kwargs or {}))
            else:
                bound = self._signature.bind(**(params or {}))
        except TypeError as error:
            raise InvalidParams(f"{call.method}: {error}") from None
        bound.arguments.update(self._converted(bound.arguments))
        return bound.args, bound.kwargs

    def _converted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        converted = {}
        for name, value in arguments.items():
            kind = self._kinds.get(name)
            as_it_is = kind is None or (type(value) is kind and kind in _PLAIN)
            converted[name] = value if as_it_is else self._convert(name, value, kind)
        return converted

    def _convert(self, name: str, value: Any, kind: Any) -> Any:
        match self._variadic.get(name):
            case inspect.Parameter.VAR_POSITIONAL:
                kind = tuple[kind, ...]
            case inspect.Parameter.VAR_KEYWORD:
                kind = dict[str, kind]
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise InvalidParams(f"{name}: {error}") from None
        except Exception as error:  # the type is the user's: making one may raise anything
            raise InvalidParams(f"{name}: {type(error).__name__}: {error}") from error


def wants_request(handler: Callable[..., Any], request_type: type) -> bool:
    """Whether a handler is in request style: its only parameter is named `request` or annotated Request."""
    parameters = list(inspect.signature(handler).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, *_NAMED[:1]):
        return False
    kind = _hints(handler).get(parameters[0].name)
    return parameters[0].name == "request" or (isinstance(kind, type) and issubclass(kind, request_type))


def _is_usable(name: str, kind: Any, handler: Callable[..., Any]) -> bool:
    try:
        msgspec.json.Decoder(kind)
    except TypeError as error:
        logger.warning("%r: %s; its argument %s is not validated", handler, error, name)
        return False
    return kind is not Any


def _hints(handler: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(handler, partial):
        handler = handler.func
    function = handler if inspect.isroutine(handler) else type(handler).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        logger.warning("%r: %s; its arguments are not validated", handler, error)
        return {}
