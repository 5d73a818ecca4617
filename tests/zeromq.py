"""Endpoints for tests of what has no broker, and how to break connections."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack, closing, suppress


def tcp_url(count: int = 1) -> str:
    """So many endpoints where nobody listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return "zmq+tcp://" + ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)


def http_places(count: int = 1, scheme: str = "http") -> str:
    """A URL with so many places where nobody listens now."""
    return tcp_url(count).replace("zmq+tcp", scheme)


def cut() -> None:
    """Break each connection that a socket of this process has."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with closing(socket.socket(fileno=os.dup(int(name)))) as connection:
                if connection.getpeername():  # those of a socketpair have no name
                    connection.shutdown(socket.SHUT_RDWR)
