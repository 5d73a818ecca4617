"""`rpc services`: what the workers that run now offer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import click
import msgspec

from ..client import RpcClient
from ..describe import ListenerInfo, WorkerInfo
from .options import backend_option, seconds, settings_option
from .output import Row, aligned, json_option, json_wanted, print_line

WAIT = 0.5
"""Seconds."""


@click.command("services")
@settings_option
@backend_option
@click.option(
    "--wait",
    metavar="SECONDS",
    type=float,
    default=WAIT,
    show_default=True,
    callback=seconds,
    help="How long to wait for the answers of workers.",
)
@json_option
def command(settings: str | None, backend: str | None, wait: float) -> None:
    """List what the workers that run now offer: jobs and methods of services, with their signatures;
    listeners; timers; and the workers themselves.

    All workers are asked, and those that answer in time are listed: if there are none, a line on stderr says
    so.

    With --json, what is printed is {"workers": [{"id": ..., "host": ..., "pid": ..., "queues": [...],
    "concurrency": ..., "jobs": {NAME: SIGNATURE}, "listeners": [{"event": ..., "name": ..., "group": ...,
    "durable": ..., "failures": ...}], "timers": {NAME: WHEN}}, ...]}.

    \b
    Examples:
      rpc services
      rpc services --backend redis://127.0.0.1:6379/0 --wait 2 --json
    """
    with RpcClient(settings=settings, backend=backend) as client:
        workers = client.describe(wait=wait)
    if json_wanted():
        return print_line({"workers": [msgspec.to_builtins(worker) for worker in workers]})
    if not workers:
        click.echo(f"no worker answered within {wait:g} s", err=True)
    for title, rows in _tables(workers):
        if rows:
            click.echo(title)
            for line in aligned(rows):
                click.echo(f"  {line}")


def _tables(workers: Sequence[WorkerInfo]) -> Iterator[tuple[str, list[Row]]]:
    """What is shown under which title."""
    yield "jobs", _counted((name + signature,) for each in workers for name, signature in each.jobs.items())
    yield "listeners", _listeners(workers)
    yield "timers", _counted(timer for each in workers for timer in each.timers.items())
    yield (
        "workers",
        [
            (
                f"{each.host}:{each.pid}",
                ", ".join(each.queues),
                f"concurrency {each.concurrency}, coroutines {each.coroutines}",
            )
            for each in workers
        ],
    )


def _listeners(workers: Sequence[WorkerInfo]) -> list[Row]:
    failures: Counter[Row] = Counter()
    for worker in workers:
        for each in worker.listeners:
            failures[_label(each)] += each.failures
    rows = _counted(_label(each) for worker in workers for each in worker.listeners)
    return [(*row, f"{failures[row[:-1]]} failed" if failures[row[:-1]] else "") for row in rows]


def _label(listener: ListenerInfo) -> Row:
    kept = ", durable" if listener.durable else ""
    return listener.event, listener.name, f"group {listener.group}{kept}" if listener.group else ""


def _counted(rows: Iterable[Row]) -> list[Row]:
    """Each of them once, with the number of workers that have it."""
    found = Counter(rows)
    return [(*row, f"{found[row]} worker{'s' * (found[row] > 1)}") for row in sorted(found)]
