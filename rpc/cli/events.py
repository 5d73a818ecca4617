"""`rpc events`: publish, listen, see who listens, and forget those that no longer do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import click
import msgspec

from ..backends import redacted
from ..client import RpcClient
from ..core.jobs import JobOptions
from ..describe import ListenerInfo, WorkerInfo
from ..errors import RpcError, Unsupported
from ..events import Event, Subscription, on
from ..receiver import RpcReceiver
from ..settings import Settings, load_settings
from ..transport import Address, Backend, Subscriptions
from .call import data_of
from .options import backend_option, seconds, settings_option
from .output import json_option, json_wanted, one_line, print_line


def pattern(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Callback of an argument: what may be listened to."""
    try:
        on(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def headers(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Callback of an option that may be repeated: NAME=TEXT."""
    split = [each.partition("=") for each in value]
    if wrong := [each for each, (name, sign, _) in zip(value, split, strict=True) if not name or not sign]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=TEXT.")
    return {name: text for name, _, text in split}


@click.group("events")
def command() -> None:
    """Events: publish one, listen, see who listens.

    \b
    Examples:
      rpc events publish order.created number:=17
      rpc events listen 'order.*'
      rpc events list
    """


@command.command("publish")
@click.argument("name")
@click.argument("words", metavar="[a=TEXT b:=JSON ... | JSON | -]", nargs=-1)
@settings_option
@backend_option
@click.option(
    "--header", "named", metavar="NAME=TEXT", multiple=True, callback=headers, help="May be repeated."
)
@json_option
def publish_command(
    name: str, words: tuple[str, ...], settings: str | None, backend: str | None, named: dict[str, str]
) -> None:
    """Publish the event NAME to all who listen, and print its id. Its data is given as in `rpc call`.

    With --json, what is printed is {"id": ...}.

    \b
    Example:
      rpc events publish order.created number:=17 place=Rome --header source=shell
    """
    data = data_of(words)
    with RpcClient(settings=settings, backend=backend) as client:
        try:
            id = client.publish(name, data, headers=named)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    print_line({"id": id}) if json_wanted() else click.echo(id)


@command.command("listen")
@click.argument("event", metavar="PATTERN", callback=pattern)
@settings_option
@backend_option
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after so many.")
def listen_command(event: str, settings: str | None, backend: str | None, count: int | None) -> None:
    """Print each event that fits PATTERN as one line of JSON, until Ctrl-C.

    Each line is {"topic": ..., "data": ..., "headers": ..., "id": ...}. What was published before is
    not heard: when it listens, that is said on stderr.

    \b
    Example:
      rpc events listen 'order.*' --backend redis://127.0.0.1:6379/0 | jq .data
    """
    left = count

    @on(event)
    def listen(event: Event) -> None:
        nonlocal left
        if left == 0:
            return
        try:
            print_line(msgspec.structs.asdict(event))
        except BrokenPipeError:  # whoever read it has had enough
            left = 1
        left = None if left is None else left - 1
        if left == 0:
            receiver.stop()

    loaded = _settings(settings, backend)
    receiver = RpcReceiver(
        jobs={}, services=[listen], settings=loaded, backend=backend, hooks={}, middleware=[]
    )
    receiver.hook("on_connect")(lambda: click.echo(f"listening to {event}", err=True))
    receiver.start()


@command.command("list")
@settings_option
@backend_option
@click.option(
    "--wait",
    metavar="SECONDS",
    type=float,
    callback=seconds,
    default=0.5,
    show_default=True,
    help="How long workers have to answer.",
)
@json_option
def list_command(settings: str | None, backend: str | None, wait: float) -> None:
    """List who listens now, in all workers: pattern, listener, group, worker; and the durable groups that
    nobody serves now, for which events are kept.

    With --json, what is printed is {"listeners": [{"pattern": ..., "name": ..., "group": ..., "durable": ...,
    "failures": ..., "host": ..., "pid": ...}, ...], "subscriptions": [{"pattern": ..., "group": ...,
    "served": ...}, ...]}.

    \b
    Example:
      rpc events list --json
    """
    with RpcClient(settings=_settings(settings, backend), backend=backend) as client:
        workers = client.describe(wait=wait)
        kept = {Subscription.of(each) for each in _subscribed(client.backend)}
    listeners = [_shown(worker, each) for worker in workers for each in worker.listeners]
    served = {(each["pattern"], each["group"]) for each in listeners if each["durable"]}
    subscriptions = [
        {"pattern": pattern, "group": group, "served": (pattern, group) in served}
        for pattern, group in sorted(kept | served)
    ]
    if json_wanted():
        return print_line({"listeners": listeners, "subscriptions": subscriptions})
    for each in listeners:
        durable = ", durable" if each["durable"] else ""
        group = f"group {each['group']}{durable}" if each["group"] else "each worker"
        where = f"{each['host']}:{each['pid']}"
        failures = [f"{each['failures']} failures"] if each["failures"] else []
        _print(each["pattern"], each["name"], group, where, *failures)
    for each in subscriptions:
        if not each["served"]:
            _print(each["pattern"], "-", f"group {each['group']}, durable", "nobody serves it now")


@command.command("forget")
@click.argument("event", metavar="PATTERN", callback=pattern)
@click.argument("group")
@settings_option
@backend_option
def forget_command(event: str, group: str, settings: str | None, backend: str | None) -> None:
    """Forget the durable group GROUP that listened to PATTERN, with the events that are kept for it. A worker
    that serves it still, or again, makes it anew.

    \b
    Example:
      rpc events forget 'order.*' billing
    """
    try:
        on(event, group=group, durable=True)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    subscription = Subscription(event, group, True, JobOptions())
    with _subscriptions(settings, backend) as known:
        if hasattr(known, "subscribed") and subscription.address not in _subscribed(known):
            raise RpcError(f"there is no durable group {group!r} that listens to {event!r}")
        known.unsubscribe(subscription.address)


def _shown(worker: WorkerInfo, listener: ListenerInfo) -> dict[str, Any]:
    about = msgspec.structs.asdict(listener)
    return {"pattern": about.pop("event"), **about, "host": worker.host, "pid": worker.pid}


def _print(*words: str) -> None:
    click.echo("  ".join(map(one_line, words)))


def _settings(settings: str | None, backend: str | None) -> Settings:
    return load_settings(settings) if backend is None or settings is not None else Settings()


@contextmanager
def _subscriptions(settings: str | None, backend: str | None) -> Iterator[Any]:
    """The backend; Unsupported if it has none."""
    loaded = _settings(settings, backend)
    with RpcClient(settings=loaded, backend=backend) as client:
        if "subscriptions" not in client.backend.features:
            chosen = backend or loaded.for_clients
            shown = redacted(chosen) if isinstance(chosen, str) else str(chosen)
            raise Unsupported(f"{shown} has no feature 'subscriptions'")
        yield cast("Subscriptions", client.backend)


def _subscribed(backend: Backend | Subscriptions) -> list[Address]:
    """The durable groups, if the backend can tell."""
    tell = getattr(backend, "subscribed", list)
    return cast("list[Address]", tell())
