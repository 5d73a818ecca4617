"""What `rpc worker` logs: each job if that is wanted, retries, failures; for people and for programs."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rpc import RemoteError, RpcClient

from .conftest import Process

pytestmark = pytest.mark.redis

Spawn = Callable[..., Process]
JOBS = """
from rpc import job

def add(a: int, b: int) -> int:
    return a + b

@job(retries=2, backoff=0.01)
def flaky():
    raise ConnectionError("no\\nway")

RPC_JOB_MAPPING = {"add": add, "flaky": flaky}
"""
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ([A-Z]+) (\d+) ([\w.]+): (.*)")


@pytest.fixture
def logged(tmp_path: Path, url: str, spawn: Spawn) -> Callable[..., Process]:
    """A worker that was called, and has ended."""

    def run(*words: str) -> Process:
        (tmp_path / "settings.py").write_text(f"{JOBS}\nRPC_BACKEND = {url!r}\n")
        worker = spawn("worker", *words)
        with RpcClient(backend=url) as client:
            assert client.call_and_wait("add", [1, 2]).data == 3
            assert len(client.describe()) == 1
            with pytest.raises(RemoteError):
                client.call_and_wait("flaky")
        assert worker.ends(signal.SIGTERM) == 0
        return worker

    return run


def test_a_line_has_date_level_process_and_logger(logged: Callable[..., Process]) -> None:
    worker = logged("--log-level", "info")
    first, *_ = worker.said.splitlines()
    found = LINE.fullmatch(first)
    assert found is not None, first
    assert found.groups()[1:4] == ("INFO", str(worker.pid), "rpc.cli.worker")
    assert re.search(rf"INFO {worker.pid} rpc.jobs: job 'add' \(\w+\) took \d\.\d+ s: done\n", worker.said)
    assert worker.said.count("rpc.jobs: job 'flaky'") == 3
    assert "rpc.describe" not in worker.said  # it is no job of the user's


def test_by_default_a_job_has_no_line(logged: Callable[..., Process]) -> None:
    said = logged().said
    assert "rpc.jobs" not in said
    assert "rpc.receiver: serving" in said


def test_retries_are_one_line_each_and_the_last_failure_has_a_traceback_of_the_handler(
    logged: Callable[..., Process],
) -> None:
    said = logged("--log-level", "warning").said.splitlines()
    levels = [found[2] for line in said if (found := LINE.fullmatch(line))]
    assert levels == ["WARNING", "WARNING", "ERROR"]
    assert "attempt 1, and is tried again in" in said[0]
    assert said[0].endswith("s: ConnectionError: no\\nway")
    frames = [line for line in said if line.lstrip().startswith("File ")]
    assert len(frames) == 1
    assert frames[0].endswith("in flaky")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_json_is_an_object_on_each_line_of_all_processes(
    logged: Callable[..., Process], processes: str
) -> None:
    worker = logged("--log-format", "json", "--log-level", "info", "--processes", processes)
    entries: list[dict[str, Any]] = [json.loads(line) for line in worker.said.splitlines()]
    assert all({"time", "level", "process", "logger", "message"} <= entry.keys() for entry in entries)
    (done,) = [entry for entry in entries if entry.get("job") == "add"]
    assert (done["logger"], done["outcome"], len(done["id"])) == ("rpc.jobs", "done", 32)
    assert done["seconds"] >= 0
    (failed,) = [entry for entry in entries if entry["level"] == "ERROR"]
    assert failed["exception"].startswith("Traceback ")
    assert failed["exception"].endswith("ConnectionError: no\nway")
    assert len({entry["process"] for entry in entries}) >= int(processes)  # that, and its supervisor


def test_json_is_also_what_ends_it(tmp_path: Path, spawn: Spawn) -> None:
    worker = spawn("worker", "--log-format", "json", "--settings", "none")
    assert worker.ends() == 2
    assert "no settings module 'none'" in json.loads(worker.said)["message"]


def test_two_levels_are_wrong_use(invoke: Callable[..., Result]) -> None:
    result = invoke("worker", "--log-level", "info", "--quiet")
    assert result.exit_code == 2
    assert "not with --verbose or --quiet" in result.stderr
