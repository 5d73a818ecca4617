"""The command line: `rpc worker`, `rpc call`, `rpc services`, `rpc describe`, `rpc stubs`, `rpc diff`,
`rpc events`, `rpc logs`, `rpc shell`, `rpc jobs`, `rpc queues`, `rpc health`, `rpc dead-letters`,
`rpc redis`, `rpc keygen`, `rpc demo`.

One module for each command. Messages are for people, `--json` is for programs; which exit code an error has
is decided in `exits` alone. Nothing imports this package but `rpc.contrib`.
"""

from importlib import import_module

import click

from ..errors import DISTRIBUTION
from .exits import Commands

COMMANDS = (
    "worker",
    "call",
    "services",
    "describe",
    "stubs",
    "diff",
    "events",
    "logs",
    "shell",
    "jobs",
    "queues",
    "health",
    "dead-letters",
    "redis",
    "keygen",
    "demo",
)
_MODULES = {"logs": "remote_logs", "dead-letters": "dead_letters"}
"""Of those whose module has another name than the command."""


class Program(Commands):
    """Imports the module of a command when it is asked for: most of the time of a short one is that."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{_MODULES.get(name, name)}", __name__).command
        return command


@click.group(
    cls=Program,
    commands={name: click.Command(name) for name in COMMANDS},  # in the place of those that are not loaded
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name=DISTRIBUTION, prog_name="rpc")
def main() -> None:
    """Ask another process to do something and get the answer, over the queue you already run.

    \b
    Example, in two terminals, with a settings.py that maps the name "add":
      rpc worker
      rpc call add a:=1 b:=2

    Exit codes: 0 all went well; 1 the other side reported an error; 2 wrong use, settings included; 3 no
    answer in time; 4 no broker; 130 interrupted.
    """
