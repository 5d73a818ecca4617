"""`rpc logs`, and `rpc worker --send-logs`."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from rpc import RemoteError, RpcClient
from rpc.cli import main
from rpc.cli.remote_logs import command
from rpc.logs import RpcLogHandler
from rpc.settings import Settings
from rpc.testing.servers import RedisServer

from .conftest import SECONDS, Process, error_in, runner

Invoke = Callable[..., Result]
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) (\S+) \d+@\S+ (\S+): (.*)")


class Logging:
    """What a process logs, over and over, until it is ended: whoever listens begins at any time."""

    def __init__(self, url: str, *records: logging.LogRecord) -> None:
        self._handler, self._ended = RpcLogHandler(url, Settings(domain="shop", service_type="a")), False
        self._records = records
        self._thread = threading.Thread(target=self._log)
        self._thread.start()

    def _log(self) -> None:
        while not self._ended:
            for record in self._records:
                self._handler.handle(record)
            assert self._handler.flush(SECONDS)

    def close(self) -> None:
        self._ended = True
        self._thread.join(SECONDS)
        self._handler.close()


def record(level: int, name: str, message: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 7, message, (), None)


@pytest.fixture
def logs(invoke: Invoke, tmp_path: Path) -> Iterator[Invoke]:
    """`rpc logs`, while a process logs."""
    url, odd = f"memory://{tmp_path.name}", record(40, "shop.http", "odd \x1b[31m\nline")
    odd.exc_text = "Traceback\n  of it"
    process = Logging(url, record(30, "shop", "warned"), odd, record(10, "noise", "debugged"))
    yield lambda *words: invoke("logs", *words, "--backend", url)
    process.close()


def test_a_line_has_time_level_service_process_and_logger(logs: Invoke) -> None:
    result = logs("--count", "1", "--logger", "shop")
    found = LINE.fullmatch(result.stdout.splitlines()[0])
    assert found, result.stdout
    assert found.groups() in (
        ("WARNING", "shop.a.default", "shop", "warned"),
        ("ERROR", "shop.a.default", "shop.http", "odd \\u001b[31m"),
    )
    assert (result.exit_code, result.stderr) == (0, "listening to log records\n")


def test_what_has_several_lines_is_indented_and_steers_no_terminal(logs: Invoke) -> None:
    lines = logs("--count", "1", "--logger", "shop.http").stdout.splitlines()
    assert [lines[0].partition(": ")[2], *lines[1:]] == [
        "odd \\u001b[31m",
        "    line",
        "    Traceback",
        "      of it",
    ]


@pytest.mark.parametrize("is_coloured", [True, False])
def test_a_terminal_has_colours(
    logs: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_coloured: bool
) -> None:
    if not is_coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    words = ["logs", "--count", "1", "--level", "error", "--backend", f"memory://{tmp_path.name}"]
    said = runner().invoke(main, words, color=True).stdout
    assert (" \x1b[31mERROR\x1b[0m " in said, " ERROR " in said) == (is_coloured, not is_coloured)


@pytest.mark.parametrize(("words", "loggers"), [
    (["--level", "warning"], {"shop", "shop.http"}),
    (["--level", "40"], {"shop.http"}),
    (["--logger", "noise"], {"noise"}),
    (["--service", "shop.*", "--level", "error"], {"shop.http"}),
])  # fmt: skip
def test_filters(logs: Invoke, words: list[str], loggers: set[str]) -> None:
    lines = logs(*words, "--count", "6", "--json").stdout.splitlines()
    assert {json.loads(line)["logger"] for line in lines} == loggers


def test_as_json_each_is_an_object(logs: Invoke) -> None:
    said = json.loads(logs("--count", "1", "--logger", "shop.http", "--json").stdout)
    assert (said["message"], said["level"], said["level_number"]) == ("odd \x1b[31m\nline", "ERROR", 40)
    assert (said["service"], said["line"]) == ("shop.a.default", 7)


@pytest.mark.parametrize("words", [
    ["--level", "loud"], ["--count", "0"], ["--count", "1", "--follow"], ["word"],
], ids=str)  # fmt: skip
def test_wrong_words_are_wrong_use(invoke: Invoke, words: list[str]) -> None:
    result = invoke("logs", *words, "--backend", "memory://")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.redis
def test_no_broker_is_4(tmp_path: Path, invoke: Invoke) -> None:
    text = "RPC_BACKEND = 'redis://127.0.0.1:1/0'\nRPC_TIMEOUT = 0.2\n"
    (tmp_path / "nowhere_settings.py").write_text(text)
    result = invoke("logs", "--settings", "nowhere_settings", "--json")
    assert result.exit_code == 4
    assert error_in(result.stdout)["type"] == "BackendUnavailable"


def test_it_has_help_with_examples(invoke: Invoke) -> None:
    assert "Examples:\n    rpc logs --level warning" in invoke("logs", "--help").stdout
    assert all(option.help for option in command.params if isinstance(option, click.Option))


# Between processes.

JOBS = """
import logging
from rpc import job

