"""`rpc events`: publish, hear what is published, see who listens, and forget those that no longer do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast, get_args

import click
import msgspec

from ..backends import redacted
from ..backends.features import unsupported
from ..client import RpcClient
from ..core.codecs import JSON, TYPED
from ..core.events import NOTHING, Event
from ..core.filters import Filter, Match, Scalar, checked
from ..describe import ListenerInfo, WorkerInfo
from ..errors import RpcError, SerializationError, SubscriberLagged
from ..events import Subscription, subscribed
from ..inspection import Counts
from ..settings import Settings, load_settings
from ..transport import Address, Backend, Subscriptions
from .call import data_of
from .options import backend_option, seconds_option, settings_option
from .output import json_option, json_wanted, one_line, print_line

F = TypeVar("F", bound=Callable[..., Any])


def pattern(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Callback of an argument: what may be listened to."""
    try:
        subscribed(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def headers(
    ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> dict[str, Scalar | None]:
    """Callback of an option that may be repeated: NAME=TEXT or NAME:=JSON."""
    found: dict[str, Scalar | None] = {}
    for each in value:
        name, sign, text = each.partition("=")
        if not sign:
            raise click.BadParameter(f"{each!r} is neither NAME=TEXT nor NAME:=JSON.")
        try:
            decoded = JSON.decode(text.encode()) if name.endswith(":") else text
            name = name.removesuffix(":")
            found[name] = None if decoded is None else checked(name, decoded)
        except (ValueError, SerializationError) as error:
            raise click.BadParameter(f"{each!r}: {error}.") from None
    return found


def filter_options(command: F) -> F:
    """Which headers an event must have."""
    named = click.option(
        "--header",
        "named",
        metavar="NAME=TEXT",
        multiple=True,
        callback=headers,
        help="A header that events must have; NAME:=JSON for numbers, booleans, and any (null). Repeatable.",
    )
    match = click.option(
        "--match",
        type=click.Choice(get_args(Match)),
        default="all",
        show_default=True,
        help="Which of the headers an event must have.",
    )
    return named(match(command))


@click.group("events")
def command() -> None:
    """Events: publish one, hear what is published, see who listens.

    \b
    Examples:
      rpc events publish order.created number:=17
      rpc events tail 'order.*'
      rpc events list
    """


@command.command("publish")
@click.argument("name")
@click.argument("words", metavar="[a=TEXT b:=JSON ... | JSON | -]", nargs=-1)
@settings_option
@backend_option
@click.option(
    "--header",
    "named",
    metavar="NAME=TEXT",
    multiple=True,
    callback=headers,
    help="NAME:=JSON for numbers and booleans. May be repeated.",
)
@click.option("--raw", type=click.File("rb"), help="A file, or -, whose bytes are the data, as they are.")
@json_option
def publish_command(
    name: str,
    words: tuple[str, ...],
    settings: str | None,
    backend: str | None,
    named: dict[str, Scalar],
    raw: BinaryIO | None,
) -> None:
    """Publish the event NAME to all who listen, and print its id. Its data is given as in `rpc call`, or by
    --raw.

    With --json, what is printed is {"id": ...}.

    \b
    Example:
      rpc events publish order.created number:=17 place=Rome --header source=shell
    """
    if raw and words:
        raise click.UsageError("--raw is all of the data")
    data = raw.read() if raw else data_of(words) if words else NOTHING
    with RpcClient(settings=settings, backend=backend) as client:
        try:
            id = client.publish(name, data, headers=named)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    print_line({"id": id}) if json_wanted() else click.echo(id)


@command.command("tail")
@click.argument("event", metavar="PATTERN", callback=pattern)
@settings_option
@backend_option
@filter_options
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after so many.")
@seconds_option(
    "--since",
    help="Begin with what was published in the last so many seconds, where the backend remembers it.",
)
@json_option
def tail_command(
    event: str,
    settings: str | None,
    backend: str | None,
    named: dict[str, Scalar | None],
    match: Match,
    count: int | None,
    since: float | None,
) -> None:
    """Print each event that fits PATTERN as one line, until Ctrl-C.

    What was published before is not heard, but with --since: when it listens, that is said on stderr. With
    --json, each line is {"topic": ..., "data": ..., "headers": ..., "id": ...}.

    \b
    Example:
      rpc events tail 'order.*' --header region=eu --json | jq .data
    """
    ago = None if since is None else timedelta(seconds=since)
    with (
        RpcClient(settings=_settings(settings, backend), backend=backend) as client,
        client.subscribe(event, headers=named, match=match, since=ago) as stream,
    ):
        click.echo(f"listening to {event}", err=True)
        left = count
        while left != 0:
            try:
                _print_event(next(stream))
            except SubscriberLagged as lag:
                click.echo(lag, err=True)
            else:
                left = left and left - 1


def _print_event(event: Event) -> None:
    if json_wanted():
        print_line(msgspec.structs.asdict(event))
    else:
        named = [_named(event.headers)] if event.headers else []
        _print(event.topic, TYPED.encode(event.data).decode(), *named)


@command.command("list")
@settings_option
@backend_option
@seconds_option("--wait", default=0.5, show_default=True, help="How long workers have to answer.")
@json_option
def list_command(settings: str | None, backend: str | None, wait: float) -> None:
    """List who listens now, in all workers: pattern, listener, group, worker; and the durable groups that
    nobody serves now, for which events are kept.

    With --json, what is printed is {"listeners": [{"pattern": ..., "name": ..., "group": ..., "durable": ...,
    "failures": ..., "headers": ..., "match": ..., "host": ..., "pid": ...}, ...], "subscriptions":
    [{"pattern": ..., "group": ..., "filter": ..., "served": ..., "waiting": ...}, ...]}. A filter is told by
    its digest; what waits, or is to be tried again, as a number of events.

    \b
    Example:
      rpc events list --json
    """
    with RpcClient(settings=_settings(settings, backend), backend=backend) as client:
        workers = client.describe(wait=wait)
        kept = {each: _in_use(client.backend, each) for each in _subscribed(client.backend)}
    listeners = [_shown(worker, each) for worker in workers for each in worker.listeners]
    served = {_key(each) for each in listeners if each["durable"]}
    served |= {Subscription.of(to) for to, use in kept.items() if use.workers}
    waiting = Counter[tuple[str, str, str]]()
    for to, use in kept.items():
        waiting[Subscription.of(to)] += use.events
    subscriptions: list[dict[str, Any]] = [
        {
            **dict(zip(("pattern", "group", "filter"), each, strict=True)),
            "served": each in served,
            "waiting": waiting[each],
        }
        for each in sorted(served.union(waiting))
    ]
    if json_wanted():
        return print_line({"listeners": listeners, "subscriptions": subscriptions})
    for each in listeners:
        durable = ", durable" if each["durable"] else ""
        group = f"group {each['group']}{durable}" if each["group"] else "each worker"
        where = f"{each['host']}:{each['pid']}"
        failures = [f"{each['failures']} failures"] if each["failures"] else []
        wanted = [f"{each['match']} of {_named(each['headers'])}"] if _key(each)[2] else []
        _print(each["pattern"], each["name"], group, where, *wanted, *failures)
    for each in subscriptions:
        if not each["served"]:
            wanted = [f"filter {each['filter']}"] if each["filter"] else []
            wanted += [f"{each['waiting']} waiting"] if each["waiting"] else []
            _print(each["pattern"], "-", f"group {each['group']}, durable", "nobody serves it now", *wanted)


def _key(listener: dict[str, Any]) -> tuple[str, str, str]:
    """The pattern and the group of a listener, and the digest of its filter."""
    digest = Filter(listener["headers"], listener["match"]).digest
    return listener["pattern"], listener["group"] or "", digest


def _named(headers: Mapping[str, Any]) -> str:
    return " ".join(name if value is None else f"{name}={value}" for name, value in headers.items())


@command.command("forget")
@click.argument("event", metavar="PATTERN", callback=pattern)
@click.argument("group")
@settings_option
@backend_option
@filter_options
@click.option("--force", is_flag=True, help="Though it is served, or has events, which are lost then.")
def forget_command(
    event: str,
    group: str,
    settings: str | None,
    backend: str | None,
    named: dict[str, Scalar | None],
    match: Match,
    force: bool,
) -> None:
    """Forget the durable group GROUP that listened to PATTERN, with these headers.

    A group that is served, or that events are kept for, is not forgotten, but with --force: its events are
    lost then. A worker that serves it still, or again, makes it anew, and does not hear what is published
    until then.

    \b
    Example:
      rpc events forget 'order.*' billing
    """
    try:
        subscription = subscribed(event, named, match, group, durable=True)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    to = subscription.address(_settings(settings, backend).domain)
    with _subscriptions(settings, backend) as known:
        if hasattr(known, "subscribed") and to not in _subscribed(known):
            raise RpcError(
                f"there is no durable group {group!r} that listens to {event!r} with these headers"
            )
        if not known.unsubscribe(to, unused=not force):
            use = _in_use(known, to) or "it was used just now"
            raise RpcError(
                f"group {group!r} of {event!r} is not forgotten, as {use}: have its events heard and stop "
                "those that serve it, or lose its events with --force"
            )


class _Use(NamedTuple):
    """Who needs a durable group still."""

    workers: int
    """How many serve it, subscribers included."""
    events: int
    """How many wait for it, are being heard, or are to be tried again, as far as the backend can tell."""

    def __bool__(self) -> bool:
        return self != (0, 0)

    def __str__(self) -> str:
        said = [f"{self.workers} serve{'s' * (self.workers == 1)} it"] if self.workers else []
        if self.events:
            said.append(f"{self.events} event{'s are' if self.events > 1 else ' is'} kept for it")
        return " and ".join(said)


def _in_use(backend: Backend | Subscriptions, to: Address) -> _Use:
    """What is known of this group; nothing, of a backend that does not count."""
    if "counts" not in cast("Backend", backend).features:
        return _Use(0, 0)
    info = cast("Counts", backend).queue_info(to.subscription_queue.name)
    return _Use(info.workers, info.waiting + (info.running or 0) + (info.scheduled or 0))


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
            raise unsupported("subscriptions", shown)
        yield cast("Subscriptions", client.backend)


def _subscribed(backend: Backend | Subscriptions) -> list[Address]:
    """The durable groups, if the backend can tell."""
    tell = getattr(backend, "subscribed", list)
    return cast("list[Address]", tell())
