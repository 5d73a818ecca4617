"""`make faults`: the catalogue of faults, and a table of what came of each."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import click
import pytest
import redis

from . import table
from .plan import SCHEMES, Plan

HERE = Path(__file__).parent


@click.command()
@click.option("--scenario", "scenarios", help="Names, with commas between them; all by default.")
@click.option("--seconds", type=float, help="How long a scenario goes on that has no other end.")
@click.option("--seed", type=int, help="Of all random choices; a new one by default.")
@click.option("--backend", type=click.Choice(list(SCHEMES)), help="The kind of broker; all by default.")
@click.option("--jobs", "-j", default=1, help="How many scenarios are played at the same time.")
@click.option("--brief", is_flag=True, help="As little as `make test-all` does.")
@click.option("--publish", is_flag=True, help="Write the table to docs/faults.md.")
def main(
    scenarios: str | None,
    seconds: float | None,
    seed: int | None,
    backend: str | None,
    jobs: int,
    brief: bool,
    publish: bool,
) -> None:
    names = list(filter(None, (scenarios or "").split(",")))
    kinds = [backend] if backend else list(SCHEMES)
    plan = Plan(alone=True, long=not brief, seconds=seconds, kinds=kinds, scenarios=names)
    if seed is not None:
        plan.seed = seed
    print(f"seed {plan.seed}", flush=True)
    plan.publish()
    collector = table.Collector()
    config = ["-q", "--tb=short", "-p", "no:cacheprovider", str(HERE)]
    if jobs > 1:
        config += ["-n", str(jobs), "--dist", "load", "--maxschedchunk", "1"]
    code = pytest.main(config, plugins=[collector])
    machine = f"{os.cpu_count()} processors, {jobs} at a time, load {collector.load()}"
    for kind in kinds:
        rows = [row for row in collector.rows if row.kind == kind]
        title = f"{_versions(kind)}, {machine}, seed {plan.seed}"
        print(table.for_terminal(rows, title))
        if publish:
            table.publish(rows, kind, title, whole=not names and code != pytest.ExitCode.INTERRUPTED)
    sys.exit(code)


def _versions(kind: str) -> str:
    python = f"Python {platform.python_version()}, {platform.system()}"
    if kind == "amqp":
        from tests.rabbit import version

        return f"RabbitMQ {version()}, {python}"
    from rpc.testing import start_redis  # pytest wants to be the first to import it

    with start_redis() as server:
        return f"{server.kind} {server.version}, redis-py {redis.__version__}, {python}"


if __name__ == "__main__":
    main()
