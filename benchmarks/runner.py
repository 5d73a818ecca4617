"""Rounds: in each, every side is measured once, one after the other, and the next time in reverse order.

A side that fails says so in the results, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from rpc.testing import start_redis

from .phases import Phase, Stand
from .processes import Side, SideFailed

Group = dict[str, Any]
"""Sides that were measured in the same rounds: `redis`, which server; `sides`, name to what is known of it
(`versions`, `note`, or `error`); `phases`, name to a list of rounds, each name of a side to its figures."""


def run_group(
    sides: Sequence[Side], phases: Sequence[Phase], rounds: int, say: Callable[[str], object]
) -> Group:
    with ExitStack() as stack:
        server = stack.enter_context(start_redis())
        directory = Path(stack.enter_context(TemporaryDirectory()))
        say(f"{server.kind} {server.version}: {', '.join(side.name for side in sides)}")
        stands = [Stand(side, server, directory) for side in sides]
        for stand in stands:
            stack.callback(stand.close)
        known = {stand.side.name: _examined(stand, say) for stand in stands}
        fit = [stand for stand in stands if "error" not in known[stand.side.name]]
        measured = {phase.name: _rounds(phase, fit, 1 if phase.once else rounds, say) for phase in phases}
        return {"redis": f"{server.kind} {server.version}", "sides": known, "phases": measured}


def _examined(stand: Stand, say: Callable[[str], object]) -> dict[str, Any]:
    """What there is to know of a side that does the work; else why it does not."""
    try:
        with stand.serving():
            return dict(stand.client.facts)
    except SideFailed as failure:
        stand.close()
        say(f"{stand.side.name}: {failure}")
        return {"error": str(failure)}


def _rounds(
    phase: Phase, stands: Sequence[Stand], rounds: int, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """The figures of each round, by side. A side that fails is left out of the rounds that follow."""
    rows: list[dict[str, Any]] = []
    failed: set[str] = set()
    for number in range(rounds):
        row: dict[str, Any] = {}
        for stand in stands if number % 2 == 0 else reversed(stands):
            name = stand.side.name
            if name in failed:
                continue
            try:
                row[name] = phase.measure(stand)
            except SideFailed as failure:
                failed.add(name)
                row[name] = {"error": str(failure)}
                _start_over(stands)
            say(f"{phase.name}, round {number + 1}, {name}: {_shown(row[name])}")
        rows.append(row)
    return rows


def _start_over(stands: Sequence[Stand]) -> None:
    """Leave nothing for the next measurement of what a failed one has left undone."""
    for stand in stands:
        stand.close()
    with redis.Redis.from_url(stands[0].server.url) as client:
        client.flushall()


def _shown(figures: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in figures.items()
    )
