"""What is sent of a log record to another process, and what it is there."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from copy import copy
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from sys import getsizeof
from types import NoneType, TracebackType
from typing import Annotated, Any

import msgspec

from ..errors import SerializationError
from .codecs import JSON

LONGEST = 256 * 1024
"""Bytes that a record has on the wire, at most: of a longer one, the beginnings are sent."""
SHORT = 8000
"""Characters that are left then of each text."""
DEEPEST = 64
"""Values in each other, of an argument."""

_IMMUTABLE = frozenset({NoneType, bool, int, float, str, bytes, date, datetime, time, timedelta, Decimal})
"""Exact types of what is encoded later as it is now."""
_EVERY = vars(logging.makeLogRecord({}))
"""The attributes of a record without extras."""
_STANDARD = frozenset({*_EVERY, "message", "asctime", "taskName"})
"""Those that are no extras."""
_OF_RECORDS = frozenset({*_STANDARD, *dir(logging.LogRecord)})
"""What no extra of another process replaces."""


MOST, LATEST = 2**53, 3e10
"""Of a whole number: what every language counts in, as a number without end could not be shown. Of a time."""
Whole = Annotated[int, msgspec.Meta(ge=0, lt=MOST)]


class LoggedException(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception that was logged."""

    type: str
    """The name of its class, with the module."""
    message: str = ""
    traceback: str = ""
    """As Python prints it, of the exceptions that led to it, too."""


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A log record of another process."""

    time: Annotated[float, msgspec.Meta(ge=0, lt=LATEST)]
    """When it was made, in seconds since the epoch, by the clock of its host."""
    level: str
    """The name of its level: "WARNING"."""
    level_number: Whole
    logger: str
    message: str
    """With its arguments."""
    template: str = ""
    """What was logged, before the arguments were put into it; "" if there were none."""
    args: Any = None
    """The arguments: a list, or a dict for a template with names. One that cannot be encoded is its `str`."""
    exception: LoggedException | None = None
    stack: str = ""
    """Of `stack_info=True`."""
    path: str = ""
    """The source file, with `line` and `function`, where it was logged."""
    line: Whole = 0
    function: str = ""
    thread: str = ""
    task: str = ""
    """The name of the asyncio task."""
    request_id: str = ""
    """Of the request that was being handled."""
    trace_id: str = ""
    """Of the trace (W3C) that request was a part of."""
    extra: dict[str, Any] = {}
    """What was given as `extra`."""
    problem: str = ""
    """Why it is not as it was meant: it could not be formatted, was too long, or was made by hand, and not so
    that it could be sent."""
    process: str = ""
    pid: Whole = 0
    host: str = ""
    service: str = ""
    """Domain, type and id of the service, with dots between them; "" if it has none."""
    version: str = ""
    """Of the service."""

    def to_record(self) -> logging.LogRecord:
        """A record for the handlers of this process, as `logging.getLogger(entry.logger).handle` gets it.
        Formatters find `host`, `service`, `request_id` and `trace_id`. An
        extra that is named as something of a record is left out. No RpcLogHandler sends it again."""
        file = PurePath(self.path)
        return logging.makeLogRecord({
            **{name: value for name, value in self.extra.items() if name not in _OF_RECORDS},
            "name": self.logger,
            "levelname": self.level,
            "levelno": self.level_number,
            "msg": self.message,
            "args": None,
            "created": self.time,
            "msecs": self.time % 1 * 1000,
            "pathname": self.path,
            "filename": file.name,
            "module": file.stem,
            "lineno": self.line,
            "funcName": self.function,
            "threadName": self.thread,
            "taskName": self.task or None,
            "processName": self.process,
            "process": self.pid,
            "exc_text": self.exception.traceback if self.exception else None,
            "stack_info": self.stack or None,
            "host": self.host,
            "service": self.service,
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            CAME: True,
        })  # fmt: skip


CAME = "rpc_came"
"""Attribute of a record that came from another process."""


# What is sent.


def entry_of(
    record: logging.LogRecord, request_id: str, traceparent: str, now: Callable[[], float]
) -> LogEntry:
    """What there is to say of a record. Nothing in it refers to anything that may change, or that would be
    kept alive. One that was made by hand, without a time, is of `now()`. Does not raise for what is in the
    record, whatever that is: see `problem`."""
    problem = ""
    if not _fits(record):
        record, problem = _fitted(record, now)
    try:
        message = record.getMessage()
    except Exception as error:  # the arguments are the user's: they may raise anything
        message = text_of(record.msg)
        problem += "; " * bool(problem)
        problem += f"it could not be formatted: {type(error).__name__}: {text_of(error)}"
    args = record.args
    attributes = vars(record)
    has_more = len(attributes) > len(_EVERY)
    return LogEntry(
        time=record.created,
        level=record.levelname,
        level_number=record.levelno,
        logger=record.name,
        message=message,
        template=text_of(record.msg) if args else "",
        args=_arguments(args) if args else None,
        exception=_exception(record) if record.exc_info or record.exc_text else None,
        stack=record.stack_info or "",
        path=record.pathname,
        line=record.lineno or 0,
        function=record.funcName or "",
        thread=record.threadName or "",
        task=attributes.get("taskName") or "",
        request_id=request_id,
        trace_id=traceparent[3:35],
        extra=_extra(attributes) if has_more else {},
        problem=problem,
    )


def _fits(record: logging.LogRecord) -> bool:
    """Whether its attributes are what those of a record are that was not made by hand."""
    return (
        type(record.created) is float
        and 0 <= record.created < LATEST
        and type(record.levelno) is int
        and 0 <= record.levelno < MOST
        and (record.lineno is None or (type(record.lineno) is int and 0 <= record.lineno < MOST))
        and type(record.name) is type(record.levelname) is type(record.pathname) is str
        and type(record.funcName) in _TEXT
        and type(record.threadName) in _TEXT
        and type(record.exc_text) in _TEXT
        and type(record.stack_info) in _TEXT
        and type(getattr(record, "taskName", None)) in _TEXT
        and (not record.exc_info or _is_exception(record.exc_info))
    )


_TEXT = frozenset({NoneType, str})


def _is_exception(info: Any) -> bool:
    if not isinstance(info, tuple) or len(info) != 3:
        return False
    kind, error, trace = info
    if kind is None:
        return error is None
    is_error = isinstance(kind, type) and isinstance(error, BaseException)
    return is_error and isinstance(trace, TracebackType | None)


def _fitted(record: logging.LogRecord, now: Callable[[], float]) -> tuple[logging.LogRecord, str]:
    """A copy of one that was made by hand, with attributes that can be sent, and which of them could not."""
    created, info = record.created, record.exc_info
    is_time = isinstance(created, int | float) and 0 <= created < LATEST
    level = _whole(record.levelno)
    fit: dict[str, Any] = {
        "created": float(created) if is_time else now(),
        "levelno": level,
        "levelname": _plain(record.levelname) or logging.getLevelName(level),
        "lineno": _whole(record.lineno),
        "exc_info": info if _is_exception(info) else None,
    }
    if isinstance(info, BaseException):
        fit["exc_info"] = (type(info), info, info.__traceback__)
    texts = ("name", "pathname", "funcName", "threadName", "exc_text", "stack_info", "taskName")
    fit |= {name: _plain(getattr(record, name, None)) for name in texts}
    given = {name: getattr(record, name, None) for name in fit}
    odd = [name for name in fit if not _is_as_good(given[name], fit[name])]
    problem = ", ".join(f"{name} was {text_of(given[name])[:80]}" for name in odd)
    made = copy(record)
    vars(made).update(fit)
    return made, problem and f"it was made to fit: {problem}"


def _whole(value: Any) -> int:
    try:
        return min(max(int(value), 0), MOST - 1)
    except Exception:  # what is no number may raise anything
        return 0


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return str.__str__(value) if isinstance(value, str) else text_of(value)


def _is_as_good(given: Any, fit: Any) -> bool:
    if given is fit:
        return True
    if given is None or given is False:
        return not fit
    return isinstance(given, int | float | str) and bool(given == fit)


def text_of(value: Any) -> str:
    """The `str` of anything. Does not raise."""
    try:
        return value if type(value) is str else str(value)
    except Exception as error:  # as above
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _arguments(args: Any) -> Any:
    if isinstance(args, Mapping):
        return {text_of(key): snapshot(args[key]) for key in args}
    return [snapshot(each) for each in (args if isinstance(args, tuple) else [args])]


def _extra(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {text_of(name): snapshot(value) for name, value in attributes.items() if name not in _STANDARD}


def snapshot(value: Any) -> Any:
    """What a value is now, on the wire; its `str` if it cannot be encoded. Does not raise."""
    if type(value) in _IMMUTABLE:
        return value
    try:
        body = JSON.encode(value)
    except SerializationError:
        return text_of(value)
    return msgspec.Raw(body) if _depth(body) <= DEEPEST else text_of(value)


def _depth(body: bytes) -> int:
    """How deeply a value is nested, which is JSON: one too deep, and nothing of the message could be read."""
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return 0
    depth = deepest = 0
    for sign in _STRUCTURE.findall(body):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(sign, 0)
        deepest = max(deepest, depth)
    return deepest


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
"""Texts, and what begins and ends a part."""


def _exception(record: logging.LogRecord) -> LoggedException:
    kind, error, _ = record.exc_info or (None, None, None)
    name = "" if kind is None else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    text = _formatter.formatException(record.exc_info) if record.exc_info and kind else record.exc_text
    return LoggedException(name, "" if error is None else text_of(error), text or "")


_formatter = logging.Formatter()


def size_of(entry: LogEntry) -> int:
    """Bytes of memory that its texts, arguments and extras take, about."""
    size = getsizeof(entry.message) + getsizeof(entry.template) + len(entry.stack)
    args: Any = entry.args
    if args:
        for each in args.values() if type(args) is dict else args:
            size += len(memoryview(each)) if type(each) is msgspec.Raw else getsizeof(each)
    for name, each in entry.extra.items():
        size += len(name) + (len(memoryview(each)) if type(each) is msgspec.Raw else getsizeof(each))
    error = entry.exception
    return size if error is None else size + getsizeof(error.message) + getsizeof(error.traceback)


def encoded(entry: LogEntry) -> bytes:
    """The entry as JSON. What of it cannot be encoded is made a text, what is too long is shortened, and
    `problem` says so."""
    try:
        body = JSON.encode(entry)
    except SerializationError:
        entry = _encodable(entry)
        body = JSON.encode(entry)
    return body if len(body) <= LONGEST else JSON.encode(_shortened(entry, len(body)))


def _encodable(entry: LogEntry) -> LogEntry:
    """The same, of texts that can be encoded: a number may have too many digits, a text half characters."""

    def mended(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode(errors="backslashreplace").decode()
        if isinstance(value, LoggedException):
            return LoggedException(*map(mended, msgspec.structs.astuple(value)))
        if isinstance(value, dict):
            return {mended(key): mended(each) for key, each in value.items()}
        if isinstance(value, list):
            return [mended(each) for each in value]
        try:
            return msgspec.Raw(JSON.encode(value))
        except SerializationError:
            return mended(text_of(value))

    changed = {name: mended(value) for name, value in msgspec.structs.asdict(entry).items()}
    return LogEntry(**changed)


def _shortened(entry: LogEntry, size: int) -> LogEntry:
    """The same, without what may be long."""
    texts = {
        name: text[:SHORT] for name, text in msgspec.structs.asdict(entry).items() if isinstance(text, str)
    }
    texts["problem"] = f"it was shortened, as it had {size} bytes"
    error = entry.exception
    if error:
        error = LoggedException(error.type[:SHORT], error.message[:SHORT], error.traceback[-SHORT:])
    return msgspec.structs.replace(entry, **texts, exception=error, args=None, extra={})
