"""What really happened, written down by those to whom it happened. The broker under test is not asked.

A handler appends a line to a file before its work and one after it; a caller keeps what came of each call.
All times are those of the monotonic clock, which the processes of a machine share.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

ANSWERED, ACCEPTED, WRONG, WAITING = "answered", "accepted", "wrong", "waiting"
TIMED_OUT = "RpcTimeout"


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job by a worker; `ended` is None if it never got to its end."""

    job: str
    pid: int
    delivery: int
    begun: float
    ended: float | None


@dataclass(slots=True)
class Call:
    """What a caller knows of one call. `outcome` is one of the words above, or the name of an error."""

    job: str
    sent: float
    hurried: bool = False
    """Whether its time is meant to run out: then RpcTimeout is what has to come."""
    done: float | None = None
    outcome: str = WAITING
    answer: Any = None
    """The one that it got, if that is wrong."""

    def judge(self, answer: Any, right: str) -> str:
        """The outcome."""
        if answer == right:
            return ANSWERED
        self.answer = answer
        return WRONG


@dataclass
class Figures:
    """What came of a scenario, as it is published."""

    sent: int = 0
    executed: int = 0
    lost: int = 0
    duplicated: int = 0
    answered: int = 0
    wrong: int = 0
    hung: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    note: str = ""
    median: float = 0.0
    longest: float = 0.0

    def __str__(self) -> str:
        counts = "sent", "executed", "lost", "duplicated", "answered", "wrong", "hung"
        told = [f"{getattr(self, name)} {name}" for name in counts]
        told += [f"{count} {name}" for name, count in self.errors.items()]
        told += [f"median {self.median * 1000:.1f} ms, longest {self.longest:.2f} s"]
        told += [f"{count} {name}" for name, count in self.faults.items()]
        return ", ".join(filter(None, [*told, self.note]))

    def as_row(self) -> dict[str, Any]:
        """The same, for a process that knows nothing of this class."""
        return {**vars(self), "errors": dict(self.errors), "faults": dict(self.faults)}


class Ledger:
    """Where handlers write. Appending one short line is atomic, whatever becomes of the process."""

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, job: str, delivery: int, what: str) -> None:
        line = f"{quote(job)} {os.getpid()} {delivery} {what} {time.monotonic():.6f}\n"
        os.write(self._file, line.encode())


class Oracle:
    """Knows what was asked for and what was done, and so what was lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.calls: list[Call] = []
        self.faults: Counter[str] = Counter()
        self.note = ""
        """What else is to be told of a scenario."""

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def runs(self) -> list[Run]:
        """Every execution, in the order in which they began."""
        runs: list[Run] = []
        unfinished: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
        for line in self.lines():
            job, pid, delivery, what, at = line.split()
            if what == "begin":
                unfinished[job, pid, delivery].append(len(runs))
                runs.append(Run(job, int(pid), int(delivery), float(at), None))
            else:
                number = unfinished[job, pid, delivery].pop(0)
                runs[number] = replace(runs[number], ended=float(at))
        return runs

    def executions(self) -> dict[str, list[Run]]:
        """The executions of each job."""
        found: defaultdict[str, list[Run]] = defaultdict(list)
        for run in self.runs():
            found[run.job].append(run)
        return found

    def lost(self) -> list[Call]:
        """Calls that were accepted and came to nothing: never finished, or never answered in time."""
        finished = {run.job for run in self.runs() if run.ended is not None}
        return [
            call
            for call in self.calls
            if (call.outcome == ACCEPTED and call.job not in finished)
            or (call.outcome == TIMED_OUT and not call.hurried)
        ]

    def done_too_late(self) -> list[Call]:
        """Calls whose caller had stopped waiting when a worker began with them."""
        began = {job: runs[0].begun for job, runs in self.executions().items()}
        gone = [call for call in self.calls if call.outcome == TIMED_OUT]
        return [call for call in gone if call.done and began.get(call.job, 0) > call.done]

    def done_again(self) -> list[Call]:
        """Calls whose jobs were begun more than once."""
        executions = self.executions()
        return [call for call in self.calls if len(executions.get(call.job, ())) > 1]

    def hung(self, seconds: float) -> bool:
        """Whether a call has been waiting for longer than that."""
        now = time.monotonic()
        return any(call.outcome == WAITING and now - call.sent > seconds for call in self.calls)

    def unexplained(self, deaths: Mapping[int, float], *, copies: bool = False) -> dict[str, list[Run]]:
        """Jobs that were executed more often than they lost a worker before their caller was answered.
        `deaths` has the time at which a process was killed, or first stopped. `copies`: what was delivered as
        often may be there twice."""
        answered = {call.job: call.done for call in self.calls if call.outcome == ANSWERED}

        def interrupted(run: Run) -> bool:
            death = deaths.get(run.pid)
            return death is not None and (answered.get(run.job) or death) >= death

        return {
            job: runs
            for job, runs in self.executions().items()
            if sum(map(interrupted, runs))
            < (len({run.delivery for run in runs}) if copies else len(runs)) - 1
        }

    def figures(self) -> Figures:
        executions, outcomes = self.executions(), Counter(call.outcome for call in self.calls)
        waits = sorted(
            call.done - call.sent for call in self.calls if call.done and call.outcome == ANSWERED
        ) or [0.0]
        known = {ANSWERED, ACCEPTED, WRONG, WAITING}
        return Figures(
            sent=len(self.calls),
            executed=len(executions),
            lost=len(self.lost()),
            duplicated=sum(len(runs) - 1 for runs in executions.values()),
            answered=outcomes[ANSWERED],
            wrong=outcomes[WRONG],
            hung=outcomes[WAITING],
            errors=Counter({name: count for name, count in outcomes.items() if name not in known}),
            faults=self.faults,
            note=self.note,
            median=waits[len(waits) // 2],
            longest=waits[-1],
        )
