"""The figures of a run, for the terminal and for docs/faults.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
COUNTS = "sent", "executed", "lost", "duplicated", "answered", "wrong", "hung"


@dataclass
class Row:
    """A scenario that was played."""

    name: str
    what: str
    outcome: str = "passed"
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def errors(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.figures["errors"].items()) or "0"

    def times(self) -> str:
        return f"{self.figures['median'] * 1000:.0f} ms / {self.figures['longest']:.1f} s"

    def faults(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.figures["faults"].items())

    def described(self) -> str:
        which = self.name.partition("[")[2].rstrip("]")
        more = "; ".join(filter(None, [which, self.faults(), self.figures["note"]]))
        return f"{self.what} ({more})" if more else self.what


class Collector:
    """A pytest plugin that keeps a row for each test."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            documented: Any = item
            what = (documented.function.__doc__ or "").strip().split("\n\n")[0]
            name = item.name.removeprefix("test_")
            self._rows[item.nodeid] = Row(name, " ".join(what.split()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = self._rows[report.nodeid]
        if not report.passed:
            row.outcome = report.outcome
            why = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
            row.why = why.removeprefix("Skipped: ")
        properties: dict[str, Any] = dict(report.user_properties)
        row.figures = properties.get("figures", row.figures)


def for_terminal(rows: list[Row], title: str) -> str:
    lines = ["", title]
    for row in rows:
        lines.append(f"{row.name}: {row.outcome} {row.why}")
        if row.figures.get("sent"):
            counts = ", ".join(f"{row.figures[name]} {name}" for name in COUNTS)
            lines.append(f"    {row.described()}")
            lines.append(f"    {counts}, errors: {row.errors()}; median / longest {row.times()}")
    return "\n".join(lines)


def for_page(rows: list[Row], title: str) -> str:
    """A Markdown table."""
    heads = ["what happened", *COUNTS, "errors", "median / longest"]
    lines = [title, "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * len(COUNTS)}---|---:|"]
    rows = [row for row in rows if row.what]  # the others are about the tools of this suite
    for row in rows:
        if row.figures.get("sent") and row.outcome != "skipped":
            failed = "" if row.outcome == "passed" else " **failed**"
            cells = [row.described() + failed, *(f"{row.figures[name]:,}" for name in COUNTS)]
            lines.append(f"| {' | '.join([*cells, row.errors(), row.times()])} |")
    skipped = [f"- not run: {row.what}: {row.why}" for row in rows if row.outcome == "skipped"]
    return "\n".join([*lines, *([""] if skipped else []), *skipped])


def publish(rows: list[Row], backend: str, title: str) -> None:
    """Replace the table of a backend between its two marks on the page."""
    name = backend.removesuffix("redis://").rstrip("+") or "redis"
    begin, end = f"<!-- figures of {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text()
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert marked.search(page), f"{PAGE.name} has no place for {name}"
    PAGE.write_text(marked.sub(lambda _: f"{begin}\n{for_page(rows, title)}\n{end}", page))
