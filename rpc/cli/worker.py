"""`rpc worker`: a process that serves the jobs of the settings until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..backends import redacted
from ..errors import Unsupported
from ..logs import RpcLogHandler
from ..receiver import RpcReceiver
from ..settings import Settings
from .health import SignsOfLife, health_file_option
from .logs import FORMATS, LEVELS, enable_our_loggers, log_to_stderr
from .options import backend_option, queue_names, seconds_option, settings_of, settings_option
from .processes import Supervisor, Worker
from .reload import RELOAD, run_and_reload

logger = logging.getLogger(__name__)


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
@click.option("--domain", metavar="NAME", help="The domain of its service. By default RPC_DOMAIN.")
@click.option("--type", "service_type", metavar="NAME", help="The type of service that it is.")
@click.option("--id", "service_id", metavar="NAME", help="Which one of that type; replicas have the same.")
@click.option("--service-version", metavar="VERSION", help="The version of its service: MAJOR.MINOR.PATCH.")
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
@seconds_option("--grace", help="How long what runs may go on after a signal to stop.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for a broker that refuses us, too (a wrong password, no such vhost, no permission yet), not "
    "only for one that is away.",
)
@health_file_option
@click.option(
    "--contract",
    metavar="FILE",
    help="Do not start if the jobs break those who call as this OpenRPC document says (see `rpc diff`).",
)
@click.option(
    "--max-jobs-per-child",
    metavar="N",
    type=click.IntRange(min=1),
    help="After how many jobs a process of jobs with fork=True is replaced. By default never.",
)
@click.option(RELOAD, is_flag=True, help="Start again when a .py file below the working directory changes.")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    help="Log from this level on; with info, or debug, each job has a line. By default info without those.",
)
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="Log lines for people, or a JSON object on each line.",
)
@click.option(
    "--send-logs/--no-send-logs",
    default=None,
    help="Publish what is logged, too, for `rpc logs`. By default as RPC_SEND_LOGS says.",
)
@click.option("--verbose/--quiet", default=None, help="The same as --log-level debug, or warning.")
def command(
    settings: str | None,
    backend: str | None,
    queues: tuple[str, ...],
    domain: str | None,
    service_type: str | None,
    service_id: str | None,
    service_version: str | None,
    concurrency: int | None,
    coroutines: int | None,
    processes: int,
    grace: float | None,
    wait: bool,
    health_file: str | None,
    contract: str | None,
    max_jobs_per_child: int | None,
    reload: bool,
    log_level: str | None,
    log_format: str,
    send_logs: bool | None,
    verbose: bool | None,
) -> None:
    """Serve the jobs of the settings, and log to stderr.

    SIGTERM or Ctrl-C stops it: it takes no new job, finishes what runs within --grace seconds, hands back the
    rest and exits with 0. A second signal stops it at once. With --processes, all of them do.

    A broker that is away is waited for; one that refuses us at the start ends it, with exit code 4.

    With --type it is a service, which has a queue of its own: see `rpc services`.

    \b
    Examples:
      rpc worker --settings shop.rpc_settings --queue high --queue default --concurrency 4
      rpc worker --domain shop --type orders --id eu --service-version 1.4.0
    """
    if verbose is not None:
        if log_level:
            raise click.UsageError("--log-level says it: not with --verbose or --quiet")
        log_level = "debug" if verbose else "warning"
    level = getattr(logging, log_level.upper()) if log_level else None
    log_to_stderr(level, as_json=log_format == "json")
    if reload:
        return run_and_reload(Path.cwd(), [sys.executable, "-m", "rpc", *sys.argv[1:]])
    parts = {"domain": domain, "type": service_type, "id": service_id, "version": service_version}
    serve(
        partial(settings_of, settings, **parts),
        processes,
        backend=backend,
        wait=wait,
        health_file=health_file,
        contract=contract,
        send_logs=send_logs,
        queues=queues or None,
        concurrency=concurrency,
        coroutines=coroutines,
        grace=grace,
        max_jobs_per_child=max_jobs_per_child,
    )


def serve(
    load: Callable[[], Settings],
    processes: int = 1,
    *,
    backend: str | None = None,
    wait: bool = False,
    health_file: str | None = None,
    contract: str | None = None,
    send_logs: bool | None = None,
    **options: Any,
) -> None:
    """Serve with the settings that `load` gets, in so many processes, until a signal; `wait` is as for
    `RpcReceiver.run`, `health_file` is where to leave signs of life, `contract` the document that the jobs
    keep to, and `send_logs` whether to publish what is logged (None: as the settings say), the other options
    are those of RpcReceiver. Raises SettingsError, Unsupported and BackendRefused, and SystemExit if there
    are several processes."""
    # Orphans become children of a container's first process, and only a supervisor buries them.
    supervised = processes > 1 or os.getpid() == 1
    worker = Worker()
    if supervised:
        worker = Supervisor(processes, replaces=processes > 1).run()  # returns in each worker
    loaded = load()
    given: dict[str, Any] = {"contract": contract, "send_logs": send_logs}
    loaded = replace(loaded, **{name: value for name, value in given.items() if value is not None})
    receiver = RpcReceiver(settings=loaded, backend=backend, **options)
    if "processes" not in receiver.backend.features:
        raise Unsupported(
            "a worker needs a backend that reaches beyond one process, like redis: nobody else could call it "
            "here; in a program, serve beside your own code with `async with RpcReceiver(...)`"
        )
    enable_our_loggers()
    if loaded.send_logs:
        logging.getLogger().addHandler(RpcLogHandler(backend or loaded.for_receivers, loaded))
    logger.info("worker %d on %s", os.getpid(), _shown(backend, loaded))
    if path := health_file or loaded.health_file:
        SignsOfLife(path, worker.number, receiver.stalled).begin(anew=worker.is_first)
    receiver.run(wait=wait, arrived=worker.arrived)


def _shown(backend: str | None, settings: Settings) -> str:
    chosen = backend or settings.for_receivers
    return redacted(chosen) if isinstance(chosen, str) else str(chosen)
