from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from .nursery import Nursery
from .plan import SCHEMES, Plan, plan_of
from .stage import Stage
from .table import note_row

HERE = Path(__file__).parent
T = TypeVar("T")


KINDS = [
    pytest.param("redis", marks=pytest.mark.real_redis),
    pytest.param("rq", marks=[pytest.mark.real_redis, pytest.mark.faults]),
    pytest.param("amqp", marks=[pytest.mark.xdist_group("rabbit_node"), pytest.mark.faults]),
]
"""Each scenario is played with each kind of broker, or with those that `@pytest.mark.only` names: by `make
test-all` with Redis, by `make faults` with all."""


def rarely(*values: Any, only: Sequence[str] = ()) -> Any:
    """Parameters of a test that are for the whole catalogue alone."""
    marks = [pytest.mark.faults, *([pytest.mark.only(*only)] if only else [])]
    return pytest.param(*values, marks=marks)


class Pick(Protocol):
    def __call__(self, brief: T, long: T) -> T:
        """The first in a brief run, the second when the whole catalogue is run."""


class Last(Protocol):
    def __call__(self, brief: float, long: float) -> float:
        """The same for how many seconds something goes on, unless the runner was told."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is not in the plan. `make test-all` has 60 s for a test, `make faults` has more; RabbitMQ
    takes ten to start. All that needs a stage is slow."""
    plan = plan_of(config)
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    unwanted = [item for item in ours if not plan.wants(item)]
    for item in ours:
        if "stage" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        note_row(item)
        if plan.long or plan.kind_of(item) == "amqp":
            item.add_marker(pytest.mark.timeout(900 if plan.long else 300), append=False)
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
    if plan.alone:
        items[:] = _shuffled(items)


def _shuffled(items: list[pytest.Item]) -> list[pytest.Item]:
    """What takes its time begins first, each with another behind it: a process of several is given two."""
    slow = [item for item in items if "last" in getattr(item, "fixturenames", ())]
    slow.sort(key=lambda item: not item.name.startswith("test_mix"))
    quick = [item for item in items if item not in slow]
    pairs = [item for pair in zip(slow, quick, strict=False) for item in pair]
    return [*pairs, *slow[len(quick) :], *quick[len(slow) :]]


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


@pytest.fixture(scope="session")
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A RabbitMQ, as `rabbit_node` is one, that is there at once, and makes its vhosts one by one."""
    from tests.rabbit import Node

    node = Node(tmp_path_factory.mktemp("rabbit"))
    node.start()
    yield node
    node.stop(signal.SIGKILL)  # nothing of it is to be kept, and it takes its time to shut down


@pytest.fixture
def stage(
    tmp_path: Path,
    dice: random.Random,
    nursery: Nursery,
    plan: Plan,
    kind: str,
    request: pytest.FixtureRequest,
) -> Iterator[Stage]:
    node = partial(request.getfixturevalue, "own_node" if plan.alone else "rabbit_node")
    stage = Stage(tmp_path, dice, nursery, SCHEMES[kind], node)
    yield stage
    figures = stage.oracle.figures()
    print(figures)
    request.node.user_properties.append(("figures", figures.as_row()))
    stage.close()
