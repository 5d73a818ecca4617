"""The example of three services with two replicas each, as its README says, and without one of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from test_web_examples import SECONDS, Program

from rpc import RpcClient
from tests.contract.specifications import check_openrpc

EXAMPLE = Path(__file__).parent.parent / "example" / "fabric"
SERVICES = ("prices", "orders", "mail")

pytestmark = [pytest.mark.slow]


def shop(broker: str) -> list[str]:
    environment = {**os.environ, "BROKER": broker}
    done = subprocess.run(
        [sys.executable, "shop.py"],
        cwd=EXAMPLE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def fabric(any_broker_url: str) -> Iterator[tuple[str, dict[str, Program]]]:
    """The broker, and the supervisors of all replicas, which are there when this returns."""
    with ExitStack() as stack:
        supervisors = {}
        for service in SERVICES:
            environment = {"BROKER": any_broker_url, "SERVICE": service}
            program = Program(["rpc", "worker", "--processes", "2"], EXAMPLE, environment)
            stack.callback(program.ends)
            stack.callback(program.terminate)
            supervisors[service] = program
        with RpcClient(backend=any_broker_url) as client:
            end = time.monotonic() + 2 * SECONDS
            while len(client.list_services(domain="shop")) < 6:
                assert time.monotonic() < end, "not all services have come"
        yield any_broker_url, supervisors


def test_it_runs_and_nobody_notices_when_one_of_each_is_killed(
    fabric: tuple[str, dict[str, Program]],
) -> None:
    broker, supervisors = fabric
    with RpcClient(backend=broker) as client:
        replicas = client.list_services(domain="shop")
    lines = shop(broker)
    assert sorted(lines[:6]) == [f"service shop.{each}.default 1.4.0" for each in sorted(SERVICES * 2)]
    assert lines[6:] == ["total 57.0", "coffee 24.0 orders True", "coffee 6.0 orders False"]
    for each in {each.type: each for each in replicas}.values():
        os.kill(each.pid, signal.SIGKILL)
    assert shop(broker)[-3:] == lines[-3:]
    supervisors["mail"].says("a mail about")


def test_its_compose_file_starts_what_the_readme_starts() -> None:
    services = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]
    assert {each["environment"].get("SERVICE") for each in services.values() if "environment" in each} == {
        *SERVICES,
        None,
    }
    for name in SERVICES:
        assert services[name]["deploy"]["replicas"] == 2


RIGHT = """
from client import Client
from rpc import RpcClient

cost: float = Client(RpcClient()).prices.of("tea", quantity=2)
"""
WRONG = RIGHT.replace("quantity=2", 'quantity="two"')


def test_its_contracts_are_valid_and_a_type_checker_finds_a_wrong_call(tmp_path: Path) -> None:
    def rpc(*words: str) -> str:
        command = [sys.executable, "-m", "rpc", *words]
        environment = {**os.environ, "SERVICE": "prices", "RPC_SETTINGS_MODULE": "settings"}
        done = subprocess.run(
            command,
            cwd=EXAMPLE,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    document = json.loads(rpc("describe", "--offline"))
    check_openrpc(document)
    assert document["info"]["version"] == "1.4.0"
    (tmp_path / "client.py").write_text(rpc("stubs", "--offline"))
    for name, text in (("right", RIGHT), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", f"{name}.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is (name == "right"), done.stdout
        assert ('incompatible type "str"' in done.stdout) is (name == "wrong")
