"""`rpc dead-letters`: what is shown of what was given up, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from rpc.backends import backend_from_url
from rpc.cli.dead_letters import command
from rpc.core.compression import Compression
from rpc.testing.servers import RedisServer
from rpc.transport import Delivery, Message, queue

from .conftest import SECONDS, Process, error_in

Invoke = Callable[..., Result]

ID = "4f1c0e3a9b6d4c2f8a7e5d3c1b0a9f8e"


class Office:
    """A backend in this process, on which everything that is sent becomes a dead letter."""

    def __init__(self, url: str) -> None:
        self.url, self.backend = url, backend_from_url(url)

    def bury(self, body: bytes, to: str = "default", why: str = "ValueError: no", **headers: str) -> None:
        def handler(delivery: Delivery) -> None:
            delivery.bury(why, None)
            server.stop()

        message = Message(body, {"id": ID, "name": "add", **headers})
        self.backend.send(queue(to), message)
        server = self.backend.server([queue(to)], handler)
        server.run()

    def waiting(self, name: str = "default") -> list[bytes]:
        """What was put back into the queue."""
        return [each.message.body for each in self.backend.hub.waiting[queue(name)]]  # type: ignore[attr-defined]

    def letters(self, name: str = "default") -> list[Any]:
        return self.backend.dead_letters(name)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(f"memory://{tmp_path.name}")


@pytest.fixture
def letters(invoke: Invoke, office: Office) -> Invoke:
    """`rpc dead-letters`, on that backend."""
    return lambda first, *words: invoke("dead-letters", first, *words, "--backend", office.url)


CALL = b'{"jsonrpc":"2.0","id":"1","method":"add","params":{"a":1}}'


def test_no_letters_are_no_lines(letters: Invoke) -> None:
    assert letters("list").stdout == ""
    assert json.loads(letters("list", "--json").stdout) == {"dead_letters": []}
    assert letters("retry", "--all").stdout == ""


def test_the_list_has_a_line_for_each(letters: Invoke, office: Office) -> None:
    office.bury(CALL, why="ValueError: two\nlines")
    office.bury(CALL, "low", id="another")
    result = letters("list")
    first, second = result.stdout.splitlines()
    when, id, *rest = first.split("  ")
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(when)).total_seconds()) < SECONDS
    assert [id, *rest] == [ID, "default", "add", "ValueError: two"]
    assert second.split("  ")[1:3] == ["another", "low"]


def test_the_list_as_json_is_one_object(letters: Invoke, office: Office) -> None:
    office.bury(CALL)
    result = letters("list", "--json")
    (only,) = json.loads(result.stdout)["dead_letters"]
    assert result.stdout.count("\n") == 1
    assert only == {
        "id": ID,
        "name": "add",
        "queue": "default",
        "when": only["when"],
        "why": "ValueError: no",
    }


def test_only_the_queues_that_are_named_are_looked_at(letters: Invoke, office: Office) -> None:
    for name in "default", "low", "other":
        office.bury(CALL, name, id=name)
    ids = [each["id"] for each in json.loads(letters("list", "--json").stdout)["dead_letters"]]
    assert ids == ["default", "low"], "the queues of the settings, in their order"
    named = letters("list", "--queue", "other", "--queue", "low", "--json")
    assert [each["id"] for each in json.loads(named.stdout)["dead_letters"]] == ["other", "low"]


def test_the_queues_that_routes_lead_to_are_looked_at(
    invoke: Invoke, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed = f"RPC_BACKEND = {office.url!r}\nRPC_ROUTES = {{'bill': 'billing'}}\n"
    (tmp_path / "routed.py").write_text(routed)
    monkeypatch.syspath_prepend(str(tmp_path))
    office.bury(CALL, "billing")
    assert ID in invoke("dead-letters", "list", "--settings", "routed").stdout


def test_one_is_shown_with_its_headers_and_its_body(letters: Invoke, office: Office) -> None:
    office.bury(CALL, traceparent="00-1")
    shown = letters("show", ID).stdout
    assert f"id:     {ID}\nname:   add\nqueue:  default\nwhen:   2" in shown
    assert "why:    ValueError: no\nheaders:\n  id:" in shown
    assert "  traceparent: 00-1\nbody:\n" in shown
    assert json.loads(shown.splitlines()[-1]) == json.loads(CALL)


def test_one_is_shown_as_json(letters: Invoke, office: Office) -> None:
    office.bury(CALL)
    result = letters("show", ID, "--json")
    shown = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert shown.keys() == {"id", "name", "queue", "when", "why", "traceback", "headers", "body"}
    assert shown["body"] == json.loads(CALL)
    assert shown["headers"]["name"] == "add"


def test_messagepack_is_decoded_too(letters: Invoke, office: Office) -> None:
    office.bury(b"\x81\xa1a\x01", **{"content-type": "application/msgpack"})
    assert json.loads(letters("show", ID, "--json").stdout)["body"] == {"a": 1}


def test_what_keeps_types_is_shown_as_it_is_written_and_what_is_compressed_as_it_was(
    letters: Invoke, office: Office
) -> None:
    body, headers = {"$object": ["shop.Order", {}]}, {"content-type": "application/json+types"}
    squeezed = Compression("gzip", 0).compressed(json.dumps(body).encode())
    office.bury(squeezed, **headers, **{"content-encoding": "gzip"})
    assert json.loads(letters("show", ID, "--json").stdout)["body"] == body


@pytest.mark.parametrize(("body", "headers"), [
    (b"\xff\xfe", {}), (b"{", {}), (b"{}", {"content-type": "application/x-python-serialize"}),
], ids=["bytes", "half", "pickle"])  # fmt: skip
def test_what_cannot_be_decoded_is_shown_as_base64(
    letters: Invoke, office: Office, body: bytes, headers: dict[str, str]
) -> None:
    office.bury(body, **headers)
    assert json.loads(letters("show", ID, "--json").stdout)["body"].keys() == {"base64"}
    assert "base64" in letters("show", ID).stdout


def test_a_letter_can_neither_steer_the_terminal_nor_tell_a_secret(letters: Invoke, office: Office) -> None:
    office.bury(
        CALL, why="\x1b[31mred\u202e", id="\x9bid", name="\x1b]0;x\x07", colour="\x1b[2J", token="hunter2"
    )
    for shown in (
        letters("list"),
        letters("show", "\x9bid"),
        letters("retry", "\x9bid"),
    ):
        assert shown.exit_code == 0
        assert not any(sign in shown.stdout for sign in "\x1b\x9b\u202e\x07")
        assert "hunter2" not in shown.stdout
    office.bury(CALL, "low", token="hunter2")
    assert json.loads(letters("show", ID, "--json").stdout)["headers"]["token"] == "***"


def test_what_is_retried_is_in_its_queue_again(letters: Invoke, office: Office) -> None:
    for id in "a", "b", "c":
        office.bury(id.encode(), id=id)
    result = letters("retry", "c", "a")
    assert (result.exit_code, result.stdout) == (0, "a\nc\n"), "the oldest first"
    assert office.waiting() == [b"a", b"c"]
    assert [letter.id for letter in office.letters()] == ["b"]


def test_what_is_dropped_is_forgotten(letters: Invoke, office: Office) -> None:
    for id in "a", "b":
        office.bury(id.encode(), id=id)
    assert letters("drop", "a").stdout == "a\n"
    assert [letter.id for letter in office.letters()] == ["b"]
    assert office.waiting() == []


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_all_is_all_of_the_queues(letters: Invoke, office: Office, action: str) -> None:
    for id, name in ("a", "default"), ("b", "low"), ("c", "other"):
        office.bury(CALL, name, id=id)
    assert sorted(letters(action, "--all").stdout.split()) == ["a", "b"]
    assert [office.letters(name) for name in ("default", "low")] == [[], []]
    assert len(office.letters("other")) == 1
    assert letters(action, "--all", "--queue", "other").stdout == "c\n"


@pytest.mark.parametrize("action", ["show", "retry", "drop"])
def test_an_id_that_is_not_there_is_1_and_nothing_is_done(
    letters: Invoke, office: Office, action: str
) -> None:
    office.bury(CALL)
    ids = ["no\x1bsuch"] if action == "show" else [ID, "no\x1bsuch"]
    result = letters(action, *ids)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no dead letter in these queues has the id no\\u001bsuch\n"
    assert len(office.letters()) == 1


def test_an_error_is_told_as_json(letters: Invoke) -> None:
    result = letters("show", "nosuch", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "nosuch" in error_in(result.stdout)["message"]


@pytest.mark.parametrize("words", [
    ["retry"], ["drop"], ["retry", "a", "--all"], ["show"], ["show", "a", "b"], ["list", "a"],
    ["list", "--queue", "not a name"], ["forget", "a"],
], ids=str)  # fmt: skip
def test_wrong_words_are_wrong_use(letters: Invoke, words: list[str]) -> None:
    result = letters(*words)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("words", [["list"], ["show", "a"], ["retry", "--all"], ["drop", "a"]], ids=str)
def test_a_backend_that_keeps_none_is_one_line_that_names_others(
    invoke: Invoke, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "forgetful.py").write_text(
        "from rpc.backends.memory import MemoryBackend\n"
        "class Forgetful(MemoryBackend):\n"
        "    features = MemoryBackend.features - {'dead-letters'}\n"
        "RPC_BACKEND = Forgetful()\n"
    )
    result = invoke("dead-letters", *words, "--settings", "forgetful")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "has no feature 'dead-letters'; redis:, rq+redis:, amqp: and memory: have it" in result.stderr


@pytest.mark.redis
def test_no_broker_is_4(invoke: Invoke) -> None:
    result = invoke("dead-letters", "list", "--backend", "redis://127.0.0.1:1/0")
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)


def test_backend_and_queues_are_those_of_the_settings(invoke: Invoke, office: Office, tmp_path: Path) -> None:
    (tmp_path / "office_settings.py").write_text(f"RPC_BACKEND = {office.url!r}\nRPC_QUEUES = ['orders']\n")
    office.bury(CALL, "orders")
    office.bury(CALL, "default")
    result = invoke("dead-letters", "list", "--settings", "office_settings", "--json")
    assert [each["queue"] for each in json.loads(result.stdout)["dead_letters"]] == ["orders"]


@pytest.mark.parametrize("name", command.commands)
def test_each_has_help_with_an_example(invoke: Invoke, name: str) -> None:
    shown = invoke("dead-letters", name, "--help").stdout
    assert f"Example:\n    rpc dead-letters {name}" in shown
    options = [each for each in command.commands[name].params if isinstance(each, click.Option)]
    assert all(option.help for option in options)


# Between processes.

SETTINGS = """
from rpc import job

