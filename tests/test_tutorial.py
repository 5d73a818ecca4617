"""The tutorials, walked through as they stand: each file is written, each command is run, and says what the
page says it does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpc.testing.site import eventually

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.py)(, continued)?\n")
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
RUNS_ON = ("rpc redis", "rpc worker", "uvicorn", "python manage.py rpc\n", "python manage.py runserver")
LOOKS_ONLY = ("rpc jobs list", "rpc jobs show", "rpc services", "cat", "curl", "python manage.py rpcinfo")
"""These may come too early, and are asked again until they say what they should; `curl -d` is not."""
VARIES = re.compile(
    r"(?P<id>\b[0-9a-f]{32}\b)|(?P<host>\bada\b)"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d{3}|\b4711\b|(?<=redis-server )[\d.]+(?= )"
)
"""What is different each time: ids of jobs, which are the same wherever the page has the same; the name of
the machine; times, process ids and a version, of which only the digits are others."""
PATIENCE = 60


class Walk:
    """A user who does what a page says, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = self._home = folder
        self._ports = {port: _free_port() for port in ("6379", "8000", "8001")}
        self._ids: dict[str, str] = {}
        """The ids on the page, and what they are here."""
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def follow(self, page: str) -> None:
        for language, text in BLOCK.findall((DOCS / page).read_text()):
            text = re.sub("|".join(self._ports), lambda found: self._ports[found[0]], text)
            if language == "python":
                self._write(text)
            else:
                for command, shown in COMMAND.findall(text):
                    self._do(command, shown.replace("/home/ada/shop", str(self._home)))

    def _write(self, text: str) -> None:
        named = FILE.match(text)
        assert named, f"it is not said which file this is: {text}"
        with (self._folder / named[1]).open("a" if named[2] else "w") as file:
            file.write(text)

    def _do(self, command: str, shown: str) -> None:
        for id, own in self._ids.items():
            command = command.replace(id, own)
        if command.startswith("cd "):
            self._folder /= command[3:]
        elif f"{command}\n".startswith(RUNS_ON):
            self._start(command, shown)
        elif command.startswith(LOOKS_ONLY) and " -d " not in command:
            eventually(lambda: self._is(shown, self._said(command)), f"{command} never said {shown}")
        else:
            said = self._said(command)
            assert self._is(shown, said), f"{command} said {said}, not {shown}"

    def _said(self, command: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout

    def _is(self, shown: str, said: str) -> bool:
        """Whether this was said, all of it."""
        if found := re.fullmatch(self._pattern(shown.rstrip()), said.rstrip()):
            self._ids |= {name[1:]: id for name, id in found.groupdict().items()}
        return found is not None

    def _pattern(self, shown: str) -> str:
        seen = dict(self._ids)

        def one(found: re.Match[str]) -> str:
            if found["host"]:
                return r"\S+"
            if not (id := found["id"]):
                return re.sub(r"\d+", r"\\d+", re.escape(found[0]))
            if id in seen:
                return seen[id]
            seen[id] = f"(?P=_{id})"
            return f"(?P<_{id}>[0-9a-f]{{32}})"

        pieces, end = [], 0
        for found in VARIES.finditer(shown):
            pieces += [re.escape(shown[end : found.start()]), one(found)]
            end = found.end()
        return "".join([*pieces, re.escape(shown[end:])])

    def _start(self, command: str, shown: str) -> None:
        """In a terminal of its own, in place of what ran there. It is there when it has said this."""
        self._stop(command)
        log = self._folder / f"{len(list(self._folder.glob('*.log')))}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[command] = process, log

        def is_there() -> bool:
            assert process.poll() is None, log.read_text()
            return all(re.search(self._pattern(line), log.read_text()) for line in shown.splitlines())

        eventually(is_there, f"{command} never said {shown}")

    def _stop(self, command: str) -> None:
        if command in self._running:
            process, log = self._running.pop(command)
            try:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGINT)
                assert process.wait(PATIENCE) == 0, log.read_text()
            finally:
                process.kill()

    def stop(self) -> None:
        with ExitStack() as stack:  # what fails to stop leaves the others not running
            for command in self._running:
                stack.callback(self._stop, command)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    walk = Walk(tmp_path)
    try:
        yield walk
    finally:
        walk.stop()


@pytest.mark.real_redis
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorials_say_what_happens(walk: Walk) -> None:
    walk.follow("tutorial.md")
    walk.follow("tutorial-web.md")
