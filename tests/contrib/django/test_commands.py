"""The commands of manage.py that end by themselves, and the tests that the project itself has."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from .conftest import Project, only_sqlite

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def test_the_tests_of_the_project(project: Project) -> None:
    project.manage("test", "--verbosity", "2")


@only_sqlite
def test_wrong_settings_stop_every_command(project: Project) -> None:
    wrong = json.dumps({"THREADS": 3, "TIMEOUT": "long"})
    for command in ["check"], ["rpc"], ["rpc", "--processes", "2"], ["runserver", "0", "--noreload"]:
        told = project.manage(*command, code=1, TEST_RPC=wrong)
        assert "(rpc.E002) config.settings has the unknown key RPC_THREADS" in told
        assert "(rpc.E002) config.settings: RPC_TIMEOUT: " in told


@only_sqlite
@pytest.mark.parametrize("options", [[], ["--processes", "2"]])
def test_a_path_that_leads_nowhere_stops_the_worker(project: Project, options: list[str]) -> None:
    wrong = json.dumps({"SERVICES": ["tally.nosuch.Tally"]})
    told = project.manage("rpc", *options, code=2, TEST_RPC=wrong)
    assert "config.settings: RPC_SERVICES is 'tally.nosuch.Tally': ModuleNotFoundError" in told
    assert "config.settings: RPC_SERVICES" in project.manage("rpcinfo", code=2, TEST_RPC=wrong)


@only_sqlite
@pytest.mark.parametrize(
    "options",
    [["--concurrency", "0"], ["--queue", "a b"], ["--grace", "0"], ["--grace", "inf"], ["--processes", "x"]],
)
def test_wrong_options_are_refused(project: Project, options: list[str]) -> None:
    assert f"argument {options[0]}: '{options[1]}' is no " in project.manage("rpc", *options, code=2)


@only_sqlite
def test_a_worker_that_breaks_its_contract_does_not_start(project: Project, tmp_path: Path) -> None:
    info = {"title": "t", "version": "1"}
    document = {"openrpc": "1.4.1", "info": info, "methods": [{"name": "tally.nosuch", "params": []}]}
    (tmp_path / "openrpc.json").write_text(json.dumps(document))
    told = project.manage("rpc", "--contract", str(tmp_path / "openrpc.json"), code=2)
    assert "openrpc.json: tally.nosuch: the method is gone" in told


def test_rpcinfo_lists_what_is_declared_and_what_runs(project: Project) -> None:
    worker = project.worker("--concurrency", "5", "--queue", "slow", "--queue", "fast")
    told = project.manage("rpcinfo")
    assert "tally.services.Tally: tally\n" in told
    assert "  note(text: str) -> int\n" in told
    assert "\njobs:\n  double(number: int) -> int\n" in told
    assert "\nlisteners:\n  used: tally.listener\n" in told
    assert "\ntimers:\n  tally.tick: every 0.05 s\n" in told
    [pid] = re.findall(
        r"\nworkers:\n  \S+ (\d+): slow, fast; 5 at a time, 100 coroutines; "
        r"\d+ jobs, 1 listeners, 1 timers\n$",
        told,
    )
    worker.says(rf"worker {pid} on")


def test_rpcinfo_for_programs(project: Project) -> None:
    project.worker()
    told = json.loads(project.manage("rpcinfo", "--json"))
    assert set(told) == {"services", "jobs", "listeners", "timers", "workers"}
    [service] = told["services"]
    assert (service["source"], service["name"]) == ("tally.services.Tally", "tally")
    assert service["methods"]["note"] == "(text: str) -> int"
    assert told["jobs"] == {"double": "(number: int) -> int"}
    [worker] = told["workers"]
    assert worker["concurrency"] == 3
    assert worker["jobs"]["tally.note"] == "(text: str) -> int"


@only_sqlite
def test_rpcinfo_without_a_broker_tells_what_is_declared(project: Project) -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        nowhere = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        told = project.manage("rpcinfo", code=4, TEST_BROKER=nowhere)
        assert "tally.services.Tally: tally\n" in told
        assert "CommandError: " in told
        said = project.manage("rpcinfo", "--json", code=4, TEST_BROKER=nowhere)
        assert json.loads(said.splitlines()[0])["workers"] is None


@only_sqlite
def test_rpcinfo_of_a_project_that_only_calls(project: Project) -> None:
    told = project.manage("rpcinfo", TEST_RPC=json.dumps({"SERVICES": [], "JOB_MAPPING": {}}))
    assert told == "no worker runs\n"


def test_the_commands_of_rpc_read_the_settings_of_django(project: Project) -> None:
    """They run without Django: what is in RPC is enough for clients."""

    def told(*words: str) -> str:
        command = [sys.executable, "-m", "rpc", *words, "--settings", "config.settings"]
        env = {**os.environ, **project.environment}
        return subprocess.run(
            command, cwd=project.directory, env=env, capture_output=True, text=True, check=True
        ).stdout

    id = told("call", "double", "[4]", "--no-wait").strip()
    assert told("jobs", "list").startswith(f"{id}  waiting  default  double")
    assert '"waiting":1' in told("queues", "--json")
    project.worker()
    assert told("call", "double", "[4]") == "8\n"


def test_the_shell_has_a_client(project: Project) -> None:
    project.worker()
    text = uuid4().hex
    asked = f"services.tally.note(text='{text}'); print(rpc.call_and_wait('double', [4]).data, dir(services))"
    assert "8 ['tally']\n" in project.manage("rpcshell", "-c", asked)
    counted = f"from tally.models import Note; print(Note.objects.filter(text='{text}').count())"
    assert project.manage("rpcshell", "-c", counted).endswith("1\n")


@only_sqlite
def test_an_error_of_a_line_is_a_line(project: Project) -> None:
    project.worker()
    told = project.manage("rpcshell", "-c", "services.nosuch.note(text='')", code=1)
    assert "CommandError: no service is named 'nosuch' here" in told
    assert "Traceback" not in told


@only_sqlite
def test_the_client_survives_a_fork(project: Project) -> None:
    project.worker()
    forking = (
        "import os, sys; ask = lambda: rpc.call_and_wait('double', [4]).data\n"
        "before, child = ask(), os.fork()\n"
        "if not child: sys.exit(ask())\n"
        "print(before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ask())"
    )
    assert project.manage("rpcshell", "-c", forking).endswith("8 8 8\n")
