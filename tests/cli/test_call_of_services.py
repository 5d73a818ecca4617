"""`rpc call --type`: a service does it, whatever its queues are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import Result

from rpc import Identity, RpcClient

from .conftest import error_in

Call = Callable[..., Result]


def telling(text: str) -> Callable[[], str]:
    def tell() -> str:
        return text

    return tell


@pytest.fixture
def shop(rpc_receiver: Callable[..., RpcClient], memory_url: str, invoke: Call) -> Call:
    """`rpc call`, where two versions of a service run that is called so."""

    def count(to: int) -> Iterator[int]:
        yield from range(to)

    for version in "1.0.0", "2.0.0":
        identity = Identity(domain="shop", type="orders", id=f"v{version[0]}", version=version)
        jobs = {"who": telling(version), "count": count}
        rpc_receiver(jobs=jobs, backend=memory_url, identity=identity)
    return lambda *words, **more: invoke("call", *words, "--backend", memory_url, **more)


ORDERS = "--domain", "shop", "--type", "orders"


@pytest.mark.parametrize(
    ("words", "version"),
    [
        (["--service-version", ">=2"], "2.0.0"),
        (["--id", "v1"], "1.0.0"),
        (["--id", "v2", "--wait", "5"], "2.0.0"),
    ],
)
def test_a_service_is_called_by_what_it_is(shop: Call, words: list[str], version: str) -> None:
    assert json.loads(shop("who", *ORDERS, *words).stdout) == version


def test_a_service_streams_and_is_called_by_itself(shop: Call, memory_url: str) -> None:
    assert shop("count", "to:=2", *ORDERS, "--stream").stdout.splitlines() == ["0", "1"]
    assert len(shop("who", *ORDERS, "--no-wait").stdout.split()) == 1
    with RpcClient(backend=memory_url) as client:
        instance = client.list_services(id="v2")[0].instance
    assert json.loads(shop("who", "--instance", instance).stdout) == "2.0.0"


def test_a_service_is_called_with_each_line_of_a_file(shop: Call) -> None:
    words = ["who", *ORDERS, "--service-version", ">=2", "--map", "-", "--window", "2"]
    assert shop(*words, input="[]\n" * 5).stdout.splitlines() == ['"2.0.0"'] * 5


def test_a_service_that_does_not_run_is_an_error_at_once(shop: Call) -> None:
    result = shop("who", *ORDERS, "--service-version", ">=3", "--json")
    assert error_in(result.stdout)["type"] == "NoReceivers"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--id", "eu"], "say which service: its type"),
        (["--type", "a", "--queue", "b"], "not with --queue"),
        (["--type", "a.b"], "'a.b' is no type of a service"),
        (["--type", "a", "--service-version", "new"], "'new' is no version"),
        (["--wait", "1"], "--wait is for a service"),
    ],
)
def test_what_is_no_service_is_wrong_use(invoke: Call, words: list[str], complaint: str) -> None:
    result = invoke("call", "echo", *words, "--backend", "memory://")
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr
