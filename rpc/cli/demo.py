"""`rpc demo`: a broker, a worker and a client, which shows what a call can come to.

This process is the client; the broker and the worker are its children, and end with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Thread
from typing import IO, Any, cast

import click

from ..client import RpcClient
from ..errors import InvalidParams, MethodNotFound, RemoteError, RpcError
from .output import printable

SECONDS_TO_ANSWER = 10
SECONDS_TO_STOP = 5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEMO_SETTINGS = f"{__package__}._demo_jobs"


@click.command("demo")
def command() -> None:
    """Start a Redis server and a worker, call some jobs, and stop everything.

    Lines of the client start with "----->", those of the worker's log with its pid. Takes a few seconds;
    exits with 0 if everything was as it should be.

    \b
    Example:
      rpc demo
    """
    from ..testing.servers import start_redis  # it brings a driver along: not for the other commands

    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    with start_redis() as server:
        say(f"{server.kind} {server.version} runs on {server.url}, pid {server.pid}")
        url = f"rq+{server.url}"
        with DemoWorker() as worker, RpcClient(backend=url, timeout=SECONDS_TO_ANSWER) as client:
            say(f"the client is this process, pid {os.getpid()}; the worker has pid {worker.start(url)}")
            show_calls(client)
            show_note(client, worker)
        if worker.exit_code != 0:
            raise Surprise(f"the worker ended with {worker.exit_code}")
        say("the worker was told to stop, and ended with 0; that was all")


def show_calls(client: RpcClient) -> None:
    """Calls that wait: an answer, and three ways not to get one."""

    def call(name: str, data: dict[str, Any], wanted: Any) -> None:
        expect(f"call_and_wait({name!r}, {data})", lambda: client.call_and_wait(name, data).data, wanted)

    call("add", {"a": 1, "b": 1}, {"answer": 2})
    call("divide", {"a": 1, "b": 0}, RemoteError)
    call("multiply", {"a": 1, "b": 1}, MethodNotFound)
    call("divide", {"a": 1, "b": "two"}, InvalidParams)


def show_note(client: RpcClient, worker: DemoWorker) -> None:
    """A call that does not wait: the worker's log tells that it was done."""
    text = "nobody waits for this"
    id = client.call("note", {"text": text})
    say(f"call('note', {{'text': {text!r}}}) -> the id {id}")
    if not worker.says(text):
        raise Surprise("the worker's log does not show it")


def expect(what: str, call: Callable[[], Any], wanted: Any) -> None:
    """Say what a call came to. Raises Surprise if that is not the value, or the class of error, wanted."""
    try:
        outcome = call()
    except RpcError as error:
        say(f"{what} raises {type(error).__name__}: {error}")
        as_wanted = type(error) is wanted
    else:
        say(f"{what} -> {outcome}")
        as_wanted = outcome == wanted
    if not as_wanted:
        raise Surprise(f"that should have been {wanted}")


def say(text: str) -> None:
    click.echo(f"-----> {printable(text)}")


class Surprise(click.ClickException):
    """Something was not as it should be."""


class DemoWorker:
    """`rpc worker` as a process of its own. Shows its log, and ends with the `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._reader: Thread | None = None
        self.exit_code: int | None = None
        self._log: list[str] = []
        self._changed = Condition()

    def start(self, url: str) -> int:
        """Start it; returns its pid."""
        command = [sys.executable, "-m", "rpc", "worker", "--settings", DEMO_SETTINGS, "--backend", url]
        with _uninterrupted():
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which then stops it
            )
        self._reader = Thread(target=self._show, args=[self._process], name="rpc-demo-log", daemon=True)
        self._reader.start()
        return self._process.pid

    def says(self, text: str) -> bool:
        """Wait until this is in the log: whether it was in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(text in line for line in self._log), timeout=SECONDS_TO_ANSWER
            )

    def __enter__(self) -> DemoWorker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        try:
            self._process.terminate()
            self._process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            say("the worker does not stop: it is killed")
        finally:
            self._process.kill()
            self.exit_code = self._process.wait()
            if self._reader:
                self._reader.join()

    def _show(self, process: subprocess.Popen[str]) -> None:
        with cast("IO[str]", process.stdout) as lines:
            for line in lines:
                with suppress(BrokenPipeError):  # the client is told the same, and ends
                    click.echo(f"worker {process.pid} | {printable(line.rstrip())}")
                with self._changed:
                    self._log.append(line)
                    self._changed.notify_all()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals that come meanwhile are heard afterwards: a process must not start unnoticed."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)
