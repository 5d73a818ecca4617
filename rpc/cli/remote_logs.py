"""`rpc logs`: what other processes log, as they log it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

import click

from ..client import RpcClient
from ..core.log_batches import level_number
from ..core.log_entries import LogEntry
from .options import backend_option, seconds_option, settings_option
from .output import json_option, json_wanted, print_line, printable

COLOURS = (
    (50, {"fg": "red", "bold": True}),
    (40, {"fg": "red"}),
    (30, {"fg": "yellow"}),
    (20, {"fg": "green"}),
    (0, {"fg": "bright_black"}),
)
"""From which level on."""
INDENT = "    "
"""Of what belongs to the line before it: what begins with a date, and not with this, is a record."""


def level(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of an option: a level of logging, by its name or its number."""
    try:
        return None if value is None else level_number(int(value) if value.isdecimal() else value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command("logs")
@settings_option
@backend_option
@click.option("--level", metavar="LEVEL", callback=level, help="Of this level, and of higher ones: warning.")
@click.option(
    "--service", metavar="PATTERN", help="Of services like this one, which is DOMAIN.TYPE.ID: 'shop.*'."
)
@click.option("--logger", metavar="NAME", help="Of this logger, and of those below it.")
@seconds_option(
    "--since", help="Begin with what was sent in the last so many seconds, where the backend remembers it."
)
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C, as it does without --count.")
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after so many.")
@json_option
def command(
    settings: str | None,
    backend: str | None,
    level: int | None,
    service: str | None,
    logger: str | None,
    since: float | None,
    follow: bool,
    count: int | None,
) -> None:
    """Print what other processes log, until Ctrl-C: those that have an rpc.logs.RpcLogHandler, and workers
    with --send-logs. What was logged before is not heard, but with --since: when it listens, that is said on
    stderr.

    A line has the time, the level, the service, the process and the logger; below it is the traceback, if
    there is one. Where records are missing, a line of the logger rpc.logs says how many.

    With --json, each record is one line: {"time": SECONDS, "level": ..., "level_number": ..., "logger": ...,
    "message": ..., "template": ..., "args": [...], "exception": {"type": ..., "message": ..., "traceback":
    ...}, "stack": ..., "path": ..., "line": ..., "function": ..., "thread": ..., "task": ..., "request_id":
    ..., "trace_id": ..., "extra": {...}, "problem": ..., "process": ..., "pid": ..., "host": ..., "service":
    ..., "version": ...}, without what is empty.

    \b
    Examples:
      rpc logs --level warning --service 'shop.*' --follow
      rpc logs --logger shop.orders --json | jq .message
    """
    if follow and count:
        raise click.UsageError("--follow goes on until Ctrl-C, --count does not: give one of them")
    ago = None if since is None else timedelta(seconds=since)
    with (
        RpcClient(settings=settings, backend=backend) as client,
        client.logs(level=level, service=service, logger=logger, since=ago) as entries,
    ):
        click.echo("listening to log records", err=True)
        for entry in islice(entries, count):
            if json_wanted():
                print_line(entry)
            else:
                click.echo("\n".join(_lines(entry)))


def _lines(entry: LogEntry) -> Iterator[str]:
    time = datetime.fromtimestamp(entry.time)
    colour = next((colour for least, colour in COLOURS if entry.level_number >= least), {})
    level = printable(entry.level)
    if not os.environ.get("NO_COLOR"):
        level = click.style(level, **colour)
    where = f"{entry.service or '-'} {entry.pid}@{entry.host} {entry.logger}"
    when = f"{time:%Y-%m-%d %H:%M:%S},{time.microsecond // 1000:03d}"
    yield f"{when} {level} {printable(where)}: {_below(entry.message)}"
    if entry.problem:
        yield f"{INDENT}({printable(entry.problem)})"
    for more in entry.exception and entry.exception.traceback, entry.stack:
        if more:
            yield INDENT + _below(more)


def _below(text: str) -> str:
    """On the lines after the first one it is indented, whatever it is."""
    return printable(text, keep="\n").replace("\n", f"\n{INDENT}")
