"""What several commands have in common on their command lines."""

from __future__ import annotations

import re
from datetime import datetime

import click

from .. import durations
from ..transport import queue

settings_option = click.option(
    "--settings",
    metavar="MODULE",
    help="The settings module; by default the one that RPC_SETTINGS_MODULE names, else `settings`.",
)
backend_option = click.option(
    "--backend",
    metavar="URL",
    help="Use this backend, not the one of the settings: rq+redis://HOST:PORT/DB, for instance.",
)


def seconds(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Callback of an option: a time that is more than nothing and less than for ever."""
    try:
        return durations.seconds_or_none(value, "it", above=True)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def time(ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Callback of an option: a time as ISO 8601 has it; one without a zone is local."""
    try:
        return None if value is None else datetime.fromisoformat(re.sub("[zZ]$", "+00:00", value))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no time like 2030-01-31T18:30 or 2030-01-31T18:30Z."
        ) from None


def queue_names(
    ctx: click.Context, parameter: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """Callback of an option: names that every backend accepts for queues."""
    try:
        for name in (value,) if isinstance(value, str) else value or ():
            queue(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value
