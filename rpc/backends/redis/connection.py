"""What every backend on Redis shares: our own time limits, errors translated in one place, waiting and trying
again, and connections driven directly.

redis-py's own retries are off, because they repeat commands that may have been carried out: whatever is
repeated here carries an id that makes it harmless.
"""

from __future__ import annotations

import logging
import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import redis
from redis.exceptions import AuthorizationError, NoPermissionError, NoScriptError

from ...errors import BackendRefused, BackendUnavailable, RpcTimeout, SettingsError, Unsupported
from ...loops import process
from ...threads import is_ready
from .._lookout import Lookout
from .._retry import RETRY_FOR, Backoff, backoff, retried, time_in_the_kernel
from .evaluation import loaded
from .servers import SOCKET_TIMEOUT, Servers, is_elsewhere

logger = logging.getLogger(__name__)

try:
    import hiredis
except ModuleNotFoundError:  # the extra `fast`
    HAS_HIREDIS = False
else:
    HAS_HIREDIS = True

FAILURES = redis.RedisError, OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError
"""What redis-py raises: the second one if no descriptor is left to look its own version up; and what reading
an answer raises that is of another kind than Redis gives."""
T = TypeVar("T")
Command = Sequence[Any]
BLOCK = 1.0
"""Seconds that a blocking command waits in Redis: how late a stop, or a connection that went half-open, is
noticed at the latest. Always less than SOCKET_TIMEOUT."""
LOOK_AGAIN = 0.05
"""Seconds between two looks at what nobody tells of."""
CLOCK_IS_GOOD = 30.0
"""Seconds after which the clock of a server is looked at again: it may have been set."""


def pack(command: Command) -> bytes:
    """As it is written. hiredis gets text and bytes alone: for the rest it runs Python, in which a signal
    handler may raise, and does not look (hiredis 3.5 crashes then)."""
    parts: Any = tuple([each if type(each) in _TEXT else str(each) for each in command])
    return bytes(hiredis.pack_command(parts))


_TEXT = frozenset((str, bytes))


def unavailable(error: BaseException) -> BackendUnavailable:
    """The error that callers get for one of these."""
    if not isinstance(error, (redis.RedisError, OSError)):
        return BackendUnavailable(f"Redis: what it answered makes no sense ({type(error).__name__}: {error})")
    is_refusal = isinstance(error, _REFUSALS) or _REFUSED.search(str(error))
    return (BackendRefused if is_refusal else BackendUnavailable)(f"Redis: {error}")


