"""`rpc call`: arguments, what is printed, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rpc.backends.memory import MemoryBackend

from .conftest import RPC, SECONDS, Process, error_in

Call = Callable[..., Result]


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ([], {}),
        (["a=1"], {"a": "1"}),
        (["b:=2"], {"b": 2}),
        (["a=1", "b:=2"], {"a": "1", "b": 2}),
        (["a="], {"a": ""}),
        (["a=b:=c"], {"a": "b:=c"}),
        (["a:=null"], {"a": None}),
        (['a:={"b": [1, 2.5]}'], {"a": {"b": [1, 2.5]}}),
        (["a==1"], {"a": "=1"}),
        (["a=two\nlines"], {"a": "two\nlines"}),
        (["a.b-c=ü"], {"a.b-c": "ü"}),
        (['{"a": 1}'], {"a": 1}),
        (["[1, 2]"], [1, 2]),
    ],
)
def test_words_become_data(call: Call, words: list[str], data: Any) -> None:
    result = call("echo", *words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == data


def test_a_stream_is_printed_item_by_item(call: Call) -> None:
    assert call("count", "to:=2", "--stream").stdout.splitlines() == [
        '{"number":0}', '{"number":1}', '"counted"',
    ]  # fmt: skip
    told = call("count", "to:=1", "--stream", "--json").stdout.splitlines()
    assert list(map(json.loads, told)) == [{"item": {"number": 0}}, {"value": "counted"}]
    assert call("count", "to:=0", "--stream").stdout == ""
    assert json.loads(call("add", "a:=1", "b:=2", "--stream").stdout) == {"answer": 3}


@pytest.mark.parametrize("other", [["--no-wait"], ["--idempotency-key", "k"], ["--order-key", "k"]])
def test_a_stream_is_one_call_that_waits(call: Call, other: list[str]) -> None:
    assert "--stream waits, for one call" in call("count", "to:=2", "--stream", *other).stderr


@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types"])
def test_it_is_encoded_as_it_is_told(call: Call, codec: str) -> None:
    assert json.loads(call("echo", "a:=[1]", "--codec", codec).stdout) == {"a": [1]}


def test_a_codec_that_there_is_not_is_an_error_that_names_those_that_there_are(call: Call) -> None:
    result = call("echo", "--codec", "nosuch")
    assert result.exit_code == 2
    assert "there are json, msgpack, json+types, pickle" in result.stderr


def test_a_dash_reads_stdin(call: Call) -> None:
    assert json.loads(call("echo", "-", input='{"a":\n 1}').stdout) == {"a": 1}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["b:=two"], "'b:=two': not readable as json"),
        (["b:="], "'b:=': not readable as json"),
        (['{"a"}'], "the argument: not readable as json"),
        (["[1", "2]"], "'[1' is neither a=TEXT nor b:=JSON"),
        (["a"], "'a' is neither a=TEXT nor b:=JSON"),
        (["=1"], "'=1' is neither"),
        ([":=1"], "':=1' is neither"),
        (["5"], "'5' is neither"),
        (["a=1", "-"], "'-' is neither"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a=\udcff"], "not UTF-8"),
        (["--timeout", "0"], "'--timeout'"),
        (["--timeout", "nan"], "'--timeout'"),
        (["--timeout", "inf"], "'--timeout'"),
        (["--timeout", "1", "--no-wait"], "not with --no-wait"),
        (["--queue", "not a name"], "is no queue name"),
        (["--delay", "1"], "--delay: for a call that does not wait: add --no-wait"),
        (["--at", "2030-01-31T18:30", "--ttl", "1"], "--at, --ttl: for a call that does not wait"),
        (["--no-wait", "--delay", "-1"], "'--delay'"),
        (["--no-wait", "--delay", "nan"], "'--delay'"),
        (["--no-wait", "--ttl", "0"], "'--ttl'"),
        (["--no-wait", "--at", "tomorrow"], "'tomorrow' is no time like"),
        (["--no-wait", "--at", "2030-01-31T18:30", "--delay", "1"], "give delay or at, not both"),
        (["--no-wait", "--delay", "5", "--ttl", "5"], "less than ttl"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_words_are_wrong_use(call: Call, words: list[str], complaint: str) -> None:
    result = call("echo", *words)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "complaint"), [("", "not readable"), ("{", "not readable"), ("3", "neither")]
)
def test_what_stdin_says_must_be_data(call: Call, text: str, complaint: str) -> None:
    result = call("echo", "-", input=text)
    assert result.exit_code == 2
    assert "stdin" in result.stderr
    assert complaint in result.stderr


def test_a_name_that_no_job_can_have_is_wrong_use(call: Call) -> None:
    result = call("no/name")
    assert result.exit_code == 2
    assert "'no/name'" in result.stderr


@pytest.mark.parametrize(
    "words", [["echo", "a"], ["echo", "b:=two"], ["no/name"], ["echo", "--timeout", "0"]]
)
def test_with_json_wrong_words_are_told_as_json(call: Call, words: list[str]) -> None:
    result = call(*words, "--json")
    assert result.exit_code == 2
    assert error_in(result.stdout)["type"] == "UsageError"
    assert result.stderr == ""


def test_the_answer_is_one_line_where_there_is_no_terminal(call: Call) -> None:
    assert call("add", "a:=1", "b:=1").stdout == '{"answer":2}\n'


def test_json_has_data_and_id(call: Call) -> None:
    result = call("add", "a:=1", "b:=1", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert answer.keys() == {"data", "id"}
    assert answer["data"] == {"answer": 2}
    assert answer["id"]


def test_no_wait_prints_the_id(call: Call) -> None:
    result = call("add", "a:=1", "b:=1", "--no-wait")
    assert result.exit_code == 0
    assert len(result.stdout.split()) == 1


def test_no_wait_with_json_prints_the_id_as_json(call: Call) -> None:
    assert json.loads(call("add", "--no-wait", "--json").stdout).keys() == {"id"}


def due(url: str) -> float:
    """Seconds until the only delayed message is due."""
    ((when, _, _),) = MemoryBackend(url).hub.delayed
    return when - time.monotonic()


@pytest.mark.parametrize("zone", ["", "Z", "+05:00"])
def test_at_a_time(invoke: Call, tmp_path: Path, zone: str) -> None:
    url, away = f"memory://{tmp_path.name}-later", {"": None, "Z": timezone.utc}
    at = datetime.now(away.get(zone, timezone(timedelta(hours=5)))) + timedelta(hours=1)
    text = at.replace(tzinfo=None).isoformat(timespec="seconds") + zone
    result = invoke("call", "add", "--no-wait", "--at", text, "--backend", url)
    assert (result.exit_code, len(result.stdout.split())) == (0, 1)
    assert 3590 < due(url) <= 3600


def test_after_a_delay_and_before_it_expires(invoke: Call, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-later"
    result = invoke("call", "add", "--no-wait", "--delay", "60", "--ttl", "90", "--backend", url, "--json")
    assert json.loads(result.stdout).keys() == {"id"}
    assert 50 < due(url) <= 60
    assert MemoryBackend(url).hub.delayed[0][2].message.ttl == 90


def test_with_a_key_it_is_done_once(call: Call) -> None:
    for number in "1", "2":
        result = call("echo", f"a:={number}", "--idempotency-key", "k")
        assert json.loads(result.stdout) == {"a": 1}
    call("echo", "a:=3", "--idempotency-key", "other", "--no-wait")
    assert json.loads(call("echo", "a:=4", "--idempotency-key", "other").stdout) == {"a": 3}


def test_an_order_key_is_sent_along(invoke: Call, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-order"
    for _ in range(2):
        invoke("call", "add", "--no-wait", "--order-key", "k", "--backend", url)
    (line,) = MemoryBackend(url).hub.lines.values()
    assert [each.message.headers["order-key"] for each in line] == ["k", "k"]


@pytest.mark.parametrize("words", [["--no-wait", "--idempotency-key", "k"], ["--idempotency-key", "k"]])
def test_what_the_backend_cannot_do_is_2(invoke: Call, words: list[str]) -> None:
    result = invoke("call", "add", *words, "--backend", "amqp://127.0.0.1:1")
    assert result.exit_code == 2
    assert "redis: and memory: have it" in result.stderr


def test_a_remote_error_is_one_line_and_1(call: Call) -> None:
    result = call("fail")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: ValueError: no way\n")


def test_a_remote_error_as_json_keeps_its_type_and_message(call: Call) -> None:
    result = call("fail", "--json")
    assert result.exit_code == 1
    assert error_in(result.stdout) == {"type": "ValueError", "message": "no\nway", "code": -32000}


def test_an_unknown_name_is_1(call: Call) -> None:
    result = call("nope", "--json")
    assert (result.exit_code, error_in(result.stdout)["code"]) == (1, -32601)


def test_arguments_that_do_not_fit_are_1(call: Call) -> None:
    result = call("typed", "a=1", "b:=2")
    assert result.exit_code == 1
    assert result.stderr == "Error: a: Expected `int`, got `str`\n"


def test_no_answer_in_time_is_3(call: Call) -> None:
    result = call("add", "a:=1", "b:=1", "--queue", "nobody", "--timeout", "0.2", "--json")
    assert (result.exit_code, error_in(result.stdout)["type"]) == (3, "RpcTimeout")


def test_the_timeout_is_that_of_the_settings_if_none_is_given(invoke: Call, tmp_path: Path) -> None:
    (tmp_path / "impatient.py").write_text("RPC_TIMEOUT = 0.2\nRPC_BACKEND = 'memory://nobody'\n")
    result = invoke("call", "add", "--settings", "impatient")
    assert result.exit_code == 3
    assert "within 0.2 s" in result.stderr


@pytest.mark.redis
def test_no_broker_is_4(invoke: Call) -> None:
    with socket.socket() as taken:  # and not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        result = invoke(
            "call", "add", "--backend", f"rq+redis://:secret@127.0.0.1:{port}/0", "--timeout", "1"
        )
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_without_settings_one_line_says_what_to_do(invoke: Call) -> None:
    result = invoke("call", "add")
    assert result.exit_code == 2
    assert "there is no settings module 'settings'" in result.stderr
    assert "--settings" in result.stderr
    assert result.stderr.count("\n") == 1


def test_settings_that_cannot_be_imported_are_one_line(invoke: Call, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    result = invoke("call", "add", "--settings", "broken", "--json")
    assert result.exit_code == 2
    assert "ZeroDivisionError" in error_in(result.stdout)["message"]


def test_an_unknown_backend_is_wrong_use(invoke: Call) -> None:
    result = invoke("call", "add", "--backend", "smoke+signals://hill")
    assert result.exit_code == 2
    assert "names no backend" in result.stderr


@pytest.fixture
def many(tmp_path: Path) -> Path:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"a": {n}, "b": 1}}\n' for n in range(250)) + "\n")
    return path


def test_each_line_of_a_file_is_a_call_and_answers_come_in_order(call: Call, many: Path) -> None:
    result = call("add", "--map", str(many), "--window", "10")
    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"answer": n + 1} for n in range(250)
    ]


def test_lines_can_come_from_stdin_and_ids_are_told_to_programs(call: Call) -> None:
    result = call("echo", "--map", "-", "--json", input="[1]\n[2]\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["data"] for answer in answers] == [[1], [2]]
    assert len({answer["id"] for answer in answers}) == 2


@pytest.mark.parametrize(
    ("name", "text", "code", "complaint"),
    [
        ("echo", "[1]\n[2]\n3\n", 2, "line 3 is neither a JSON object nor an array"),
        ("echo", "[1]\n[2]\nno\n", 2, "line 3: not readable as json"),
        ("typed", '[1, 1]\n[2, 2]\n{"a": "x", "b": 1}\n', None, "a: "),
    ],
)
def test_the_first_line_that_fails_ends_it(
    call: Call, name: str, text: str, code: int | None, complaint: str
) -> None:
    result = call(name, "--map", "-", "--window", "1", input=text)
    assert result.exit_code == code or (code is None and result.exit_code)
    assert len(result.stdout.splitlines()) == 2
    assert "2 lines were answered" in result.stderr
    assert complaint in result.stderr


@pytest.mark.parametrize("more", [["a=1"], ["--no-wait"], ["--idempotency-key", "k"], ["--order-key", "k"]])
def test_a_file_is_all_of_the_data(call: Call, many: Path, more: list[str]) -> None:
    result = call("echo", "--map", str(many), *more)
    assert result.exit_code == 2
    assert "--map takes its data from the file" in result.stderr


@pytest.mark.redis
def test_on_a_terminal_it_shows_how_far_it_is(
    project: Path, spawn: Callable[..., Process], many: Path
) -> None:
    spawn("worker").says("serving")
    terminal, end = os.openpty()
    command = [*RPC, "call", "add", "--map", str(many)]
    done = subprocess.run(
        command, cwd=project, stdout=subprocess.PIPE, stderr=end, timeout=SECONDS, check=False
    )
    os.close(end)
    shown = "".join(read_to_its_end(terminal))
    assert done.returncode == 0, shown
    assert len(done.stdout.splitlines()) == 250
    assert "add" in shown
    assert "100%" in shown


def read_to_its_end(terminal: int) -> Iterator[str]:
    with suppress(OSError), open(terminal, "rb", buffering=0) as screen:  # at its end Linux raises
        while data := screen.read(4096):
            yield data.decode()


def test_headers_reach_the_handler(invoke: Call, rpc_receiver: Callable[..., Any], memory_url: str) -> None:
    names = "x-a", "tracestate", "version"
    headers = lambda request: [request.headers.get(name) for name in names]  # noqa: E731
    rpc_receiver(jobs={"headers": headers}, backend=memory_url)
    words = ("--header", "x-a=b=c", "--header", "tracestate=t", "--header", "version=>=0")
    result = invoke("call", "headers", *words, "--backend", memory_url)
    assert json.loads(result.stdout) == ["b=c", "t", ">=0"]


@pytest.mark.parametrize("words", [["x-a"], ["id=1"], ["=1"], ["x-a=1", "x-a=2"]])
def test_headers_that_are_not_ones_own_are_wrong_use(call: Call, words: list[str]) -> None:
    result = call("echo", *(part for word in words for part in ("--header", word)))
    assert result.exit_code == 2
    assert "as x-NAME=VALUE" in result.stderr
