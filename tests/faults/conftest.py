from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from .nursery import Nursery
from .plan import Plan, plan_of
from .stage import Stage

HERE = Path(__file__).parent
T = TypeVar("T")


def rarely(*values: Any) -> Any:
    """Parameters of a test that are for the whole catalogue alone."""
    return pytest.param(*values, marks=pytest.mark.faults)


class Pick(Protocol):
    def __call__(self, brief: T, long: T) -> T:
        """The first in a brief run, the second when the whole catalogue is run."""


class Last(Protocol):
    def __call__(self, brief: float, long: float) -> float:
        """The same for how many seconds something goes on, unless the runner was told."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is not in the plan, which has more time for a test. All that needs a stage is slow."""
    plan = plan_of(config)
    ours = [item for item in items if HERE in item.path.parents]
    unwanted = [item for item in ours if not plan.wants(item)]
    for item in ours:
        if "stage" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        if plan.long:
            item.add_marker(pytest.mark.timeout(900), append=False)
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    return plan_of(pytestconfig)


@pytest.fixture
def dice(plan: Plan, request: pytest.FixtureRequest) -> random.Random:
    """Every random choice of a test; which tests run beside it makes no difference."""
    print(f"RPC_SEED={plan.seed}")
    return random.Random(f"{plan.seed} {request.node.name}")


@pytest.fixture
def pick(plan: Plan) -> Pick:
    return lambda brief, long: long if plan.long else brief


@pytest.fixture
def last(plan: Plan) -> Last:
    return lambda brief, long: plan.seconds or (long if plan.long else brief)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def stage(
    tmp_path: Path, dice: random.Random, nursery: Nursery, plan: Plan, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    stage = Stage(tmp_path, dice, nursery, plan.backend)
    yield stage
    figures = stage.oracle.figures()
    print(figures)
    request.node.user_properties.append(("figures", figures.as_row()))
    stage.close()
