"""The processes of a side, and what the system says that they cost.

Each process leads a session of its own, so that what it starts is counted, and ended, along with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0
"""Seconds after which a measurement is taken to have got stuck."""
SECONDS_TO_STOP = 5.0


@dataclass(frozen=True)
class Side:
    """A system to measure: `name` is what tables call it, `module` has `connect()` and `serve()`."""

    name: str
    module: str
    python: str = ""
    variant: str = ""
    broker: str = "Redis"
    share: float = 1.0
    """Of the calls and jobs that are asked for: less for one that would take minutes."""

    def portion(self, of: int) -> int:
        return max(2, round(of * self.share))


class SideFailed(Exception):
    """A side did not do what it was told to; the text is for the table."""


class Process:
    """A process of a side, and everything that it starts. Ends with its `with` block."""

    def __init__(self, side: Side, program: str, output: int | None, **environment: str) -> None:
        self._log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - close() closes it
        self.born = time.monotonic()
        self.popen = subprocess.Popen(
            [side.python, "-m", program, side.module],
            cwd=ROOT,
            env={**_environment(side), **environment},
            stdin=subprocess.PIPE,
            stdout=self._log if output is None else output,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
        )
        self.session = self.popen.pid

    def last_words(self) -> str:
        """The last line of its log."""
        size = os.fstat(self._log.fileno()).st_size
        # Not read(): that would move the place where the process writes, for the two share it.
        lines = os.pread(self._log.fileno(), size, 0).decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "silent")

    def close(self) -> None:
        if self.popen.returncode is None:
            os.kill(self.session, signal.SIGTERM)
            self.wait(SECONDS_TO_STOP)
            os.killpg(self.session, signal.SIGKILL)  # also what it started and did not end
            self.popen.wait()
            for file in (self.popen.stdin, self.popen.stdout, self._log):
                if file:
                    file.close()

    def wait(self, seconds: float) -> None:
        """Return when it has ended, or after so many seconds. It is not reaped: its number must stay its own
        until its session is ended, too."""
        end = time.monotonic() + seconds
        while not os.waitid(os.P_PID, self.session, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if time.monotonic() > end:
                return
            time.sleep(0.01)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Worker(Process):
    """The process that serves a side; the last of many jobs writes their rate into the file `tally`."""

    def __init__(self, side: Side, redis: str, tally: Path) -> None:
        super().__init__(side, "benchmarks.worker", None, BENCH_REDIS=redis, BENCH_TALLY=str(tally))

    def __enter__(self) -> Worker:
        return self


class Client(Process):
    """The process that calls: see `benchmarks.client`."""

    def __init__(self, side: Side, redis: str) -> None:
        super().__init__(side, "benchmarks.client", subprocess.PIPE, BENCH_REDIS=redis)
        try:
            self.facts = self.hear(PATIENCE)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def ask(self, do: str, patience: float = PATIENCE, **arguments: Any) -> Any:
        self.tell(do, **arguments)
        return self.hear(patience)

    def tell(self, do: str, **arguments: Any) -> None:
        assert self.popen.stdin
        with suppress(BrokenPipeError):  # hear() says why
            self.popen.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.popen.stdin.flush()

    def hear(self, patience: float) -> Any:
        """The answer to the command before. Raises SideFailed if it is an error, or none comes."""
        assert self.popen.stdout
        if not select.select([self.popen.stdout], [], [], patience)[0]:
            raise SideFailed(f"no answer in {patience:g} s")
        line = self.popen.stdout.readline()
        if not line:
            self.wait(SECONDS_TO_STOP)  # it may be about to say why
            raise SideFailed(f"its client ended: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideFailed(answer["error"])
        return answer


def clean(side: Side) -> None:
    """Have a side delete what its processes left on a broker that others use, too."""
    command = [side.python, "-m", "benchmarks.clean", side.module]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=ROOT, env=_environment(side), timeout=PATIENCE, check=False)


def _environment(side: Side) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_VARIANT": side.variant}


def cpu_seconds(session: int) -> float:
    """What the processes of a session have used so far: user and system time, in ticks of 10 ms (Linux)."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it may have just ended
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
