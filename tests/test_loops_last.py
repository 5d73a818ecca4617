"""A loop ends for no exception, and a thread that cannot be started is an error of the one who needs it."""

from __future__ import annotations

import asyncio
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rpc import AsyncRpcClient, RpcClient, RpcError, RpcReceiver
from rpc.backends._retry import run_together
from rpc.backends._serving import Turns
from rpc.errors import SettingsError
from rpc.loops import Alarm

PATIENCE = 30.0


def test_a_loop_goes_on_after_an_exception_which_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    left = [KeyError("odd"), RuntimeError("odd"), None]

    def loop() -> None:
        if error := left.pop(0):
            raise error

    run_together([loop], lambda: None)
    assert left == []
    assert [record.exc_info is not None for record in caplog.records][:1] == [True]


@pytest.mark.parametrize("which", [0, 1])
def test_what_trying_again_does_not_mend_ends_all_of_them(which: int) -> None:
    over = threading.Event()

    def ends() -> None:
        raise SettingsError("this makes no sense")

    loops: list[Callable[[], object]] = [lambda: over.wait(PATIENCE)]
    loops.insert(which, ends)
    with pytest.raises(SettingsError):
        run_together(loops, over.set)


def test_who_fails_leaves_the_turn_to_others(caplog: pytest.LogCaptureFixture) -> None:
    fetched, over = iter([KeyError("odd"), 1, KeyError("odd"), 2]), threading.Event()
    handled: list[int] = []

    def fetch() -> int | None:
        each = next(fetched, None)
        if isinstance(each, Exception):
            raise each
        return each

    def handle(number: int) -> None:
        handled.append(number)
        if number == 2:
            over.set()

    turns = Turns(fetch, handle, over.is_set)
    run_together([turns.work] * 3, over.set)
    assert sorted(handled) == [1, 2]


@pytest.mark.parametrize("text", ["Redis", "what it answered makes no sense"])
def test_a_worker_goes_on_after_errors_that_nobody_foresaw(
    any_url: str, serving: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    error = RuntimeError if text == "Redis" else TypeError
    work, times = Turns.work, iter(range(3))

    def fails_first(turns: Turns[Any]) -> None:
        if next(times, None) is not None:
            raise error("odd")
        work(turns)

    monkeypatch.setattr(Turns, "work", fails_first)
    serving(any_url)
    with RpcClient(backend=any_url, timeout=PATIENCE) as client:
        assert client.call_and_wait("echo", [1]).data == 1


@pytest.fixture
def serving() -> Iterator[Any]:
    """Starts a worker in a thread."""
    with ExitStack() as stack:

        def serve(backend: Any, **jobs: Any) -> None:
            ready = threading.Event()
            receiver = RpcReceiver(jobs={"echo": lambda n: n, **jobs}, backend=backend)
            receiver.hook("on_connect")(ready.set)
            thread = threading.Thread(target=receiver.run)
            thread.start()
            stack.callback(thread.join, PATIENCE)
            stack.callback(receiver.stop)
            assert ready.wait(PATIENCE)

        yield serve


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, no thread can be started."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    return lambda: monkeypatch.setattr(threading.Thread, "start", refuse)


def test_without_a_thread_a_submitted_call_ends_with_an_error_of_ours(
    any_url: str, no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RpcClient(backend=any_url) as client:
        no_threads()
        with pytest.raises(RpcError, match="thread"):
            client.submit("echo", [1], timeout=1).result(PATIENCE)
        monkeypatch.undo()


def test_without_a_thread_a_late_call_ends_with_its_timeout(
    any_url: str, no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RpcClient(backend=any_url) as client:
        client.call("echo", [0])
        no_threads()
        with pytest.raises(RpcError):
            client.call_and_wait("echo", [1], timeout=0.2)
        monkeypatch.undo()


def test_without_a_thread_an_awaited_call_ends_with_an_error_of_ours(
    any_url: str, no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        async with AsyncRpcClient(backend=any_url) as client:
            no_threads()
            try:
                with pytest.raises(RpcError):
                    await client.call_and_wait("echo", [1], timeout=1)
            finally:
                monkeypatch.undo()

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))


def test_a_worker_without_a_thread_for_coroutines_says_so_and_goes_on(
    any_url: str, serving: Any, no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def soon() -> int:
        return 1

    serving(any_url, soon=soon)
    with RpcClient(backend=any_url, timeout=PATIENCE) as client:
        client.call_and_wait("echo", [1])
        no_threads()
        with pytest.raises(RpcError) as failure:
            client.call_and_wait("soon")
        assert "thread" in str(failure.value) or "failed" in str(failure.value)
        monkeypatch.undo()
        assert client.call_and_wait("soon").data == 1
        assert client.call_and_wait("echo", [2]).data == 2


def test_a_worker_that_gets_no_threads_ends_with_an_error_of_ours(
    any_url: str, no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = RpcReceiver(jobs={"echo": lambda n: n}, backend=any_url, concurrency=2)
    monkeypatch.setattr("rpc.receiver.stopped_by_signals", lambda *_: ExitStack())
    no_threads()
    with pytest.raises(RpcError, match="no thread can be started"):
        receiver.run()
    monkeypatch.undo()


def test_an_alarm_that_is_rung_while_it_is_read_is_not_deaf_from_then_on() -> None:
    alarm = Alarm()
    ear = alarm._ear

    class RungMeanwhile:
        def fileno(self) -> int:
            return ear.fileno()

        def recv(self, most: int) -> bytes:
            alarm.ring()
            return ear.recv(most)

    alarm.ring()
    alarm._ear = RungMeanwhile()  # type: ignore[assignment]
    alarm.wait(0)
    alarm._ear = ear
    alarm.ring()
    assert select.select([alarm], [], [], 0)[0]
    alarm.close()


def test_a_name_that_is_looked_up_has_nothing_imported() -> None:
    """Else the import would be locked for ever in the child of a process that forks just then."""
    program = """
import socket, sys
import rpc.loops
before = {*sys.modules}
socket.getaddrinfo("localhost", 1)
print({*sys.modules} - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
