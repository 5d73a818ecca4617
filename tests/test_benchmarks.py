"""The benchmarks measure, and show what they measured. How fast anything is, is not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.at_once import CASES, NONE
from benchmarks.concurrency import Report, Row
from benchmarks.phases import Sizes, plan
from benchmarks.processes import Side
from benchmarks.results import this_machine
from benchmarks.runner import run_group
from benchmarks.sides import ASYNCIO, ASYNCIO_LOOP, HERE, LOOP, PEERS, RABBIT
from rpc import NoReceivers
from rpc.backends import backend_from_url
from rpc.transport import Message, queue

ROOT = Path(__file__).parent.parent
RECORDED = Path(__file__).parent / "vectors" / "benchmark_peers.json"
PATIENCE = 50
EVERYTHING = {
    "latency": {"p50", "p95", "p99", "cpu_client", "cpu_worker", "cpu_redis"},
    "throughput 1": {"rate"},
    "throughput 3": {"rate"},
    "payload 1 kB": {"p50"},
    "drain": {"enqueue", "rate"},
    "start": {"seconds"},
    "idle": {"cpu"},
    "memory": {"client", "redis"},
}

pytestmark = [
    pytest.mark.real_redis,
    pytest.mark.skipif(sys.platform != "linux", reason="what processes cost is read from /proc"),
]


def bench(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            said, errors = run.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            run.terminate()  # it ends what it started
            said, errors = run.communicate()
        assert run.returncode == 0, errors
    return said


def measured(out: Path, *options: str) -> str:
    tiny = ("--calls", "10", "--rounds", "1", "--jobs", "5", "--idle", "0.1", "--connections", "2")
    return bench("run", *tiny, "--callers", "1,3", "--payloads", "1", "--out", out, *options)


def figures(out: Path, side: str) -> dict[str, set[str]]:
    """What was measured of a side in each phase."""
    phases = json.loads((out / "bench.json").read_text())["groups"][0]["phases"]
    return {phase: set(rounds[0][side]) for phase, rounds in phases.items()}


@pytest.mark.slow
@pytest.mark.redis
def test_everything_is_measured_of_the_loop(tmp_path: Path) -> None:
    said = measured(tmp_path, "--side", LOOP)
    assert figures(tmp_path, LOOP) == EVERYTHING
    assert "| jobs/s drained | " in said
    assert (tmp_path / "bench.md").read_text() in said
    ElementTree.parse(tmp_path / "bench.svg")


@pytest.mark.slow
@pytest.mark.redis
def test_what_is_measured_stands_beside_what_is_wanted(tmp_path: Path) -> None:
    said = measured(tmp_path, "--side", "rpc on redis", "--only", "latency")
    assert "rpc on redis / bare loop, median call: " in said
    assert "(wanted: at most 0.65)" in said
    assert "jobs/s drained" not in said


@pytest.mark.slow
@pytest.mark.redis
def test_what_awaits_is_measured(tmp_path: Path) -> None:
    only = ("--only", "latency,throughput,payload,drain,memory", "--callers", "3")
    said = measured(tmp_path, "--side", ASYNCIO_LOOP, "--side", ASYNCIO, *only)
    wanted = {
        name: keys for name, keys in EVERYTHING.items() if name not in ("throughput 1", "start", "idle")
    }
    assert figures(tmp_path, ASYNCIO_LOOP) == figures(tmp_path, ASYNCIO) == wanted
    assert f"{ASYNCIO} / {ASYNCIO_LOOP}, median call: " in said


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.parametrize("case", CASES)
def test_many_at_a_time_are_measured(case: str, tmp_path: Path) -> None:
    tiny = ("--in-flight", "50", "--cancelled", "50", "--seconds", "0.1", "--counted", "5", "--rounds", "1")
    few = ("--items", "2000", "--slow", "2000", "--upload", "10000000", "--open", "20", "--records", "500")
    said = bench("concurrency", case, *tiny, *few, "--out", tmp_path)
    assert "(wanted: at " in said
    assert said == (tmp_path / "concurrency.md").read_text()


@pytest.mark.parametrize(
    "row", [Row("wrong answers", 1, bound=NONE, must=True), Row("in-flight-tasks", None, must=True)]
)
def test_what_must_be_and_is_not_fails(row: Row) -> None:
    fine = Row("wrong answers", 0, bound=NONE, must=True)
    slow = Row("seconds", 1, bound=NONE)
    assert not Report({}, "", [fine, slow]).failed
    assert Report({}, "", [fine, slow, row]).failed


@pytest.mark.redis
def test_a_side_that_does_not_run_says_why_and_the_others_go_on() -> None:
    loop = next(side for side in HERE if side.name == LOOP)
    broken = Side("broken", "benchmarks.no_such_module", sys.executable)
    group = run_group([broken, loop], plan(("start",), Sizes(idle=0.1)), 1, lambda line: None)
    assert "No module named 'benchmarks.no_such_module'" in group["sides"]["broken"]["error"]
    assert set(group["phases"]["start"][0]) == {LOOP}


@pytest.mark.redis
@pytest.mark.xdist_group("rabbit_node")
def test_nothing_is_left_on_rabbitmq(rabbit_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = rabbit_node.empty()
    monkeypatch.setenv("RPC_TEST_AMQP", url)
    group = run_group(RABBIT, plan(("start",), Sizes(idle=0.1)), 1, lambda line: None)
    assert all("seconds" in figures for figures in group["phases"]["start"][0].values())
    backend = backend_from_url(url)
    with pytest.raises(NoReceivers):
        backend.send(queue("rpc-bench"), Message(b"", {"id": "x"}))
    backend.close()


@pytest.mark.slow
def test_recorded_results_are_published(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    shutil.copy(ROOT / "docs" / "performance.md", page)
    before = page.read_text()
    shutil.copy(RECORDED, tmp_path / "peers.json")
    many = Report(this_machine(), "redis-server 7", [Row("calls/s of many", 1234.5, "/s", bound=NONE)])
    many.write(tmp_path / "concurrency.json")
    for _ in range(2):  # what was published before is replaced; what there is no news of stays
        bench("publish", "--out", tmp_path, "--page", page)
    text = page.read_text()
    assert text.count("| bare loop | ") == before.count("| bare loop | ")
    assert text.count("| jobs/s drained | ") == before.count("| jobs/s drained | ")
    assert "| huey | " in text
    assert text.count("| calls/s of many | 1,234 /s (wanted: at most 0 /s) MISSED |") == 1
    assert "- huey failed in drain: did not do 60 jobs in 123 s; a \\| in its last words" in text
    assert "| arq | failed | " in text
    assert "- arq failed: not installed: " in text
    assert "## Measure it yourself" in text
    assert "huey" in "".join(ElementTree.parse(tmp_path / "performance.svg").getroot().itertext())


def test_every_peer_has_a_module_and_pinned_requirements() -> None:
    peers = ROOT / "benchmarks" / "peers"
    for name, sides in PEERS.items():
        lines = (peers / "requirements" / f"{name}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))
        assert all((ROOT / f"{side.module.replace('.', '/')}.py").exists() for side in sides)
