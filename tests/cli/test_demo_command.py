"""`rpc demo`: shows everything that it promises, quickly, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from rpc import MethodNotFound
from rpc.cli import demo

from .conftest import Process

pytestmark = pytest.mark.redis

Spawn = Callable[..., Process]


def is_left_behind(mark: str) -> bool:
    """Whether a process with this mark in its environment is still there in a moment."""
    deadline = time.monotonic() + 5
    while found := any(mark in environment for environment in environments()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return found


def environments() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # somebody else's, or gone by now
            yield process.read_text(errors="replace")


@pytest.fixture
def mark() -> str:
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are looked for in /proc, which is not there")
    return uuid4().hex


def test_it_shows_what_it_promises_in_time_and_leaves_no_process(spawn: Spawn, mark: str) -> None:
    began = time.monotonic()
    process = spawn("demo", MARK=mark)
    assert process.ends() == 0, process.said
    assert time.monotonic() - began < 20
    lines = process.said.splitlines()
    client = [line for line in lines if line.startswith("-----> ")]
    worker = [line for line in lines if re.match(r"worker \d+ \| ", line)]
    assert len(client) + len(worker) == len(lines)
    for shown in "{'answer': 2}", "RemoteError: ZeroDivisionError", "MethodNotFound: ", "InvalidParams: b: ":
        assert any(shown in line for line in client), shown
    assert any("noted: nobody waits for this" in line for line in worker)
    assert not is_left_behind(mark)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["runs on", "worker has pid", "serving", "answer"])
def test_a_signal_ends_all_of_it(spawn: Spawn, mark: str, moment: str, number: signal.Signals) -> None:
    process = spawn("demo", MARK=mark)
    process.says(moment)
    assert process.ends(number) in (130, 0), process.said  # 0: it was done by then
    assert not is_left_behind(mark)
    assert not re.search("^Traceback", process.said, re.MULTILINE)


def test_a_surprise_is_not_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(demo.Surprise):
        demo.expect("a call", lambda: 3, MethodNotFound)
    with pytest.raises(demo.Surprise):
        demo.expect("a call", lambda: 3, 4)
    with pytest.raises(demo.Surprise):
        demo.expect("a call", _not_found, 4)
    demo.expect("a call", _not_found, MethodNotFound)
    demo.expect("a call", lambda: 4, 4)
    assert capsys.readouterr().out.count("-----> a call") == 5


def _not_found() -> None:
    raise MethodNotFound("no")


def test_a_surprise_is_1(mark: str) -> None:
    code = """
from rpc.cli import demo, main

def show_calls(client):
    demo.expect("a call", lambda: client.call_and_wait("add", {"a": 1, "b": 2}).data, 4)

demo.show_calls = show_calls
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "demo"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MARK": mark},
    )
    assert result.returncode == 1
    assert "that should have been 4" in result.stderr
    assert not is_left_behind(mark)
