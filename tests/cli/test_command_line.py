"""What all commands share: help, version, exit codes, one line for an expected error."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import click
import pytest
from click.testing import Result

from rpc import (
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    SettingsError,
    Unauthorized,
    Unsupported,
    WorkerLost,
)
from rpc.cli import COMMANDS, MODULES, main
from rpc.cli.exits import Commands
from rpc.cli.output import json_option, one_line

from .conftest import error_in, runner

Invoke = Callable[..., Result]

EXPECTED = {
    RemoteError("ValueError", "no"): 1,
    MethodNotFound("no"): 1,
    ServiceNotFound("no"): 1,
    MethodNotExposed("no"): 1,
    InvalidParams("no"): 1,
    WorkerLost("no"): 1,
    SerializationError("no"): 1,
    Unauthorized("no"): 1,
    Cancelled("no"): 1,
    QueueFull("no"): 1,
    NoReceivers("no"): 1,
    SettingsError("no"): 2,
    Unsupported("no"): 2,
    click.UsageError("no"): 2,
    RpcTimeout("no"): 3,
    BackendUnavailable("no"): 4,
    KeyboardInterrupt(): 130,
}


def failing(error: BaseException) -> click.Group:
    @click.command("fail")
    @json_option
    def fail() -> None:
        raise error

    return Commands(commands=[fail])


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_each_error_has_its_exit_code_and_one_line_on_stderr(error: BaseException) -> None:
    result = runner().invoke(failing(error), ["fail"])
    assert result.exit_code == EXPECTED[error]
    assert result.stdout == ""
    if isinstance(error, RpcError):
        assert result.stderr == f"Error: {error}\n"


@pytest.mark.parametrize(
    "error", [e for e in EXPECTED if isinstance(e, RpcError)], ids=lambda e: type(e).__name__
)
def test_with_json_an_error_is_one_object_on_stdout(error: RpcError) -> None:
    result = runner().invoke(failing(error), ["fail", "--json"])
    kind = "ValueError" if isinstance(error, RemoteError) else type(error).__name__
    assert result.exit_code == EXPECTED[error]
    assert error_in(result.stdout) == {"type": kind, "message": "no", "code": error.code}
    assert result.stderr == ""


def test_an_error_that_nobody_expected_is_not_hidden() -> None:
    result = runner().invoke(failing(ZeroDivisionError()), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_message_stays_on_one_line_and_cannot_steer_the_terminal() -> None:
    assert one_line("a\n  b\x1b[31m\x9b\u202ec é") == "a b\\u001b[31m\\u009b\\u202ec é"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_option_explained_and_an_example(name: str, invoke: Invoke) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?.*:\n.*rpc {name}", result.stdout)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_help_lists_the_commands_and_the_exit_codes(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Exit codes: 0" in result.stdout
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


def test_a_command_that_there_is_not_is_wrong_use(invoke: Invoke) -> None:
    assert invoke("servces").exit_code == 2


def test_version(invoke: Invoke) -> None:
    assert version("jobrpc") in invoke("--version").stdout


def test_python_m_rpc_is_the_same_program() -> None:
    said = subprocess.run([sys.executable, "-m", "rpc", "--help"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("Usage: rpc ")


def test_the_entry_point_is_the_group() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="rpc")
    assert entry.load() is main


def test_without_a_driver_in_use_none_is_imported() -> None:
    code = "import sys, rpc.cli; print({'redis', 'rq', 'watchfiles'} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def imported_by(code: str) -> set[str]:
    """The modules that a program has imported at its end."""
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(said.stderr.split())


WORKERS = {"rpc.receiver", "rpc.prefork", "rpc.ticker", "rpc.contract.stubs", "rpc.streams.producing"}
COMMANDS_MODULES = {f"rpc.cli.{MODULES.get(name, name)}" for name in COMMANDS} | {"rpc.cli.processes"}
HEAVY = {"multiprocessing", "importlib.metadata", "redis", "rq", "rich", "email", "http.client"}


def test_rpc_alone_imports_hardly_anything() -> None:
    modules = imported_by("import rpc")
    assert {each for each in modules if each.startswith("rpc")} == {"rpc", "rpc.errors"}
    assert not modules & (HEAVY | {"asyncio", "logging", "msgspec", "click", "ssl", "inspect"})


def test_what_marks_jobs_and_services_imports_no_client() -> None:
    modules = imported_by("from rpc import Identity, every, expose, job, on")
    assert not modules & {"rpc.aio", "rpc.client", "rpc.registry.lookup", "asyncio", "ssl"}


def test_the_list_of_commands_imports_none_of_them() -> None:
    modules = imported_by("from rpc.cli import main; main(['--help'])")
    assert not modules & (WORKERS | COMMANDS_MODULES | HEAVY | {"rpc.client", "asyncio", "ssl", "socket"})


def test_the_help_of_a_command_imports_nothing_of_workers_and_of_other_commands() -> None:
    modules = imported_by("from rpc.cli import main; main(['services', '--help'])")
    assert {"rpc.cli.services", "rpc.client"} <= modules
    assert not modules & (WORKERS | HEAVY | COMMANDS_MODULES - {"rpc.cli.services"})


def test_a_command_imports_nothing_of_workers_of_other_commands_and_of_other_backends(
    redis_url: str,
) -> None:
    modules = imported_by(f"from rpc.cli import main; main(['services', '--backend', {redis_url!r}])")
    assert "rpc.backends.redis" in modules
    assert not modules & (WORKERS | COMMANDS_MODULES - {"rpc.cli.services"})
    others = {f"rpc.backends.{name}" for name in ("amqp", "http", "memory", "rq", "zeromq")}
    assert not modules & (others | {"rq", "rich", "multiprocessing", "pamqp", "zmq", "httptools", "uvicorn"})


def test_python_does_not_look_for_garbage_as_a_command_ends() -> None:
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
    code += "from rpc.cli import main; main(['services', '--help'])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.endswith("\nTrue\n")


INTERRUPTED_WHILE_FINALIZING = """
import signal, threading
from rpc.cli.exits import Commands

class Odd:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

group = Commands("group")

@group.command("wait")
def wait():
    Odd()
    threading.Event().wait(20)

group()
"""


def test_an_interrupt_that_falls_into_a_finalizer_is_not_forgotten() -> None:
    command = [sys.executable, "-c", INTERRUPTED_WHILE_FINALIZING, "wait"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "")
