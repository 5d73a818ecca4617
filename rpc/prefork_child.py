"""The program of a child process of `rpc.prefork`."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext, suppress
from contextvars import copy_context
from functools import cached_property
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from .client import RpcClient
from .codecs import accepted
from .core.codecs import JSON, Accepted, Codec
from .core.handling import told
from .core.jobs import Jobs, Progress, Request, current_request, jobs_from
from .core.lifecycle import is_tried_again
from .core.protocol import decode_call, decode_reply, encode_error
from .errors import SerializationError, SettingsError, Unsupported
from .logs import RpcLogHandler
from .prefork import Path, Plan, decode, encode
from .services import gathered, service
from .settings import Settings
from .transport import IDEMPOTENCY_KEY, Message, unpacked


def main(pipe: int, life: int) -> None:
    """Run jobs until told to end."""
    _end_with_parent(life)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.SIGTERM, signal.SIGINT:  # whole groups get them; the parent decides what they mean
        signal.signal(number, lambda *_: None)  # not ignored: what this process starts would ignore them, too
    parent = _Parent(Connection(os.dup(pipe)))  # that which is left open ends with the process, not before
    plan = msgspec.convert(parent.hear()[1], Plan)
    try:
        settings = (_loaded(*plan.origin) if plan.origin else Settings()).of(plan.identity)
        logging.basicConfig(
            level=plan.level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
        )
        if plan.sends_logs:
            logging.getLogger().addHandler(RpcLogHandler(plan.backend or None, settings))
        jobs = _jobs(plan, settings)
        context = _found(plan.context) if plan.context else nullcontext
        accept = accepted(plan.accept)
    except Exception as error:  # the modules are the user's
        parent.say(["unfit", f"{type(error).__name__}: {error}"])
        return
    calls = _Calls(plan, settings)
    parent.say(["ready"])
    while (said := parent.hear())[0] == "job":
        ended = copy_context().run(_performed, parent, jobs, calls, context, accept, *said[1:])
        for stream in sys.stdout, sys.stderr:
            with suppress(Exception):  # it may be None, closed, or anything
                stream.flush()
        parent.end_job(ended)


def _end_with_parent(life: int) -> None:
    """End this process, and all that it has started, when the other end of this pipe is closed: even while it
    does not let go of the interpreter, where the kernel can do that."""
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        if select.select([life], [], [], 0)[0]:
            os._exit(1)
    else:
        threading.Thread(target=_wait_for_end, args=[life], name="rpc-parent", daemon=True).start()


def _wait_for_end(life: int) -> None:
    os.read(life, 1)
    os.killpg(0, signal.SIGKILL)


def _loaded(function: str, argument: str) -> Settings:
    module, _, name = function.rpartition(".")
    settings: Settings = _found((module, name))(argument)
    return settings


def _found(path: Path) -> Any:
    found: Any = import_module(path[0])
    for part in path[1].split("."):
        found = getattr(found, part)
    return found


def _jobs(plan: Plan, settings: Settings) -> Jobs:
    handlers = {name: _found(path) for name, path in plan.paths.items()}
    if plan.in_settings:
        all_of_them = gathered(map(service, settings.loaded_services()), settings.jobs())
        if missing := set(plan.in_settings) - all_of_them.keys():
            raise SettingsError(f"{settings.module} has no job {', '.join(sorted(missing))} here")
        handlers |= {name: all_of_them[name] for name in plan.in_settings}
    return jobs_from(handlers)


class _Parent:
    """What is said to the parent, and heard of it. For the threads of a handler, too."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._job = self._cancelled = 0
        """Numbers of jobs: of the one that runs, and of the last one that was cancelled."""

    def say(self, said: Any) -> None:
        self._pipe.send_bytes(encode(said))

    def hear(self) -> Any:
        """The next that is no cancellation."""
        while (said := decode(self._pipe.recv_bytes()))[0] == "cancelled":
            self._cancelled = said[1]
        if said[0] == "job":
            self._job = said[1]
        return said

    def end_job(self, said: Any) -> None:
        with self._lock:
            self._job = 0
            self.say(said)

    def respond(self, number: int, value: bytes) -> bool:
        """Whether it was sent, by the job of this number. Raises what the parent met with."""
        with self._lock:
            if number != self._job:
                return False
            self.say(["respond", value])
            _, was_sent, error = self.hear()
        if error:
            decode_reply(error, JSON)
        return bool(was_sent)

    def tell(self, number: int, progress: Progress) -> None:
        """How far the job of this number is."""
        with self._lock:
            if number == self._job:
                self.say(["progress", progress.fraction, progress.text])

    def is_cancelled(self, number: int) -> bool:
        with self._lock:
            while number == self._job and self._pipe.poll():
                self._cancelled = decode(self._pipe.recv_bytes())[1]
            return self._cancelled == number


class _Delivery:
    """What a request needs of the delivery, which the parent has."""

    on_cancel = None

    def __init__(self, parent: _Parent, number: int, message: Message) -> None:
        self._parent, self._number, self.message = parent, number, message

    @property
    def cancelled(self) -> bool:
        return self._parent.is_cancelled(self._number)


class _Calls:
    """What handlers call others with: a client of this process's own."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan, self._settings = plan, settings

    @cached_property
    def client(self) -> RpcClient:
        if not self._plan.backend and self._plan.origin is None:
            raise Unsupported(
                "a handler with fork=True can call others if the receiver's backend is given as a URL, or by "
                "a settings module"
            )
        client = RpcClient(settings=self._settings, backend=self._plan.backend or None)
        if "processes" not in client.backend.features:
            raise Unsupported(
                "a handler with fork=True cannot call others on this backend: it is of one process"
            )
        return client

    @property
    def async_client(self) -> Any:
        raise Unsupported("a handler with fork=True is no coroutine")

    def why_late(self, name: str, queue: str) -> str:
        return ""


def _performed(
    parent: _Parent,
    jobs: Jobs,
    calls: _Calls,
    context: Any,
    accept: Accepted,
    number: int,
    frame: bytes,
    left: float | None,
) -> list[Any]:
    """Run a job: what the parent is told at its end."""
    message = unpacked(frame)
    body, codec = accept.opened(message)
    call = decode_call(body, codec)
    job, deadline = jobs[call.method], None if left is None else time.monotonic() + left
    delivery: Any = _Delivery(parent, number, message)

    def respond(_: Request, data: Any) -> bool:
        return parent.respond(number, _encoded(data, codec))

    def tell(progress: Progress) -> None:
        parent.tell(number, progress)

    request = Request(delivery, call, deadline, respond, calls, tell)
    current_request.set(request)
    try:
        with context():
            value = job.bound(call, request)()
        is_wanted = message.reply_to or IDEMPOTENCY_KEY in message.headers
        with nullcontext() if is_wanted else suppress(SerializationError):
            return ["result", _encoded(value, codec)]
        return ["result", _encoded(None, codec)]
    except BaseException as error:  # a handler may raise anything
        trace = "".join(traceback.format_exception(error))
        body = encode_error(message.id, told(error), JSON)
        return ["failed", body, is_tried_again(error, job.options), trace]


def _encoded(value: Any, codec: Codec) -> bytes:
    try:
        return codec.encode(value)
    except SerializationError as error:
        raise SerializationError(f"the result cannot be encoded: {error}") from error
