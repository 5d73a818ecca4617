"""`rpc worker --processes`: who works, who is replaced, and how all of them stop."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from rpc import Response, RpcClient
from rpc.cli.processes import A_WHILE, LONGEST_PAUSE, Place
from rpc.testing import RedisServer

from .conftest import RPC, SECONDS, Process

pytestmark = pytest.mark.redis

Spawn = Callable[..., Process]
Run = Callable[..., subprocess.CompletedProcess[str]]
TWO = ("worker", "--processes", "2")

SETTINGS = """
import os, subprocess, time
from pathlib import Path

def pid():
    return os.getpid()

def together():
    Path(f"{os.getpid()}.began").touch()
    while len(list(Path().glob("*.began"))) < 2:
        pass
    return os.getpid()

def hold(request):
    Path("held").write_text(str(os.getpid()))
    while not request.redelivered and not Path("released").exists():
        time.sleep(0.01)
    return os.getpid()

def orphan():
    return int(subprocess.run(["sh", "-c", "sleep 0.1 >&- & echo $!"], stdout=subprocess.PIPE).stdout)

RPC_JOB_MAPPING = {"pid": pid, "together": together, "hold": hold, "orphan": orphan}
"""


@pytest.fixture(
    params=[
        pytest.param("rq+{}?lease=1", marks=pytest.mark.slow, id="rq"),
        pytest.param("{}?lease=1", id="redis"),
    ]
)
def url(request: pytest.FixtureRequest, rpc_redis: RedisServer) -> str:
    """The supervisor knows of no broker: with one more, nothing but the workers differs."""
    return str(request.param).format(rpc_redis.url)


@pytest.fixture
def project(tmp_path: Path, url: str) -> Path:
    queue = f"RPC_QUEUES = ({tmp_path.name!r},)"  # what one test leaves behind is nothing to another
    (tmp_path / "settings.py").write_text(f"{SETTINGS}\nRPC_BACKEND = {url!r}\n{queue}\n")
    return tmp_path


@pytest.fixture
def client(project: Path, url: str) -> Iterator[RpcClient]:
    with RpcClient(backend=url, queue=project.name, timeout=SECONDS) as client:
        yield client


def serving(command: Process, times: int = 2) -> list[int]:
    """The pids of the workers, once so many have begun to serve."""
    said = command.says("rpc.receiver: serving", times)
    return [int(pid) for pid in re.findall(r"rpc.cli.worker: worker (\d+) on", said)]


def holding(project: Path, client: RpcClient) -> tuple[Future[Response], int]:
    """A job that runs, and the pid of its worker."""
    future = client.submit("hold")
    return future, int(written(project / "held"))


def written(file: Path) -> str:
    end = time.monotonic() + SECONDS
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end, f"there is no {file}"
        time.sleep(0.01)
    return file.read_text()


def test_two_processes_work_at_the_same_time(client: RpcClient, spawn: Spawn) -> None:
    pids = serving(spawn(*TWO))
    futures = [client.submit("together") for _ in range(2)]
    assert sorted(future.result().data for future in futures) == sorted(pids)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(project: Path, client: RpcClient, spawn: Spawn) -> None:
    command = spawn(*TWO)
    first = serving(command)
    future, victim = holding(project, client)
    os.kill(victim, signal.SIGKILL)
    command.says(f"worker {victim} died of SIGKILL: another one starts")
    after = set(serving(command, times=3)) - {victim}
    assert victim in first
    assert len(after) == 2
    assert future.result().data in after
    assert command.ends(signal.SIGTERM) == 0


@pytest.mark.slow
def test_one_that_is_told_to_stop_by_itself_is_replaced(client: RpcClient, spawn: Spawn) -> None:
    command = spawn(*TWO)
    one = serving(command)[0]
    os.kill(one, signal.SIGTERM)
    command.says(f"worker {one} ended with exit code 0: another one starts")
    assert len(serving(command, times=3)) == 3


def test_what_dies_of_its_start_is_started_later_and_later() -> None:
    place = Place()
    pauses = []
    for now in range(8):
        place.since = now
        place.vacate(now + 0.1)
        pauses.append(place.pause)
    assert pauses == [0.5, 1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE]
    place.vacate(place.since + A_WHILE)
    assert place.pause == 0
    place.vacate(place.since)
    assert place.pause == 0.5


@pytest.mark.slow
def test_one_that_cannot_start_says_why_until_it_can(project: Path, client: RpcClient, spawn: Spawn) -> None:
    good = (project / "settings.py").read_text()
    (project / "settings.py").write_text("import os\nos._exit(7)\n")
    command = spawn(*TWO)
    command.says("ended with exit code 7: another one starts in 0.5 s")
    (project / "settings.py").write_text(good)
    assert client.call_and_wait("pid").data in serving(command)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_all_finish(
    project: Path, client: RpcClient, spawn: Spawn, number: signal.Signals
) -> None:
    command = spawn(*TWO)
    serving(command)
    future, _ = holding(project, client)
    command.popen.send_signal(number)
    command.says("stopping within", times=2)
    (project / "released").touch()
    assert future.result().data
    assert command.ends() == 0
    assert command.said.count("rpc.receiver: stopped") == 2
    assert "WARNING" not in command.said
    assert "Traceback" not in command.said


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_is_one_signal(project: Path, client: RpcClient) -> None:
    command = Process(*RPC, *TWO, cwd=project, env={**os.environ}, start_new_session=True)
    try:
        serving(command)
        future, _ = holding(project, client)
        command.popen.send_signal(signal.SIGSTOP)
        os.killpg(command.pid, signal.SIGINT)
        assert client.call_and_wait("pid").data  # as only the supervisor is in the terminal's group
        command.popen.send_signal(signal.SIGCONT)
        command.says("stopping within", times=2)
        (project / "released").touch()
        assert future.result().data
        assert command.ends() == 0
    finally:
        command.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False])
def test_who_gets_the_signal_along_with_the_supervisor_may_finish_too(
    project: Path, client: RpcClient, spawn: Spawn, is_first: bool
) -> None:
    command = spawn(*TWO)
    serving(command)
    pids = {future.result().data for future in [client.submit("together") for _ in range(2)]}
    future, _ = holding(project, client)
    everybody = [*pids, command.pid]
    for pid in reversed(everybody) if is_first else everybody:  # as systemd does
        os.kill(pid, signal.SIGTERM)
        if pid == command.pid:
            command.says("stopping within", times=2)
    command.says("stopping within", times=2)
    (project / "released").touch()
    assert future.result().data in pids
    assert command.ends() == 0


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(project: Path, client: RpcClient, spawn: Spawn) -> None:
    command = spawn(*TWO)
    serving(command)
    _, worker = holding(project, client)
    command.popen.send_signal(signal.SIGTERM)
    command.says("stopping within", times=2)
    assert command.ends(signal.SIGINT) == 128 + signal.SIGINT
    assert f"worker {worker} died of SIGKILL" in command.said
    assert "another one" not in command.said


@pytest.mark.slow
def test_a_signal_ends_what_has_not_begun_to_serve(project: Path, spawn: Spawn) -> None:
    code = "import time\nfrom pathlib import Path\nPath('held').write_text('!')\ntime.sleep(600)\n"
    (project / "settings.py").write_text(code)
    command = spawn(*TWO)
    written(project / "held")
    assert command.ends(signal.SIGTERM) == 0
    assert "Traceback" not in command.said


@pytest.mark.slow
def test_the_workers_do_not_outlive_a_killed_supervisor(
    project: Path, client: RpcClient, spawn: Spawn
) -> None:
    command = spawn(*TWO)
    serving(command)
    future, _ = holding(project, client)
    command.popen.kill()
    command.says("stopping within", times=2)
    (project / "released").touch()
    assert future.result().data
    assert command.ends() == -signal.SIGKILL
    assert command.is_silent, "a worker still has stderr open"
    assert command.said.count("rpc.receiver: stopped") == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--settings", "none_such"], "there is no settings module 'none_such'"),
        (["--backend", "memory://"], "a worker needs a backend that reaches beyond one process"),
    ],
)
def test_what_is_of_no_use_is_one_line_and_2(
    project: Path, rpc: Run, words: list[str], complaint: str
) -> None:
    result = rpc(*TWO, *words, "--quiet")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {complaint}")


@pytest.mark.slow
def test_settings_that_have_become_wrong_stop_no_one_who_serves(
    project: Path, client: RpcClient, spawn: Spawn
) -> None:
    command, settings = spawn(*TWO), project / "settings.py"
    pids, right = serving(command), settings.read_text()
    settings.write_text("1 / 0\n")
    os.kill(pids[0], signal.SIGKILL)
    command.says("cannot be imported: ZeroDivisionError")
    command.says("ended with exit code 2: another one starts in")
    assert client.call_and_wait("pid").data == pids[1]
    settings.write_text(right)
    assert len({*serving(command, times=3)}) == 3


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("watchfiles") is None, reason="--reload needs watchfiles, which is not installed"
)
def test_reload_restarts_all(project: Path, client: RpcClient, spawn: Spawn) -> None:
    command = spawn(*TWO, "--reload")
    before = serving(command)
    with (project / "settings.py").open("a") as settings:
        settings.write("RPC_JOB_MAPPING['pid'] = lambda: -os.getpid()\n")
    command.says("settings.py changed")
    after = set(serving(command, times=4)) - set(before)
    assert -client.call_and_wait("pid").data in after
    assert command.ends(signal.SIGINT) == 0
    assert command.said.count("rpc.receiver: stopped") == 4


PROCESS_1 = """
import ctypes, types
import rpc.cli, rpc.cli.worker
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans of this process become its children
rpc.cli.worker.os = types.SimpleNamespace(getpid=lambda: 1)
rpc.cli.main()
"""


@pytest.fixture
def process_1(project: Path) -> Iterator[Spawn]:
    """Start a command as if it were process 1 of a container."""
    command = Process(sys.executable, "-c", PROCESS_1, "worker", cwd=project, env={**os.environ})
    yield lambda: command
    command.close()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is of Linux")
def test_process_1_buries_the_orphans_of_handlers(client: RpcClient, process_1: Spawn) -> None:
    command = process_1()
    orphans = [client.call_and_wait("orphan").data for _ in range(3)]
    end = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < end, "they stay as zombies"
        time.sleep(0.01)
    assert client.call_and_wait("pid").data != command.pid
    assert command.ends(signal.SIGTERM) == 0
    assert command.said.count("rpc.receiver: stopped") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is of Linux")
def test_process_1_ends_as_its_only_worker_does(client: RpcClient, process_1: Spawn) -> None:
    command = process_1()
    os.kill(client.call_and_wait("pid").data, signal.SIGKILL)
    assert command.ends() == 128 + signal.SIGKILL


def test_the_supervisor_has_nothing_that_a_fork_could_break() -> None:
    """What it has imported when it forks: no driver of a broker, and no thread."""
    code = "import rpc.cli, sys, threading; print(*sys.modules); assert threading.active_count() == 1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"redis", "rq", "settings"} & set(done.stdout.split())
