"""Services as they look to a caller: `client.services.example.foo(1, key=2)`."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import wraps
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, Protocol

from .core.protocol import Arguments
from .core.registry import ServiceInfo, Wanted, least_loaded
from .describe import WorkerInfo, fits, names
from .errors import BackendUnavailable, NoReceivers, RpcError
from .registry.announcing import instance_address
from .registry.lookup import Lookup
from .transport import VERSION

REMEMBERED = 0.2
"""Seconds for which it is not looked again who runs."""


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

    def __init__(self, client: Invoker, *, all_jobs: bool = False) -> None:
        """With `all_jobs`, `dir()` has the jobs that are no methods, too."""
        self._client, self._all_jobs = client, all_jobs

    def __getattr__(self, name: str) -> Proxy:
        _check(name)
        return Proxy(self._client, name)

    def __getitem__(self, name: str) -> Proxy:
        return Proxy(self._client, name)

    def __dir__(self) -> list[str]:
        """Those of the workers that run now."""
        known = names(self._client.known())
        return sorted({name.partition(".")[0] for name in known if self._all_jobs or "." in name})


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


def _failed(future: Any, error: RpcError) -> Any:
    """As a submitted call that came to this."""
    future.set_exception(error)
    future.progress = None
    return future


def _check(name: str) -> None:
    # What Python, or a debugger, looks for: also in an object that `copy` has not filled yet.
    if name.startswith("_"):
        raise AttributeError(f"{name!r}: what begins with '_' is private, and not for clients")


class OneService:
    """A client for the jobs of one service, of any of a type, or of one instance: who runs, and fits, is
    looked up again and again."""

    def __init__(self, client: Any, lookup: Lookup, wanted: Wanted, wait: float) -> None:
        """`wait` is the seconds for which a call waits until there is one."""
        self._client, self._lookup, self._wanted, self._wait = client, lookup, wanted, wait
        self._found: list[ServiceInfo] = []
        self._found_until = -math.inf

    @property
    def invoke(self) -> Callable[..., Any]:
        return self._there(self._client.invoke)

    @property
    def invoke_soon(self) -> Callable[..., Any]:
        return self._soon(self._client.invoke_soon)

    @property
    def submit(self) -> Callable[..., Any]:
        return self._soon(self._client.submit)

    @property
    def call(self) -> Callable[..., Any]:
        return self._there(self._client.call)

    @property
    def call_and_wait(self) -> Callable[..., Any]:
        return self._there(self._client.call_and_wait)

    @property
    def stream(self) -> Callable[..., Any]:
        return self._there(self._client.stream)

    def known(self) -> list[WorkerInfo]:
        return [each for each in self._client.known() if fits(each, self._wanted)]

    def _there(self, way: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(way)
        def there(name: str, data: Any = None, **options: Any) -> Any:
            return way(name, data, **self._routed(self._recent() or self._look(), options))

        return there

    def _soon(self, way: Callable[..., Any]) -> Callable[..., Any]:
        """For what returns a future, which tells that nobody runs, too."""

        @wraps(way)
        def there(name: str, data: Any = None, **options: Any) -> Any:
            try:
                found = self._recent() or self._look()
            except RpcError as error:
                return _failed(Future(), error)
            return way(name, data, **self._routed(found, options))

        return there

    def _recent(self) -> list[ServiceInfo]:
        """Who was there a moment ago."""
        return self._found if time.monotonic() < self._found_until else []

    def _look(self) -> list[ServiceInfo]:
        known = self._lookup.find(self._wanted, self._wait)
        found = self._served(known)
        if not found:  # who was known has gone since
            self._lookup.forget(known)
            found = self._lookup.find(self._wanted, self._wait)
        self._found, self._found_until = found, time.monotonic() + REMEMBERED
        return found

    def _served(self, services: list[ServiceInfo]) -> list[ServiceInfo]:
        """Those among them whose queue is served, as far as the broker can tell: one that was killed is known
        to be gone after its lease, one that stopped at once."""
        if self._wanted.instance or "presence" not in self._client.backend.features:
            return services
        by_queue: dict[str, list[ServiceInfo]] = {}
        for each in services:
            by_queue.setdefault(self._queue_of(each), []).append(each)
        return [each for queue, those in by_queue.items() if self._is_served(queue) for each in those]

    def _is_served(self, queue: str) -> bool:
        try:
            return bool(self._client.backend.is_served(queue))
        except BackendUnavailable:  # the call will tell
            return True

    def _queue_of(self, service: ServiceInfo) -> str:
        own, shared, versioned = service.identity.queues
        return versioned if self._wanted.version else own if self._wanted.id else shared

    def _routed(self, found: Sequence[ServiceInfo], options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call to one of these. One for any version, or of any id, goes to the queue which
        they share."""
        if self._wanted.version:
            options["headers"] = {**(options.get("headers") or {}), VERSION: self._wanted.version}
        chosen = least_loaded(found, random.random())
        if self._wanted.instance:
            return {**options, "queue": instance_address(chosen.instance)}
        return {**options, "queue": self._queue_of(chosen)}


class OneServiceAsync(OneService):
    """The same for an AsyncRpcClient."""

    @property
    def stream(self) -> Callable[..., Any]:
        return self._at_once(self._client.stream)

    def _there(self, way: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(way)
        async def there(name: str, data: Any = None, **options: Any) -> Any:
            found = self._recent() or await asyncio.to_thread(self._look)
            return await way(name, data, **self._routed(found, options))

        return there

    def _soon(self, way: Callable[..., Any]) -> Callable[..., Any]:
        at_once = self._at_once(way)

        @wraps(way)
        def there(name: str, data: Any = None, **options: Any) -> Any:
            try:
                return at_once(name, data, **options)
            except NoReceivers as error:
                return _failed(asyncio.get_running_loop().create_future(), error)

        return there

    def _at_once(self, way: Callable[..., Any]) -> Callable[..., Any]:
        """For what is not awaited: it goes to who is known."""

        @wraps(way)
        def there(name: str, data: Any = None, **options: Any) -> Any:
            return way(name, data, **self._routed(self._lookup.known(self._wanted), options))

        return there
