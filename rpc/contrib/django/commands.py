"""What the commands have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from ...cli.exits import EXIT_CODES
from ...errors import RpcError


@contextmanager
def told() -> Iterator[None]:
    """Errors of ours end a command as they end those of `rpc`: with a line, and the same exit codes."""
    try:
        yield
    except RpcError as error:
        code = next(code for kind, code in EXIT_CODES if isinstance(error, kind))
        raise CommandError(str(error), returncode=code) from error
