"""The program of a `LeaseKeeper`: it runs alone, and imports nothing of ours.

Standard input brings a line of JSON for each sign of life of the parent: what to renew if they cease, how to
connect, and where modules are. It ends with the parent.
"""

import json
import os
import select
import signal
import sys


def main(parent: int, patience: float) -> None:
    for number in signal.SIGTERM, signal.SIGINT:  # which whole groups get, while the parent finishes its work
        signal.signal(number, signal.SIG_IGN)
    last, connection = None, None
    while os.getppid() == parent:
        if select.select([0], [], [], patience)[0]:
            line = os.read(0, 65536)
            if not line:
                return
            last = line.splitlines()[-1] or last
            if connection is not None:
                connection.disconnect()
                connection = None
        elif last and not is_stopped(parent):
            connection = renewed(json.loads(last), connection)


def is_stopped(parent: int) -> bool:
    """Whether somebody has stopped it (SIGSTOP): what it has is for others then."""
    with open(f"/proc/{parent}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "TtZX"


def renewed(what: dict, connection):  # type: ignore[no-untyped-def,type-arg]
    """Renew the keys that are still there, on this connection, or a new one; returns it, None if it broke."""
    sys.path[:] = what["path"]
    import redis

    try:
        if connection is None:
            kind = {"unix": redis.UnixDomainSocketConnection, "tls": redis.SSLConnection}
            connection = kind.get(what["kind"], redis.Connection)(**what["how"])
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


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
