"""`rpc jobs`: what is known of jobs, and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import click

from ..client import RpcClient
from ..errors import RpcError
from ..job_info import JobInfo, ListedState
from .options import backend_option, queue_names, settings_option
from .output import TAGGED, json_option, json_wanted, one_line, print_data, print_line, printable

queue_option = click.option(
    "--queue",
    metavar="NAME",
    callback=queue_names,
    help="Look in this queue; by default in all of RPC_QUEUES and RPC_ROUTES.",
)


@click.group("jobs")
def command() -> None:
    """Jobs: which ones wait, run or were given up; what became of one; to cancel it, or try it again.

    \b
    Examples:
      rpc jobs list --state waiting
      rpc jobs show 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
      rpc jobs cancel 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
      rpc jobs retry 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
    """


@command.command("list")
@click.option("--state", type=click.Choice(get_args(ListedState)), help="Only jobs in this state.")
@click.option("--name", metavar="JOB", help="Only jobs of this name.")
@settings_option
@backend_option
@queue_option
@json_option
def list_command(
    state: ListedState | None, name: str | None, settings: str | None, backend: str | None, queue: str | None
) -> None:
    """List the jobs that are scheduled, wait, run or are dead letters: id, state, queue, name, when, and why.

    With --json, what is printed is {"jobs": [{"id": ..., "state": ..., "name": ..., "queue": ...,
    "attempt": ..., "worker": ..., "at": ..., "took": ..., "error": ...}, ...]}.

    \b
    Example:
      rpc jobs list --state dead --queue default --json
    """
    with RpcClient(settings=settings, backend=backend) as client:
        found = [_summary(info) for info in client.jobs(queue=queue, state=state, name=name)]
    if json_wanted():
        return print_line({"jobs": found})
    for each in found:
        shown = [each[key] or "-" for key in ("id", "state", "queue", "name", "at", "error")]
        click.echo("  ".join(one_line(str(text)) for text in shown))


@command.command("show")
@click.argument("id")
@settings_option
@backend_option
@queue_option
@json_option
def show_command(id: str, settings: str | None, backend: str | None, queue: str | None) -> None:
    """Show what is known of the job ID: its state, its result if that is kept, or why it failed.

    With --json, what is printed is one object of what the list has, with "result" and "traceback". The exit
    code is 1 if nothing is known of it.

    \b
    Example:
      rpc jobs show 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e --json
    """
    with RpcClient(settings=settings, backend=backend) as client:
        info = client.job(id, queue=queue)
    if info.state == "unknown":
        raise RpcError(info.error)
    summary = _summary(info)
    result = info.read(client.accepted.reading(TAGGED)) if info.state == "succeeded" else None
    if json_wanted():
        return print_line({**summary, "result": result, "traceback": info.traceback})
    for key, value in summary.items():
        if value not in ("", None):
            text = f"{value:.6f} s" if key == "took" else str(value)
            click.echo(f"{key + ':':<8} {printable(text)}")
    if info.traceback:
        click.echo(printable(info.traceback.rstrip(), keep="\n"))
    if info.state == "succeeded":
        click.echo("result:")
        print_data(result)


@command.command("cancel")
@click.argument("ids", metavar="ID ...", nargs=-1, required=True)
@settings_option
@backend_option
@queue_option
def cancel_command(
    ids: tuple[str, ...], settings: str | None, backend: str | None, queue: str | None
) -> None:
    """Cancel jobs, and print their ids: what waits is not begun; what runs is told, and a coroutine ends.

    \b
    Example:
      rpc jobs cancel 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
    """
    _each(ids, settings, backend, queue, JobInfo.cancel, "neither waits nor runs")


@command.command("retry")
@click.argument("ids", metavar="ID ...", nargs=-1, required=True)
@settings_option
@backend_option
@queue_option
def retry_command(ids: tuple[str, ...], settings: str | None, backend: str | None, queue: str | None) -> None:
    """Put dead letters back into their queues, and print their ids. `rpc dead-letters retry --all` takes all.

    \b
    Example:
      rpc jobs retry 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
    """
    _each(ids, settings, backend, queue, JobInfo.retry, "is no dead letter")


def _each(
    ids: Sequence[str],
    settings: str | None,
    backend: str | None,
    queue: str | None,
    action: Callable[[JobInfo], bool],
    not_so: str,
) -> None:
    """Do this to the jobs. Raises RpcError at the end if that could not be done to some."""
    failures = []
    with RpcClient(settings=settings, backend=backend) as client:
        for id in ids:
            info = client.job(id, queue=queue)
            if action(info):
                click.echo(printable(id))
            else:
                failures.append(info.error if info.state == "unknown" else f"{id} {not_so}")
    if failures:
        raise RpcError("; ".join(failures))


def _summary(info: JobInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "state": info.state,
        "name": info.name,
        "queue": info.queue,
        "attempt": info.attempt,
        "worker": info.worker,
        "at": info.at.isoformat(timespec="milliseconds") if info.at else None,
        "took": info.took,
        "error": info.error,
    }
