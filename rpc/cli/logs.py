"""What a worker logs, to stderr: lines for people, or JSON objects for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

import click

from .output import printable

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
JOBS = "rpc.jobs"
"""The logger that has a line for each job."""
_JSON = f"{__name__}.json"
_OURS = "rpc."
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """Date, level, process, logger, message. One of ours is one line, whatever a peer put into it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.name.startswith(_OURS):
            record.message = printable(record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """One JSON object on one line for each record, with what was given as its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return json.dumps({**extra, **entry}, default=str)


def log_to_stderr(level: int | None = None, *, as_json: bool = False) -> None:
    """Log from this level on, unless something else has been set up. None: INFO, but not each job."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    logging.basicConfig(level=logging.INFO if level is None else level, handlers=[handler])
    jobs = logging.getLogger(JOBS)
    if level is None and not jobs.level:
        jobs.setLevel(logging.WARNING)
    if as_json and (ctx := click.get_current_context(silent=True)):
        ctx.meta[_JSON] = True


def enable_our_loggers() -> None:
    """What the user's code has disabled by `dictConfig` without `disable_existing_loggers`, which is hardly
    ever meant: a worker would fail in silence."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith(_OURS) and isinstance(logger, logging.Logger):
            logger.disabled = False


def is_json_log(ctx: click.Context) -> bool:
    """Whether what this command says to stderr are JSON objects."""
    return bool(ctx.meta.get(_JSON))
