"""Services that listen and tick, and processes of them: `event_workers.py WHO SERVICE URL LOG LEASE`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rpc import RpcClient, RpcReceiver, every, expose, on
from rpc.settings import Settings

PATIENCE = 30.0
"""Seconds: far longer than anything here takes."""
who, log_path = "", Path(os.devnull)


def note(line: str) -> None:
    with log_path.open("ab", buffering=0) as file:
        file.write(f"{who} {line}\n".encode())


def wait_for(name: str) -> None:
    """Until the test makes this file, beside the log."""
    end = time.monotonic() + PATIENCE
    while not log_path.with_name(name).exists() and time.monotonic() < end:
        time.sleep(0.01)


class Loud:
    @on("boom")
    def first(self, data: dict[str, Any]) -> None:
        note(f"first {data['n']}")

    @on("boom")
    async def second(self, data: Any) -> None:
        note(f"second {data['n']}")

    @on("boom")
    def leaves(self, data: Any) -> None:
        sys.exit(3)


class Team:
    @on("boom", group="team")
    def hear(self, data: Any) -> None:
        if data.get("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        note(f"hears {data['n']}")

    @on("boom")
    def hear_alone(self, data: Any) -> None:
        note(f"alone {data['n']}")


class Billing:
    @on("boom", group="billing", durable=True)
    def bill(self, data: Any) -> None:
        note(f"begins {data['n']}")
        if data.get("deadly") and not log_path.with_name("spared").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if data.get("held"):
            wait_for("go on")
        note(f"bills {data['n']}")


class Flaky:
    @on("boom", group="flaky", durable=True, retries=2, backoff=0.01)
    def fail(self, data: Any) -> None:
        note(f"tries {data['n']}")
        if data["n"] % 2:
            raise ConnectionError("each time")


class Busy:
    name = "busy"

    @expose
    def hold(self) -> None:
        note("holds")
        wait_for("go on")
        note("held")

    @on("boom")
    def hear(self, data: Any) -> None:
        note(f"hears {data['n']}")

    @on("slow")
    def linger(self, data: Any) -> None:
        note("lingers")
        wait_for("go on")


class Clock:
    name = "clock"

    @every(seconds=0.05, singleton=True)
    def tick(self) -> None:
        note("ticks")
        if log_path.with_name(f"hold {who}").exists():
            note("stays")
            wait_for("go on")
            note("leaves")

    @expose
    def hold(self) -> None:
        note("holds")
        wait_for("go on")


SERVICES: dict[str, type] = {each.__name__: each for each in (Loud, Team, Billing, Flaky, Busy, Clock)}


def until(check: Callable[[], Any], what: str = "it never happened") -> Any:
    """What `check` returns, as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (result := check()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return result


class Crew:
    """Worker processes that end with the test, a client, and what the workers wrote down."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.log, self._stack = url, directory / "log", ExitStack()
        self.log.touch()
        self.client = self._stack.enter_context(RpcClient(backend=url, timeout=PATIENCE))

    def close(self) -> None:
        self._stack.close()

    def start(
        self, name: str, service: type, *, url: str = "", lease: float = 1, ready: bool = True
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, name, service.__name__, url or self.url, str(self.log)]
        process = subprocess.Popen([*command, str(lease)])
        self._stack.callback(_end, process)
        if ready:
            until(lambda: f"{name} ready" in self.lines(), f"worker {name} did not start")
        return process

    def lines(self, *ends: str) -> list[str]:
        """What was written down, or those lines of it that end so."""
        return [line for line in self.log.read_text().split("\n")[:-1] if not ends or line.endswith(ends)]

    def allow(self, name: str) -> None:
        """What waits for this file goes on."""
        self.log.with_name(name).touch()

    def publish(self, n: int, **data: Any) -> str:
        return self.client.publish("boom", {"n": n, **data})


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def main(name: str, service: str, url: str, log: str, lease: str) -> None:
    global who, log_path
    who, log_path = name, Path(log)
    logging.basicConfig(level=logging.WARNING)
    settings = Settings(lease=float(lease), max_deliveries=9)
    receiver = RpcReceiver(services=[SERVICES[service]], backend=url, jobs={}, settings=settings)
    receiver.hook("on_connect")(lambda: note("ready"))
    receiver.start()
    note("stopped")


if __name__ == "__main__":
    main(*sys.argv[1:])
