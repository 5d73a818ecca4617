"""`rpc queues`: how many jobs are where."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from ..client import RpcClient
from ..inspection import QueueInfo
from .options import backend_option, domain_option, queue_names, seconds_option, settings_option
from .output import aligned, json_option, json_wanted, print_line

COLUMNS = ("queue", "waiting", "running", "scheduled", "dead", "workers", "oldest")


@click.command("queues")
@click.option("--watch", is_flag=True, help="Show them again and again, until interrupted.")
@seconds_option(
    "--every", default=2.0, show_default=True, help="How long to wait between two looks, with --watch."
)
@click.option("--queue", metavar="NAME", callback=queue_names, help="Show this one alone.")
@domain_option
@settings_option
@backend_option
@json_option
def command(
    watch: bool,
    every: float,
    queue: str | None,
    domain: str | None,
    settings: str | None,
    backend: str | None,
) -> None:
    """Show how many jobs wait, run, are scheduled and dead in each queue, how many workers serve it, and the
    seconds that the oldest of those that wait has waited.

    The queues are those of RPC_QUEUES and RPC_ROUTES, and, with --domain, of the services of that domain that
    run. What a backend cannot tell is shown as "-".

    With --json, what is printed, for each look on one line, is {"queues": [{"queue": ..., "waiting": ...,
    "running": ..., "scheduled": ..., "dead": ..., "workers": ..., "oldest": ...}, ...]}.

    \b
    Examples:
      rpc queues
      rpc queues --watch --every 5
      rpc queues --domain shop
      rpc queues --queue slow
    """
    with RpcClient(settings=settings, backend=backend) as client:
        while True:
            _show(client.queues(domain=domain, queue=queue))
            if not watch:
                return
            time.sleep(every)
            if not json_wanted():
                click.echo()


def _show(queues: Sequence[QueueInfo]) -> None:
    if json_wanted():
        return print_line({"queues": [asdict(each) for each in queues]})
    for line in aligned([COLUMNS, *map(_row, queues)]):
        click.echo(line)


def _row(info: QueueInfo) -> tuple[str, ...]:
    oldest = "-" if info.oldest is None else f"{info.oldest:.1f} s"
    numbers = (info.waiting, info.running, info.scheduled, info.dead, info.workers)
    return (info.queue, *("-" if number is None else str(number) for number in numbers), oldest)
