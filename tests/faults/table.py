"""The figures of a run, for the terminal and for docs/faults.md."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
INTERRUPTED = "interrupted"
COUNTS = "sent", "executed", "lost", "duplicated", "answered", "wrong", "hung"


@dataclass
class Row:
    """A scenario that was played."""

    name: str
    what: str
    outcome: str = "passed"
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    """Of the broker."""

    def errors(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.figures["errors"].items()) or "0"

    def times(self) -> str:
        return f"{self.figures['median'] * 1000:.0f} ms / {self.figures['longest']:.1f} s"

    def faults(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.figures["faults"].items())

    def described(self) -> str:
        more = "; ".join(filter(None, [self.faults(), self.figures["note"]]))
        return f"{self.what} ({more})" if more else self.what


def note_row(item: Any) -> None:
    """Let the reports of a test say what is played in it, wherever it runs."""
    name, kind = item.originalname.removeprefix("test_"), ""
    if hasattr(item, "callspec"):
        kind = item.callspec.params.get("kind", "")
        which = f"-{item.callspec.id}-".replace(f"-{kind}-", "-")[1:-1]
        name = f"{name} {which}".strip()
    what = (item.function.__doc__ or "").strip().split("\n\n")[0]
    item.user_properties.append(("row", {"name": name, "what": " ".join(what.split()), "kind": kind}))


class Collector:
    """A pytest plugin that keeps a row for each test that began."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._loads: list[float] = []

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def load(self) -> str:
        """The least and the greatest load average of the machine while tests ran."""
        return f"{min(self._loads):.0f} to {max(self._loads):.0f}" if self._loads else "unknown"

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._rows[nodeid] = Row(nodeid, "", INTERRUPTED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._loads.append(os.getloadavg()[0])
        row, properties = self._rows[report.nodeid], dict[str, Any](report.user_properties)
        for name, value in properties.get("row", {}).items():
            setattr(row, name, value)
        if report.passed and report.when == "call":
            row.outcome = "passed"
        if not report.passed:
            row.outcome = report.outcome
            why = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
            row.why = why.removeprefix("Skipped: ")
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


def for_page(rows: list[Row]) -> dict[str, str]:
    """The lines of a Markdown table, by the names of their scenarios."""
    lines = {}
    for row in rows:
        if not row.what or row.outcome == INTERRUPTED:  # the former are about the tools of this suite
            continue
        if row.outcome == "skipped":
            lines[row.name] = f"| {row.name} | {row.what}: not run, {row.why} |{' |' * (len(COUNTS) + 2)}"
        elif row.figures.get("sent"):
            failed = "" if row.outcome == "passed" else " **failed**"
            cells = [row.name, row.described() + failed, *(f"{row.figures[name]:,}" for name in COUNTS)]
            lines[row.name] = f"| {' | '.join([*cells, row.errors(), row.times()])} |"
    return lines


def publish(rows: list[Row], kind: str, title: str, *, whole: bool = True) -> None:
    """Replace the table of a kind of broker between its two marks on the page, and the line above it; if they
    are not the `whole` of it, its rows of these scenarios alone."""
    begin, end = f"<!-- figures of {kind} -->", f"<!-- end of {kind} -->"
    page = PAGE.read_text()
    marked = re.compile(f"{re.escape(begin)}(.*?){re.escape(end)}", re.DOTALL)
    known = marked.search(page)
    assert known, f"{PAGE.name} has no place for {kind}"
    lines = {} if whole else dict(re.findall(r"^(?=\| ([a-z].*?) \|)(.*)$", known[1], re.MULTILINE))
    lines.pop("scenario", None)
    if lines:  # it tells of all runs, and is for whoever has made them to keep
        title = known[1].strip().partition("\n")[0]
    lines.update(for_page(rows))
    heads = ["scenario", "what happened", *COUNTS, "errors", "median / longest"]
    table = [title, "", f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * len(COUNTS)}---|---:|"]
    text = "\n".join([begin, *table, *(lines[name] for name in sorted(lines)), end])
    PAGE.write_text(marked.sub(lambda _: text, page))
