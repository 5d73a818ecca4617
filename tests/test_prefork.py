"""Jobs with `fork=True`: what they see, and how they die alone."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from backends.rq_jobs import eventually
from forked_jobs import JOBS, in_worker
from forked_log import PATIENCE, holding, is_gone, lines, logged, release

from rpc import (
    InvalidParams,
    RemoteError,
    RpcClient,
    RpcError,
    SerializationError,
    TimeLimitExceeded,
    Unsupported,
    WorkerLost,
)
from rpc.settings import Settings

Worker = Callable[..., RpcClient]


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with logged(tmp_path / "log", monkeypatch) as path:
        yield path


@pytest.fixture
def client(rpc_worker: Worker, any_url: str) -> RpcClient:
    return rpc_worker(JOBS, backend=any_url, queues=["default"])


@pytest.fixture
def in_memory(rpc_worker: Worker) -> RpcClient:
    return rpc_worker(JOBS)


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
def test_values_arrive_as_from_any_handler(rpc_worker: Worker, codec: Any) -> None:
    rpc_worker(JOBS, backend=(url := "memory://values"))
    with RpcClient(backend=url, codec=codec) as client:
        for value in None, 2**60, "é", [1.5, {"a": [True]}], "x" * 300_000:
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
    [
        ("segfault", "the process in which it ran died of SIGSEGV"),
        pytest.param("exit", "ended with exit code 3", marks=pytest.mark.slow),
    ],
)
def test_its_death_is_that_of_the_job_alone(client: RpcClient, log: Path, how: str, why: str) -> None:
    with pytest.raises(WorkerLost, match=why):
        client.call_and_wait("dies", {"how": how}, timeout=PATIENCE)
    assert lines(log) == ["dies"]
    assert client.call_and_wait("add", {"a": 1}).data == 2


@pytest.mark.parametrize(
    ("name", "data", "kind", "outcome"),
    [
        ("dies", {"how": "segfault"}, "WorkerLost", "WorkerLost"),
        ("fails", {"how": "other"}, "RemoteError", "KeyError"),
    ],
)
def test_its_end_has_a_public_name_everywhere(
    rpc_worker: Worker, caplog: pytest.LogCaptureFixture, name: str, data: Any, kind: str, outcome: str
) -> None:
    heard: list[str] = []
    hooks = {"post_error": lambda request, error: heard.append(type(error).__name__)}
    client = rpc_worker(JOBS, hooks=hooks)
    with caplog.at_level(logging.INFO, "rpc.jobs"), pytest.raises(RpcError):
        client.call_and_wait(name, data, timeout=PATIENCE)
    eventually(lambda: any(record.name == "rpc.jobs" for record in caplog.records))
    assert [record.outcome for record in caplog.records if record.name == "rpc.jobs"] == [
        f"failed: {outcome}"
    ]
    assert heard == [kind]


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
