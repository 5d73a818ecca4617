"""`manage.py rpc` and `manage.py runserver`, in processes of their own, over Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from test_web_examples import SECONDS

from rpc import RemoteError

from .conftest import Project, only_postgres, only_sqlite

pytestmark = pytest.mark.redis


def test_a_web_request_is_answered_by_the_worker(project: Project) -> None:
    project.web()
    project.worker()
    assert project.asks("GET", "/double/21/") == (200, {"is": 42})


def test_a_job_that_is_sent_on_commit_finds_what_was_saved(project: Project) -> None:
    project.web()
    project.worker("--concurrency", "1")
    text = uuid4().hex
    assert project.asks("POST", "/notes/?fail", f"{text} forgotten")[0] == 201
    assert project.asks("POST", "/notes/", text)[0] == 201
    with project.client() as client:
        client.services.tally.note(f"{text} last")  # there is one worker, and one job at a time
    noted = project.asks("GET", "/notes/")[1]["notes"]
    assert [each for each in noted if text in each] == [text, f"{text}: saved", f"{text} last"]


@pytest.mark.slow
def test_three_jobs_at_a_time_are_three(project: Project) -> None:
    project.worker()
    with project.client() as client, ThreadPoolExecutor(6) as pool:
        found = [pool.submit(client.services.tally.meet) for _ in range(6)]
        assert {each.result() for each in found} == {3}


@pytest.mark.slow
def test_a_job_in_a_process_of_its_own_has_the_project(project: Project) -> None:
    """Its apps and its database are set up there, too."""
    worker = project.worker(TEST_RPC=json.dumps({"SERVICES": ["tally.services.Apart"]}))
    with project.client() as client:
        first, second = (client.services.apart.note(uuid4().hex) for _ in range(2))
    assert second[0] > first[0]
    assert first[1] == second[1] != int(worker.says(r"worker (\d+) on")[1])


@pytest.mark.slow
def test_hooks_fire(project: Project) -> None:
    worker = project.worker()
    with project.client() as client:
        with pytest.raises(RemoteError, match="no"):
            client.services.tally.fail()
        worker.says("before tally.fail")
        worker.says("failed tally.fail: no")


@pytest.mark.slow
def test_it_stops_when_it_is_told_to(project: Project) -> None:
    worker = project.worker()
    worker.terminate()
    worker.says("stopped")
    assert worker.ends() == 0


@pytest.mark.slow
def test_several_processes_each_with_a_connection_of_its_own(project: Project) -> None:
    supervisor = project.start("rpc", "--processes", "2")
    supervisor.says(r"(?s)serving .*serving ")
    with project.client() as client, ThreadPoolExecutor(8) as pool:
        numbers = {
            each.result() for each in [pool.submit(client.services.tally.note, "p") for _ in range(32)]
        }
        assert len(numbers) == 32
        assert len(client.describe()) == 2
    supervisor.terminate()
    assert supervisor.ends() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["job", "coroutine", "listener", "tick"])
def test_connections_are_closed_around_all_code(project: Project, kind: str) -> None:
    """As CONN_MAX_AGE is 0, none finds one that another has left in its thread."""
    project.worker("--concurrency", "1")
    with project.client() as client:
        tally = client.services.tally
        found: list[list[int]] = []
        end = time.monotonic() + SECONDS
        while len({thread for thread, _ in found}) == len(found):  # until there are two in one thread
            assert time.monotonic() < end, found
            if kind == "listener":
                client.publish("used")
            elif kind != "tick":
                client.call_and_wait(f"tally.{kind}")
            found = tally.found(kind)
    assert not any(was_open for _, was_open in found)


@contextmanager
def server(project: Project) -> Iterator[psycopg.Connection]:
    url = project.environment["TEST_DATABASE"].replace("postgres:", "postgresql:")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.mark.slow
@only_postgres
def test_a_connection_that_is_kept_and_was_killed_is_replaced(project: Project) -> None:
    kept = '{"CONN_MAX_AGE": null, "CONN_HEALTH_CHECKS": true}'
    # Nobody closes what a thread has kept when the process ends, which psycopg remarks on.
    project.worker("--concurrency", "1", TEST_CONNECTIONS=kept, PYTHONWARNINGS="ignore")
    with project.client() as client, server(project) as postgres:
        before = client.services.tally.connection_id()
        assert client.services.tally.connection_id() == before
        killed = postgres.execute("SELECT pg_terminate_backend(%s, 10000)", [before]).fetchone()
        assert killed == (True,)
        assert client.services.tally.connection_id() != before


@pytest.mark.slow
@only_sqlite
def test_a_change_of_the_code_starts_it_again(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("watchfiles")
    directory = tmp_path_factory.mktemp("reloaded")
    for file in project.directory.rglob("*.py"):
        copy = directory / file.relative_to(project.directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    project.directory = directory
    worker = project.worker("--reload")
    with project.client() as client:
        assert client.call_and_wait("double", [21]).data == 42
        services = directory / "tally" / "services.py"
        services.write_text(services.read_text().replace("return 2 * number", "return 20 * number"))
        worker.says(r"(?s)services.py changed.*serving ")
        assert client.call_and_wait("double", [21]).data == 420
    worker.terminate()
    assert worker.ends() == 0
