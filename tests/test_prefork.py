"""Jobs with `fork=True`: what they see, how they die alone, and how they end with their worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from backends.rq_jobs import end, eventually
from forked_jobs import JOBS, Office, in_worker

import rpc.prefork
from rpc import (
    InvalidParams,
    RemoteError,
    RpcClient,
    RpcReceiver,
    SerializationError,
    SettingsError,
    TimeLimitExceeded,
    Unsupported,
    WorkerLost,
    job,
)
from rpc.settings import Settings

PATIENCE = 30.0
Worker = Callable[..., RpcClient]


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("RPC_TEST_LOG", str(path))
    return path


@pytest.fixture
def client(rpc_worker: Worker, any_url: str) -> RpcClient:
    return rpc_worker(JOBS, backend=any_url, queues=["default"])


@pytest.fixture
def in_memory(rpc_worker: Worker) -> RpcClient:
    return rpc_worker(JOBS)


def lines(log: Path) -> list[str]:
    return log.read_text().split("\n")[:-1]


def release(log: Path) -> None:
    log.with_suffix(".release").touch()


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def holding(log: Path, times: int = 1) -> list[int]:
    """The processes of the last job that holds."""
    eventually(lambda: len(held_by(log)) >= times)
    return [int(pid) for pid in held_by(log)[-1].split()[1:]]


def held_by(log: Path) -> list[str]:
    return [line for line in lines(log) if line.startswith("holds")]


# What a handler sees.


def test_it_runs_in_a_process_of_its_own_with_what_any_handler_gets(client: RpcClient) -> None:
    assert client.call_and_wait("process").data != os.getpid()
    assert client.call_and_wait("add", {"a": 1}).data == 2
    seen = client.call_and_wait("inspected", {"n": 1}, headers={"x-tenant": "t"}, timeout=20)
    assert seen.data.pop("left") == pytest.approx(20, abs=10)
    assert seen.data == {
        "data": {"n": 1},
        "header": "t",
        "attempt": 1,
        "redelivered": False,
        "cancelled": False,
        "id": seen.id,
        "name": "inspected",
        "context": "unset",
        "main thread": True,
    }


def test_arguments_are_checked_before(in_memory: RpcClient) -> None:
    with pytest.raises(InvalidParams):
        in_memory.call_and_wait("add", {"a": "one"})


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    "value",
    [None, 2**60, "é", [1.5, {"a": [True]}], "x" * 300_000],
    ids=["none", "number", "text", "nested", "large"],
)
def test_values_arrive_as_from_any_handler(rpc_worker: Worker, codec: Any, value: Any) -> None:
    rpc_worker(JOBS, backend=(url := "memory://values"))
    with RpcClient(backend=url, codec=codec) as client:
        assert client.call_and_wait("echo", [value]).data == value


def test_it_may_respond_before_its_end(client: RpcClient, log: Path) -> None:
    assert client.call_and_wait("responds").data == "first"
    eventually(lambda: lines(log) == ["True", "False", "responded"])
    client.call("responds")
    eventually(lambda: lines(log)[3:] == ["False", "False", "responded"])


def test_a_thread_that_outlives_its_job_does_not_respond_to_the_next_one(
    in_memory: RpcClient, log: Path
) -> None:
    assert in_memory.call_and_wait("responds_later").data is None
    held = in_memory.submit("holds")
    holding(log)
    release(log)
    assert held.result(PATIENCE).data == "first"
    eventually(lambda: "False" in lines(log))


def test_what_cannot_be_encoded_is_an_error_as_from_any_handler(in_memory: RpcClient, log: Path) -> None:
    with pytest.raises(SerializationError, match="the result cannot be encoded: a value of type object"):
        in_memory.call_and_wait("unencodable")
    with pytest.raises(SerializationError, match="the result cannot be encoded"):
        in_memory.call_and_wait("responds_with")
    assert lines(log) == ["SerializationError"]


def test_what_is_too_large_is_an_error_as_from_any_handler(rpc_worker: Worker) -> None:
    client = rpc_worker(JOBS, settings=Settings(max_message_bytes=2000))
    with pytest.raises(SerializationError, match="more than 2000"):
        client.call_and_wait("large")
    assert client.call_and_wait("add", {"a": 1}).data == 2


def test_it_calls_others_as_a_part_of_its_request(rpc_worker: Worker, any_broker_url: str, log: Path) -> None:
    client = rpc_worker(JOBS, backend=any_broker_url, queues=["default"], concurrency=2)
    assert client.call_and_wait("calls", headers={"x-tenant": "t"}, timeout=20).data == "t"


def test_on_a_backend_of_one_process_it_is_told_that_it_cannot_call(in_memory: RpcClient) -> None:
    with pytest.raises(RemoteError, match="cannot call others on this backend") as caught:
        in_memory.call_and_wait("calls")
    assert caught.value.type == Unsupported.__name__


def test_it_is_told_that_its_caller_has_left(client: RpcClient, log: Path) -> None:
    future = client.submit("holds")
    holding(log)
    future.cancel()
    eventually(lambda: "cancelled" in lines(log))
    assert client.call_and_wait("add", {"a": 1}).data == 2


def test_hooks_middleware_and_context_are_around_it_in_the_worker(rpc_worker: Worker) -> None:
    heard: list[Any] = []

    @contextmanager
    def tenant() -> Iterator[None]:
        token = in_worker.set("set")
        yield
        in_worker.reset(token)

    def middleware(request: Any, call_next: Any) -> Any:
        with tenant():
            heard.append(("middleware", os.getpid(), in_worker.get()))
            return {"wrapped": call_next(request)}

    client = rpc_worker(
        JOBS,
        middleware=[middleware],
        hooks={
            "post_success": lambda request, result: heard.append(result),
            "post_error": lambda request, error: heard.append((type(error).__mro__[1], str(error))),
        },
    )
    assert client.call_and_wait("add", {"a": 1}).data == {"wrapped": 2}
    with pytest.raises(RemoteError):
        client.call_and_wait("fails", {"how": "other"})
    around = ("middleware", os.getpid(), "set")
    assert heard == [around, {"wrapped": 2}, around, (RemoteError, "KeyError: 'other'")]


def test_it_has_nothing_of_its_worker(rpc_worker: Worker, any_url: str) -> None:
    client = rpc_worker(JOBS, backend=any_url, queues=["default"])
    found = client.call_and_wait("surroundings").data
    assert found.pop("ignored") == ["SIGPIPE", "SIGXFSZ"]  # as any Python has it
    # Its end of what the two say to each other, twice.
    assert found == {"sockets": 2, "session": True, "blocked": [], "input": "", "threads": 1}


def test_signals_for_whole_groups_do_not_end_it(in_memory: RpcClient) -> None:
    assert in_memory.call_and_wait("terminated").data == "lives"


# Errors and deaths.


@pytest.mark.parametrize("is_sent", [False, True])
def test_what_it_raises_is_told_as_of_any_handler(rpc_worker: Worker, is_sent: bool) -> None:
    client = rpc_worker(JOBS, settings=Settings(send_tracebacks=is_sent))
    with pytest.raises(RemoteError) as caught:
        client.call_and_wait("fails", {"how": "other"})
    assert (caught.value.type, caught.value.message) == ("KeyError", "'other'")
    assert bool(caught.value.traceback) is is_sent
    assert not is_sent or "in fails" in str(caught.value.traceback)


def test_its_traceback_is_in_the_log_of_the_worker(
    in_memory: RpcClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RemoteError):
        in_memory.call_and_wait("fails", {"how": "other"})
    assert "in fails" in caplog.text


def test_retry_on_is_asked_where_the_exception_is(client: RpcClient, log: Path) -> None:
    with pytest.raises(RemoteError, match="Odd: strange"):
        client.call_and_wait("fails", {"how": "odd"})
    assert lines(log) == ["attempt 1", "attempt 2"]
    with pytest.raises(RemoteError, match="KeyError"):
        client.call_and_wait("fails", {"how": "other"})
    assert lines(log)[2:] == ["attempt 1"]


@pytest.mark.parametrize(
    ("how", "why"),
    [("segfault", "the process in which it ran died of SIGSEGV"), ("exit", "ended with exit code 3")],
)
def test_its_death_is_that_of_the_job_alone(client: RpcClient, log: Path, how: str, why: str) -> None:
    with pytest.raises(WorkerLost, match=why):
        client.call_and_wait("dies", {"how": how}, timeout=PATIENCE)
    assert lines(log) == ["dies"]
    assert client.call_and_wait("add", {"a": 1}).data == 2


def test_sys_exit_is_an_error_as_in_any_handler(in_memory: RpcClient) -> None:
    with pytest.raises(RemoteError, match="SystemExit: politely"):
        in_memory.call_and_wait("dies", {"how": "politely"})


def test_one_that_died_is_tried_again_if_the_job_is(client: RpcClient) -> None:
    assert client.call_and_wait("dies_once", timeout=PATIENCE).data == 2


def test_one_that_died_with_nothing_to_do_costs_no_job(in_memory: RpcClient) -> None:
    pid = in_memory.call_and_wait("process").data
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_gone(pid))
    assert in_memory.call_and_wait("process").data != pid


def test_at_its_limit_it_is_killed_whatever_it_does(client: RpcClient, log: Path) -> None:
    with pytest.raises(TimeLimitExceeded, match=r"longer than 0\.5 s"):
        client.call_and_wait("sticks", timeout=PATIENCE)
    (line,) = lines(log)
    assert is_gone(int(line.split()[1]))
    assert client.call_and_wait("add", {"a": 1}).data == 2


def test_at_its_limit_what_it_has_started_is_killed_and_the_job_tried_again(
    client: RpcClient, log: Path
) -> None:
    assert client.call_and_wait("slow_once", timeout=PATIENCE).data == 2
    pids = holding(log)
    assert len(pids) == 2
    eventually(lambda: all(map(is_gone, pids)))


def test_after_so_many_jobs_it_is_another_one(rpc_worker: Worker) -> None:
    client = rpc_worker(JOBS, max_jobs_per_child=2)
    pids = [client.call_and_wait("process").data for _ in range(6)]
    assert pids[::2] == pids[1::2]
    assert len({*pids}) == 3
    eventually(lambda: all(map(is_gone, pids[:4])))


def test_as_many_run_at_a_time_as_there_are_threads(rpc_worker: Worker, log: Path) -> None:
    client = rpc_worker(JOBS, concurrency=2)
    futures = [client.submit("holds") for _ in range(2)]
    holding(log, times=2)
    release(log)
    assert [each.result(PATIENCE).data for each in futures] == ["first", "first"]


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
        "receiver._children.start()\n"
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
            server: Any = receiver._server
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
