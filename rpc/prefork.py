"""Handlers with `@job(fork=True)`: each runs in a child process, of which a worker keeps as many as it needs.

A child is a new interpreter, never a copy of this process: it has none of its threads, locks and connections.
It loads the handlers itself, by the settings or by the names of their modules, and runs one job at a time in
its main thread. What is said between the two are lists, as MessagePack, through a socket:

    to the child     ["plan", Plan], ["job", number, frame of the message, seconds left],
                     ["cancelled", number], ["answer", whether it was sent, error], ["end"]
    from the child   ["ready"], ["unfit", why], ["respond", value], ["progress", fraction, text],
                     ["result", value], ["failed", error, is it to be tried again, traceback]

Values are encoded as the caller will get them, errors as the bodies of replies in JSON.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import msgspec

from .core.codecs import JSON, Codec
from .core.handling import HandedBack
from .core.jobs import Jobs, Request
from .core.lifecycle import ProcessLost, RaisedInChild
from .core.protocol import decode_reply, encode_error
from .errors import RemoteError, RpcError, SettingsError
from .greenlets import are_patched_in
from .identity import Identity
from .limits import Limits
from .loops import pop_or_none
from .settings import Settings
from .signals import cause
from .transport import Delivery, packed

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a child which has nothing to do may take to end by itself."""
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from rpc.prefork_child import main; main(*map(int, sys.argv[1:]))"
)

encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
Path = tuple[str, str]
"""Of something in a module: the module's name, and its own there, with dots."""


class Plan(msgspec.Struct):
    """What a child needs to know."""

    origin: Path | None
    """As `Settings` has it."""
    in_settings: list[str]
    """Names of jobs that the settings have."""
    paths: dict[str, Path]
    """Where the handlers of others are."""
    context: Path | None
    """Of the context in which handlers run, if it can be had there."""
    backend: str
    """The URL for its client; "": the settings know."""
    level: int
    """Of its log."""
    identity: Identity
    """Which service its worker is."""
    sends_logs: bool
    """Whether it publishes what it logs."""
    accept: list[str]
    """The codecs that it reads, by their names."""


def plan_of(jobs: Jobs, settings: Settings, given: set[str], backend: Any, context: Any) -> Plan | None:
    """What children need to know to run those of these jobs that have `fork=True`; None if none has. `given`
    are the names of those that the settings do not have; `backend` is what the receiver was given, if
    anything. Raises SettingsError."""
    names = [name for name, job in jobs.items() if job.options.fork]
    paths = {name: path for name in names if (path := _path(jobs[name].handler))}
    rest = [name for name in names if name not in paths]
    for name in rest:
        if name in given or settings.origin is None:
            raise SettingsError(
                f"job {name!r} has fork=True, but a child process cannot find {jobs[name].handler!r}: make "
                "it a function at the top of a module that can be imported, or name it in a settings module"
            )
    chosen = settings.client_backend or backend or settings.receiver_backend or settings.backend
    url, level = chosen if isinstance(chosen, str) else "", logging.getLogger().level
    where = None if context is nullcontext else _path(context)
    who = settings.identity, settings.send_logs
    return Plan(settings.origin, rest, paths, where, url, level, *who, [*settings.accept]) if names else None


