"""`rpc describe`: what services offer, as an OpenRPC or AsyncAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import click
import msgspec

from ..client import RpcClient
from ..contract.documents import Document
from ..contract.openrpc import EVENTS, selected
from ..errors import NoReceivers
from ..receiver import RpcReceiver
from .options import (
    backend_option,
    seconds_option,
    service_options,
    settings_of,
    settings_option,
    which_services,
)
from .output import json_option, json_wanted, print_line

WAIT = 0.5
"""Seconds."""

offline_option = click.option(
    "--offline", is_flag=True, help="Ask nobody: what a worker with these settings would offer."
)
wait_option = seconds_option(
    "--wait", default=WAIT, show_default=True, help="How long to wait for the answers of workers."
)


@click.command("describe")
@click.argument("service", required=False)
@settings_option
@backend_option
@click.option("--events", is_flag=True, help="The AsyncAPI document of the listeners, of all services.")
@offline_option
@service_options()
@wait_option
@json_option
def command(
    service: str | None,
    settings: str | None,
    backend: str | None,
    events: bool,
    offline: bool,
    wait: float,
    **which: str | None,
) -> None:
    """Print an OpenRPC 1.4 document of what the workers that run now offer, or of SERVICE with those below
    it, or of the one job of this name: parameters and results as JSON schemas, errors, and what docstrings
    say. With --events, print an AsyncAPI 3 document of what they listen to.

    It is indented, and the same whenever they offer the same: to be kept beside the code, and compared by
    `rpc diff`. With --domain, --type, --id or --service-version, only services that fit are described; with
    --offline, it is what a worker that was started with these would offer.

    \b
    Examples:
      rpc describe orders > openrpc.json
      rpc describe --type orders --service-version '>=1.2'
      rpc describe --offline --settings shop.settings | jq '.methods[].name'
      rpc describe --events > asyncapi.json
    """
    if service and events:
        raise click.UsageError("--events is for all services: not with SERVICE")
    document = offered(service, settings, backend, which, offline=offline, wait=wait)
    heard = document.pop(EVENTS, None)
    if events and heard is None:
        raise NoReceivers("nobody listens to events")
    shown = heard if events else document
    if json_wanted():
        return print_line(shown)
    click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))


def offered(
    service: str | None,
    settings: str | None,
    backend: str | None,
    which: Mapping[str, str | None],
    *,
    offline: bool = False,
    wait: float = WAIT,
) -> Document:
    """What workers offer that are `which` services, or what one with these settings would that was started as
    such a one. Raises RpcError."""
    if not offline:
        wanted = which_services(**which)
        with RpcClient(settings=settings, backend=backend) as client:
            return client.discover(service, **wanted, wait=wait)
    if backend:
        raise click.UsageError("--offline asks nobody: not with --backend")
    declared = replace(settings_of(settings, **which), contract=None)
    document = {**RpcReceiver(settings=declared, backend="memory://").discover()}
    return document if service is None else selected(document, service)
