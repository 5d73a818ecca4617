"""What a backend does: carry one message there, and a stream of messages back.

A backend knows nothing of jobs, errors or services: a message's body is opaque to it. The loop that feeds
the handler may be its own (Redis) or a framework's (rq, a web server): whoever calls `serve` cannot tell.
Nothing here may import the core, and no backend may import another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_type_hints
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from ..errors import SettingsError, not_installed
from ..settings import Settings
from ..transport import Address, AsyncBackend, Backend, queue


def asynchronous(backend: Backend) -> AsyncBackend:
    """The backend for callers in event loops: as it has it itself, else in threads."""
    make = getattr(backend, "asynchronous", None)
    if make is None:
        from ._in_threads import InThreads

        return InThreads(backend)
    own: AsyncBackend = make()
    return own


BACKENDS = {
    "memory": ("rpc.backends.memory:MemoryBackend", None),
    "amqp": ("rpc.backends.amqp:AmqpBackend", "amqp"),
    "amqps": ("rpc.backends.amqp:AmqpBackend", "amqp"),
    "zmq+tcp": ("rpc.backends.zeromq:ZeromqBackend", "zmq"),
    "zmq+ipc": ("rpc.backends.zeromq:ZeromqBackend", "zmq"),
    "http": ("rpc.backends.http:HttpBackend", "http"),
    "https": ("rpc.backends.http:HttpBackend", "http"),
    "ws": ("rpc.backends.http.websocket:WebSocketBackend", "ws"),
    "wss": ("rpc.backends.http.websocket:WebSocketBackend", "ws"),
    "redis": ("rpc.backends.redis:RedisBackend", None),
    "rediss": ("rpc.backends.redis:RedisBackend", None),
    "redis+unix": ("rpc.backends.redis:RedisBackend", None),
    "redis+sentinel": ("rpc.backends.redis:RedisBackend", None),
    "redis+cluster": ("rpc.backends.redis:RedisBackend", None),
    "rq+redis": ("rpc.backends.rq:PythonRqBackend", None),
    "rq+rediss": ("rpc.backends.rq:PythonRqBackend", None),
    "rq+unix": ("rpc.backends.rq:PythonRqBackend", None),
}
"""URL scheme -> the backend's class, and the extra that brings its driver. Others come from the entry
points of the group `rpc.backends`."""


def backend_from_url(url: str, **options: Any) -> Backend:
    """The backend that a URL names, such as "rq+redis://127.0.0.1:6379/0?lease=5" or "memory://".

    `options`, and those of the URL's query that the backend knows, are the keyword arguments of its
    constructor; the rest of the query is the driver's. Raises SettingsError for a URL or an option that
    makes no sense, Unsupported if the driver is not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        # Its text may show a part of the password.
        raise SettingsError(f"a backend's URL cannot be read: {type(error).__name__}") from None
    factory = loaded(parts.scheme, url)
    known = {
        name: parameter
        for name, parameter in signature(factory).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY
    }
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = {name: value for name, value in query if name in known}
    for name in options:
        if name not in known:
            raise SettingsError(
                f"{parts.scheme}: has no option {name!r}; it has {', '.join(known) or 'none'}"
            )
    rest = urlencode([(name, value) for name, value in query if name not in known])
    hints = get_type_hints(factory.__init__)
    try:
        converted = {name: _converted(name, value, hints[name]) for name, value in given.items()}
        stem = url.partition("?")[0] + (f"?{rest}" if rest else "")
        backend: Backend = factory(stem, **options, **converted)
    except (ValueError, TypeError) as error:
        hint = f"; it has {', '.join(known)}" if rest else ""
        raise SettingsError(f"{redacted(url)}: {error}{hint}") from error
    return backend


def _converted(name: str, value: str, annotation: Any) -> Any:
    """The option of a URL; ValueError if it is none of this type."""
    try:
        return msgspec.convert(value, annotation, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None


def backend_of_receiver(settings: Settings, given: Backend | str | None) -> Backend:
    """The backend that is given, as one or by its URL, else that of the settings. Raises SettingsError,
    Unsupported."""
    chosen = settings.for_receivers if given is None else given
    options = {"lease": settings.lease, "max_deliveries": settings.max_deliveries}
    set_options = {name: value for name, value in options.items() if value is not None}
    if isinstance(chosen, str):
        in_url = dict(parse_qsl(urlsplit(chosen).query))
        for name in set_options.keys() & in_url.keys():
            raise SettingsError(
                f"{settings.module}: RPC_{name.upper()} and ?{name}= of its URL say the same: drop one"
            )
        return backend_from_url(chosen, **set_options)
    if set_options:
        names = " and ".join(f"RPC_{name.upper()}" for name in set_options)
        raise SettingsError(f"{settings.module}: {names} goes with a backend's URL; an instance has its own")
    return chosen


def queue_addresses(where: str, names: Sequence[str]) -> list[Address]:
    """Those that a worker serves; SettingsError if there are none, or one's name is none."""
    try:
        addresses = [queue(name) for name in names]
    except ValueError as error:
        raise SettingsError(f"{where}: RPC_QUEUES: {error}") from None
    if not addresses:
        raise SettingsError(f"{where}: RPC_QUEUES is empty: there is nothing to serve")
    return addresses


_SECRET = re.compile(r"(//[^:/?#@]*:).*(?=@)|((?:password|registry)=)[^&]+")


def redacted(url: str) -> str:
    """The URL without its passwords, for logs and errors."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2]}***", url)


def loaded(scheme: str, url: str = "") -> Any:
    """The class of a backend. Raises SettingsError if none goes by this scheme of a URL, and Unsupported if
    its driver is not installed."""
    if scheme in BACKENDS:
        path, extra = BACKENDS[scheme]
    else:
        from importlib.metadata import entry_points  # it takes long to import, and few need it

        found = {entry.name: entry.value for entry in entry_points(group="rpc.backends")}
        if scheme not in found:
            known = ", ".join(f"{name}:" for name in sorted({*BACKENDS, *found}))
            raise SettingsError(f"{redacted(url)!r} names no backend; known are {known}")
        path, extra = found[scheme], None
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        raise not_installed(f"{scheme}:", extra) from error
