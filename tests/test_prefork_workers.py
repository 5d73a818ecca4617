"""Jobs with `fork=True`: where they are found, and how they end with their worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from backends.rq_jobs import end, eventually
from forked_jobs import JOBS, Office
from forked_log import PATIENCE, holding, is_gone, lines, logged, release

import rpc.prefork
from rpc import (
    RpcClient,
    RpcReceiver,
    SettingsError,
    job,
)

Worker = Callable[..., RpcClient]


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with logged(tmp_path / "log", monkeypatch) as path:
        yield path


# Where handlers are found.


def test_a_handler_that_no_other_process_finds_is_refused() -> None:
    @job(fork=True)
    def inner() -> None: ...

    for handler in inner, job(fork=True)(lambda: None), Office("here").place:
        with pytest.raises(SettingsError, match="job 'x' has fork=True, but a child process cannot find"):
            RpcReceiver(jobs={"x": handler}, backend="memory://")


def test_a_coroutine_function_is_refused() -> None:
    @job(fork=True)
    async def inner() -> None: ...

    with pytest.raises(SettingsError, match="job 'x': fork=True is for plain functions"):
        RpcReceiver(jobs={"x": inner}, backend="memory://")


@pytest.mark.parametrize("options", [{"retries": 1}, {"time_limit": 1}])
def test_a_generator_with_what_is_not_for_it_is_refused(options: Any) -> None:
    @job(**options)
    def inner() -> Iterator[int]:
        yield 1

    with pytest.raises(
        SettingsError, match="job 'x' is a generator: retries and time_limit are not for these"
    ):
        RpcReceiver(jobs={"x": inner}, backend="memory://")


def write(path: Path, text: str) -> None:
    path.with_suffix(".py").write_text(text)


def test_a_module_that_cannot_be_imported_again_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(
        tmp_path / "once_only",
        "import os\nfrom rpc import job\n@job(fork=True)\ndef work(): pass\nexec(os.environ.get('TEST', ''))",
    )
    receiver = RpcReceiver(jobs={"work": import_module("once_only").work}, backend="memory://")
    for code, why in (
        ("1 / 0", "ZeroDivisionError: division"),
        ("os._exit(7)", "ended with exit code 7"),
        ("raise SystemExit(5)", "ended with exit code 5"),
    ):
        monkeypatch.setenv("TEST", code)
        with pytest.raises(SettingsError, match=why):
            receiver.run()


SETTINGS = """
from forked_jobs import JOBS, Office
RPC_JOB_MAPPING = {**JOBS, "unnamed": __import__("rpc").job(fork=True)(lambda: "found")}
RPC_SERVICES = [Office("settings")]
RPC_QUEUES = ["default"]
RPC_MAX_JOBS_PER_CHILD = 1
"""


def test_a_settings_module_is_loaded_for_what_has_no_name(
    rpc_worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "forking_settings", SETTINGS)
    client = rpc_worker(None, backend="memory://named", settings="forking_settings")
    assert client.call_and_wait("unnamed").data == "found"
    places = [client.services.office.place() for _ in range(2)]
    assert [place.split()[0] for place in places] == ["settings"] * 2
    assert places[0] != places[1]


def test_without_such_jobs_there_is_no_process_and_nothing_is_imported_for_it() -> None:
    program = (
        "import sys, rpc\n"
        "receiver = rpc.RpcReceiver(jobs={'x': lambda: 1}, backend='memory://')\n"
        "receiver._application.children.start()\n"
        "assert 'multiprocessing.connection' not in sys.modules and 'rpc.prefork_child' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Workers that end.


@pytest.fixture
def spawn(tmp_path: Path, any_broker_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`rpc worker` in a process of its own."""
    write(tmp_path / "forking_settings", SETTINGS.replace("RPC_MAX_JOBS_PER_CHILD = 1", ""))
    started = []

    def start(*options: str, **more: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rpc", "worker", "--settings", "forking_settings"]
        process = subprocess.Popen(
            [*command, "--backend", any_broker_url, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            **more,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end(process)


@pytest.fixture
def caller(any_broker_url: str) -> Iterator[RpcClient]:
    with RpcClient(backend=any_broker_url, timeout=PATIENCE) as client:
        yield client


Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_lets_it_finish(
    spawn: Spawn, caller: RpcClient, log: Path, number: signal.Signals
) -> None:
    worker = spawn()
    future = caller.submit("holds")
    pids = holding(log)
    for pid in worker.pid, pids[0]:  # as service managers do
        os.kill(pid, number)
    release(log)
    assert future.result(PATIENCE).data == "first"
    assert worker.wait(PATIENCE) == 0
    assert all(map(is_gone, pids))


@pytest.mark.slow
def test_after_the_grace_period_it_is_killed_and_the_job_is_for_another_worker(
    spawn: Spawn, caller: RpcClient, log: Path
) -> None:
    worker = spawn("--grace", "0.3")
    future = caller.submit("holds")
    pids = holding(log)
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
    eventually(lambda: all(map(is_gone, pids)))
    spawn()
    holding(log, times=2)
    release(log)
    assert future.result(PATIENCE).data == "again"
    assert lines(log).count("held") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["holds", "sticks_for_good"])
def test_it_dies_with_its_worker_and_so_does_what_it_has_started(
    spawn: Spawn, caller: RpcClient, log: Path, name: str
) -> None:
    worker = spawn()
    caller.call(name)
    pids = holding(log)
    worker.kill()
    eventually(lambda: all(map(is_gone, pids)))


def test_what_it_prints_and_logs_is_seen_once(spawn: Spawn, caller: RpcClient, tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said:
        worker = spawn("--max-jobs-per-child", "1", stdout=said, stderr=subprocess.STDOUT)
        for word in "one", "two":
            caller.call_and_wait("says", {"text": word})
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    text = (tmp_path / "said").read_text()
    assert [line for line in text.splitlines() if line in ("one", "two")] == ["one", "two"]
    assert [line.split("WARNING ")[1] for line in text.splitlines() if "logged" in line] == [
        "logged one",
        "logged two",
    ]


@pytest.mark.redis
def test_a_worker_that_cannot_have_them_ends_as_with_any_wrong_setting(
    tmp_path: Path, redis_url: str
) -> None:
    write(tmp_path / "deadly", "import os\nfrom rpc import job\n@job(fork=True)\ndef work(): pass\n")
    write(tmp_path / "settings", "RPC_JOB_MAPPING = {'work': 'deadly.nothing'}\n")
    command = [sys.executable, "-m", "rpc", "worker", "--backend", redis_url]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE)
    assert ended.returncode == 2
    assert b"has no nothing" in ended.stderr


def test_a_receiver_that_is_left_hands_it_back(
    rpc_worker: Worker,
    any_broker_url: str,
    caller: RpcClient,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an application that goes on: nobody is told that the process of the job has died."""
    ended, end_child = Event(), rpc.prefork.Prefork._end

    def noted_end(*arguments: Any) -> int:
        code = end_child(*arguments)
        ended.set()
        return code

    monkeypatch.setattr(rpc.prefork.Prefork, "_end", noted_end)

    async def main() -> None:
        receiver = RpcReceiver(jobs=JOBS, backend=any_broker_url, queues=["default"], grace=0.2)
        async with receiver:
            await asyncio.to_thread(holding, log)
            server: Any = receiver._serving._server
            hand_back = server.hand_back
            server.hand_back = lambda: ended.wait(PATIENCE) and hand_back()

    future = caller.submit("holds")
    asyncio.run(main())
    pids = holding(log)
    eventually(lambda: all(map(is_gone, pids)))
    rpc_worker(JOBS, backend=any_broker_url, queues=["default"])
    holding(log, times=2)
    release(log)
    assert future.result(PATIENCE).data == "again"


def test_an_end_in_the_middle_of_a_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    init = rpc.prefork.Child.__init__

    def failing(child: Any, life: int) -> None:
        init(child, life)
        made.append(child)
        child.kill()

    monkeypatch.setattr(rpc.prefork.Child, "__init__", failing)
    receiver = RpcReceiver(jobs=JOBS, backend="memory://")
    with pytest.raises(SettingsError, match="died of SIGKILL"):
        receiver.run()
    assert all(is_gone(each._process.pid) for each in made)
