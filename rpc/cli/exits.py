"""How a command ends: which exit code an error has, and how it is told. Nothing else decides this."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..core.protocol import INVALID_REQUEST
from ..errors import BackendUnavailable, RemoteError, RpcError, RpcTimeout, SettingsError, Unsupported
from .logs import is_json_log
from .output import json_wanted, one_line, print_line

logger = logging.getLogger(__name__)

WRONG_USE = 2
"""Of a command line, as click has it, or of settings: to start again mends nothing."""

NO_BROKER = 4
"""It is away, or refuses us."""

EXIT_CODES: tuple[tuple[type[RpcError], int], ...] = (
    (SettingsError, WRONG_USE),
    (Unsupported, WRONG_USE),
    (RpcTimeout, 3),
    (BackendUnavailable, NO_BROKER),
    (RpcError, 1),  # whatever else the other side said
)
"""The first that fits counts."""

INTERRUPTED = 130
"""As shells have it."""
AGAIN = 0.05
"""Seconds until an interrupt comes again, for which there was no place."""


class Commands(click.Group):
    """A group whose commands may raise any RpcError."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _interruptible():
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Python drops an interrupt that falls into a finalizer, which any line may start: let it come again."""
    before, main = sys.unraisablehook, threading.main_thread().ident or 0

    def on_unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN, signal.pthread_kill, [main, signal.SIGINT])
            again.daemon = True
            again.start()
        else:
            before(dropped)

    sys.unraisablehook = on_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before


def _tell(ctx: click.Context, error: RpcError) -> None:
    """One JSON object on stdout, or one line on stderr."""
    if is_json_log(ctx):
        logger.error("%s", error)
    elif not json_wanted(ctx):
        click.echo(f"Error: {one_line(str(error))}", err=True)
    elif isinstance(error, RemoteError):
        _print_error(error.type, error.message, error.code)
    else:
        _print_error(type(error).__name__, str(error), error.code)


def _print_error(name: str, message: str, code: int) -> None:
    print_line({"error": {"type": name, "message": message, "code": code}})
