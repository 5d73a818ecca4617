"""Peers in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NODE = ROOT / "clients" / "node"
SECONDS = 60
"""That something is waited for which is expected."""


class Peer:
    """A process, and what it says."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said, self._has_ended = "", False
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def says(self, pattern: str) -> None:
        """Waits until it has said that."""
        with self._heard:
            self._heard.wait_for(lambda: self._has_ended or re.search(pattern, self.said), SECONDS)
            assert re.search(pattern, self.said), f"not said: {pattern}\n{self.said}"

    def ends(self, how: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.process.send_signal(how)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self._reader.join(SECONDS)
            self.process.stdout.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._heard:
                self.said += line
                self._heard.notify_all()
        with self._heard:
            self._has_ended = True
            self._heard.notify_all()


def http_url() -> str:
    """Where nobody listens yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def peer(kind: str, url: str, folder: Path, secret: str = "", **options: Any) -> Iterator[Peer]:
    """One that serves the jobs of README.md: "python", or "node"; signed, if there is a secret. A peer
    of Node has these options of workers, besides."""
    if kind == "node":
        build_node()
        command, environment = (
            ["node", str(NODE / "test" / "peer.mjs")],
            {"RPC_URL": url, "RPC_SECRET": secret, "RPC_OPTIONS": json.dumps(options)},
        )
    else:
        mapping = "WITH_BROKER" if url.startswith("redis") else "MAPPING"
        settings = f"from tests.peers.jobs import {mapping} as RPC_JOB_MAPPING, TOKENS as RPC_TOKENS\n"
        settings += f"RPC_BACKEND = {url!r}\n"
        settings += f"RPC_SIGNING_KEYS = { ({'k1': secret} if secret else None)!r}\n"
        (folder / "peer_settings.py").write_text(settings)
        command = [sys.executable, "-m", "rpc", "worker", "--settings", "peer_settings"]
        environment = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    running = Peer(command, environment)
    try:
        running.says("serving")
        yield running
    finally:
        running.ends()


def build_node() -> None:
    """Have clients/node built, if it was not since it was changed; skips without Node."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js, 20 or newer, and npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version[1:].partition(".")[0]) < 20:
        pytest.skip(f"needs Node.js, 20 or newer, not {version}")
    built = NODE / "dist" / "scripts.json"
    sources = [*NODE.glob("*.json"), NODE / "build.mjs", *NODE.glob("src/**/*.ts")]
    sources += (ROOT / "rpc" / "backends" / "redis" / "lua").glob("**/*.lua")
    newest = max(path.stat().st_mtime for path in sources)
    if built.exists() and built.stat().st_mtime > newest:
        return
    wanted = json.loads((NODE / "package-lock.json").read_text())["packages"]
    installed = NODE / "node_modules" / ".package-lock.json"
    if not installed.exists() or not _has(json.loads(installed.read_text())["packages"], wanted):
        done = _npm("ci", "--no-audit", "--no-fund")
        if done.returncode:
            pytest.skip(f"needs a registry of npm: {done.stdout[-200:]}")
    done = _npm("run", "build")
    assert done.returncode == 0, done.stdout


def _has(installed: dict[str, dict[str, str]], wanted: dict[str, dict[str, str]]) -> bool:
    return all(
        installed.get(name, {}).get("version") == package["version"]
        for name, package in wanted.items()
        if name
    )


def _npm(*words: str) -> subprocess.CompletedProcess[str]:
    command, out, both = ["npm", *words], subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(command, cwd=NODE, stdout=out, stderr=both, text=True, check=False)
