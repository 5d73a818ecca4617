"""`rpc shell`: a connected client, in Python."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import rpc as package
from rpc import RpcClient, RpcReceiver, expose
from rpc.cli.shell import Completer

from .conftest import RPC, SECONDS, Process

Invoke = Callable[..., Result]


class Example:
    name = "example"

    @expose
    def foo(self, number: int, key: int = 0) -> int:
        return number + key

    @expose
    def fail(self) -> None:
        raise ValueError("no")


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[str]:
    """The URL of one on which `Example` is served."""
    url, serving = f"memory://{tmp_path.name}", threading.Event()
    receiver = RpcReceiver(services=[Example], backend=url, hooks={"on_connect": serving.set})
    thread = threading.Thread(target=receiver.start)
    thread.start()
    assert serving.wait(SECONDS)
    yield url
    receiver.stop()
    thread.join(SECONDS)


@pytest.fixture
def shell(invoke: Invoke, backend: str) -> Invoke:
    """`rpc shell`, on that backend."""
    return lambda *words: invoke("shell", "--backend", backend, *words)


def test_code_has_a_connected_client(shell: Invoke) -> None:
    result = shell("-c", "print(client.services.example.foo(1, key=2), services.example.foo(4))")
    assert (result.exit_code, result.stdout) == (0, "3 4\n")


def test_code_may_have_lines_and_functions_and_our_names(shell: Invoke) -> None:
    program = """
import math
def call(n):
    try:
        return services.example.foo(n) if n else services.example.fail()
    except RemoteError as error:
        return error.type
print([call(n) for n in range(3)], isinstance(client, RpcClient), math.pi > 3)
"""
    assert shell("-c", program).stdout == "['ValueError', 1, 2] True True\n"
    names = [name for name in package.__all__ if not name.endswith("Backend")]
    assert shell("-c", f"print(len(({', '.join(names)})))").stdout == f"{len(names)}\n"


@pytest.mark.parametrize(("program", "code", "text"), [
    ("services.example.fail()", 1, "Error: ValueError: no\n"),
    ("services.example.nosuch()", 1, "Error: service 'example' has no method 'nosuch'\n"),
    ("services.example.options(timeout=0.01, queue='nobody').foo(1)", 3, "within 0.01 s"),
    ("client.describe(wait=0.01); raise SettingsError('odd')", 2, "Error: odd\n"),
    ("raise SystemExit(7)", 7, ""),
    ("raise KeyboardInterrupt", 130, ""),
    ("1 +", 2, "-c: invalid syntax"),
    ("\0", 2, "-c: "),
])  # fmt: skip
def test_errors_have_their_exit_codes(shell: Invoke, program: str, code: int, text: str) -> None:
    result = shell("-c", program)
    assert result.exit_code == code
    assert text in result.stderr


def test_an_error_of_the_code_itself_is_shown_as_python_does(shell: Invoke) -> None:
    with pytest.raises(ZeroDivisionError):
        shell("-c", "1 / 0")


def test_without_settings_it_does_not_start(invoke: Invoke) -> None:
    assert invoke("shell", "-c", "print(1)").exit_code == 2


def test_tab_completes_what_is_served(backend: str) -> None:
    with RpcClient(backend=backend) as client:
        completer = Completer({"client": client, "services": client.services})

        def completed(text: str) -> list[str | None]:
            found = [completer.complete(text, 0)]
            while found[-1] is not None:
                found.append(completer.complete(text, len(found)))
            return found[:-1]

        assert completed("services.") == ["services.example"]
        assert completed("client.services.ex") == ["client.services.example"]
        assert completed("services.example.f") == ["services.example.fail", "services.example.foo"]
        assert completed("client.call_and") == ["client.call_and_wait("]
        assert completed("services.nosuch.f") == []


def test_it_asks_for_something_to_run(tmp_path: Path) -> None:
    program = "print(len(client.describe(wait=0.01)))\n1 / 0\nprint(repr(services.a.b))\nexit()\n"
    done = subprocess.run(
        [*RPC, "shell", "--backend", "memory://"], input=program, capture_output=True, text=True, check=False,
        cwd=tmp_path, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0
    assert "0\n" in done.stdout
    assert "<proxy of a.b>" in done.stdout
    assert "Python 3" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_it_ends_with_its_input(tmp_path: Path) -> None:
    command = [*RPC, "shell", "--backend", "memory://"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0


IPYTHON = """
def start_ipython(argv, user_ns):
    print(argv, user_ns["client"].services.a, sorted(user_ns)[:2])
"""


def test_ipython_is_used_if_it_is_there(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "IPython.py").write_text(IPYTHON)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    result = invoke("shell", "--backend", "memory://")
    del sys.modules["IPython"]
    assert result.exit_code == 0
    assert (
        result.stdout.splitlines()[1] == "['--no-banner'] <proxy of a> ['AsyncEventStream', 'AsyncLogStream']"
    )
    assert "client.services" in result.stdout.splitlines()[0]


@pytest.mark.redis
def test_it_reaches_workers_of_the_settings(
    project: Path, rpc: Callable[..., Any], spawn: Callable[..., Process]
) -> None:
    spawn("worker").says("serving")
    said = rpc("shell", "-c", "print(client.call_and_wait('typed', [1, 2]).data)")
    assert (said.returncode, said.stdout) == (0, "3\n")