@job(retries=1, backoff=0.01)
def hopeless(text):
    raise ValueError("each time")

RPC_JOB_MAPPING = {"hopeless": hopeless}
RPC_BACKEND = %r
"""


@pytest.mark.slow
@pytest.mark.redis
def test_from_the_call_to_the_end(
    tmp_path: Path, redis_server: RedisServer, spawn: Callable[..., Process], rpc: Callable[..., Any]
) -> None:
    (tmp_path / "settings.py").write_text(SETTINGS % f"{redis_server.url[:-1]}9")
    worker = spawn("worker")
    assert rpc("call", "hopeless", "text=why").returncode == 1
    (letter,) = json.loads(rpc("dead-letters", "list", "--json").stdout)["dead_letters"]
    assert (letter["name"], letter["why"]) == ("hopeless", "ValueError: each time")
    shown = json.loads(rpc("dead-letters", "show", letter["id"], "--json").stdout)
    assert shown["body"]["params"] == {"text": "why"}
    assert rpc("dead-letters", "retry", letter["id"]).stdout == f"{letter['id']}\n"
    worker.says("is tried again", times=2)
    worker.says("(" + letter["id"] + ") failed", times=4)
    assert rpc("dead-letters", "drop", "--all").stdout == f"{letter['id']}\n"
    assert rpc("dead-letters", "list").stdout == ""
