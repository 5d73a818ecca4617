"""A small process that renews a lease in Redis while its parent lives but gives no sign: a handler may hold
the interpreter, or compute in C, for longer than the lease. If the parent dies, it has recovered at once what
that had."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_PROGRAM = Path(__file__).with_name("_lease_child.py")
_ROOT = str(_PROGRAM.parents[2])
"""Where this package is: what is installed to be edited is not found by `sys.path` alone."""
_HOW = ("host", "port", "path", "db", "username", "password")


class LeaseKeeper:
    """Of one server, whose lease lasts so many seconds. Only for a server that runs in the main thread of its
    process, as that of `rpc worker` does: others may be many. It connects to Redis only when it must."""

    def __init__(self, lease: float, recover: Callable[..., object], /, **held: Any) -> None:
        """`recover(client, **held)`, of a module, recovers what the server has when its process is dead."""
        self._lease, self._held = lease, held
        self._recover = recover.__module__, recover.__name__
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """In the thread that runs the server."""
        if threading.current_thread() is not threading.main_thread() or not os.path.exists("/proc/self/stat"):
            return
        command = [sys.executable, "-I", "-S", str(_PROGRAM), str(os.getpid()), f"{self._lease / 2:.3f}"]
        pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, **pipes)  # noqa: S603 - ours
        except OSError as error:
            logger.warning("no process renews the lease while handlers hold the interpreter: %s", error)

    def beat(self, keys: Sequence[str], how: dict[str, Any]) -> None:
        """The process lives, and has just renewed these keys; it connects so. To be said before it takes
        anything. Does not raise."""
        if self._child is None or self._child.stdin is None:
            return
        tls = {name: value for name, value in how.items() if name.startswith("ssl")}
        what = {
            "keys": [*keys],
            "ms": round(self._lease * 1000),
            "path": [*sys.path, _ROOT],
            "recover": self._recover,
            "held": self._held,
            "kind": "unix" if how.get("path") else "tls" if tls else "tcp",
            "how": {**{name: how[name] for name in _HOW if how.get(name) is not None}, **tls},
        }
        with suppress(OSError, TypeError):  # it ended, or how to connect cannot be told: then without it
            self._child.stdin.write(json.dumps(what).encode() + b"\n")

    def end(self) -> None:
        """There is nothing to renew any more."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            with suppress(OSError):
                child.stdin.close()
            child.kill()
            child.wait()
