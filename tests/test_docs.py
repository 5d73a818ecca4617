"""The programs in the README and in docs/ run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from rpc.backends import loaded
from rpc.errors import DISTRIBUTION
from rpc.testing import RedisServer, start_redis
from tests.zeromq import http_places, tcp_url

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PATIENCE = 60


def programs(page: str) -> dict[str, str]:
    """The Python blocks of a page, by the file name in their first line; the nameless ones by number."""
    blocks: dict[str, str] = {}
    for indent, code in BLOCK.findall((ROOT / page).read_text()):
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        name = re.match(r"# (\w+\.py)(, continued)?", code)
        key = name[1] if name else str(len(blocks))
        blocks[key] = blocks.get(key, "") + code if name and name[2] else code
    return blocks


def run(directory: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def site(directory: Path, page: str, redis: RedisServer) -> dict[str, str]:
    found = programs(page)
    for name, code in found.items():
        file = name if name.endswith(".py") else f"block_{name}.py"
        (directory / file).write_text(code.replace("127.0.0.1:6379", f"127.0.0.1:{redis.port}"))
    return found


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.parametrize(
    ("page", "client"),
    [
        ("README.md", "client.py"),
        ("docs/getting-started.md", "block_2.py"),
        ("docs/jobs.md", "client.py"),
        ("docs/concurrency.md", "client.py"),
        ("docs/events.md", "client.py"),
        ("docs/events.md", "subscriber.py"),
        ("docs/timers.md", "client.py"),
        ("docs/services.md", "client.py"),
        ("docs/hooks.md", "client.py"),
        ("docs/streams.md", "client.py"),
        ("docs/codecs.md", "client.py"),
        ("docs/registry.md", "client.py"),
        ("docs/logging.md", "client.py"),
    ],
)
def test_the_programs_of_a_page_work_together(page: str, client: str, tmp_path: Path) -> None:
    with start_redis() as redis:
        site(tmp_path, page, redis)
        worker = subprocess.Popen([sys.executable, "-m", "rpc", "worker", "--quiet"], cwd=tmp_path)
        try:
            run(tmp_path, client)
        finally:
            worker.terminate()
            assert worker.wait(PATIENCE) == 0


@pytest.mark.slow
def test_the_programs_of_the_page_on_zeromq_work_together(tmp_path: Path) -> None:
    endpoints = tcp_url(2)
    for name, code in programs("docs/zeromq.md").items():
        (tmp_path / name).write_text(code.replace("zmq+tcp://127.0.0.1:5555,127.0.0.1:5556", endpoints))
    command = [sys.executable, "-m", "rpc", "worker", "--processes", "2", "--quiet"]
    worker = subprocess.Popen(command, cwd=tmp_path)
    try:
        run(tmp_path, "client.py")
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE) == 0


@pytest.mark.slow
@pytest.mark.redis
def test_the_programs_of_the_page_on_contracts_work_together(tmp_path: Path) -> None:
    with start_redis() as redis:
        site(tmp_path, "docs/contract.md", redis)
        worker = subprocess.Popen([sys.executable, "-m", "rpc", "worker", "--quiet"], cwd=tmp_path)
        try:
            while "orders.place" not in run(tmp_path, "-m", "rpc", "services"):
                assert worker.poll() is None
            (tmp_path / "orders_client.py").write_text(run(tmp_path, "-m", "rpc", "stubs", "orders"))
            run(tmp_path, "client.py")
            described = run(tmp_path, "-m", "rpc", "describe", "orders")
        finally:
            worker.terminate()
            assert worker.wait(PATIENCE) == 0
    (tmp_path / "openrpc.json").write_text(described)
    changed = run(tmp_path, "-m", "rpc", "describe", "--offline", "--settings", "new_settings")
    (tmp_path / "new.json").write_text(changed)
    command = [sys.executable, "-m", "rpc", "diff", "openrpc.json", "new.json"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert f"say:\n\n```\n{said.stdout}```\n" in (ROOT / "docs" / "contract.md").read_text()


def test_the_programs_of_the_page_on_http_work_together(tmp_path: Path) -> None:
    place = http_places()
    for name, code in programs("docs/http.md").items():
        code = code.replace("http://127.0.0.1:5000", place)
        (tmp_path / name).write_text(code.replace(f'"{place}"\nRPC', f'"{place}?retry_for=60"\nRPC'))
    worker = subprocess.Popen([sys.executable, "-m", "rpc", "worker", "--quiet"], cwd=tmp_path)
    try:
        run(tmp_path, "client.py")
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE) == 0


def test_the_values_of_getting_started_travel(tmp_path: Path) -> None:
    (tmp_path / "money.py").write_text(programs("docs/getting-started.md")["money.py"])
    run(tmp_path, "money.py")


@pytest.mark.slow
@pytest.mark.redis
def test_the_fixtures_of_getting_started_work(tmp_path: Path) -> None:
    (tmp_path / "test_page.py").write_text(list(programs("docs/getting-started.md").values())[-1])
    assert "2 passed" in run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py")


@pytest.mark.slow
@pytest.mark.redis
def test_the_tests_of_the_page_on_tests_pass(tmp_path: Path) -> None:
    for name, code in programs("docs/testing.md").items():
        (tmp_path / name).write_text(code.replace("127.0.0.1:6379", "127.0.0.1:1"))
    assert "10 passed" in run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_every_python_block_compiles() -> None:
    for page in PAGES:
        for name, code in programs(str(page.relative_to(ROOT))).items():
            compile(code, f"{page.name}:{name}", "exec")


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_settings_page_has_every_key_and_no_other() -> None:
    from dataclasses import fields

    from rpc.settings import Settings

    keys = {f"RPC_{field.name.upper()}" for field in fields(Settings)} - {"RPC_MODULE", "RPC_ORIGIN"}
    page = (ROOT / "docs" / "settings.md").read_text()
    assert set(re.findall(r"^\| `(RPC_\w+)`", page, re.MULTILINE)) == keys


@pytest.mark.parametrize(
    ("page", "head", "scheme", "elsewhere"),
    [
        ("settings.md", "option of `redis:`", "redis", {"protocol"}),
        ("settings.md", "option of `memory:`", "memory", set()),
        ("settings.md", "option of `rq+…`", "rq+redis", set()),
        ("amqp.md", "option |", "amqp", {"lease"}),
        ("http.md", "option |", "http", set()),
    ],
)
def test_the_tables_of_options_have_each_and_its_default(
    page: str, head: str, scheme: str, elsewhere: set[str]
) -> None:
    """`elsewhere`: what is the driver's, or is told outside of the table."""
    if scheme == "amqp":
        pytest.importorskip("pamqp", reason="needs RabbitMQ's driver")
    parameters = signature(loaded(scheme)).parameters.values()
    defaults = {
        each.name: "\N{EN DASH}" if each.default is None else f"`{each.default}`"
        for each in parameters
        if each.kind is each.KEYWORD_ONLY and each.name not in elsewhere
    }
    table = (ROOT / "docs" / page).read_text().partition(f"| {head}")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", table, re.MULTILINE))
    assert {name: default for name, default in rows.items() if name not in elsewhere} == defaults


def test_the_distribution_has_one_name() -> None:
    """What bears the name that it used to have is somebody else's."""
    assert f'name = "{DISTRIBUTION}"' in (ROOT / "pyproject.toml").read_text()
    former = "python" + "-rpc"
    folders = [ROOT / each for each in ("rpc", "docs", "example", "tests", "benchmarks")]
    files = [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    files += [
        file for folder in folders for file in folder.rglob("*") if file.suffix in {".py", ".md", ".json"}
    ]
    assert [file for file in files if former in file.read_text()] == []


def test_the_sdist_has_what_the_repository_has() -> None:
    """The tests read files of all kinds, and are to pass where it was unpacked."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    listed = re.search(r"sdist\]\ninclude = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert listed
    always = {".gitignore", "LICENSE", "README.md", "pyproject.toml"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.partition("/")[0] for name in tracked.splitlines()} == {
        *re.findall(r'"(.+?)"', listed[1]),
        *always,
    }
