"""Results as Markdown: how many times as long, or as many, as the bare loop in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .results import WANTED, Figure, Results
from .sides import LOOP


def by_figure(results: Results) -> str:
    """A row for each figure, a column for each side: for a few sides, in detail."""
    sides = _in_order(results)
    rows = [
        [figure.title, *(_cell(results, side, figure, spread=True) for side in sides)]
        for figure in results.figures()
    ]
    return "\n\n".join([table(["", *sides], rows), *_remarks(results)])


def by_side(results: Results) -> str:
    """A row for each side, a column for each figure that matters to all."""
    figures = [
        figure
        for figure in results.figures()
        if not figure.key.startswith("cpu_") and figure.key != "p95" and figure.phase != "memory"
    ]
    rows = [
        [side, *(_cell(results, side, figure, spread=figure is figures[0]) for figure in figures)]
        for side in _in_order(results)
    ]
    return "\n\n".join([table(["", *(figure.title for figure in figures)], rows), *_remarks(results)])


def verdicts(results: Results) -> list[str]:
    """What was promised of the figures, beside what they are."""
    return [said for wanted in WANTED if (said := wanted.verdict(results))]


def written(value: float, unit: str) -> str:
    """A value for people."""
    if unit == "/s":
        return f"{value:,.0f}/s"
    if unit == "%":
        return f"{value:.1f} %"
    if unit == "B":
        return f"{value / 1000:.1f} kB"
    return f"{value * 1e6:.0f} µs" if value < 0.01 else f"{value * 1e3:.0f} ms"


def _in_order(results: Results) -> list[str]:
    """The loop first; the slower a call, the further down; what did not run last."""

    def key(side: str) -> tuple[bool, float]:
        median = results.ratio(side, LOOP, "latency", "p50")
        return side != LOOP, median.median if median else float("inf")

    return sorted(results.sides(), key=key)


def _cell(results: Results, side: str, figure: Figure, *, spread: bool) -> str:
    median = results.median(side, figure.phase, figure.key)
    if median is None:
        failed = {(name, phase) for name, phase, _ in results.failures()}
        return "failed" if failed & {(side, ""), (side, figure.phase)} else "-"
    if side == LOOP or figure.absolute:
        return written(median, figure.unit)
    ratio = results.ratio(side, LOOP, figure.phase, figure.key)
    if ratio is None:
        return written(median, figure.unit)
    if not spread or ratio.low == ratio.high:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _remarks(results: Results) -> list[str]:
    lines = []
    for side, known in results.sides().items():
        if "error" not in known:
            versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
            lines.append(f"- {side}: {known['note']}. {versions}.")
    lines += [
        f"- {side} failed{f' in {phase}' if phase else ''}: {_plain(error)}"
        for side, phase, error in results.failures()
    ]
    return ["\n".join(lines), _circumstances(results)]


def _plain(error: str) -> str:
    return error.replace("|", "\\|").replace("\n", " ")


def _circumstances(results: Results) -> str:
    sizes = results.record["sizes"]
    servers = sorted({group["redis"] for group in results.groups if group["redis"]})
    return (
        f"{circumstances(results.record['machine'], servers)} "
        f"{sizes['rounds']} rounds of {sizes['calls']} calls and {sizes['jobs']} jobs."
    )


def circumstances(machine: dict[str, Any], servers: Sequence[str]) -> str:
    """When and on what it was measured."""
    return (
        f"{machine['date']}, rpc {machine['rpc']}, Python {machine['python']}, {', '.join(servers)}, "
        f"{machine['cores']} cores of {machine['cpu']}, {machine['system']}, load {machine['load']}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
