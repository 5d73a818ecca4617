"""`manage.py rpcinfo`: what the settings declare, and which workers run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from rpc.cli.output import one_line
from rpc.core.codecs import JSON
from rpc.describe import ListenerInfo, WorkerInfo

from ...client import client
from ...commands import told
from ...declared import Declared, declared


class Command(BaseCommand):
    help = (
        "Say what RPC in the settings declares: services with the methods that they expose, jobs, listeners "
        "and timers; and which workers run."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object, for programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        with told():
            offered, workers = declared(), None
            try:
                workers = client().describe()
            finally:  # what is declared is told without a broker, too
                if options["json"]:
                    everything = {**asdict(offered), "workers": workers}
                    self.stdout.write(JSON.encode(everything).decode())
                else:
                    self.stdout.write("\n".join(map(one_line_kept, _lines(offered, workers))))


def one_line_kept(text: str) -> str:
    """Safe to show, with its indentation."""
    return " " * (len(text) - len(text.lstrip())) + one_line(text)


def _lines(offered: Declared, workers: list[WorkerInfo] | None) -> Iterator[str]:
    for service in offered.services:
        yield f"{service.source}: {service.name}" if service.name else service.source
        yield from (f"  {name}{signature}" for name, signature in service.methods.items())
    yield from _part("jobs", (f"{name}{signature}" for name, signature in offered.jobs.items()))
    yield from _part("listeners", map(_listener, offered.listeners))
    yield from _part("timers", (f"{name}: {when}" for name, when in offered.timers.items()))
    if workers is not None:
        yield from _part("workers", map(_worker, workers)) if workers else ["no worker runs"]


def _part(title: str, lines: Iterable[str]) -> Iterator[str]:
    listed = list(lines)
    if listed:
        yield f"{title}:"
        yield from (f"  {line}" for line in listed)


def _listener(listener: ListenerInfo) -> str:
    group = f" (group {listener.group}{', durable' if listener.durable else ''})" if listener.group else ""
    return f"{listener.event}: {listener.name}{group}"


def _worker(worker: WorkerInfo) -> str:
    return (
        f"{worker.host} {worker.pid}: {', '.join(worker.queues)}; "
        f"{worker.concurrency} at a time, {worker.coroutines} coroutines; "
        f"{len(worker.jobs)} jobs, {len(worker.listeners)} listeners, {len(worker.timers)} timers"
    )
