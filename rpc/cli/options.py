"""What several commands have in common on their command lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import click

from .. import durations
from ..core.registry import Wanted
from ..identity import check_part
from ..settings import Settings, load_settings
from ..transport import queue

settings_option = click.option(
    "--settings",
    metavar="MODULE",
    help="The settings module; by default the one that RPC_SETTINGS_MODULE names, else `settings`.",
)
backend_option = click.option(
    "--backend",
    metavar="URL",
    help="Use this backend, not the one of the settings: rq+redis://HOST:PORT/DB or http://HOST:PORT or "
    "ws://HOST:PORT, for instance.",
)

Command = TypeVar("Command", bound=Callable[..., object])


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A decorator for these options, in this order."""

    def with_options(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


def service_options(*former: str) -> Callable[[Command], Command]:
    """Options that say which services: `domain`, `type`, `id`, and `version`, which has these names, too."""
    names = ("--service-version", *former, "version")
    return together(
        click.option("--domain", metavar="NAME", help="The domain of the service."),
        click.option("--type", metavar="NAME", help="The type of the service."),
        click.option("--id", metavar="NAME", help="Which one of that type."),
        click.option(*names, metavar="VERSIONS", help="Its version, as 1.4.0 or '>=1.2,<2'."),
    )


def which_services(
    domain: str | None, type: str | None, id: str | None, version: str | None
) -> dict[str, str | None]:
    """What `service_options` say, by name. Raises UsageError if no service can be so."""
    try:
        Wanted(domain, type, id, version).check()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return {"domain": domain, "type": type, "id": id, "version": version}


def _domain(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            check_part("domain", value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None
    return value


def settings_of(
    name: str | None, domain: str | None, type: str | None, id: str | None, version: str | None
) -> Settings:
    """The settings of a module, in which these parts of the identity are others, unless they are None. Raises
    SettingsError."""
    parts = {"domain": domain, "service_type": type, "service_id": id, "service_version": version}
    given: dict[str, Any] = {key: part for key, part in parts.items() if part is not None}
    settings = replace(load_settings(name), **given)
    _ = settings.identity
    return settings


domain_option = click.option(
    "--domain",
    metavar="NAME",
    callback=_domain,
    help="Look in the queues of the services of this domain that run now, too.",
)


def _seconds(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    try:
        return durations.seconds_or_none(value, "it", above=True)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def seconds_option(name: str, **more: Any) -> Callable[[Command], Command]:
    """An option that is a time: more than nothing, and less than for ever."""
    return click.option(name, metavar="SECONDS", type=float, callback=_seconds, **more)


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