log = logging.getLogger("shop")

def order(item: str) -> str:
    log.warning("ordered: %s", item)
    return item

@job(fork=True)
def forked(item: str) -> str:
    log.warning("forked: %s", item)
    return item

def fail():
    raise ValueError("no such order")

RPC_JOB_MAPPING = {"order": order, "forked": forked, "fail": fail}
RPC_QUEUES = ["default"]
RPC_DOMAIN, RPC_SERVICE_TYPE = "shop", "orders"
"""


@pytest.fixture
def broker(redis_server: RedisServer) -> str:
    return f"{redis_server.url[:-1]}9"


@pytest.mark.redis
@pytest.mark.parametrize(
    "is_set", [pytest.param(True, marks=pytest.mark.slow, id="setting"), pytest.param(False, id="option")]
)
def test_what_a_worker_logs_is_printed_elsewhere(
    broker: str, tmp_path: Path, spawn: Callable[..., Process], rpc: Callable[..., Any], is_set: bool
) -> None:
    text = f"{JOBS}RPC_BACKEND = {broker!r}\nRPC_SEND_LOGS = {is_set}\n"
    (tmp_path / "settings.py").write_text(text)
    listening = spawn("logs", "--level", "warning", "--service", "shop.*", "--follow")
    listening.says("listening")
    id = "default" if is_set else "eu"
    worker = spawn("worker", *([] if is_set else ["--send-logs", "--processes", "2", "--id", id]))
    with RpcClient(backend=broker, timeout=SECONDS) as client, client.logs(level="warning") as records:
        ids = [client.call_and_wait(name, {"item": "tea"}).id for name in ("order", "forked")]
        with pytest.raises(RemoteError):
            client.call_and_wait("fail")
        came = {entry.message.split()[0]: entry for entry in (records.get(SECONDS) for _ in range(3))}
    assert [came[each].request_id for each in ("ordered:", "forked:")] == ids
    assert came["job"].exception
    assert came["job"].exception.message == "no such order"
    assert came["job"].request_id in came["job"].message
    assert {each.service for each in came.values()} == {f"shop.orders.{id}"}
    assert came["forked:"].pid not in (worker.pid, came["ordered:"].pid)
    past = rpc("logs", "--since", "60", "--logger", "shop", "--count", "1")
    assert "shop: ordered: tea" in past.stdout
    for text in "shop: ordered: tea", "shop: forked: tea", "    ValueError: no such order":
        listening.says(text)
    assert worker.ends(signal.SIGTERM) == 0
    assert listening.ends(signal.SIGINT) == 130
    assert "Traceback" not in listening.said.replace("    Traceback", "")


@pytest.mark.redis
def test_a_worker_that_ends_has_sent_its_last_words(
    broker: str, tmp_path: Path, spawn: Callable[..., Process]
) -> None:
    (tmp_path / "settings.py").write_text(f"{JOBS}RPC_BACKEND = {broker!r}\n")
    with RpcClient(backend=broker, timeout=SECONDS) as client, client.logs() as records:
        worker = spawn("worker", "--send-logs")
        said = list[Any]()
        while not said or not said[-1].startswith("serving"):
            said.append(records.get(SECONDS).message)
        assert worker.ends(signal.SIGTERM) == 0
        while said[-1] != "stopped":
            said.append(records.get(SECONDS).message)