def _path(target: Any) -> Path | None:
    """By which another process finds it; None if it does not."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    found: Any = None if module == "__main__" else sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return (str(module), name) if found is not None and found == target else None


class Prefork:
    """The children of one receiver. For any number of threads, each of which runs one job at a time."""

    def __init__(
        self, plan: Plan | None, limits: Limits, most: int | None, is_handed_back: Callable[[], bool]
    ) -> None:
        """A child is replaced after `most` jobs. `is_handed_back` says, of a job whose child was killed,
        whether it is somebody else's by now; it may block. Without a plan there is nothing to do."""
        if most is not None and most < 1:
            raise SettingsError(f"RPC_MAX_JOBS_PER_CHILD is {most}: a child process must run at least one")
        self._plan, self._limits, self._most, self._is_handed_back = plan, limits, most, is_handed_back
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._life = self._held = -1
        """A pipe into which nobody writes: what this process holds ends with it, and so do the children."""

    def start(self) -> None:
        """Make the first child. Raises SettingsError if it cannot load the handlers, or there can be none."""
        if self._plan is None:
            return
        if are_patched_in():  # to wait for a child would have all greenlets wait
            raise SettingsError(
                "jobs with fork=True cannot be run where gevent has patched the standard library: give them "
                "a queue, and a worker without gevent"
            )
        self._life, self._held = os.pipe()
        try:
            self._idle.append(self._made())
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End the children, which have nothing to do any more."""
        for child in [*self._children]:
            self._end(child, PATIENCE)
        self._idle.clear()
        if self._held >= 0:
            os.close(self._held)
            os.close(self._life)
            self._held = self._life = -1

    def kill(self) -> None:
        """End the children, whatever they do, and what they have started. Any thread."""
        for child in [*self._children]:
            child.kill()

    def run(
        self, delivery: Delivery, request: Request, codec: Codec, seconds: float | None, is_looked_at: bool
    ) -> Any:
        """Have the job done by a child: what its handler returned, as `rpc.core.dispatch.Fork` has it. Raises
        what a caller is told if it raised, ProcessLost, Overran."""
        left = None if request.deadline is None else request.deadline - time.monotonic()
        frame, child = packed(delivery.message), self._taken()
        work = partial(child.perform, delivery, request, codec, frame, left)
        try:
            said = self._limits.called(work, seconds, child.kill) if seconds else work()
        except BaseException as error:
            code = self._end(child)
            if self._is_handed_back():
                raise HandedBack from None
            if isinstance(error, EOFError | OSError):
                raise ProcessLost(f"the process in which it ran {cause(code)}") from None
            raise
        self._put_back(child)
        if said[0] == "failed":
            raise _raised(*said[1:])
        return codec.decode(said[1]) if is_looked_at else codec.embedded(said[1])

    def _taken(self) -> Child:
        while child := pop_or_none(self._idle):
            if child.is_alive():
                return child
            logger.warning("an idle child process %s", cause(self._end(child)))
        return self._made()

    def _put_back(self, child: Child) -> None:
        if self._most is None or child.jobs < self._most:
            self._idle.append(child)
        else:  # nobody needs to wait for that
            threading.Thread(target=self._end, args=[child, PATIENCE], name="rpc-child", daemon=True).start()

    def _made(self) -> Child:
        child = Child(self._life)
        self._children.add(child)
        try:
            child.say(["plan", self._plan])
            said = child.hear()
            why = "" if said[0] == "ready" else said[1]
        except (EOFError, OSError):
            why = f"it {cause(self._end(child))}"
        if why:
            self._end(child)
            raise SettingsError(f"a child process for jobs with fork=True cannot be used: {why}")
        return child

    def _end(self, child: Child, patience: float = 0.0) -> int:
        code = child.end(patience)
        self._children.discard(child)
        return code


class _Traceback(Exception):
    """In the child: shown as the cause of what is raised here."""


def _raised(body: bytes, is_tried_again: bool, trace: str) -> BaseException:
    try:
        decode_reply(body, JSON)
    except RemoteError as error:
        raised: RpcError = RaisedInChild(error, trace, is_tried_again)
    except RpcError as error:
        raised = error
    raised.__cause__ = _Traceback(f"\n{trace}")
    return raised


class Child:
    """A process that runs one job at a time. Its group has what it has started, too."""

    def __init__(self, life: int) -> None:
        """It ends when the other end of this pipe is closed."""
        from multiprocessing import Pipe  # brings much along: only for those who ask

        self._pipe, its = Pipe()
        command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), str(its.fileno()), str(life)]
        with its:
            self._process = subprocess.Popen(  # noqa: S603 - a program of ours
                command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno(), life], start_new_session=True
            )
        self._saying, self._ending, self._reaping = (threading.Lock() for _ in range(3))
        self.jobs = 0
        """How many it was given."""

    def say(self, said: Any) -> None:
        """Raises OSError if it has ended."""
        with self._saying:
            self._pipe.send_bytes(encode(said))

    def hear(self) -> Any:
        """What it says next. Raises EOFError and OSError if it has ended."""
        return decode(self._pipe.recv_bytes())

    def is_alive(self) -> bool:
        """Of one that has nothing to say: it has a job no more, or not yet."""
        return not self._pipe.poll()

    def perform(
        self, delivery: Delivery, request: Request, codec: Codec, frame: bytes, left: float | None
    ) -> Any:
        """Have a job done: what it says at the end. Raises EOFError and OSError if it ends before that."""
        self.jobs += 1
        self.say(["job", self.jobs, frame, left])
        delivery.on_cancel = partial(self._cancel, self.jobs)
        if delivery.cancelled:
            delivery.on_cancel()
        try:
            while (said := self.hear())[0] in ("respond", "progress"):
                if said[0] == "respond":
                    self.say(["answer", *_responded(request, said[1], codec)])
                else:
                    request.progress(*said[1:])
            return said
        finally:
            delivery.on_cancel = None

    def _cancel(self, number: int) -> None:
        with suppress(OSError):  # it has ended
            self.say(["cancelled", number])

    def kill(self, _: object = None) -> None:
        """End it now, and all that it has started. Any thread."""
        with self._reaping:
            if self._process.returncode is None:  # else its number may be that of another one
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, patience: float = 0.0) -> int:
        """The same, after so many seconds in which it may end by itself. Its exit code, or minus the signal
        that it died of. Any thread."""
        with self._ending:
            if patience:
                with suppress(OSError):  # it has ended
                    self.say(["end"])
                    self._pipe.poll(patience)
            self.kill()
            with self._reaping:
                code = self._process.wait()
            with self._saying:
                self._pipe.close()
            return code


def _responded(request: Request, value: bytes, codec: Codec) -> tuple[bool, bytes]:
    """Whether it was sent, and an error if there was one."""
    try:
        return request.respond(codec.embedded(value)), b""
    except RpcError as error:
        return False, encode_error("", error, JSON)
