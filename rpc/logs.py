"""Log records of this process, published for whoever listens: `RpcClient.logs`, `rpc logs`.

The handler makes an entry of a record, puts it into a bounded buffer, and returns. A thread of its own sends
what is there, many records in a message. It never feeds itself: what is logged in that thread is left out,
and what the library's own transport logs elsewhere, which may come of a message with records, is sent along
with others, but is never the reason why one is sent.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import os
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from .backends import backend_from_url
from .backends._retry import Backoff
from .backends.features import unsupported
from .core.bodies import Writing
from .core.codecs import JSON
from .core.compression import Compression
from .core.jobs import current_request
from .core.log_batches import LOGS, METHOD, Sender, batch_body
from .core.log_entries import CAME, LONGEST, LogEntry, encoded, entry_of, size_of
from .deadlines import within
from .durations import Duration, seconds
from .errors import SerializationError
from .identity import Identity
from .loops import started
from .settings import Settings, load_settings, settings_here
from .signing.backend import signing
from .transport import NAME, OWN, TRACE, Backend, Message

logger = logging.getLogger(__name__)

GATHER = 0.05
"""Seconds from the first record to the message that has it: others come along."""
MOST_RECORDS, MOST_BYTES = 500, 64 * 1024
"""In a message, before it is compressed; one record alone may have more bytes."""
MOST_KEPT = 64 * 1024 * 1024
"""Bytes of the records in a buffer, about, at most."""
COMPRESSION = Compression("gzip", 4000)
ATTEMPT = 1.0
"""Seconds that an attempt to send takes, at most."""
LONGEST_PAUSE = 2.0
"""Seconds between two attempts, at most."""
AT_END_OF_CHILD = 2.0
"""Seconds that a child process of `multiprocessing` takes for what is left, at most."""
QUIET = ("rpc.backends", "rpc.core.log_batches", "rpc.logs", "rpc.loops", "rpc.streams")
"""Loggers whose records are no reason to send: they may come of it."""


NESTED = 3
"""Records that may be logged while another one is formatted, within each other: the text of an argument may
log, even itself."""


class _Here(threading.local):
    """Of a thread: whether it is one that sends, and how many records it is taking, within each other."""

    sends, taking = False, 0


_here = _Here()


class RpcLogHandler(logging.Handler):
    """Publishes log records, for `RpcClient.logs` and `rpc logs`. Who logs never waits, and gets no error.

    `backend` is a backend or its URL; without one it is that of clients in the settings (see `rpc.settings`),
    which `settings` names, or is. `identity` is the service that logs; without one it is that of the
    settings: of the module that the environment names, or `settings`, if there is one. While the broker is
    away, the last `capacity` records are kept, of at most 64 MiB; of what was before, the number is sent with
    the next ones. `close()`, which the end of the process calls, waits `close_timeout` seconds at most for
    what is left. Raises SettingsError, ValueError, and Unsupported by a backend without topics; connects with
    the first record.
    """

    flushOnClose = False
    """To `logging.shutdown`: to close it is to flush it."""

    def __init__(
        self,
        backend: Backend | str | None = None,
        settings: str | ModuleType | Settings | None = None,
        level: int | str = logging.NOTSET,
        *,
        identity: Identity | None = None,
        capacity: int = 10_000,
        close_timeout: Duration = 2.0,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is how many records are kept, at least 1, not {capacity!r:.80}")
        if not isinstance(settings, Settings):
            given = backend is not None and settings is None
            settings = settings_here() if given else load_settings(settings)
        chosen = settings.for_clients if backend is None else backend
        self.capacity, self.close_timeout = capacity, seconds(close_timeout, "close_timeout")
        made = backend_from_url(chosen) if isinstance(chosen, str) else chosen
        self.backend: Backend = signing(settings, made)
        self._owns_backend = isinstance(chosen, str)
        if "topics" not in self.backend.features:
            raise unsupported("topics")
        about = (identity or settings.identity).headers
        said = {f"{OWN}{name}": text for name, text in about.items()}
        self._headers = {NAME: METHOD, **said}
        self._closed = False
        self.begin()
        super().__init__(level)  # at last: `logging` flushes whatever it has heard of, when the process ends
        _handlers.add(self)

    def begin(self) -> None:
        """Have a buffer, and a thread, of this process: what a parent had is sent by the parent."""
        self._sender = LogSender(self.backend, self._headers, self.capacity)

    def handle(self, record: logging.LogRecord) -> Any:
        """As `logging.Handler.handle`, but nobody waits for a lock."""
        if _here.sends or self._closed or hasattr(record, CAME):
            return False
        found = self.filter(record)
        if found:  # since Python 3.12 it may be another record
            self.emit(found if isinstance(found, logging.LogRecord) else record)
        return found

    def emit(self, record: logging.LogRecord) -> None:
        """Have it sent. What is wrong with it is told to stderr, as the handlers of `logging` do. One that
        comes of too many others that are being formatted is dropped, and counted."""
        if _here.taking > NESTED:
            self._sender.drop()
            return
        _here.taking += 1
        try:
            request = current_request.get()
            id, trace = (request.id, request.headers.get(TRACE[0], "")) if request else ("", "")
            entry = entry_of(record, id, trace, time.time)
            self._sender.put(entry, is_reason=not entry.logger.startswith(QUIET))
            if entry.problem:
                record.getMessage()  # which raises, if it is that
        except Exception:  # whatever it is, it is no business of whoever logs
            self.handleError(record)
        finally:
            _here.taking -= 1

    def flush(self, timeout: Duration | None = None) -> bool:  # type: ignore[override]
        """Wait until the broker has what was logged before, for `timeout` seconds at most (None: for
        `close_timeout`). Whether it has."""
        return self._sender.flush(self.close_timeout if timeout is None else seconds(timeout, "timeout"))

    def close(self) -> None:
        """Send what is left, within `close_timeout` seconds. What is logged after that is not sent.
        Idempotent."""
        if not self._closed:
            self._closed = True
            if left := self._sender.close(self.close_timeout):
                logger.warning("%d log records were not sent within %g s", left, self.close_timeout)
            if self._owns_backend:
                self.backend.close()
        super().close()


_handlers: WeakSet[RpcLogHandler] = WeakSet()


def _forked() -> None:
    _here.sends = False
    for handler in list(_handlers):
        handler.begin()


os.register_at_fork(after_in_child=_forked)


class LogSender:
    """The buffer of a handler, and the thread that empties it. For any number of threads, which do not wait
    for it, and for signal handlers that interrupt them.

    A process may be forked at any time, whatever the thread is at, and the lock of a module that it imports
    then is held in the child for ever: what looking up a host imports is there before, by `rpc.loops`.
    """

    def __init__(self, backend: Backend, headers: dict[str, str], capacity: int) -> None:
        self._backend, self._headers, self._capacity = backend, headers, capacity
        self._writing = Writing(JSON, None, backend.max_message, COMPRESSION)
        self._most_bytes = min(MOST_BYTES, (backend.max_message or sys.maxsize) // 2)
        self._buffer: deque[tuple[LogEntry | bytes, int]] = deque()
        """Each with its size; a long one is encoded, and thereby shortened, by whoever logs it."""
        self._size = 0
        self._lock = threading.RLock()
        self._dropped = self._first = self._held = 0
        """How many were dropped since the last message; the number of the next record; how many are in the
        message that is being sent."""
        self._wake: SimpleQueue[threading.Event | None] = SimpleQueue()
        """An event is set as soon as all is sent that was there before it."""
        self._is_woken = False
        self._thread: threading.Thread | None = None
        self._closing, self._end = threading.Event(), 0.0
        self._about: Sender | None = None
        """Of the thread alone; made by no `cached_property`, for all of which there is one lock before Python
        3.12, that another thread may hold while the process is forked."""

    def put(self, entry: LogEntry, *, is_reason: bool) -> None:
        """Have it sent; soon, if it `is_reason` enough. Raises RpcError if there can be no thread."""
        size = size_of(entry)
        kept: LogEntry | bytes = entry
        if size > LONGEST:
            kept = encoded(entry)
            size = len(kept)
        with self._lock:
            self._size += size
        self._buffer.append((kept, size))
        if len(self._buffer) > self._capacity or self._size > MOST_KEPT:
            self._drop()
        if is_reason and not self._is_woken:
            self._is_woken = True
            self._wake.put(None)
        if self._thread is None:
            self._start()

    def drop(self) -> None:
        """Count one that was not put here."""
        with self._lock:
            self._dropped += 1

    def _drop(self) -> None:
        """The oldest: what came last says how things are now."""
        with self._lock, suppress(IndexError):  # they are being sent
            while len(self._buffer) > self._capacity or self._size > MOST_KEPT:
                _, taken = self._buffer.popleft()
                self._size -= taken  # not in one line: a signal handler may log in a call
                self._dropped += 1

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = started(threading.Thread(target=self._run, name="rpc-logs", daemon=True))
                if multiprocessing.parent_process() is not None:  # such a child ends without `atexit`
                    multiprocessing.util.Finalize(None, self.close, args=[AT_END_OF_CHILD], exitpriority=0)

    def flush(self, timeout: float) -> bool:
        """Wait until all is sent that is there, for so many seconds. Whether it is."""
        if self._thread is None or not self._thread.is_alive():
            return not self._buffer
        sent = threading.Event()
        self._wake.put(sent)
        return sent.wait(timeout)

    def close(self, timeout: float) -> int:
        """Send all that is there, within so many seconds, and end the thread. How many were not sent."""
        self._end = time.monotonic() + timeout
        self._closing.set()
        self._wake.put(None)
        if self._thread:
            self._thread.join(timeout)
        return len(self._buffer) + self._held

    def _run(self) -> None:
        _here.sends, is_last = True, False
        while not is_last:
            asked = self._wake.get()
            if asked is None and not self._closing.is_set():
                with suppress(Empty):  # who comes meanwhile is in a hurry
                    asked = self._wake.get(timeout=GATHER)
            is_last, self._is_woken = self._closing.is_set(), False
            if self._send(len(self._buffer)) and asked:
                asked.set()

    def _send(self, left: int) -> bool:
        """Send so many, in messages; not what comes of that. False if the time is up."""
        while left > 0:
            try:
                message = self._next(left)
            except SerializationError as error:
                logger.warning("%d log records cannot be sent: %s", self._held, error)
                with self._lock:
                    self._dropped += self._held
            else:
                if message is None:  # they have been dropped meanwhile
                    return True
                if not self._sent(message):
                    return False
                self._first += self._held
            left -= self._held
            self._held = 0
        return True

    def _next(self, most: int) -> Message | None:
        """A message with at most so many records; None if there are none. Raises SerializationError."""
        records: list[bytes] = []
        size = 0
        with suppress(IndexError):
            while len(records) < min(most, MOST_RECORDS) and size < self._most_bytes:
                entry, taken = self._buffer.popleft()
                with self._lock:
                    self._size -= taken
                self._held += 1
                records.append(entry if isinstance(entry, bytes) else encoded(entry))
                size += len(records[-1])
        if not records:
            return None
        dropped = self._dropped
        about = self._about = self._about or _this_process()
        id = f"{about.id[:16]}{self._first:016x}"
        body = batch_body(id, about, self._first, dropped, records)
        message = self._writing.sealed(body, {"id": id, **self._headers}, "message with log records")
        with self._lock:
            self._dropped -= dropped
        return message

    def _sent(self, message: Message) -> bool:
        """Whether the broker has it, before the time is up."""
        pauses = Backoff(LONGEST_PAUSE)
        while True:
            try:
                with within(ATTEMPT):
                    self._backend.send(LOGS, message)
                return True
            except Exception as error:  # of a backend that may be anybody's: there is nobody else to catch it
                if self._closing.is_set() and time.monotonic() > self._end:
                    return False
                text = "log records cannot be sent (%s); they are kept, as far as there is room"
                pauses.wait(text, error, sleep=self._pause)

    def _pause(self, seconds: float) -> None:
        if not self._closing.wait(seconds):
            return
        time.sleep(min(seconds, max(0.0, self._end - time.monotonic())))


def _this_process() -> Sender:
    return Sender(uuid4().hex, socket.gethostname(), os.getpid(), multiprocessing.current_process().name)
