"""A handler's signature, read once: which style it has, and how a call's arguments become its own.

Arguments are converted and validated against the annotations by msgspec, strictly: "1" is no int.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, get_type_hints

from ..errors import InvalidParams
from .known import know_all_in
from .protocol import Call
from .values import ANY_KIND, Conversion, conversion

logger = logging.getLogger(__name__)

_PLAIN = {str, int, float, bool, bytes}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Parameters:
    """The parameters of a handler in typed style."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        """TypeError as `conversions`."""
        self._signature = inspect.signature(handler)
        parameters = self._signature.parameters
        self._conversions = {
            name: each._replace(kind=_gathered(each.kind, parameters[name].kind))
            for name, each in conversions(handler).items()
        }
        self._plain = {
            name: each.kind
            for name, each in self._conversions.items()
            if isinstance(each.kind, type) and each.kind in _PLAIN
        }
        """Instances of these are what they are to be."""
        self._named = {*parameters}
        self._required = {name for name, each in parameters.items() if each.default is each.empty}
        self._all_named = all(each.kind in _NAMED for each in parameters.values())

    def bind(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and named arguments for the handler; InvalidParams says which is wrong and why."""
        params = call.params
        if self._all_named and (params is None or isinstance(params, dict)):
            named = params or {}
            keys = named.keys()
            if keys == self._named or (self._required <= keys <= self._named):
                return (), self._converted(named) if self._conversions else named
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
            if type(value) is not self._plain.get(name) and (convert := self._conversions.get(name)):
                value = convert(value, name)
            converted[name] = value
        return converted


def wants_request(handler: Callable[..., Any], request_type: type) -> bool:
    """Whether a handler is in request style: its only parameter is named `request` or annotated Request."""
    parameters = list(inspect.signature(handler).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, *_NAMED[:1]):
        return False
    return parameters[0].name == "request" or is_annotated(handler, parameters[0].name, request_type)


def is_annotated(handler: Callable[..., Any], parameter: str, kind: type) -> bool:
    """Whether a parameter is annotated with this class or a subclass, if need be going by the name alone: it
    may have been imported for type checkers only."""
    found, unresolved = hints(handler)
    if parameter in unresolved:
        name = str(function_of(handler).__annotations__[parameter]).rpartition(".")[2]
        return name in {each.__name__ for each in (kind, *kind.__subclasses__())}
    hint = found.get(parameter)
    return isinstance(hint, type) and issubclass(hint, kind)


def conversions(handler: Callable[..., Any]) -> dict[str, Conversion]:
    """How arguments become what their annotations say, by the names of the parameters. An annotation that
    cannot be resolved is logged and left out. TypeError if one that is required can never be what its
    annotation says; if it is not required, it cannot be sent, which is logged."""
    found, unresolved = hints(handler)
    for annotation in found.values():  # that of its result, too: another process may have made that
        know_all_in(annotation)
    result = {}
    for name, parameter in inspect.signature(handler).parameters.items():
        kind, why = found.get(name, Any), unresolved.get(name)
        if kind in (Any, object) and why is None:
            continue
        try:
            if why is None:
                result[name] = conversion(kind)
        except TypeError as error:
            impossible = f"{name}: {inspect.formatannotation(kind)}: {error}"
            if parameter.kind in _VARIADIC:
                why = error
            elif parameter.default is parameter.empty:
                raise TypeError(f"parameter {impossible}") from error
            else:
                logger.warning("%r: callers cannot give its parameter %s", handler, impossible)
                result[name] = Conversion(kind, ANY_KIND)
        except Exception as error:  # to resolve an annotation may raise anything
            why = error
        if why is not None:
            logger.warning("%r: its argument %s is not validated: %s", handler, name, why)
    return result


def result_conversion(kind: Any) -> Conversion:
    """How a result becomes what `returns` says. ValueError if nothing that travels can become that."""
    try:
        return _result_conversion(kind)
    except TypeError:  # what says it cannot be hashed, or is no type
        return _new_result_conversion(kind)


def _new_result_conversion(kind: Any) -> Conversion:
    know_all_in(kind)
    try:
        return conversion(kind)
    except Exception as error:  # to resolve an annotation may raise anything
        raise ValueError(f"returns={inspect.formatannotation(kind)}: {error}") from error


_result_conversion = lru_cache(256)(_new_result_conversion)


def function_of(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What a partial, or an object that can be called, calls in the end; of what wraps another, itself, as it
    has the attributes of that."""
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.isroutine(handler) or hasattr(handler, "__wrapped__"):
        return handler
    return type(handler).__call__


def _gathered(kind: Any, of: Any) -> Any:
    match of:
        case inspect.Parameter.VAR_POSITIONAL:
            return tuple[kind, ...]
        case inspect.Parameter.VAR_KEYWORD:
            return dict[str, kind]
    return kind


def hints(handler: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Annotations by name, and why those that cannot be resolved cannot be."""
    function = function_of(handler)
    try:
        return get_type_hints(function, include_extras=True), {}
    except Exception:  # evaluating one may raise anything: which one it was, is seen below
        found: dict[str, Any] = {}
        unresolved: dict[str, Exception] = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, annotation in function.__annotations__.items():
        try:
            alone = SimpleNamespace(__annotations__={name: annotation})
            found |= get_type_hints(alone, names, include_extras=True)
        except Exception as error:
            unresolved[name] = error
    return found, unresolved
