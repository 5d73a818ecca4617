"""`manage.py rpc`: the worker."""

from __future__ import annotations

import logging
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import connections
from django.utils.autoreload import get_child_arguments

from rpc import durations
from rpc.cli.logs import log_to_stderr
from rpc.cli.reload import RELOAD, run_and_reload
from rpc.cli.worker import serve
from rpc.transport import queue

from ...commands import told
from ...conf import settings
from ...connections import connections_kept

LEVELS = {0: logging.WARNING, 1: None}


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def seconds(text: str) -> float:
    try:
        return durations.seconds(float(text), "it", above=True)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no time: {error}") from None


def queue_name(text: str) -> str:
    try:
        return queue(text).name
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


OPTIONS: dict[str, dict[str, Any]] = {
    "--backend": {"metavar": "URL", "help": "Use this backend, not the one in RPC."},
    "--queue": {
        "dest": "queues",
        "metavar": "NAME",
        "action": "append",
        "type": queue_name,
        "help": "Serve this queue; may be repeated, the most urgent one first. By default QUEUES in RPC.",
    },
    "--concurrency": {"metavar": "N", "type": positive, "help": "How many plain functions run at a time."},
    "--coroutines": {"metavar": "N", "type": positive, "help": "How many coroutines, which hold no thread."},
    "--processes": {
        "metavar": "P",
        "type": positive,
        "default": 1,
        "help": "How many such workers, each a process; those that die are replaced. By default 1.",
    },
    "--grace": {
        "metavar": "SECONDS",
        "type": seconds,
        "help": "How long what runs may go on after a signal to stop.",
    },
    "--health-file": {
        "metavar": "PATH",
        "help": "The file in which workers leave signs of life; by default HEALTH_FILE in RPC.",
    },
    "--contract": {
        "metavar": "FILE",
        "help": "Do not start if the jobs break those who call as this OpenRPC document says.",
    },
    "--send-logs": {
        "action": "store_true",
        "default": None,
        "help": "Publish what is logged, too, for `rpc logs`; by default as SEND_LOGS in RPC says.",
    },
    "--max-jobs-per-child": {
        "metavar": "N",
        "type": positive,
        "help": "After how many jobs a process of jobs with fork=True is replaced. By default never.",
    },
    RELOAD: {
        "action": "store_true",
        "help": "Start again when a .py file below the working directory changes.",
    },
}


class Command(BaseCommand):
    help = (
        "Serve what RPC in the settings declares, and log to stderr, or where LOGGING says. SIGTERM or "
        "Ctrl-C stops it: it takes no new job, finishes what runs within --grace seconds, hands back the "
        "rest and exits with 0. A second signal stops it at once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        for name, option in OPTIONS.items():
            parser.add_argument(name, **option)

    def handle(self, *args: Any, **options: Any) -> None:
        log_to_stderr(LEVELS.get(options["verbosity"], logging.DEBUG))
        with told():
            if options["reload"]:
                run_and_reload(Path.cwd(), _without_reload(get_child_arguments()))
                return
            connections.close_all()  # checks may have opened some, which no two processes can share
            serve(
                settings,
                options["processes"],
                backend=options["backend"],
                health_file=options["health_file"],
                contract=options["contract"],
                send_logs=options["send_logs"],
                queues=options["queues"],
                concurrency=options["concurrency"],
                coroutines=options["coroutines"],
                grace=options["grace"],
                max_jobs_per_child=options["max_jobs_per_child"],
                context=connections_kept,
            )


def _without_reload(command: list[str]) -> list[str]:
    """However it is abbreviated."""
    return [word for word in command if len(word) < len("--r") or not RELOAD.startswith(word)]
