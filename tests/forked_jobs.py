"""Jobs that run in processes of their own, and what they leave behind: files beside a log."""

from __future__ import annotations

import collections
import itertools
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rpc import Request, expose, job

PATIENCE = 30.0
"""Seconds: far longer than anything here takes."""
in_worker: ContextVar[str] = ContextVar("in_worker", default="unset")


def log() -> Path:
    return Path(os.environ["RPC_TEST_LOG"])


def note(line: object) -> None:
    with log().open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def wait_for_release(request: Request | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not log().with_suffix(".release").exists() and time.monotonic() < end:
        if request and request.cancelled:
            break
        time.sleep(0.01)


@job(fork=True)
def echo(value: Any) -> Any:
    return value


@job(fork=True)
def process() -> int:
    return os.getpid()


@job(fork=True)
def add(a: int, b: int = 1) -> int:
    return a + b


@job(fork=True)
def inspected(request: Request) -> dict[str, Any]:
    """What a handler sees."""
    return {
        "data": request.data,
        "header": request.headers.get("x-tenant"),
        "attempt": request.attempt,
        "redelivered": request.redelivered,
        "cancelled": request.cancelled,
        "left": request.deadline is not None and request.deadline - time.monotonic(),
        "id": request.id,
        "name": request.name,
        "context": in_worker.get(),
        "main thread": threading.current_thread() is threading.main_thread(),
    }


@job(fork=True)
def responds(request: Request) -> str:
    note(request.respond("first"))
    note(request.respond("second"))
    note("responded")
    return "third"


@job(fork=True)
def responds_later(request: Request) -> None:
    threading.Thread(target=lambda: (wait_for_release(), note(request.respond("too late")))).start()


@job(fork=True)
def responds_with(request: Request) -> None:
    try:
        request.respond(object())
    except Exception as error:
        note(type(error).__name__)
        raise


@job(fork=True)
def calls(request: Request) -> Any:
    return request.call_and_wait("header", timeout=10).data


def header(request: Request) -> str | None:
    return request.headers.get("x-tenant")


@job(fork=True)
def dies(how: str) -> None:
    note("dies")
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exit":
        os._exit(3)
    sys.exit("politely")


@job(fork=True, retries=1, backoff=0.01)
def dies_once(request: Request) -> int:
    if request.attempt == 1:
        os._exit(1)
    return request.attempt


class Odd(Exception):
    def __init__(self, text: str, more: int) -> None:
        """One that cannot be unpickled."""
        super().__init__(text)


@job(fork=True, retries=1, backoff=0.01, retry_on=Odd)
def fails(request: Request) -> Any:
    note(f"attempt {request.attempt}")
    if request.data.get("how") == "odd":
        raise Odd("strange", 2)
    raise KeyError("other")


@job(fork=True)
def large() -> str:
    return "x" * 3000


@job(fork=True)
def unencodable() -> Any:
    return object()


@job(fork=True, time_limit=0.5)
def sticks() -> None:
    """In C, without ever letting go of the interpreter."""
    note(f"sticks {os.getpid()}")
    collections.deque(itertools.repeat(0), maxlen=0)


@job(fork=True)
def holds(request: Request) -> str:
    """With a process that it has started, until the test says `release`, or it is cancelled."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        note(f"holds {os.getpid()} {child.pid}")
        wait_for_release(request)
        note("cancelled" if request.cancelled else "held")
        child.kill()
    return "again" if request.redelivered else "first"


@job(fork=True)
def sticks_for_good() -> None:
    note(f"holds {os.getpid()}")
    collections.deque(itertools.repeat(0), maxlen=0)


@job(fork=True, time_limit=1, retries=1, backoff=0.01)
def slow_once(request: Request) -> int:
    if request.attempt == 1:
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
            note(f"holds {os.getpid()} {child.pid}")
    return request.attempt


@job(fork=True)
def surroundings() -> dict[str, Any]:
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    sockets = 0
    for each in descriptors:
        try:
            sockets += stat.S_ISSOCK(os.fstat(each).st_mode)
        except OSError:
            continue  # that of the listing
    return {
        "sockets": sockets,
        "session": os.getsid(0) == os.getpid(),
        "ignored": [each.name for each in signal.Signals if signal.getsignal(each) is signal.SIG_IGN],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "input": sys.stdin.read(),
        "threads": threading.active_count(),
    }


@job(fork=True)
def terminated() -> str:
    for number in signal.SIGTERM, signal.SIGINT:
        os.kill(os.getpid(), number)
    return "lives"


@job(fork=True)
def says(text: str) -> None:
    print(text)
    logging.getLogger("forked").warning("logged %s", text)


class Office:
    name = "office"

    def __init__(self, where: str = "nowhere") -> None:
        self.where = where

    @expose
    @job(fork=True)
    def place(self) -> str:
        return f"{self.where} {os.getpid()}"


FORKED = {
    each.__name__: each
    for each in (
        *(echo, process, add, inspected, responds, responds_later, responds_with, calls, dies, dies_once),
        *(
            fails,
            large,
            unencodable,
            sticks,
            holds,
            sticks_for_good,
            slow_once,
            surroundings,
            terminated,
            says,
        ),
    )
}
JOBS = {**FORKED, "header": header}
