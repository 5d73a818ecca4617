"""Every fault that can be made at any time, by name."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .fleet import Fleet
from .proxy import Proxy, Way
from .stage import Stage

BRIEFLY = 1.5
"""Seconds that a fault of the network goes on."""


class Chaos:
    """Does one thing after the other, and sees to it that each comes to its end."""

    def __init__(self, stage: Stage, fleet: Fleet, dice: random.Random) -> None:
        self._stage, self._fleet, self._dice = stage, fleet, dice
        self._faults: dict[str, Callable[[], object]] = {
            "SIGKILL": fleet.kill,
            "SIGTERM": fleet.relieve,
            "SIGSTOP": lambda: fleet.stop(dice.uniform(0.5, 3) * stage.broker.lease),
            **stage.broker.faults(dice),
            "reset": self._cut,
            "half-open": self._freeze,
            "black hole": lambda: self._trouble(holes={self._way()}),
            "slow drip": lambda: self._trouble(drip=0.002),
            "latency": lambda: self._trouble(delay=0.1, jitter=0.05),
            "refusal": lambda: self._trouble(refusing=True),
        }

    def strike(self) -> None:
        """One fault, chosen at random."""
        self._fleet.wake()
        name = self._dice.choice(list(self._faults))
        self._faults[name]()
        self._stage.oracle.faults[name] += 1

    def end(self) -> None:
        """Let all be well again."""
        self._fleet.wake(everyone=True)
        for proxy in self._stage.front, self._stage.back:
            proxy.heal()

    def _proxy(self) -> Proxy:
        return self._dice.choice([self._stage.front, self._stage.back])

    def _way(self) -> Way:
        return self._dice.choice(["up", "down"])

    def _cut(self) -> None:
        self._proxy().cut()

    def _freeze(self) -> None:
        self._proxy().freeze()

    def _trouble(self, **what: object) -> None:
        """The proxy as these of its attributes say, for a while."""
        proxy = self._proxy()
        for name, value in what.items():
            setattr(proxy, name, value)
        time.sleep(BRIEFLY)
        proxy.heal()
