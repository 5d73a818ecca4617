"""A real project on a database of its own, whose commands run in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from test_web_examples import SECONDS, Program

from rpc import RpcClient
from rpc.testing import RedisServer

PROJECT = Path(__file__).parent / "project"

only_postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def run(words: list[str], environment: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """A command of manage.py, to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


class Project:
    """A folder with a manage.py, and the programs that run in it."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "always::ResourceWarning",
            **environment,
        }
        self._programs: list[Program] = []
        self._port = 0

    def manage(self, *words: str, code: int = 0, **environment: str) -> str:
        """What the command says, on stderr too if it is to fail."""
        done = run([*words], {**self.environment, **environment}, self.directory)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + (done.stderr if code else "")

    def start(self, *words: str, **environment: str) -> Program:
        program = Program(["manage", *words], self.directory, {**self.environment, **environment})
        self._programs.append(program)
        return program

    def worker(self, *options: str, **environment: str) -> Program:
        program = self.start("rpc", *options, **environment)
        program.says("serving ")
        return program

    def web(self) -> Program:
        program = self.start("runserver", "127.0.0.1:0", "--noreload")
        self._port = int(program.says(r"http://127\.0\.0\.1:(\d+)/")[1])
        return program

    def asks(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text.decode()

    def client(self) -> RpcClient:
        return RpcClient(backend=self.environment["TEST_BROKER"], timeout=SECONDS)

    def stops(self) -> None:
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            program.ends()
            print(program.said)
        assert not [program.said for program in self._programs if "Warning" in program.said]


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database with the project's tables."""
    if request.param == "sqlite":
        url = f"sqlite://{tmp_path_factory.mktemp('django') / 'db.sqlite3'}"
        migrate(url)
        yield url
        return
    import psycopg

    host, port = os.environ.get("PGHOST", "127.0.0.1"), os.environ.get("PGPORT", "5432")
    user, name = os.environ.get("PGUSER", "postgres"), f"rpc_test_{uuid4().hex}"

    def do(command: str) -> None:
        # Each on a connection of its own: until the last one, other tests cut all those of this process.
        with psycopg.connect(
            host=host, port=port, user=user, dbname="postgres", autocommit=True, connect_timeout=5
        ) as server:
            server.execute(command)

    try:
        do(f"CREATE DATABASE {name}")
    except psycopg.OperationalError as error:
        pytest.skip(f"needs PostgreSQL: {error}")
    try:
        url = f"postgres://{user}@{host}:{port}/{name}"
        migrate(url)
        yield url
    finally:
        do(f"DROP DATABASE {name} WITH (FORCE)")


def migrate(url: str) -> None:
    environment = {"TEST_DATABASE": url, "TEST_BROKER": "memory://"}
    done = run(["migrate", "--verbosity", "0"], environment, PROJECT)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def project(database: str, rpc_redis: RedisServer) -> Iterator[Project]:
    with redis.Redis.from_url(rpc_redis.url) as connection:
        connection.flushdb()
    project = Project(PROJECT, {"TEST_DATABASE": database, "TEST_BROKER": rpc_redis.url})
    yield project
    project.stops()
