"""`rpc worker`: a process that serves the jobs of the settings until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..backends import redacted
from ..errors import Unsupported
from ..receiver import RpcReceiver
from ..settings import Settings, load_settings
from .options import backend_option, queue_names, seconds, settings_option
from .processes import Supervisor
from .reload import RELOAD, run_and_reload

logger = logging.getLogger(__name__)

LEVELS = {True: logging.DEBUG, None: logging.INFO, False: logging.WARNING}


@click.command("worker")
@settings_option
@backend_option
@click.option(
    "--queue",
    "queues",
    metavar="NAME",
    multiple=True,
    callback=queue_names,
    help="Serve this queue; may be repeated, the most urgent one first. By default RPC_QUEUES.",
)
@click.option(
    "--concurrency", metavar="N", type=click.IntRange(min=1), help="How many plain functions run at a time."
)
@click.option(
    "--coroutines",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many coroutines, which hold no thread. Not on rq, where --concurrency counts.",
)
@click.option(
    "--processes",
    metavar="P",
    type=click.IntRange(min=1),
    default=1,
    help="How many such workers, each a process; those that die are replaced. By default 1, this one.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=float,
    callback=seconds,
    help="How long what runs may go on after a signal to stop.",
)
@click.option(
    "--max-jobs-per-child",
    metavar="N",
    type=click.IntRange(min=1),
    help="After how many jobs a process of jobs with fork=True is replaced. By default never.",
)
@click.option(RELOAD, is_flag=True, help="Start again when a .py file below the working directory changes.")
@click.option("--verbose/--quiet", default=None, help="Log everything, or only what went wrong.")
def command(
    settings: str | None,
    backend: str | None,
    queues: tuple[str, ...],
    concurrency: int | None,
    coroutines: int | None,
    processes: int,
    grace: float | None,
    max_jobs_per_child: int | None,
    reload: bool,
    verbose: bool | None,
) -> None:
    """Serve the jobs of the settings, and log to stderr.

    SIGTERM or Ctrl-C stops it: it takes no new job, finishes what runs within --grace seconds, hands back the
    rest and exits with 0. A second signal stops it at once. With --processes, all of them do.

    \b
    Example:
      rpc worker --settings shop.rpc_settings --queue high --queue default --concurrency 4
    """
    log_to_stderr(LEVELS[verbose])
    if reload:
        return run_and_reload(Path.cwd(), [sys.executable, "-m", "rpc", *sys.argv[1:]])
    serve(
        partial(load_settings, settings),
        processes,
        backend=backend,
        queues=queues or None,
        concurrency=concurrency,
        coroutines=coroutines,
        grace=grace,
        max_jobs_per_child=max_jobs_per_child,
    )


def serve(
    load: Callable[[], Settings], processes: int = 1, *, backend: str | None = None, **options: Any
) -> None:
    """Serve with the settings that `load` gets, in so many processes, until a signal; the options are those
    of RpcReceiver. Raises SettingsError and Unsupported, and SystemExit if there are several processes."""
    settled = Supervisor(processes).run() if processes > 1 else None  # returns in each worker
    loaded = load()
    receiver = RpcReceiver(settings=loaded, backend=backend, **options)
    if settled:
        if "processes" not in receiver.backend.features:
            raise Unsupported("--processes needs a backend that reaches beyond one process, like redis:")
        settled()
    logger.info("worker %d on %s", os.getpid(), _shown(backend, loaded))
    receiver.start()


def log_to_stderr(level: int) -> None:
    """Show people what happens: time, level, message."""
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )


def _shown(backend: str | None, settings: Settings) -> str:
    chosen = backend or settings.for_receivers
    return redacted(chosen) if isinstance(chosen, str) else str(chosen)
