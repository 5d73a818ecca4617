"""`rpc worker`: what it says, how it stops, how it starts again."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from rpc import RpcClient

from .conftest import Process

pytestmark = pytest.mark.redis

Spawn = Callable[..., Process]
Run = Callable[..., subprocess.CompletedProcess[str]]

reloads = pytest.mark.skipif(
    importlib.util.find_spec("watchfiles") is None, reason="--reload needs watchfiles, which is not installed"
)


def test_it_serves_and_says_what(project: Path, spawn: Spawn, rpc: Run) -> None:
    worker = spawn("worker", "--queue", "one", "--queue", "two", "--concurrency", "2")
    answer = rpc("call", "add", "a:=1", "b:=1", "--queue", "two", "--json")
    assert (answer.returncode, json.loads(answer.stdout)["data"]) == (0, {"answer": 2})
    assert f"rpc.cli.worker: worker {worker.pid} on rq+redis://127.0.0.1:" in worker.said
    assert "rpc.receiver: serving one, two: add, count, echo, fail, slow, typed" in worker.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_0(project: Path, url: str, spawn: Spawn, number: signal.Signals) -> None:
    worker = spawn("worker")
    with RpcClient(backend=url) as client:
        client.call_and_wait("add", {"a": 1, "b": 1})
    assert worker.ends(number) == 0
    assert "stopped" in worker.said
    assert "Traceback" not in worker.said


def test_what_runs_is_finished_before_it_stops(project: Path, url: str, spawn: Spawn) -> None:
    worker = spawn("worker")
    with RpcClient(backend=url) as client:
        answer = client.submit("slow", {"seconds": 0.7})
        worker.says("slow began")
        assert worker.ends(signal.SIGTERM) == 0
        assert answer.result(5).data == "done"


def test_what_outlasts_the_grace_period_is_handed_back(project: Path, url: str, spawn: Spawn) -> None:
    worker = spawn("worker", "--grace", "0.3")
    with RpcClient(backend=url) as client:
        answer = client.submit("slow", {"seconds": 3})
        worker.says("slow began")
        assert worker.ends(signal.SIGTERM) == 0
        assert "handing back" in worker.said
        other = spawn("worker")
        other.says("slow began")
        assert answer.result(20).data == "done"


def test_a_second_signal_ends_it_at_once(project: Path, url: str, spawn: Spawn) -> None:
    worker = spawn("worker")
    with RpcClient(backend=url) as client:
        client.submit("slow", {"seconds": 60})
        worker.says("slow began")
        worker.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # the second may only arrive once the first has been heard
        assert worker.ends(signal.SIGINT) == -signal.SIGINT


def test_quiet_says_nothing_as_long_as_all_is_well(project: Path, url: str, spawn: Spawn) -> None:
    worker = spawn("worker", "--quiet")
    with RpcClient(backend=url) as client:
        client.call_and_wait("add", {"a": 1, "b": 1})
    assert worker.ends(signal.SIGTERM) == 0
    assert worker.said == ""


def test_logging_that_is_set_up_without_us_does_not_silence_it(project: Path, url: str, spawn: Spawn) -> None:
    with (project / "settings.py").open("a") as settings:
        settings.write("\nimport logging.config\nlogging.config.dictConfig({'version': 1})\n")
    worker = spawn("worker")
    worker.says("rpc.receiver: serving")
    assert worker.ends(signal.SIGTERM) == 0


def test_the_backend_on_the_command_line_counts(tmp_path: Path, url: str, spawn: Spawn, rpc: Run) -> None:
    from .conftest import JOBS

    (tmp_path / "settings.py").write_text(f"{JOBS}\nRPC_BACKEND = 'memory://'\n")
    worker = spawn("worker", "--backend", url)
    assert rpc("call", "typed", "a:=1", "b:=1", "--backend", url).stdout == "2\n"
    assert worker.ends(signal.SIGTERM) == 0


def test_a_password_is_not_logged(project: Path, spawn: Spawn, url: str) -> None:
    worker = spawn("worker", "--backend", url.replace("//", "//:secret@"))
    assert worker.ends() == 4
    assert "secret" not in worker.said
    assert ":***@" in worker.said


ON_REDIS = "RPC_JOB_MAPPING = {'f': print}\nRPC_BACKEND = 'redis://127.0.0.1:1'\n"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (None, "there is no settings module 'settings'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("RPC_BACKEND = 'memory://'", "RPC_SERVICES have no job"),
        ("RPC_JOB_MAPPING = {'f': print}", "has neither RPC_BACKEND nor RPC_RECEIVER_BACKEND"),
        ("RPC_COLOUR = 'red'", "unknown key RPC_COLOUR"),
        (
            "RPC_JOB_MAPPING = {'f': print}\nRPC_BACKEND = 'redis://h?foo=1'",
            "nor of redis-py: 'foo'; it has lease, max_deliveries, ",
        ),
        ("RPC_JOB_MAPPING = {'f': lambda: 1}\nRPC_BACKEND = 'memory://'", "nobody else could call it"),
        ("RPC_JOB_MAPPING = {'f': 'no.such.thing'}\nRPC_BACKEND = 'memory://'", "RPC_JOB_MAPPING['f']"),
        (f"{ON_REDIS}RPC_CODEC = 'nosuch'", "there is no codec 'nosuch' (see RPC_CODEC, RPC_ACCEPT)"),
        (f"{ON_REDIS}RPC_ROUTES = {{'x.*': 'no name'}}", "RPC_ROUTES['x.*']: 'no name' is no queue name"),
        (f"{ON_REDIS}RPC_TOKEN = {{'x': 1}}", "RPC_TOKEN: Expected `str`"),
    ],
)
def test_settings_that_are_of_no_use_are_one_line_and_2(
    invoke: Callable[..., Result], tmp_path: Path, settings: str | None, complaint: str
) -> None:
    name = f"settings_{abs(hash(settings))}" if settings else "settings"
    if settings:
        (tmp_path / f"{name}.py").write_text(settings)
    result = invoke("worker", *(["--settings", name] if settings else []))
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert complaint in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words", [["--concurrency", "0"], ["--grace", "0"], ["--queue", "no name"], ["more"]]
)
def test_wrong_words_are_wrong_use(invoke: Callable[..., Result], words: list[str]) -> None:
    assert invoke("worker", *words).exit_code == 2


@reloads
def test_reload_picks_up_a_change(project: Path, url: str, spawn: Spawn) -> None:
    (project / "jobs.py").write_text("def version() -> int:\n    return 1\n")
    settings = f"import jobs\nRPC_JOB_MAPPING = {{'version': jobs.version}}\nRPC_BACKEND = {url!r}\n"
    (project / "settings.py").write_text(settings)
    worker = spawn("worker", "--reload")
    with RpcClient(backend=url) as client:
        assert client.call_and_wait("version").data == 1
        (project / "jobs.py").write_text("def version() -> str:\n    return 'two'\n")
        worker.says("jobs.py changed")
        worker.says("serving", times=2)
        assert client.call_and_wait("version").data == "two"
    assert worker.ends(signal.SIGTERM) == 0
    assert worker.said.count("rpc.receiver: stopped") == 2


@reloads
def test_reload_waits_for_the_change_that_repairs_it(project: Path, url: str, spawn: Spawn) -> None:
    good = (project / "settings.py").read_text()
    (project / "settings.py").write_text("1 / 0\n")
    worker = spawn("worker", "--reload")
    worker.says("Error: settings module 'settings' cannot be imported")
    (project / "settings.py").write_text(good)
    worker.says("serving")
    with RpcClient(backend=url) as client:
        assert client.call_and_wait("typed", {"a": 1, "b": 1}).data == 2
    assert worker.ends(signal.SIGINT) == 0


@reloads
def test_reload_lets_what_runs_finish_after_ctrl_c(project: Path, url: str, spawn: Spawn) -> None:
    worker = spawn("worker", "--reload")
    with RpcClient(backend=url) as client:
        answer = client.submit("slow", {"seconds": 0.7})
        worker.says("slow began")
        assert worker.ends(signal.SIGINT) == 0
        assert answer.result(5).data == "done"


def test_reload_without_watchfiles_is_one_line_and_2(project: Path) -> None:
    code = "import sys; sys.modules['watchfiles'] = None; from rpc.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "worker", "--reload"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "Error: --reload needs `pip install 'jobrpc[reload]'`\n"
