"""`rpc diff`: what changed between two OpenRPC documents."""

from __future__ import annotations

from pathlib import Path

import click

from ..contract.compare import changes
from ..contract.documents import Document, read
from .output import json_option, json_wanted, one_line, print_line

BREAKING = 1
"""Exit code."""

document = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("diff")
@click.argument("old", type=document)
@click.argument("new", type=document)
@json_option
@click.pass_context
def command(ctx: click.Context, old: Path, new: Path) -> None:
    """Compare two OpenRPC documents: list what changed, and what of it breaks those who call as OLD says.

    That is a method or a parameter that is gone, a parameter that is required now, one that takes less than
    it did, a result that may be more than it was, and parameters in another order. A wider parameter, a
    narrower result, and what is new and not required, are compatible.

    The exit code is 0 if all changes are compatible, and 1 if one is breaking. With --json, what is printed
    is {"breaking": [{"method": ..., "text": ...}], "compatible": [...]}.

    \b
    Example:
      rpc describe --offline > new.json && rpc diff openrpc.json new.json
    """
    found = changes(_read(old), _read(new))
    by_kind = {
        "breaking": [each for each in found if each.is_breaking],
        "compatible": [each for each in found if not each.is_breaking],
    }
    if json_wanted():
        told = {
            kind: [{"method": each.method, "text": each.text} for each in listed]
            for kind, listed in by_kind.items()
        }
        print_line(told)
    else:
        for kind, listed in by_kind.items():
            for each in listed:
                click.echo(one_line(f"{kind}: {each}"))
    if by_kind["breaking"]:
        ctx.exit(BREAKING)


def _read(path: Path) -> Document:
    try:
        return read(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
