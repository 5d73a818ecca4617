"""`rpc events`: what is published, heard, shown and forgotten."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from rpc import Event, RpcClient, RpcReceiver, on
from rpc.backends import backend_from_url
from rpc.cli.events import command
from rpc.testing.servers import RedisServer

from .conftest import SECONDS, Process, error_in

Invoke = Callable[..., Result]


class Hall:
    """A receiver in this process, and what it heard."""

    def __init__(self, url: str) -> None:
        self.url, self.heard = url, list[Event]()
        self.changed = threading.Condition()

        @on("order.*")
        def hear(event: Event) -> None:
            with self.changed:
                self.heard.append(event)
                self.changed.notify_all()
            if event.data == ["fail"]:
                raise ValueError("no")

        @on("order.created", group="team")
        @on("order.created", group="billing", durable=True)
        def share(data: Any) -> None: ...

        self.receiver, begun = RpcReceiver(jobs={}, services=[hear, share], backend=url), threading.Event()
        self.receiver.hook("on_connect")(begun.set)
        self._thread = threading.Thread(target=self.receiver.start)
        self._thread.start()
        assert begun.wait(SECONDS)

    def hears(self, number: int = 1) -> list[Event]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.heard) >= number, SECONDS)
            return self.heard

    def close(self) -> None:
        self.receiver.stop()
        self._thread.join(SECONDS)


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    hall = Hall(f"memory://{tmp_path.name}")
    yield hall
    hall.close()


@pytest.fixture
def events(invoke: Invoke, hall: Hall) -> Invoke:
    """`rpc events`, on that backend."""
    return lambda first, *words, **more: invoke("events", first, *words, "--backend", hall.url, **more)


def test_what_is_published_is_heard(events: Invoke, hall: Hall) -> None:
    result = events("publish", "order.created", "n:=17", "place=Rome", "--header", "source=shell")
    (event,) = hall.hears()
    assert event == Event("order.created", {"n": 17, "place": "Rome"}, {"source": "shell"}, event.id)
    assert (result.exit_code, result.stdout) == (0, f"{event.id}\n")


@pytest.mark.parametrize(("words", "stdin", "data"), [
    ([], None, {}), (['{"n": 1}'], None, {"n": 1}), (["[1, 2]"], None, [1, 2]), (["-"], '{"n": 2}', {"n": 2}),
], ids=str)  # fmt: skip
def test_data_is_given_as_for_a_call(
    events: Invoke, hall: Hall, words: list[str], stdin: str | None, data: Any
) -> None:
    result = events("publish", "order.created", *words, "--json", input=stdin)
    (event,) = hall.hears()
    assert event.data == data
    assert json.loads(result.stdout) == {"id": event.id}


def test_headers_have_types_and_bytes_are_bytes(events: Invoke, hall: Hall, tmp_path: Path) -> None:
    file = tmp_path / "photo"
    file.write_bytes(b"\xff\x00")
    named = [word for each in ("n:=1", "rush:=true", "text=1") for word in ("--header", each)]
    assert events("publish", "order.photo", "--raw", str(file), *named).exit_code == 0
    (event,) = hall.hears()
    assert event.data == b"\xff\x00"
    assert event.headers == {"n": 1, "rush": True, "text": "1"}
    assert event.headers["rush"] is True


@pytest.mark.parametrize("words", [
    ["publish"], ["publish", "order.*"], ["publish", "rpc.x"], ["publish", "a", "--header", "x"],
    ["publish", "a", "b"], ["publish", "a", "--header", "=x"], ["publish", "a", "--header", "x:=[]"],
    ["publish", "a", "--header", "x:=null"], ["publish", "a", "b=c", "--raw", "-"], ["tail"], ["tail", "*"],
    ["tail", "a b"], ["tail", "a", "--count", "0"], ["tail", "a", "--match", "none"], ["list", "a"],
    ["list", "--wait", "0"], ["forget", "a"],
    ["forget", "a", "no group"], ["forget", "*", "a"], ["shout", "a"],
], ids=str)  # fmt: skip
def test_wrong_words_are_wrong_use(events: Invoke, words: list[str]) -> None:
    result = events(*words)
    assert (result.exit_code, result.stdout) == (2, "")


def test_the_list_has_a_line_for_each_listener(events: Invoke, hall: Hall) -> None:
    events("publish", "order.created", '["fail"]')
    hall.hears()
    lines = [line.split("  ") for line in events("list").stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["order.*", f"{__name__}.hear", "each worker"],
        ["order.created", f"{__name__}.share", "group billing, durable"],
        ["order.created", f"{__name__}.share", "group team"],
    ]
    assert lines[0][4] == "1 failures"


def test_the_list_as_json_is_one_object(events: Invoke, hall: Hall) -> None:
    found = json.loads(events("list", "--json").stdout)
    assert found["subscriptions"] == [
        {"pattern": "order.created", "group": "billing", "filter": "", "served": True, "waiting": 0}
    ]
    assert [(each["pattern"], each["group"], each["durable"]) for each in found["listeners"]] == [
        ("order.*", None, False),
        ("order.created", "billing", True),
        ("order.created", "team", False),
    ]
    assert found["listeners"][0].keys() == {
        *("pattern", "name", "group", "durable", "failures", "headers", "match"),
        *("host", "pid"),
    }


def test_a_durable_group_that_nobody_serves_is_shown_and_can_be_forgotten(events: Invoke, hall: Hall) -> None:
    hall.close()
    assert events("list").stdout == "order.created  -  group billing, durable  nobody serves it now\n"
    assert events("forget", "order.created", "billing").exit_code == 0
    assert events("list").stdout == ""
    result = events("forget", "order.created", "billing")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "there is no durable group 'billing' that listens to 'order.created'" in result.stderr


def test_a_durable_group_that_is_served_is_forgotten_by_force_alone(events: Invoke, hall: Hall) -> None:
    result = events("forget", "order.created", "billing")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: group 'billing' of 'order.created' is not forgotten, as 1 serves it: have its events "
        "heard and stop those that serve it, or lose its events with --force\n",
    )
    assert events("list", "--json").stdout.count('"served":true') == 1
    assert events("forget", "order.created", "billing", "--force").exit_code == 0


def test_a_durable_group_with_events_is_forgotten_by_force_alone(events: Invoke, hall: Hall) -> None:
    hall.close()
    for _ in range(2):
        events("publish", "order.created")
    assert events("list").stdout.endswith("nobody serves it now  2 waiting\n")
    result = events("forget", "order.created", "billing")
    assert result.exit_code == 1
    assert "not forgotten, as 2 events are kept for it" in result.stderr
    assert '"waiting":2' in events("list", "--json").stdout
    assert events("forget", "order.created", "billing", "--force").exit_code == 0
    assert events("list").stdout == ""


def test_a_durable_group_that_a_subscriber_is_in_is_served(events: Invoke, hall: Hall) -> None:
    hall.close()
    with (
        RpcClient(backend=hall.url) as client,
        client.subscribe("order.created", group="billing", durable=True),
    ):
        assert events("list").stdout == ""
        assert '"served":true' in events("list", "--json").stdout
        assert events("forget", "order.created", "billing").exit_code == 1


def test_a_durable_group_with_a_filter_is_told_from_the_one_without(events: Invoke, hall: Hall) -> None:
    @on("order.created", headers={"rush": True}, group="billing", durable=True)
    def hear(data: Any) -> None: ...

    receiver, begun = RpcReceiver(jobs={}, services=[hear], backend=hall.url), threading.Event()
    receiver.hook("on_connect")(begun.set)
    thread = threading.Thread(target=receiver.start)
    thread.start()
    assert begun.wait(SECONDS)
    assert "group billing, durable" in (shown := events("list").stdout)
    assert "all of rush=True" in shown
    receiver.stop()
    thread.join(SECONDS)
    hall.close()
    assert "nobody serves it now  filter" in events("list").stdout
    assert events("forget", "order.created", "billing", "--header", "rush:=true").exit_code == 0
    assert events("list").stdout == "order.created  -  group billing, durable  nobody serves it now\n"


def test_a_backend_without_subscriptions_is_one_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(backend_from_url("memory://"))
    monkeypatch.setattr(kind, "features", frozenset({"topics"}))
    result = invoke("events", "forget", "a", "b", "--backend", "memory://")
    assert result.exit_code == 2
    assert "has no feature 'subscriptions'" in result.stderr


@pytest.mark.redis
def test_no_broker_is_4(invoke: Invoke) -> None:
    result = invoke("events", "list", "--backend", "redis://127.0.0.1:1/0", "--json")
    assert result.exit_code == 4
    assert error_in(result.stdout)["type"] == "BackendUnavailable"


@pytest.mark.parametrize("name", command.commands)
def test_each_has_help_with_an_example(invoke: Invoke, name: str) -> None:
    shown = invoke("events", name, "--help").stdout
    assert f"Example:\n    rpc events {name}" in shown
    options = [each for each in command.commands[name].params if isinstance(each, click.Option)]
    assert all(option.help for option in options)


# Between processes.


@pytest.fixture
def broker(redis_server: RedisServer) -> str:
    return f"{redis_server.url[:-1]}8"


@pytest.mark.redis
def test_what_is_heard_is_a_line_until_ctrl_c(
    broker: str, spawn: Callable[..., Process], rpc: Callable[..., Any]
) -> None:
    on_broker = ("--backend", broker, "--header", "region:=1")
    listening = spawn("events", "tail", "order.*", *on_broker, "--json")
    listening.says("listening to order.*")
    rpc("events", "publish", "other", *on_broker)
    rpc("events", "publish", "order.x", "n:=3", "--backend", broker, "--header", "region=1")
    ids = [rpc("events", "publish", "order.x", f"n:={n}", *on_broker).stdout[:-1] for n in range(2)]
    listening.says(ids[1])
    lines = [json.loads(line) for line in listening.said.splitlines() if line.startswith("{")]
    assert lines == [
        {"topic": "order.x", "data": {"n": n}, "headers": {"region": 1}, "id": ids[n]} for n in range(2)
    ]
    assert listening.ends(signal.SIGINT) in (0, 130)
    assert "Traceback" not in listening.said


@pytest.mark.redis
def test_it_ends_after_so_many(broker: str, spawn: Callable[..., Process], rpc: Callable[..., Any]) -> None:
    rpc("events", "publish", "order", "n:=1", "--backend", broker, "--header", "source=shell")
    listening = spawn("events", "tail", "order", "--backend", broker, "--count", "2", "--since", "60")
    listening.says('order  {"n":1}  source=shell')
    with RpcClient(backend=broker) as client:
        for _ in range(4):
            client.publish("order")
    assert listening.ends() == 0
    assert listening.said.count("{") == 2
