"""The program of a `LeaseKeeper`: it runs alone, and imports nothing of ours while its parent lives.

Standard input brings a line of JSON for each sign of life of the parent: what to renew if they cease, how to
connect, where modules are, and which of our functions recovers what the parent had if it dies. It ends with
the parent, or as soon as that is done.
"""

import json
import os
import select
import signal
import sys
import time
from importlib import import_module

DYING = 10.0
"""Seconds that a process takes at most from closing its pipes to its end. One that goes on has closed this
one itself, as it needs nobody to look after it."""


def main(parent: int, patience: float) -> None:
    for number in signal.SIGTERM, signal.SIGINT:  # which whole groups get, while the parent finishes its work
        signal.signal(number, signal.SIG_IGN)
    last, rest, connection = b"", b"", None
    while True:
        if select.select([0], [], [], patience)[0]:
            if not (heard := os.read(0, 65536)):
                break
            *lines, rest = (rest + heard).split(b"\n")
            last = lines[-1] if lines else last
            if connection is not None:
                connection.disconnect()
                connection = None
        elif os.getppid() != parent:  # what it forked lives on, and holds the pipe
            break
        elif last and not is_stopped(parent):
            connection = renewed(json.loads(last), connection)
    end = time.monotonic() + DYING
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.01)
    if last and os.getppid() != parent:
        recover(json.loads(last))


def is_stopped(parent: int) -> bool:
    """Whether somebody has stopped it (SIGSTOP): what it has is for others then."""
    with open(f"/proc/{parent}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "TtZX"


def connection_class(what: dict):  # type: ignore[no-untyped-def,type-arg]
    sys.path[:] = what["path"]
    import redis

    kinds = {"unix": redis.UnixDomainSocketConnection, "tls": redis.SSLConnection}
    return kinds.get(what["kind"], redis.Connection)


def renewed(what: dict, connection):  # type: ignore[no-untyped-def,type-arg]
    """Renew the keys that are still there, on this connection, or a new one; returns it, None if it broke."""
    kind = connection_class(what)
    import redis

    try:
        if connection is None:
            connection = kind(**what["how"])
            connection.connect()
        for key in what["keys"]:
            connection.send_command("PEXPIRE", key, what["ms"])
        for _ in what["keys"]:
            connection.read_response()
    except redis.RedisError:
        if connection is not None:
            connection.disconnect()
        return None
    return connection


def recover(what: dict) -> None:  # type: ignore[type-arg]
    """The parent is dead: others need not wait for its lease to run out."""
    kind = connection_class(what)
    import redis

    pool = redis.ConnectionPool(connection_class=kind, **what["how"])
    module, function = what["recover"]
    getattr(import_module(module), function)(redis.Redis(connection_pool=pool), **what["held"])


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
