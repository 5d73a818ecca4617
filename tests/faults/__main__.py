"""`make faults`: the catalogue of faults, and a table of what came of each."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import click
import pytest
import redis

from . import table
from .plan import PLUGIN, Plan

HERE = Path(__file__).parent


@click.command()
@click.option("--scenario", "scenarios", help="Names, with commas between them; all by default.")
@click.option("--seconds", type=float, help="How long a scenario goes on that has no other end.")
@click.option("--seed", type=int, help="Of all random choices; a new one by default.")
@click.option(
    "--backend", type=click.Choice(["redis://", "rq+redis://"]), default="redis://", show_default=True
)
@click.option("--brief", is_flag=True, help="As little as `make test-all` does.")
@click.option("--publish", is_flag=True, help="Write the table to docs/faults.md.")
def main(
    scenarios: str | None, seconds: float | None, seed: int | None, backend: str, brief: bool, publish: bool
) -> None:
    names = tuple(filter(None, (scenarios or "").split(",")))
    plan = Plan(long=not brief, seconds=seconds, backend=backend, scenarios=names)
    if seed is not None:
        plan.seed = seed
    print(f"seed {plan.seed}", flush=True)
    collector = table.Collector()
    config = ["-q", "--tb=short", "-p", "no:cacheprovider", str(HERE)]
    code = pytest.main(config, plugins=[_Named(plan), collector])
    title = f"{backend}, seed {plan.seed}: {_versions()}"
    print(table.for_terminal(collector.rows, title))
    if publish:
        table.publish(collector.rows, backend, title)
    sys.exit(code)


class _Named:
    """Registers the plan under the name by which it is found."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self._plan, PLUGIN)


def _versions() -> str:
    from rpc.testing import start_redis  # pytest wants to be the first to import it

    with start_redis() as server:
        kind = f"{server.kind} {server.version}"
    return f"{kind}, redis-py {redis.__version__}, Python {platform.python_version()}, {platform.system()}"


if __name__ == "__main__":
    main()
