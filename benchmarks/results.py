"""What came out: figures by phase, round and side; their ratios to another side's in the same round."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .phases import Sizes
from .runner import Group
from .sides import (
    AIO_PIKA,
    AMQP,
    AMQP_ASYNCIO,
    ASYNCIO,
    ASYNCIO_LOOP,
    HTTP,
    HTTP_LOOP,
    LOOP,
    NAMEKO,
    NATIVE,
    ON_RQ,
    PYRO5,
    RQ,
    ZERORPC,
    ZMQ,
    ZMQ_ASYNCIO,
    ZMQ_ASYNCIO_LOOP,
    ZMQ_LOOP,
)


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and the least and the greatest of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A thing that is measured: where it is found, what tables call it, and how its value is written."""

    phase: str
    key: str
    title: str
    unit: str
    absolute: bool = False
    """Whether it says more than its ratio, which may be one to nothing."""


class Results:
    """Results of a run, as they are kept in a file."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.groups: list[Group] = record["groups"]

    @classmethod
    def of(cls, machine: dict[str, Any], sizes: Sizes, groups: Sequence[Group]) -> Results:
        return cls({"machine": machine, "sizes": asdict(sizes), "groups": list(groups)})

    @classmethod
    def read(cls, file: Path) -> Results:
        return cls(json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.record, indent=1) + "\n")

    def sides(self) -> dict[str, dict[str, Any]]:
        """What is known of each side, by name."""
        return {name: known for group in self.groups for name, known in group["sides"].items()}

    def figures(self) -> list[Figure]:
        """What was measured, in the order of the tables."""
        sizes = self.record["sizes"]
        measured = {phase for group in self.groups for phase in group["phases"]}
        return [one for one in _catalogue(sizes) if one.phase in measured]

    def median(self, side: str, phase: str, key: str) -> float | None:
        values = [row[side][key] for row in self._rows(phase, side) if key in row[side]]
        return statistics.median(values) if values else None

    def ratio(self, side: str, to: str, phase: str, key: str) -> Ratio | None:
        """None if the two were never measured in the same round."""
        ratios = [
            row[side][key] / row[to][key]
            for row in self._rows(phase, side, to)
            if key in row[side] and row[to].get(key)
        ]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def failures(self) -> Iterator[tuple[str, str, str]]:
        """Side, phase (or "" for all of them) and error."""
        for group in self.groups:
            for side, known in group["sides"].items():
                if "error" in known:
                    yield side, "", known["error"]
            for phase, rows in group["phases"].items():
                for row in rows:
                    for side, figures in row.items():
                        if "error" in figures:
                            yield side, phase, figures["error"]

    def _rows(self, phase: str, *sides: str) -> Iterator[dict[str, Any]]:
        for group in self.groups:
            for row in group["phases"].get(phase, ()):
                if all(side in row for side in sides):
                    yield row


def _catalogue(sizes: dict[str, Any]) -> Iterator[Figure]:
    yield Figure("latency", "p50", "call, median", "s")
    yield Figure("latency", "p95", "call, 95 %", "s")
    yield Figure("latency", "p99", "call, 99 %", "s")
    for process in "client", "worker", "redis":
        yield Figure("latency", f"cpu_{process}", f"CPU of a call, {process}", "s")
    for callers in sizes["callers"]:
        yield Figure(f"throughput {callers}", "rate", f"calls/s, {callers} at a time", "/s")
    for size in sizes["payloads"]:
        yield Figure(f"payload {size} kB", "p50", f"call with {size} kB", "s")
    yield Figure("drain", "enqueue", "jobs/s sent", "/s")
    yield Figure("drain", "rate", "jobs/s drained", "/s")
    yield Figure("start", "seconds", "start to first answer", "s")
    yield Figure("idle", "cpu", "CPU of an idle worker", "%", absolute=True)
    yield Figure("memory", "redis", "memory of an idle client, in Redis", "B")
    yield Figure("memory", "client", "memory of an idle client, in its process", "B")


@dataclass(frozen=True)
class Bound:
    """What a figure is to be."""

    limit: float
    at_most: bool = True

    def met(self, measured: float | None) -> bool:
        if measured is None:
            return False
        return measured <= self.limit if self.at_most else measured >= self.limit

    def beside(self, measured: float | None, write: Callable[[float], str]) -> str:
        """Measured beside wanted."""
        what = "not measured" if measured is None else write(measured)
        wanted = f"(wanted: {'at most' if self.at_most else 'at least'} {write(self.limit)})"
        return f"{what} {wanted}{'' if self.met(measured) else ' MISSED'}"


@dataclass(frozen=True)
class Wanted:
    """What the library promises of a figure, of a side alone or compared with another."""

    side: str
    to: str
    phase: str
    key: str
    title: str
    bound: Bound

    def verdict(self, results: Results) -> str | None:
        """Measured beside wanted; None if it was not to be measured."""
        sides = {self.side, self.to or self.side}
        if not any(
            self.phase in group["phases"] and sides <= set(group["sides"]) for group in results.groups
        ):
            return None
        if self.to:
            ratio = results.ratio(self.side, self.to, self.phase, self.key)
            measured = ratio.median if ratio else None
            name, unit = f"{self.side} / {self.to}", ""
        else:
            measured = results.median(self.side, self.phase, self.key)
            name, unit = self.side, " %"
        said = self.bound.beside(measured, lambda value: f"{value:.2f}{unit}")
        return f"{name}, {self.title}: {said}"


WANTED = (
    Wanted(NATIVE, LOOP, "latency", "p50", "median call", Bound(0.65)),
    Wanted(NATIVE, LOOP, "throughput 64", "rate", "calls/s of 64 threads", Bound(2.5, at_most=False)),
    Wanted(NATIVE, LOOP, "drain", "rate", "jobs/s drained", Bound(2.0, at_most=False)),
    Wanted(ASYNCIO, ASYNCIO_LOOP, "latency", "p50", "median call", Bound(0.60)),
    Wanted(ASYNCIO, LOOP, "throughput 64", "rate", "calls/s of 64 tasks", Bound(6.0, at_most=False)),
    Wanted(NATIVE, "", "idle", "cpu", "CPU of an idle worker", Bound(0.5)),
    Wanted(ON_RQ, RQ, "latency", "p50", "median call", Bound(0.70)),
    Wanted(ON_RQ, "", "idle", "cpu", "CPU of an idle worker", Bound(0.5)),
    Wanted(AMQP, NAMEKO, "latency", "p50", "median call", Bound(0.5)),
    Wanted(AMQP, AIO_PIKA, "latency", "p50", "median call", Bound(0.5)),
    Wanted(AMQP_ASYNCIO, AIO_PIKA, "throughput 64", "rate", "calls/s of 64 tasks", Bound(3.0, at_most=False)),
    Wanted(ZMQ, ZMQ_LOOP, "latency", "p50", "median call", Bound(1.3)),
    Wanted(HTTP, HTTP_LOOP, "latency", "p50", "median call", Bound(0.8)),
    Wanted(ZMQ, ZERORPC, "latency", "p50", "median call", Bound(1.0)),
    Wanted(ZMQ, PYRO5, "latency", "p50", "median call", Bound(1.0)),
    Wanted(
        ZMQ_ASYNCIO,
        ZMQ_ASYNCIO_LOOP,
        "throughput 64",
        "rate",
        "calls/s of 64 tasks",
        Bound(0.5, at_most=False),
    ),
    Wanted(ZMQ_ASYNCIO, ZERORPC, "throughput 64", "rate", "calls/s of 64 tasks", Bound(3.0, at_most=False)),
)


def this_machine() -> dict[str, Any]:
    """What the results depend on: asked before a run, for `load` is that of the others."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "rpc": version("jobrpc"),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
