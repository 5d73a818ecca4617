"""The command line: `rpc worker`, `rpc call`, `rpc services`, `rpc describe`, `rpc stubs`, `rpc diff`,
`rpc events`, `rpc logs`, `rpc shell`, `rpc jobs`, `rpc queues`, `rpc health`, `rpc dead-letters`,
`rpc redis`, `rpc keygen`, `rpc demo`.

One module for each command. Messages are for people, `--json` is for programs; which exit code an error has
is decided in `exits` alone. Nothing imports this package but `rpc.contrib`.
"""

import atexit
import gc
from importlib import import_module
from typing import Any

import click

from ..errors import DISTRIBUTION
from .exits import Commands

COMMANDS = {
    "call": "Call a job, and print the data of its response.",
    "dead-letters": "Look at jobs that were given up, try them again, drop them.",
    "demo": "Start a Redis server and a worker, and call some jobs.",
    "describe": "Print what workers offer, as an OpenRPC document.",
    "diff": "Compare two OpenRPC documents: what changed, what breaks.",
    "events": "Publish an event, hear events, see who listens.",
    "health": "Tell by the exit code whether the workers here are alive.",
    "jobs": "List jobs, see what became of one, cancel it, try it again.",
    "keygen": "Print a new key for RPC_SIGNING_KEYS.",
    "logs": "Print what other processes log, until Ctrl-C.",
    "queues": "Show how many jobs wait, run, are scheduled and dead.",
    "redis": "Run a Redis server on 127.0.0.1 until Ctrl-C.",
    "services": "List what the workers that run now offer.",
    "shell": "Start a Python shell with a client.",
    "stubs": "Print a Python module with a client of what workers offer.",
    "worker": "Serve the jobs of the settings.",
}
MODULES = {"logs": "remote_logs", "dead-letters": "dead_letters"}
"""Of those whose module has another name than the command."""


class Program(Commands):
    """Imports the module of a command when it is asked for: most of the time of a short one is that."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{MODULES.get(name, name)}", __name__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without the modules of all of them."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def main(self, *args: Any, **options: Any) -> Any:
        """A fifth of the time of a short command went into Python's last look for what nobody refers to any
        more, which the operating system takes back anyway: there is none."""
        atexit.register(gc.freeze)
        return super().main(*args, **options)


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
