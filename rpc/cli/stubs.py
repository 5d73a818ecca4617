"""`rpc stubs`: a client with types."""

from __future__ import annotations

from pathlib import Path

import click

from ..contract.documents import read
from ..contract.openrpc import selected
from ..contract.stubs import stubs
from .describe import offered, offline_option, wait_option
from .options import backend_option, service_options, settings_option


@click.command("stubs")
@click.argument("service", required=False)
@click.option(
    "--from",
    "file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read this OpenRPC document, and ask nobody.",
)
@settings_option
@backend_option
@offline_option
@service_options()
@wait_option
def command(
    service: str | None,
    file: Path | None,
    settings: str | None,
    backend: str | None,
    offline: bool,
    wait: float,
    **which: str | None,
) -> None:
    """Print a Python module with a client of what the workers that run now offer, or of SERVICE: classes
    whose methods have the parameters and results of the jobs, over an RpcClient (`Client`) and an
    AsyncRpcClient (`AsyncClient`), or over what their `service()` returns, and dataclasses and enums for
    values. Type checkers find a wrong call.

    \b
    Examples:
      rpc stubs orders > orders_client.py
      rpc stubs --from openrpc.json > client.py

    \b
    Then:
      from orders_client import Client
      Client(RpcClient()).orders.place("tea", quantity=2)
    """
    if file is None:
        document = offered(service, settings, backend, which, offline=offline, wait=wait)
    elif settings or backend or offline or any(which.values()):
        raise click.UsageError(
            "--from says it all: not with --settings, --backend, --offline, nor with which services"
        )
    else:
        try:
            document = read(file)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        document = document if service is None else selected(document, service)
    click.echo(stubs(document), nl=False)
