"""Where workers are: what a URL, a name with many addresses, or a function says; and who gets which."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import zmq

from ...errors import BackendRefused, shown
from .._retry import Backoff

logger = logging.getLogger(__name__)

Source = str | Sequence[str] | Callable[[], Sequence[str]]
LOOK_EVERY = 5.0
"""Seconds after which names are looked up again, and functions asked."""


class Endpoints:
    """Of a URL `zmq+tcp://host:port[,host:port…]` or `zmq+ipc:///path[,/path…]`, of a list of ZeroMQ's own
    endpoints, or of what a function returns. Raises ValueError for what is none."""

    def __init__(self, source: Source, every: float | None = None) -> None:
        """`every` is how many seconds later they are looked up again; None: LOOK_EVERY."""
        self._every = every
        self._function = source if callable(source) else None
        self._given = [] if callable(source) else _of_url(source) if isinstance(source, str) else [*source]
        if not callable(source) and not self._given:
            raise ValueError("there is no endpoint")
        for endpoint in self._given:
            checked(endpoint)
        self.is_static = not self._function and all(_is_numeric(each) for each in self._given)

    def look_up(self) -> list[str]:
        """Those there are now. May block; raises OSError, ValueError, and what the function raises."""
        if self._function:
            self._given = [*self._function()]
        return [*dict.fromkeys(address for each in self._given for address in _addresses(each))]

    def watch(self, found: Callable[[list[str]], object], ended: threading.Event) -> None:
        """Tell which there are, now and whenever they are looked up again, in a thread."""
        if self.is_static:
            found(self.look_up())
            return

        def look() -> None:
            every = LOOK_EVERY if self._every is None else self._every
            pauses = Backoff(every)
            while not ended.is_set():
                try:
                    found(self.look_up())
                except Exception as error:  # the function is the user's
                    pauses.wait("endpoints cannot be looked up: %s", error, ended.wait)
                else:
                    pauses.reset()
                    ended.wait(every)

        threading.Thread(target=look, name="rpc-zmq-lookup", daemon=True).start()


def _of_url(url: str) -> list[str]:
    parts = urlsplit(url)
    if parts.query:
        raise ValueError(f"no options of this backend: {parts.query}")
    if parts.scheme == "zmq+ipc":
        return [f"ipc://{path}" for path in (parts.netloc + parts.path).split(",") if path]
    return [f"tcp://{address}" for address in parts.netloc.split(",") if address]


def checked(endpoint: str) -> tuple[str, str, str]:
    """Its transport, and the host and port, or the path."""
    transport, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if transport == "ipc" and rest:
        return transport, rest, ""
    if transport != "tcp" or not host or not (port == "*" or (port.isdecimal() and int(port) < 65536)):
        raise ValueError(f"{endpoint!r} is no endpoint: tcp://host:port or ipc:///path")
    return transport, host.strip("[]"), port


def _is_numeric(endpoint: str) -> bool:
    transport, host, _ = checked(endpoint)
    if transport == "ipc" or host == "*":
        return True
    for family in socket.AF_INET, socket.AF_INET6:
        with suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


def _addresses(endpoint: str) -> list[str]:
    """One for each address that its name has."""
    _, host, port = checked(endpoint)
    if _is_numeric(endpoint):
        return [endpoint]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = [str(address[0]) for _, _, _, _, address in found]
    return [f"tcp://[{each}]:{port}" if ":" in each else f"tcp://{each}:{port}" for each in hosts]


class Claims:
    """The paths of `ipc:` that this process binds: ZeroMQ would take one away from whoever has it."""

    def __init__(self) -> None:
        self._files: list[tuple[int, str]] = []

    def claim(self, endpoint: str) -> None:
        """Raises OSError if another process has it."""
        transport, path, _ = checked(endpoint)
        if transport != "ipc":
            return
        file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(f"{path}.lock").st_ino != os.fstat(file).st_ino:
                raise BlockingIOError(f"{path} is being given back")
        except OSError:
            os.close(file)
            raise
        self._files.append((file, path))

    def release(self) -> None:
        """Give them back."""
        for file, path in self._files:
            for each in path, f"{path}.lock":
                with suppress(OSError):
                    os.unlink(each)
            os.close(file)
        self._files.clear()


def bound(endpoints: Sequence[str], all_of_them: bool, bind: Callable[[str], str]) -> list[str]:
    """Bind the first that is free, or all of them; the real ones. Raises BackendRefused."""
    taken, reasons = list[str](), list[str]()
    for endpoint in endpoints:
        try:
            taken.append(bind(endpoint))
        except (OSError, zmq.ZMQError, ValueError) as error:
            reasons.append(f"{endpoint}: {shown(error)}")
            continue
        if not all_of_them:
            return taken
    if reasons:
        raise BackendRefused(f"cannot listen: {'; '.join(reasons)}")
    return taken
