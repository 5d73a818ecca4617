"""`rpc dead-letters`: what was given up, to look at, to try again, to forget."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, cast

import click

from ..backends import redacted
from ..backends.features import unsupported
from ..client import RpcClient
from ..errors import RpcError, SerializationError
from ..inspection import DeadLetter, DeadLetters
from ..registry.lookup import queues_of
from ..settings import Settings, load_settings
from ..transport import NAME, Message, unpacked
from .options import backend_option, domain_option, queue_names, settings_option, together
from .output import AS_JSON, json_option, json_wanted, one_line, print_data, print_line, printable

SECRETS = ("token", "signature", "authorization")
"""Headers whose values are nobody's business."""

where_options = together(
    settings_option,
    backend_option,
    click.option(
        "--queue",
        "queues",
        metavar="NAME",
        multiple=True,
        callback=queue_names,
        help="Look in this queue; may be repeated. By default those of RPC_QUEUES and RPC_ROUTES.",
    ),
    domain_option,
)
"""For `_shelf`."""
letters_options = together(
    click.argument("ids", metavar="[ID ...]", nargs=-1),
    click.option("--all", "everything", is_flag=True, help="All that are found."),
    where_options,
)
"""For `_settle`."""


@click.group("dead-letters")
def command() -> None:
    """Jobs that were given up: to look at, to try again, to forget.

    A job is a dead letter after it failed once more often than its retries allow, or was lost with several
    workers. Those of memory: are seen within its own process alone.

    \b
    Examples:
      rpc dead-letters list --queue default
      rpc dead-letters list --domain shop
      rpc dead-letters show 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
      rpc dead-letters retry --all
    """


@command.command("list")
@where_options
@json_option
def list_command(**where: Any) -> None:
    """List the dead letters: when, id, queue, name and why, the last one of each queue first.

    With --json, what is printed is {"dead_letters": [{"id": ..., "name": ..., "queue": ..., "when": ...,
    "why": ...}, ...]}.

    \b
    Example:
      rpc dead-letters list --backend redis://127.0.0.1:6379/0 --json
    """
    with _shelf(**where) as (_, letters):
        found = [_summary(letter) for letter in letters]
    if json_wanted():
        return print_line({"dead_letters": found})
    for each in found:
        click.echo("  ".join(one_line(str(each[key])) for key in ("when", "id", "queue", "name", "why")))


@command.command("show")
@click.argument("id")
@where_options
@json_option
def show_command(id: str, **where: Any) -> None:
    """Show the dead letter ID: what the list has of it, its traceback, its headers and its body.

    With --json, what is printed is one object of these. A body that cannot be decoded is shown as
    {"base64": ...}; null is one that is no longer kept.

    \b
    Example:
      rpc dead-letters show 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e --json
    """
    with _shelf(**where) as (_, letters):
        letter = _chosen(letters, [id])[0]
    summary, message = _summary(letter), _message(letter)
    headers = {name: "***" if name in SECRETS else value for name, value in message.headers.items()}
    body = _body(letter, message)
    if json_wanted():
        return print_line({**summary, "traceback": letter.traceback, "headers": headers, "body": body})
    for key in ("id", "name", "queue", "when", "why"):
        click.echo(f"{key + ':':<7} {printable(str(summary[key]))}")
    if letter.traceback:
        click.echo(printable(letter.traceback.rstrip(), keep="\n"))
    click.echo("headers:")
    for name, value in sorted(headers.items()):
        click.echo(f"  {printable(name)}: {printable(value)}")
    click.echo("body:")
    print_data(body)


@command.command("retry")
@letters_options
def retry_command(**which: Any) -> None:
    """Put dead letters back into their queues, as if they had just been sent, and print their ids.

    Nobody gets the response: whoever waited was told when the job was given up.

    \b
    Example:
      rpc dead-letters retry --all --queue default
    """
    _settle(lambda shelf, letter: shelf.revive(letter), **which)


@command.command("drop")
@letters_options
def drop_command(**which: Any) -> None:
    """Forget dead letters, and print their ids.

    \b
    Example:
      rpc dead-letters drop 4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e
    """
    _settle(lambda shelf, letter: shelf.drop(letter), **which)


def _settle(
    action: Callable[[DeadLetters, DeadLetter], bool], ids: Sequence[str], everything: bool, **where: Any
) -> None:
    """Do this with the letters, the oldest first. Raises RpcError at the end if that failed for some."""
    if bool(ids) == everything:
        raise click.UsageError("say which: ID ..., or --all")
    failures = []
    with _shelf(**where) as (shelf, letters):
        for letter in reversed(letters if everything else _chosen(letters, ids)):
            try:
                done = action(shelf, letter)
            except SerializationError as error:  # its body is no longer kept
                failures.append(f"{letter.id}: {error}")
                continue
            if done:
                click.echo(printable(letter.id))
            else:
                failures.append(f"{letter.id} was gone")
    if failures:
        raise RpcError("; ".join(failures))


@contextmanager
def _shelf(
    settings: str | None, backend: str | None, queues: Sequence[str], domain: str | None
) -> Iterator[tuple[DeadLetters, list[DeadLetter]]]:
    """The backend, and the letters in these queues, or in those of the settings, and in those of the services
    of a domain. Raises Unsupported if it keeps none."""
    loaded = load_settings(settings) if backend is None or settings is not None else Settings()
    with RpcClient(settings=loaded, backend=backend) as client:
        if "dead-letters" not in client.backend.features:
            chosen = backend or loaded.for_clients
            shown = redacted(chosen) if isinstance(chosen, str) else str(chosen)
            raise unsupported("dead-letters", shown)
        shelf = cast("DeadLetters", client.backend)
        services = () if domain is None else client.list_services(domain=domain)
        names = dict.fromkeys((*(queues or loaded.named_queues), *queues_of(services)))
        yield shelf, [letter for name in names for letter in shelf.dead_letters(name)]


def _chosen(letters: Sequence[DeadLetter], ids: Sequence[str]) -> list[DeadLetter]:
    """Those with these ids; RpcError, before anything is done, if one is missing."""
    known = {letter.id for letter in letters}
    if missing := [id for id in ids if id not in known]:
        raise RpcError(f"no dead letter in these queues has the id {', '.join(missing)}")
    return [letter for letter in letters if letter.id in ids]


def _summary(letter: DeadLetter) -> dict[str, str]:
    when = datetime.fromtimestamp(letter.at, timezone.utc).isoformat(timespec="milliseconds")
    name = _message(letter).headers.get(NAME, "")
    return {"id": letter.id, "name": name, "queue": letter.queue, "when": when, "why": letter.why}


def _message(letter: DeadLetter) -> Message:
    """What was given up; an empty message if it cannot be read."""
    try:
        return unpacked(letter.frame)
    except SerializationError:
        return Message()


def _body(letter: DeadLetter, message: Message) -> Any:
    if not letter.frame:
        return None
    try:
        return AS_JSON.value(message)
    except SerializationError:
        return {"base64": b64encode(message.body or letter.frame).decode()}