def is_wrong_type(error: BaseException) -> bool:
    """Whether a key of ours is something else: anybody may have put it there."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


_REFUSALS = redis.AuthenticationError, AuthorizationError, NoPermissionError
_REFUSED = re.compile("username-password pair|Authentication required|DB index is out of range|NOPERM")
"""What clusters, or our own connections, pass on as text."""


@contextmanager
def translated() -> Iterator[None]:
    """Driver errors leave as ours."""
    try:
        yield
    except BackendUnavailable:  # which is an OSError
        raise
    except FAILURES as error:
        raise unavailable(error) from error


@contextmanager
def translated_or_logged() -> Iterator[None]:
    """For what expires by itself, or is done again by somebody else, if Redis cannot be had now."""
    try:
        with translated():
            yield
    except BackendUnavailable as error:
        logger.warning("%s", error)


def persistent(action: Callable[[], T], seconds: float) -> T:
    """What the action returns; while Redis cannot be had it is tried again for so many seconds, so it must
    do no harm when it is carried out twice. Then raises BackendUnavailable."""
    return retried(action, seconds, FAILURES, unavailable)


def poll_until(read: Callable[[float], T | None], timeout: float | None) -> T:
    """What `read` returns, which waits for at most the seconds that it is given, as soon as it is not None;
    through whatever happens to Redis meanwhile. Raises RpcTimeout when the time is up, and BackendUnavailable
    if Redis cannot be had then."""
    end = None if timeout is None else time.monotonic() + timeout
    left, attempt = BLOCK if timeout is None else timeout, 0
    while True:
        failure: Exception | None = None
        try:
            if (found := read(left)) is not None:
                return found
            attempt = 0
        except RpcTimeout:  # an OSError, too: nobody waits any more
            raise
        except FAILURES as error:
            failure = error
            time.sleep(min(backoff(attempt, cap=BLOCK), max(0.0, left)))
            attempt += 1
        if end is not None and (left := end - time.monotonic()) <= 0:
            if failure is None:
                raise RpcTimeout
            raise unavailable(failure) from failure


def run_with_reconnect(
    step: Callable[[], object],
    stopped: Callable[[], bool],
    lost: Callable[[BackendUnavailable], object],
) -> None:
    """Take step after step until stopped, through whatever happens meanwhile. `lost` is told if a step failed
    because of Redis; what it raises is the end. Raises also what trying again cannot mend: SettingsError,
    Unsupported."""
    pauses = Backoff(BLOCK)
    while not stopped():
        began = time.monotonic()
        try:
            with translated():
                step()
            pauses.reset()
        except (SettingsError, Unsupported):
            raise
        except Exception as error:
            if isinstance(error, BackendUnavailable):
                lost(error)
            if time.monotonic() - began > RETRY_FOR:  # a step may be a session that lasted for hours
                pauses.reset()
            trace = None if isinstance(error, BackendUnavailable) else error
            pauses.wait("%s; trying again", error, trace=trace)


def linger(stopped: Callable[[], bool], ended: Callable[[], bool]) -> None:
    """After a failure: if the server stops, wait a while for its end, which may come of the same. What would
    be asked on a new connection need not be asked then, and Redis may hang."""
    until = time.monotonic() + BLOCK
    while stopped() and not ended() and time.monotonic() < until:
        time.sleep(LOOK_AGAIN)


def milliseconds(seconds: float) -> int:
    """For commands and scripts; at least 1, because 0 means for ever to some."""
    return max(1, round(seconds * 1000))


class Connection:
    """One connection of redis-py's, driven without its client: commands leave in one write, and their answers
    are read one by one. Which server has `key`, and how to get to it (TLS, users, sentinels, clusters), the
    `servers` know; `load` are the scripts that it runs. Not for two threads at a time."""

    NO_ANSWER = ("CLIENT", "REPLY", "SKIP")
    """A command before another one, of which Redis then sends no answer."""

    def __init__(self, servers: Servers, key: str, scripts: Sequence[str]) -> None:
        self._servers, self._key, self._scripts = servers, key, scripts
        self._connection: Any = None
        self._wire: socket.socket | None = None
        self._least = 1
        self._lookout = Lookout()
        self._pid = 0
        self.number = 0
        """What Redis calls this connection."""
        self.epoch = 0
        """How often it has connected: what was packed before may not be understood after."""
        self._shas: dict[str, tuple[str, str]] = {}
        """How to run each script: by its digest, or by its text."""
        self._by_text = False
        self.due = 0
        """How many answers are to come; counted before it is written, and after it is read, so that after an
        interruption, wherever it came, more are due than will come: such a connection is dropped."""
        self._clock_offset, self._clock_read = 0.0, -CLOCK_IS_GOOD
        self._poll: Callable[[int], Any] = lambda milliseconds: True
        self._pack: Callable[[Command], bytes] = lambda command: b""
        self._no_answer = b""

    @property
    def connected(self) -> bool:
        return self._connection is not None and self._pid == process.id

    @property
    def wire(self) -> Any:
        """The socket; None if it is not connected."""
        return getattr(self._connection, "_sock", None)

    def packed(self, *commands: Command, quiet: bool = False) -> bytes:
        """These commands, as they are written on this connection; the text of a script stands for its digest.
        `quiet`: Redis answers none of them. Connects."""
        if not self.connected:
            self._connect()
        shas, packed = self._shas, self._pack
        parts = [packed((*shas[each[0]], *each[1:]) if each[0] in shas else each) for each in commands]
        return b"".join([self._no_answer + part for part in parts] if quiet else parts)

    def write(self, *commands: Command, least: int = 1) -> None:
        """Send these commands. Whoever waits for the answers sleeps through the first ones, if they have less
        than `least` bytes: to be woken up for what only confirms costs as much as the rest of a call."""
        self.write_packed(self.packed(*commands), len(commands), least)

    def write_packed(self, frame: bytes, answers: int, least: int = 1) -> None:
        """Send packed commands, to which so many answers will come."""
        self.due += answers
        try:
            if least != self._least and self._wire:
                self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
                self._least = least
            self._connection.send_packed_command([frame], check_health=False)
        except BaseException as error:
            self._failed(error)
            raise

    def read(self) -> Any:
        """The next answer. Raises what redis-py raises; the connection is given up then, also after an
        interrupted read: what comes next would answer something else."""
        try:
            answer = self._connection.read_response(disable_decoding=True)
        except BaseException as error:
            self._failed(error)
            if isinstance(error.__context__, BlockingIOError):
                raise redis.TimeoutError(f"no answer within {SOCKET_TIMEOUT:g} s") from error
            raise
        self.due -= 1
        return answer

    def ask(self, *commands: Command) -> Any:
        """Send these commands; the answer to the last one."""
        self.write(*commands)
        for _ in commands:
            answer = self.read()
        return answer

    def readable(self, seconds: float) -> bool:
        """Whether an answer has come, after waiting for it so many seconds at most."""
        try:
            return bool(self._connection.can_read(max(0.0, seconds)))
        except BaseException as error:
            self._failed(error)
            raise

    def look(self, *, rested: bool = False) -> None:
        """Look for an answer for a while without going to sleep, if that is likely to be worth it. `rested`:
        sleep through half of the usual time first, as Linux does for fast disks (hybrid polling)."""
        self._lookout.look(partial(self._poll, 0), rested=rested)

    def is_writable(self) -> bool:
        """Whether something can be sent without waiting."""
        return self._wire is None or is_ready(self._wire, select.POLLOUT, 0)

    def server_ms(self) -> int:
        """The time of the server, in milliseconds of the Unix epoch: it was asked half a minute ago at most.
        Connects. No answers are to come."""
        if not self.connected:
            self._connect()
        if time.monotonic() - self._clock_read > CLOCK_IS_GOOD:
            self._read_clock()
        return int((time.monotonic() + self._clock_offset) * 1000)

    def _read_clock(self) -> None:
        try:
            self._clock_offset, self._clock_read = clock_offset_of(self._connection), time.monotonic()
        except BaseException as error:
            self._failed(error)
            raise

    def how(self) -> dict[str, Any]:
        """How it was made: the arguments of redis-py's connections, with the server that it led to."""
        made = self._servers.client(self._key).connection_pool.connection_kwargs
        where = {name: getattr(self._connection, name, None) for name in ("host", "port")}
        return {**made, **{name: value for name, value in where.items() if value}}

    def drop(self) -> None:
        """Give the connection up, and whatever answers were still to come."""
        connection, self._connection, self.due = self._connection, None, 0
        if connection is not None and self._pid == process.id:
            connection.disconnect()

    def _failed(self, error: BaseException) -> None:
        self.drop()
        if isinstance(error, NoScriptError):  # somebody flushes them: until it breaks, do without
            self._by_text = True
        if isinstance(error, redis.RedisError) and is_elsewhere(error):
            self._servers.moved()

    def _connect(self) -> None:
        connection = self._servers.connection(self._key)
        for script in self._scripts:
            self._shas[script] = loaded(connection, script, self._by_text)
        self._by_text = False
        self.number = _client_id(connection)
        self._clock_read = -CLOCK_IS_GOOD
        self.epoch += 1
        self._pack = pack if HAS_HIREDIS else lambda command: b"".join(connection.pack_command(*command))
        self._no_answer = self._pack(self.NO_ANSWER)
        wire = getattr(connection, "_sock", None)  # redis-py has no public way to it
        self._wire, self._least = wire if hasattr(socket, "SO_RCVLOWAT") else None, 1
        if type(wire) is socket.socket:
            time_in_the_kernel(wire, SOCKET_TIMEOUT, socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)
        if wire and hasattr(select, "poll"):
            poll = select.poll()
            poll.register(wire.fileno(), select.POLLIN)
            self._poll = poll.poll
        self.due, self._pid = 0, process.id
        self._connection = connection  # at last: if this is interrupted, it never was


def _client_id(connection: Any) -> int:
    connection.send_command("CLIENT", "ID")
    try:
        return int(connection.read_response())
    except redis.ResponseError:  # this user may not ask
        return 0


def clock_offset_of(connection: Any) -> float:
    """What to add to `time.monotonic()` for the clock of this server, in seconds."""
    before = time.monotonic()
    connection.send_command("TIME")
    seconds, microseconds = connection.read_response(disable_decoding=True)
    return int(seconds) + int(microseconds) / 1e6 - (before + time.monotonic()) / 2
