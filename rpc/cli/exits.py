"""How a command ends: which exit code an error has, and how it is told. Nothing else decides this."""

from __future__ import annotations

from typing import Any

import click

from ..core.protocol import INVALID_REQUEST
from ..errors import BackendUnavailable, RemoteError, RpcError, RpcTimeout, SettingsError, Unsupported
from .output import json_wanted, one_line, print_line

EXIT_CODES: tuple[tuple[type[RpcError], int], ...] = (
    (SettingsError, 2),
    (Unsupported, 2),
    (RpcTimeout, 3),
    (BackendUnavailable, 4),
    (RpcError, 1),  # whatever else the other side said
)
"""The first that fits counts. A wrong command line is 2 as well: click has it so."""

INTERRUPTED = 130
"""As shells have it."""


class Commands(click.Group):
    """A group whose commands may raise any RpcError."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RpcError as error:
            _tell(ctx, error)
            ctx.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
        except click.UsageError as error:
            if not json_wanted(ctx):
                raise
            _print_error("UsageError", error.format_message(), INVALID_REQUEST)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _tell(ctx: click.Context, error: RpcError) -> None:
    """One JSON object on stdout, or one line on stderr."""
    if not json_wanted(ctx):
        click.echo(f"Error: {one_line(str(error))}", err=True)
    elif isinstance(error, RemoteError):
        _print_error(error.type, error.message, error.code)
    else:
        _print_error(type(error).__name__, str(error), error.code)


def _print_error(name: str, message: str, code: int) -> None:
    print_line({"error": {"type": name, "message": message, "code": code}})
