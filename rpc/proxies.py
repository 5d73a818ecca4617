"""Services as they look to a caller: `client.services.example.foo(1, key=2)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, Protocol

from .core.protocol import Arguments
from .describe import WorkerInfo, names


def options_of(method: Callable[..., Any]) -> frozenset[str]:
    """The options of a client's method: what is given by name alone."""
    parameters = signature(method).parameters.values()
    return frozenset(each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY)


class Invoker(Protocol):
    """What is needed of a client."""

    @property
    def invoke(self) -> Callable[..., Any]:
        """The value that a call comes to, or an awaitable of it."""

    @property
    def invoke_soon(self) -> Callable[..., Any]:
        """A future of it."""

    @property
    def call(self) -> Callable[..., Any]: ...

    @property
    def call_and_wait(self) -> Callable[..., Any]: ...

    @property
    def stream(self) -> Callable[..., Any]: ...

    def known(self) -> list[WorkerInfo]:
        """The workers that run now, as far as can be told at once."""


class Services:
    """All services. Nothing is sent before something is called: that a service is not there, the call says.
    For names that are no identifiers, `services["name"]`."""

    __iter__ = None
    """Else `list` and `in` would take it for an endless sequence, because of its `__getitem__`."""

    def __init__(self, client: Invoker) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Proxy:
        _check(name)
        return Proxy(self._client, name)

    def __getitem__(self, name: str) -> Proxy:
        return Proxy(self._client, name)

    def __dir__(self) -> list[str]:
        """Those of the workers that run now."""
        return sorted({name.partition(".")[0] for name in names(self._client.known()) if "." in name})


class Proxy:
    """A service, a namespace of services, or a method. To call it is to call the method, and to wait for its
    value. Arguments are positional and named ones that can be encoded."""

    def __init__(self, client: Invoker, name: str, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._client, self._name, self._options = client, name, options

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """What the method returns (of an AsyncRpcClient: an awaitable of it). Raises what `call_and_wait`
        does."""
        return self._client.invoke(
            self._name, Arguments(args, kwargs), **self._for(self._client.call_and_wait)
        )

    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        """A future of what the method returns."""
        return self._client.invoke_soon(
            self._name, Arguments(args, kwargs), **self._for(self._client.call_and_wait)
        )

    def call(self, /, *args: Any, **kwargs: Any) -> Any:
        """Send it and do not wait: the id of the request."""
        of_waiting = self._options.keys() - options_of(self._client.call) if self._options else ()
        options = {name: value for name, value in self._options.items() if name not in of_waiting}
        return self._client.call(self._name, Arguments(args, kwargs), **options)

    def stream(self, /, *args: Any, **kwargs: Any) -> Any:
        """The items that it yields, as a generator: see the client's `stream`."""
        return self._client.stream(self._name, Arguments(args, kwargs), **self._for(self._client.stream))

    def options(self, **options: Any) -> Proxy:
        """The same with options of a call: those of the client's `call_and_wait`, of which `call` leaves out
        what is for those who wait, of its `call`, and of its `stream`. Raises TypeError for others, here or
        when it is called in a way that does not have them."""
        ways = self._client.call, self._client.call_and_wait, self._client.stream
        known = frozenset().union(*map(options_of, ways))
        if unknown := options.keys() - known:
            raise TypeError(f"no options: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
        return Proxy(self._client, self._name, {**self._options, **options})

    def _for(self, way: Callable[..., Any]) -> Mapping[str, Any]:
        """The options. Raises TypeError if there are some that this way to call it does not have."""
        if self._options and (others := self._options.keys() - options_of(way)):
            raise TypeError(f"{self._name}: {way.__name__} has no option {', '.join(sorted(others))}")
        return self._options

    def __getattr__(self, name: str) -> Proxy:
        _check(name)
        return Proxy(self._client, f"{self._name}.{name}", self._options)

    def __dir__(self) -> list[str]:
        below = f"{self._name}."
        found = {name.removeprefix(below) for name in names(self._client.known()) if name.startswith(below)}
        return sorted({"call", "options", "stream", "submit", *(name.partition(".")[0] for name in found)})

    def __repr__(self) -> str:
        return f"<proxy of {self._name}>"


def _check(name: str) -> None:
    # What Python, or a debugger, looks for: also in an object that `copy` has not filled yet.
    if name.startswith("_"):
        raise AttributeError(f"{name!r}: what begins with '_' is private, and not for clients")
