"""`rpc services`: what the workers that run now offer."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

import click
import msgspec

from ..client import RpcClient
from ..core.registry import ServiceChange, Wanted
from ..describe import ListenerInfo, WorkerInfo, fits, none_of
from ..errors import not_installed
from ..registry.lookup import SETTLED
from .options import backend_option, seconds_option, service_options, settings_option, which_services
from .output import Row, aligned, json_option, json_wanted, one_line, print_line

WAIT = 0.5
"""Seconds."""
NOBODY = 1
"""Exit code: no service runs that was asked for."""


@click.command("services")
@settings_option
@backend_option
@seconds_option(
    "--wait",
    help=f"How long to wait for the answers of workers. By default {WAIT:g}, or until there are no more.",
)
@click.option("--watch", is_flag=True, help="Show who comes, goes and changes, until interrupted.")
@click.option("--live", is_flag=True, help="Show services in a table that changes in place (extra `rich`).")
@click.option("--health", is_flag=True, help="Say which services are well: whose health_check is true.")
@service_options("--version")
@json_option
def command(
    settings: str | None,
    backend: str | None,
    wait: float | None,
    watch: bool,
    live: bool,
    health: bool,
    **which: str | None,
) -> None:
    """List what the workers that run now offer: services, with their replicas; jobs and methods, with their
    signatures; listeners; timers; and the workers themselves.

    All workers are asked, and those that answer in time are listed: if there are none, a line on stderr says
    so. With --domain, --type, --id or --service-version, only services that fit are listed: if there are
    none, that line says which run, and the exit code is 1. With --health, each of them is asked whether it is
    well, for at most two seconds. With --watch there is a line for each service that is up, down or changed,
    from those on that run now; with --live, a table with what each of them does.

    With --json, what is printed is {"workers": [{"id": ..., "host": ..., "pid": ..., "queues": [...],
    "concurrency": ..., "service": "DOMAIN.TYPE.ID", "version": ..., "running": ..., "jobs":
    {NAME: SIGNATURE}, "listeners": [{"event": ..., "name": ..., "group": ..., "durable": ..., "failures":
    ...}], "timers": {NAME: WHEN}}, ...]}, with "well": true, false, or null for what is no service, if
    --health is asked for; with --watch, on each line, {"change": "up", "service": {...}}.

    \b
    Examples:
      rpc services
      rpc services --backend redis://127.0.0.1:6379/0 --wait 2 --json
      rpc services --type orders --service-version '>=1.2' --health
      rpc services --watch --domain shop
    """
    if (watch or live) and health:
        raise click.UsageError("--health is for those that run now: not with --watch or --live")
    if live and (watch or json_wanted()):
        raise click.UsageError("--live is for people: not with --watch or --json")
    if live and not _is_terminal():
        raise click.UsageError("--live needs a terminal: --watch has a line for each change")
    wanted = Wanted(**which_services(**which))
    with RpcClient(settings=settings, backend=backend) as client:
        if watch or live:
            return (_watch if watch else _live)(client, which)
        workers = client.describe(wait=wait or WAIT, settled=None if wait else SETTLED)
        fitting = [each for each in workers if fits(each, wanted)]
        healthy = client.list_services(**which, health_check=True) if health else ()
    _show(fitting, _Health({each.instance for each in healthy}) if health else None)
    if not fitting:
        told = none_of(workers, wanted) if workers else f"no worker answered within {wait or WAIT:g} s"
        if not json_wanted():
            click.echo(one_line(told), err=True)
        click.get_current_context().exit(NOBODY if wanted != Wanted() else 0)


class _Health(NamedTuple):
    """What was told of it."""

    well: Container[str]
    """The instances that are."""

    def of(self, worker: WorkerInfo) -> bool | None:
        """None: it is no service."""
        return worker.id in self.well if worker.service else None


def _show(workers: Sequence[WorkerInfo], health: _Health | None) -> None:
    if json_wanted():
        told = (msgspec.to_builtins(each) | ({"well": health.of(each)} if health else {}) for each in workers)
        return print_line({"workers": [*told]})
    for title, rows in _tables(workers, health):
        if rows:
            click.echo(title)
            for line in aligned(rows):
                click.echo(f"  {line}")


def _watch(client: RpcClient, which: dict[str, str | None]) -> None:
    """Until interrupted."""
    as_json, changes = json_wanted(), SimpleQueue[ServiceChange]()
    with client.watch_services(changes.put, **which):
        while True:
            kind, service = changes.get()
            if as_json:
                print_line({"change": kind, "service": msgspec.to_builtins(service)})
            else:
                parts = kind, service.name, service.version, f"{service.host}:{service.pid}", service.instance
                click.echo("  ".join(one_line(each) for each in parts))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _live(client: RpcClient, which: dict[str, str | None]) -> None:
    """Until interrupted."""
    try:
        from rich.live import Live
        from rich.table import Table
    except ModuleNotFoundError:
        raise not_installed("--live", "rich") from None
    news = SimpleQueue[ServiceChange]()

    def table() -> Table:
        shown = Table("service", "version", "process", "instance", "running", "capacity", "idle", "up for")
        for each in watch.services():
            idle = "-" if each.idle is None else f"{each.idle:.0f} s"
            parts = each.name, each.version, f"{each.host}:{each.pid}", each.instance
            numbers = str(each.running), str(each.capacity)
            shown.add_row(
                *map(one_line, parts), *numbers, idle, f"{max(0.0, time.time() - each.epoch):.0f} s"
            )
        return shown

    with client.watch_services(news.put, **which) as watch, Live(table(), auto_refresh=False) as live:
        while True:
            with suppress(Empty):
                news.get(timeout=1.0)
            live.update(table(), refresh=True)


def _services(workers: Sequence[WorkerInfo], health: _Health | None) -> list[Row]:
    rows: dict[tuple[str, str], list[WorkerInfo]] = {}
    for each in workers:
        if each.service:
            rows.setdefault((each.service, each.version), []).append(each)
    return [
        (
            *key,
            f"{len(replicas)} replica{'s' * (len(replicas) > 1)}",
            f"{sum(each.running for each in replicas)} running",
            _how_many_are_well(replicas, health) if health else "",
        )
        for key, replicas in sorted(rows.items())
    ]


def _how_many_are_well(replicas: Sequence[WorkerInfo], health: _Health) -> str:
    ill = sum(not health.of(each) for each in replicas)
    return f"{ill} of {len(replicas)} ill" if 0 < ill < len(replicas) else "ill" if ill else "well"


def _tables(workers: Sequence[WorkerInfo], health: _Health | None) -> Iterator[tuple[str, list[Row]]]:
    """What is shown under which title."""
    yield "services", _services(workers, health)
    yield "jobs", _counted((name + signature,) for each in workers for name, signature in each.jobs.items())
    yield "listeners", _listeners(workers)
    yield "timers", _counted(timer for each in workers for timer in each.timers.items())
    yield (
        "workers",
        [
            (
                f"{each.host}:{each.pid}",
                each.id,
                ", ".join(each.queues),
                f"concurrency {each.concurrency}, coroutines {each.coroutines}",
                {None: "", True: "well", False: "ill"}[health.of(each) if health else None],
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
