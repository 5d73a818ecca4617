"""`rpc describe`, `rpc stubs`, `rpc diff`, and `rpc worker --contract`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rpc import RpcReceiver
from rpc.settings import Settings, load_settings

from .conftest import SECONDS, Process, error_in

Invoke = Callable[..., Result]

SETTINGS = """
from rpc import expose, on


class Orders:
    name = "orders"

    @expose
    def place(self, item: str, quantity: int = 1) -> str:
        "Place an order."
        return f"{quantity} x {item}"

    @on("payment.*")
    def paid(self, data: dict[str, int]) -> None: ...

    @on("boom")
    def sweep(self, data: int) -> None: ...


def add(a: int, b: int) -> int:
    return a + b


RPC_SERVICES = [Orders]
RPC_JOB_MAPPING = {"add": add}
RPC_SERVICE_TYPE = "shop"
RPC_SERVICE_VERSION = "1.2.0"
"""
DOCUMENT: dict[str, Any] = {"openrpc": "1.4.1", "info": {"title": "t", "version": "1"}, "methods": []}


@pytest.fixture
def offline(invoke: Invoke, tmp_path: Path) -> Invoke:
    """A command, of a directory with a settings module of its own name."""
    name = _settings(tmp_path)
    (tmp_path / f"{name}.py").write_text(SETTINGS)
    return lambda command, *words: invoke(command, "--offline", "--settings", name, *words)


def _settings(path: Path) -> str:
    """The name of the module there."""
    return f"of_{path.name.replace('-', '_')}"


def file(path: Path, name: str, *methods: Any) -> str:
    (path / name).write_text(json.dumps({**DOCUMENT, "methods": methods}))
    return name


def method(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "params": [{"name": "p", "schema": schema, "required": True}]}


def test_what_settings_declare_is_described_without_a_broker(offline: Invoke) -> None:
    result = offline("describe")
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert document["info"] == {"title": "shop", "version": "1.2.0"}
    assert [each["name"] for each in document["methods"]] == ["add", "health_check", "orders.place"]
    assert result.stdout.count("\n") > 10
    assert result.stdout == offline("describe").stdout


def test_one_service_or_job_is_described(offline: Invoke) -> None:
    (found,) = json.loads(offline("describe", "orders").stdout)["methods"]
    assert (found["name"], found["summary"]) == ("orders.place", "Place an order.")
    result = offline("describe", "nosuch", "--json")
    assert (result.exit_code, error_in(result.stdout)["type"]) == (1, "ServiceNotFound")


def test_events_are_described(offline: Invoke) -> None:
    result = offline("describe", "--events", "--json")
    assert result.stdout.count("\n") == 1
    assert list(json.loads(result.stdout)["channels"]) == ["boom", "payment.any"]
    assert offline("describe", "orders", "--events").exit_code == 2


def test_what_runs_is_described_as_what_is_declared(offline: Invoke, invoke: Invoke, tmp_path: Path) -> None:
    url, which = f"memory://{tmp_path.name}", ("--domain", "bank", "--type", "teller", "--id", "1")
    version = ("--service-version", "2.0.0")
    settings = replace(
        load_settings(_settings(tmp_path)), domain="bank", service_type="teller", service_id="1"
    )
    with _served(replace(settings, service_version="2.0.0"), url):
        for words in ([], ["--events"], ["orders"]):
            found = invoke("describe", "--backend", url, *which, *version, *words).stdout
            assert found == offline("describe", *which, *version, *words).stdout
            assert '"title": "teller"' in found
            assert found == invoke("describe", "--backend", url, *words).stdout
        stubbed = invoke("stubs", "--backend", url, *which)
        assert stubbed.stdout == offline("stubs", *which, *version).stdout
        for command in "describe", "stubs":
            result = invoke(command, "--backend", url, "--type", "nope")
            expected = "no service runs that is type 'nope': there is bank.teller.1 2.0.0\n"
            assert (result.exit_code, result.stderr) == (1, f"Error: {expected}")
    result = offline("describe", "--type", "a.b")
    assert (result.exit_code, "'a.b' is no type" in result.stderr) == (2, True)


@contextmanager
def _served(settings: Settings, url: str) -> Iterator[None]:
    begun = threading.Event()
    receiver = RpcReceiver(settings=settings, backend=url, hooks={"on_connect": begun.set})
    thread = threading.Thread(target=receiver.start)
    thread.start()
    assert begun.wait(SECONDS)
    try:
        yield
    finally:
        receiver.stop()
        thread.join(SECONDS)


def test_workers_that_run_are_described(invoke: Invoke, memory: str) -> None:
    result = invoke("describe", "typed", "--backend", memory)
    (found,) = json.loads(result.stdout)["methods"]
    assert [each["name"] for each in found["params"]] == ["a", "b"]
    result = invoke("describe", "--events", "--backend", memory)
    assert (result.exit_code, result.stderr) == (1, "Error: nobody listens to events\n")


def test_nobody_is_an_error(invoke: Invoke) -> None:
    result = invoke("describe", "--backend", "memory://nobody", "--wait", "0.05", "--json")
    assert (result.exit_code, error_in(result.stdout)["type"]) == (1, "NoReceivers")
    assert invoke("describe", "--offline", "--backend", "memory://").exit_code == 2


def test_stubs_are_a_module(offline: Invoke, invoke: Invoke, memory: str, tmp_path: Path) -> None:
    for source in (offline("stubs"), invoke("stubs", "--backend", memory)):
        assert source.exit_code == 0
        names: dict[str, Any] = {}
        exec(source.stdout, names)
        assert {"Client", "AsyncClient"} <= names.keys()
    assert "def add(self, a: int, b: int) -> int:" in offline("stubs").stdout
    assert "def add(" not in offline("stubs", "orders").stdout
    (tmp_path / "openrpc.json").write_text(offline("describe").stdout)
    assert invoke("stubs", "--from", "openrpc.json").stdout == offline("stubs").stdout
    assert invoke("stubs", "add", "--from", "openrpc.json").stdout == offline("stubs", "add").stdout
    for wrong in (["--offline"], ["--type", "orders"]):
        assert invoke("stubs", "--from", "openrpc.json", *wrong).exit_code == 2


def test_documents_are_compared(invoke: Invoke, tmp_path: Path) -> None:
    old = file(tmp_path, "old.json", method("a", type="integer"), method("gone"))
    new = file(tmp_path, "new.json", method("a", type="string"), method("new"))
    result = invoke("diff", old, new)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "breaking: a: parameter 'p' is narrower (integer, now string): integer is not string",
        "breaking: gone: the method is gone",
        "compatible: new: the method is new",
    ]
    assert (invoke("diff", old, old).exit_code, invoke("diff", old, old).stdout) == (0, "")
    more = file(tmp_path, "more.json", method("a", type="number"), method("gone"), method("new"))
    result = invoke("diff", old, more, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (
        0,
        {
            "breaking": [],
            "compatible": [
                {"method": "a", "text": "parameter 'p' is wider (integer, now number)"},
                {"method": "new", "text": "the method is new"},
            ],
        },
    )


@pytest.mark.parametrize("text", ["", "[]", '{"openrpc": 1}', "\x00"])
def test_what_is_no_document_is_wrong_use(invoke: Invoke, tmp_path: Path, text: str) -> None:
    old = file(tmp_path, "old.json")
    (tmp_path / "bad.json").write_text(text)
    result = invoke("diff", old, "bad.json")
    assert result.exit_code == 2
    assert "Error: bad.json: " in result.stderr
    assert invoke("stubs", "--from", "bad.json").exit_code == 2
    assert invoke("diff", old, "nosuch.json").exit_code == 2


@pytest.mark.redis
def test_a_worker_that_breaks_its_contract_does_not_start(
    rpc: Callable[..., Any], spawn: Callable[..., Process], project: Path
) -> None:
    names = [{"name": name, "params": []} for name in ("add", "nosuch")]
    kept = [each | {"x-rpc-style": "request"} for each in names[:1]]
    (project / "kept.json").write_text(json.dumps({**DOCUMENT, "methods": kept}))
    (project / "openrpc.json").write_text(json.dumps({**DOCUMENT, "methods": kept + names[1:]}))
    refused = rpc("worker", "--contract", "openrpc.json")
    assert refused.returncode == 2
    assert (
        "Error: what is offered breaks the contract openrpc.json: nosuch: the method is gone\n"
        in refused.stderr
    )
    with (project / "settings.py").open("a") as settings:
        settings.write("\nRPC_CONTRACT = 'openrpc.json'\n")
    assert rpc("worker").returncode == 2
    spawn("worker", "--contract", "kept.json").says("serving")
