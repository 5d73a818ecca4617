"""The command line: `rpc worker`, `rpc call`, `rpc services`, `rpc events`, `rpc shell`, `rpc jobs`,
`rpc queues`, `rpc health`, `rpc dead-letters`, `rpc redis`, `rpc demo`.

One module for each command. Messages are for people, `--json` is for programs; which exit code an error has
is decided in `exits` alone. Nothing imports this package but `rpc.contrib`.
"""

import click

from ..errors import DISTRIBUTION
from . import call, dead_letters, demo, events, health, jobs, queues, redis, services, shell, worker
from .exits import Commands

COMMANDS = (
    worker.command,
    call.command,
    services.command,
    events.command,
    shell.command,
    jobs.command,
    queues.command,
    health.command,
    dead_letters.command,
    redis.command,
    demo.command,
)


@click.group(cls=Commands, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
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
