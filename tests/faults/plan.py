"""How the suite is run: briefly with the other tests, or the whole catalogue by `python -m tests.faults`."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass, field
from typing import Any

PLUGIN = "fault plan"
VARIABLE = "RPC_FAULT_PLAN"
"""In the environment: by it also processes that pytest-xdist starts know the plan."""
SCHEMES = {"redis": "redis://", "rq": "rq+redis://", "amqp": "amqp://"}
"""Of each kind of broker."""


@dataclass
class Plan:
    """What to run; a pytest plugin, to be found by its name."""

    alone: bool = False
    """Whether nothing but this is run."""
    long: bool = False
    seconds: float | None = None
    """How long a scenario goes on that has no other end; None: as it thinks best."""
    kinds: list[str] = field(default_factory=lambda: list(SCHEMES))
    seed: int = field(default_factory=lambda: int(os.environ.get("RPC_SEED", random.randrange(2**32))))
    scenarios: list[str] = field(default_factory=list)
    """Names of tests without `test_`; none: all."""

    def kind_of(self, item: Any) -> str:
        """Of its broker; "" if it has none."""
        return str(item.callspec.params.get("kind", "")) if hasattr(item, "callspec") else ""

    def wants(self, item: Any) -> bool:
        name = item.originalname.removeprefix("test_")
        kind = self.kind_of(item)
        allowed = [self.kinds, *(mark.args for mark in item.iter_markers("only"))]
        if kind and not all(kind in kinds for kinds in allowed):
            return False
        if self.scenarios:
            return name in self.scenarios
        return self.long or item.get_closest_marker("faults") is None

    def publish(self) -> None:
        """Leave it to the tests of this process, and to those of processes that it starts."""
        os.environ[VARIABLE] = json.dumps(asdict(self))


def plan_of(config: Any) -> Plan:
    """The plan that the runner published, or the brief one."""
    plan = config.pluginmanager.get_plugin(PLUGIN)
    if plan is None:
        plan = Plan(**json.loads(os.environ.get(VARIABLE, "{}")))
        config.pluginmanager.register(plan, PLUGIN)
    return plan  # type: ignore[no-any-return]
