"""`rpc jobs` and `rpc queues`: what is shown, and what becomes of a job."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result

from rpc import Identity, RpcClient, RpcReceiver
from rpc.codecs import register
from rpc.settings import Settings
from rpc.testing.site import eventually

Invoke = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}"


@pytest.fixture
def client(url: str) -> Iterator[RpcClient]:
    with RpcClient(backend=url) as client:
        yield client


@pytest.fixture
def jobs(invoke: Invoke, url: str) -> Invoke:
    return lambda first, *words: invoke("jobs", first, *words, "--backend", url)


@pytest.fixture
def worker(url: str) -> Iterator[None]:
    def fail() -> None:
        raise ValueError("no")

    handlers = {"add": lambda a, b: a + b, "fail": fail, "echo": lambda *args: {"echo": [*args]}}
    receiver = RpcReceiver(jobs=handlers, backend=url, settings=Settings(unknown_for=0.0))
    thread = threading.Thread(target=receiver.run)
    thread.start()
    yield
    receiver.stop()
    thread.join(30)


def test_no_jobs_are_no_lines(jobs: Invoke) -> None:
    assert jobs("list").stdout == ""
    assert json.loads(jobs("list", "--json").stdout) == {"jobs": []}


def test_the_list_has_a_line_for_each(jobs: Invoke, client: RpcClient) -> None:
    first, second = client.call("add", [1, 2]), client.call("mul", [1, 2], queue="low", delay=60)
    lines = [line.split("  ") for line in jobs("list").stdout.splitlines()]
    assert [line[:4] for line in lines] == [
        [first, "waiting", "default", "add"],
        [second, "scheduled", "low", "mul"],
    ]
    assert jobs("list", "--state", "scheduled").stdout.split()[0] == second
    assert jobs("list", "--name", "add").stdout.split()[0] == first
    assert jobs("list", "--queue", "high").stdout == ""
    assert jobs("list", "--state", "succeeded").exit_code == 2  # it would never find any


def test_what_became_of_a_job_is_shown(jobs: Invoke, client: RpcClient, worker: None) -> None:
    good, bad = client.call("add", [1, 2], keep=60), client.call("fail")
    eventually(lambda: [client.job(id).state for id in (good, bad)] == ["succeeded", "dead"])
    shown = jobs("show", good).stdout
    assert "state:   succeeded" in shown
    assert re.search(r"^took:    \d\.\d{6} s$", shown, re.MULTILINE)
    assert shown.endswith("result:\n3\n")
    told = json.loads(jobs("show", bad, "--json").stdout)
    assert (told["state"], told["error"], told["result"]) == ("dead", "ValueError: no", None)
    assert "in fail" in told["traceback"]
    assert "in fail" in jobs("show", bad).stdout


@dataclass
class Order:
    item: str


@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types"])
def test_a_result_in_any_codec_is_shown_as_json(url: str, jobs: Invoke, worker: None, codec: str) -> None:
    with RpcClient(backend=url, codec=codec) as client:
        register(Order)  # as the worker, which is in this process, would
        id = client.call("echo", [Order("tea"), {1}], keep=60)
    eventually(lambda: "state:   succeeded" in jobs("show", id).stdout)
    tagged = [{"$object": [f"{__name__}.Order", {"item": "tea"}]}, {"$set": [1]}]
    plain = [{"item": "tea"}, [1]]
    shown = json.loads(jobs("show", id, "--json").stdout)["result"]
    assert shown == {"echo": tagged if codec == "json+types" else plain}


def test_a_shell_can_have_an_outcome_kept(invoke: Invoke, jobs: Invoke, url: str, worker: None) -> None:
    id = invoke("call", "add", "[1, 2]", "--no-wait", "--keep", "60", "--backend", url).stdout.strip()
    eventually(lambda: "result:\n3\n" in jobs("show", id).stdout)


def test_of_what_is_not_known_nothing_is_shown(jobs: Invoke) -> None:
    result = jobs("show", "nosuch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing is known of nosuch in high, default, low: " in result.stderr
    assert "nothing is known of nosuch in slow: " in jobs("show", "nosuch", "--queue", "slow").stderr
    assert "nothing is known of nosuch in slow: " in jobs("cancel", "nosuch", "--queue", "slow").stderr


def test_jobs_are_cancelled(jobs: Invoke, client: RpcClient) -> None:
    id = client.call("add", [1, 2], keep=60)
    assert jobs("cancel", id).stdout == f"{id}\n"
    assert client.job(id).state == "cancelled"
    again = jobs("cancel", id)
    assert again.exit_code == 1
    assert "neither waits nor runs" in again.stderr


def test_dead_letters_are_tried_again(jobs: Invoke, client: RpcClient, worker: None) -> None:
    id = client.call("fail")
    dead = eventually(lambda: next(iter(client.jobs(state="dead")), None))
    assert jobs("retry", id).stdout == f"{id}\n"
    eventually(lambda: [each.at for each in client.jobs(state="dead")] not in ([], [dead.at]))
    assert jobs("retry", "nosuch").exit_code == 1


def test_queues_are_shown(invoke: Invoke, client: RpcClient, url: str) -> None:
    client.call("add", [1, 2])
    head, *rows = invoke("queues", "--backend", url).stdout.splitlines()
    assert head.split() == ["queue", "waiting", "running", "scheduled", "dead", "workers", "oldest"]
    assert [" ".join(row.split()[:6]) for row in rows] == [
        "high 0 0 0 0 0",
        "default 1 0 0 0 0",
        "low 0 0 0 0 0",
    ]
    told = json.loads(invoke("queues", "--json", "--backend", url).stdout)["queues"]
    assert [each["waiting"] for each in told] == [0, 1, 0]
    client.call("add", [1, 2], queue="slow")
    told = json.loads(invoke("queues", "--json", "--queue", "slow", "--backend", url).stdout)["queues"]
    assert [(each["queue"], each["waiting"]) for each in told] == [("slow", 1)]


def test_queues_and_dead_letters_of_a_domain_are_shown(invoke: Invoke, client: RpcClient, url: str) -> None:
    """Of the services that run, beside those of the settings."""

    def fail() -> None:
        raise ValueError("no")

    identity, arrived = Identity(domain="shop", type="orders"), threading.Event()
    receiver = RpcReceiver(jobs={"fail": fail}, backend=url, identity=identity)
    thread = threading.Thread(target=lambda: receiver.run(arrived=arrived.set))
    thread.start()
    assert arrived.wait(30)
    dead = client.call("fail", queue="shop.orders.default")
    eventually(lambda: client.jobs(queue="shop.orders.default", state="dead"))
    for words in (["--domain", "shop"], ["--domain", "bank"], []):
        queues = json.loads(invoke("queues", "--json", "--backend", url, *words).stdout)["queues"]
        listed = invoke("dead-letters", "list", "--json", "--backend", url, *words).stdout
        own = [*identity.queues] if "shop" in words else []
        assert [each["queue"] for each in queues] == ["high", "default", "low", *own]
        assert [each["id"] for each in json.loads(listed)["dead_letters"]] == [dead] * bool(own)
    shown = invoke("dead-letters", "retry", "--all", "--backend", url, "--domain", "shop").stdout
    assert shown == f"{dead}\n"
    receiver.stop()
    thread.join(30)
    assert "'a.b' is no domain" in invoke("queues", "--backend", url, "--domain", "a.b").stderr
