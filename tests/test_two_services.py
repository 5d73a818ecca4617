"""The example of two services, as its README says to run it: on Redis, and on RabbitMQ where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_web_examples import SECONDS, Program

EXAMPLE = Path(__file__).parent.parent / "example" / "two_services"

pytestmark = pytest.mark.redis


@pytest.fixture(params=["redis", "amqp"])
def broker(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "redis":
        yield request.getfixturevalue("rpc_redis").url
        return
    from tests.rabbit import rabbit

    with rabbit() as server:
        for name in "example.stock", "example.orders":
            server.declare(name)
        yield server.url


@pytest.mark.slow
def test_it_runs_as_its_readme_says(broker: str) -> None:
    with ExitStack() as stack:
        workers = []
        for settings in "stock_settings", "orders_settings":
            environment = {"BROKER": broker, "RPC_SETTINGS_MODULE": settings}
            worker = Program(["rpc", "worker"], EXAMPLE, environment)
            stack.callback(worker.ends)
            stack.callback(worker.terminate)
            worker.says("serving")
            workers.append(worker)
        bought = subprocess.run(
            [sys.executable, "buy.py"],
            cwd=EXAMPLE,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert bought.stdout.splitlines() == [
            "-----> tea: {'number': 1, 'left': 3}",
            "-----> coffee: OutOfStock: 2 x coffee",
            "-----> one coffee: {'number': 2, 'left': 0}",
        ], bought.stderr
        workers[1].says(r"order\.placed: \{'number': 2, 'item': 'coffee', 'quantity': 1\}")
