"""`rpc shell`: Python, with a client that is connected."""

from __future__ import annotations

import code
import importlib
import rlcompleter
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import click

import rpc

from ..client import RpcClient
from ..proxies import Proxy
from .options import backend_option, settings_option

BANNER = (
    "client: an RpcClient; services: client.services, as in services.example.foo(1, key=2). "
    "Tab completes what runs now."
)


@click.command("shell")
@settings_option
@backend_option
@click.option("-c", "program", metavar="CODE", help="Run this, instead of asking for something to run.")
def command(settings: str | None, backend: str | None, program: str | None) -> None:
    """Start a Python shell, IPython's if that is installed, with a connected `client`, its `services`, and
    what `from rpc import *` gives.

    Tab completes the services and methods of the workers that run now. An error of CODE ends the command with
    the exit code that it has for other commands.

    \b
    Examples:
      rpc shell
      rpc shell -c 'print(services.example.foo(1, key=2))'
    """
    with RpcClient(settings=settings, backend=backend) as client:
        names = {name: getattr(rpc, name) for name in rpc.__all__ if not name.endswith("Backend")}
        names |= {"client": client, "services": client.services, "__name__": "__console__"}
        if program is None:
            interact(names, BANNER)
        else:
            exec(_compiled(program), names)  # noqa: S102 - it is what the user asks for


def interact(names: dict[str, Any], banner: str) -> None:
    """A shell, until it is left."""
    if find_spec("IPython"):
        from_ipython = importlib.import_module("IPython")
        print(banner)
        from_ipython.start_ipython(argv=["--no-banner"], user_ns=names)
        return
    with suppress(ModuleNotFoundError):  # not every Python has it
        readline = importlib.import_module("readline")
        readline.set_completer(Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    with suppress(SystemExit):  # of exit()
        code.interact(f"Python {sys.version.split()[0]}. {banner}", local=names, exitmsg="")


class Completer(rlcompleter.Completer):
    """A proxy may have more parts: it gets no parenthesis."""

    def _callable_postfix(self, val: Any, word: str) -> str:
        return word if isinstance(val, Proxy) else super()._callable_postfix(val, word)  # type: ignore[misc]


def _compiled(program: str) -> Any:
    try:
        return compile(program, "<-c>", "exec")
    except (SyntaxError, ValueError) as error:
        raise click.UsageError(f"-c: {error}") from None
