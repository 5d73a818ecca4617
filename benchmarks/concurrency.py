"""Many calls of one process at a time, and many jobs of one worker: the figures, and what runs the cases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec

from rpc.testing import start_redis

from .processes import Process, Side
from .results import Bound, this_machine
from .tables import circumstances, table

PROGRAM = "benchmarks.at_once"


class Amounts(msgspec.Struct):
    """How much of everything."""

    in_flight: int
    cancelled: int
    seconds: float
    counted: int
    rounds: int
    seed: int
    items: int
    slow: int
    upload: int
    open: int
    records: int


class Row(msgspec.Struct):
    """A figure. If it `must` be within its bound, but is not, the command fails."""

    title: str
    value: float | None
    unit: str = ""
    digits: int = 0
    bound: Bound | None = None
    must: bool = False

    @property
    def said(self) -> str:
        if self.bound:
            return self.bound.beside(self.value, self._written)
        return "failed" if self.value is None else self._written(self.value)

    def _written(self, value: float) -> str:
        return f"{value:,.{self.digits}f}{self.unit and ' '}{self.unit}"


class Report(msgspec.Struct):
    """The rows of the cases that were run, and where."""

    machine: dict[str, Any]
    server: str
    rows: list[Row]

    @property
    def failed(self) -> bool:
        return any(row.must and not (row.bound and row.bound.met(row.value)) for row in self.rows)

    def __str__(self) -> str:
        rows = [[row.title, row.said] for row in self.rows]
        return f"{table(['', ''], rows)}\n\n{circumstances(self.machine, [self.server])}"

    @classmethod
    def read(cls, file: Path) -> Report:
        return msgspec.json.decode(file.read_bytes(), type=cls)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def measure(names: Iterable[str], amounts: Amounts, say: Callable[[str], object]) -> Report:
    """The cases of these names, each in a new process with a Redis of its own."""
    report = Report(this_machine(), "", [])
    for name in names:
        case = Side(name, name, sys.executable, variant=msgspec.json.encode(amounts).decode())
        with (
            start_redis() as server,
            closing(Process(case, PROGRAM, PIPE, BENCH_REDIS=server.url)) as process,
        ):
            report.server = f"{server.kind} {server.version}"
            say(f"{name}, on {report.server}")
            assert process.popen.stdout
            answer = process.popen.stdout.read()
            failed = [Row(name, None, must=True)]
            report.rows += msgspec.json.decode(answer, type=list[Row]) if answer else failed
            if (said := process.last_words()) != "silent":
                say(said)
    return report
