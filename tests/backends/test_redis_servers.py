"""Where the keys live, with real servers: one, with users, TLS or a socket file; a cluster; sentinels."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import ResponseError
from redis.sentinel import Sentinel

from rpc.backends.redis import servers as redis_servers
from rpc.backends.redis.servers import Servers, is_elsewhere, servers_of
from rpc.errors import BackendUnavailable
from rpc.testing import RedisServer, start_redis
from rpc.testing.servers import _claimed
from tests.topologies import Cluster, Sentinels, _Sentinel, start_cluster, start_sentinel

DEAD = [
    "redis://127.0.0.1:1",
    "redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster",
    "redis+cluster://127.0.0.1:1",
]
needs_redis_server = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs a real Redis: redis-server on PATH"
)


@pytest.fixture
def at() -> Iterator[Callable[[Any], Servers]]:
    """Servers that are closed in the end."""
    made: list[Servers] = []

    def make(source: Any) -> Servers:
        made.append(servers_of(source))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_cluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with start_sentinel() as sentinels:
        yield sentinels


def ask(where: Servers, key: str, *command: Any) -> Any:
    """The answer to one command, on a connection of its own."""
    connection = where.connection(key)
    try:
        connection.send_command(*command)
        return connection.read_response(disable_decoding=True)
    finally:
        connection.disconnect()


def name_of(connection: Any) -> str:
    connection.send_command("CLIENT", "GETNAME")
    return str(connection.read_response().decode())


def persistently(where: Servers, action: Callable[[], Any]) -> Any:
    """What the action returns, as a caller would try it; each error must be one that says: elsewhere."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return action()
        except redis.RedisError as error:
            if not is_elsewhere(error) or time.monotonic() > deadline:
                raise
            where.moved()
            time.sleep(0.05)


def at_once(action: Callable[[], Any], threads: int = 12) -> list[Any]:
    """What so many threads get that do the same at the same time."""
    barrier, results = threading.Barrier(threads), []

    def run() -> None:
        barrier.wait()
        try:
            results.append(action())
        except Exception as error:
            results.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return results


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://h", "Redis URL must specify"),
            ("redis://h:port", "cannot be read"),
            ("redis://h/zero", "a database of Redis, a number"),
            ("rediss://h/1/2", "a database of Redis, a number"),
            ("redis://h?db=zero", "[`']db[`']"),  # the quotes of redis-py 5, and of later ones
            ("redis://h?protocol=4", "protocol is '4', not 2 or 3"),
            ("rediss://h?ssl_cert_reqs=maybe", "maybe"),
            ("redis+sentinel://h", "the path is the master's name"),
            ("redis+sentinel://h/", "the path is the master's name"),
            ("redis+sentinel://h/mymaster/zero", "the path is the master's name"),
            ("redis+sentinel://h/mymaster/0/1", "the path is the master's name"),
            ("redis+sentinel:///mymaster", "redis.sentinel: needs a host"),
            ("redis+sentinel://h,,g/mymaster", "redis.sentinel: needs a host"),
            ("redis+cluster://", "redis.cluster: needs a host"),
            ("redis+cluster://h:port", "cannot be read"),
            ("redis+cluster://h/1", "no database but 0"),
            ("redis+cluster://h?db=1", "no database but 0"),
        ],
    )
    def test_one_that_makes_no_sense_is_refused(self, url: str, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            servers_of(url)

    @pytest.mark.parametrize(
        "url", ["redis://h?speed=1", "redis+sentinel://h/m?speed=1", "redis+cluster://h?speed=1"]
    )
    def test_an_option_that_there_is_not_is_named(self, url: str) -> None:
        with pytest.raises(TypeError, match="speed"):
            servers_of(url)

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster"])
    @pytest.mark.parametrize("secret", ["hush/hush", "hush?hush", "hush#hush", "hush\N{CARE OF}@"])
    def test_no_password_is_shown(self, scheme: str, secret: str) -> None:
        with pytest.raises(ValueError, match="are written %25") as caught:
            servers_of(f"{scheme}://user:{secret}@h/mymaster")
        assert "hush" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("kind", [object, dict, redis.asyncio.Redis])
    def test_what_is_no_client_is_refused(self, kind: type[Any]) -> None:
        with pytest.raises(TypeError, match=f"not {kind.__name__}"):
            servers_of(kind())

    def test_a_client_of_replicas_is_refused(self) -> None:
        with pytest.raises(ValueError, match="of the master"):
            servers_of(Sentinel([("127.0.0.1", 1)]).slave_for("mymaster"))

    @pytest.mark.parametrize("url", DEAD)
    def test_nothing_is_contacted_before_it_is_needed(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object, **options: object) -> Any:
            raise AssertionError("the network was asked")

        for name in ("socket", "getaddrinfo", "gethostbyname"):
            monkeypatch.setattr(socket, name, refuse)
        where = servers_of(url.replace("127.0.0.1", "localhost"))
        where.moved()
        where.close()

    @pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")  # redis-py 5.0 forgets to close one
    @pytest.mark.parametrize(
        "url", [*DEAD, "redis://no..such", "redis+cluster://no..such", "unix:///no/such"]
    )
    def test_nobody_there_is_one_kind_of_error(self, url: str, at: Callable[[Any], Servers]) -> None:
        where = at(url)
        for _ in range(2):
            with pytest.raises(redis.ConnectionError) as caught:
                where.connection("key")
            assert is_elsewhere(caught.value)
        del caught
        gc.collect()

    def test_a_sentinels_password_is_not_shown(self, at: Callable[[Any], Servers]) -> None:
        where = at(f"{DEAD[1]}?sentinel_password=hush&password=hush")
        with pytest.raises(redis.ConnectionError, match="no sentinel knows a master 'mymaster'") as caught:
            where.connection("key")
        assert "hush" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/mymaster"])
def test_a_child_does_not_wait_for_what_a_thread_of_its_parent_did_at_the_fork(url: str) -> None:
    program = (
        "import os, redis, signal, socket, sys, threading, time\n"
        "from rpc.backends.redis import servers as redis_servers\n"
        "redis_servers.SOCKET_TIMEOUT = 0.5\n"
        "silent = socket.create_server(('127.0.0.1', 0))\n"
        "where = redis_servers.servers_of(sys.argv[1].format(silent.getsockname()[1]))\n"
        "def look():\n"
        "    try: where.connection('key')\n"
        "    except redis.RedisError: pass\n"
        "looking = threading.Thread(target=look)\n"
        "looking.start()\n"
        "silent.accept()\n"  # from now on it waits for an answer
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    look()\n"
        "    os._exit(0)\n"
        "looking.join()\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program, url], env=environment, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (redis.ConnectionError("Connection refused"), True),
        (redis.TimeoutError("Timeout reading"), True),
        (redis.BusyLoadingError("Redis is loading"), True),
        (redis.ReadOnlyError("You can't write"), True),
        (ResponseError("MOVED 1234 127.0.0.1:7000"), True),
        (ResponseError("ASK 1234 127.0.0.1:7000"), True),
        (ResponseError("TRYAGAIN Multiple keys request during rehashing of slot"), True),
        (ResponseError("CLUSTERDOWN The cluster is down"), True),
        (ResponseError("UNBLOCKED force unblock from blocking operation"), True),
        (
            ResponseError("Error running script (call to f_1): @user_script:1: -READONLY You can't write"),
            True,
        ),
        (ResponseError("WRONGTYPE Operation against a key"), False),
        (ResponseError("CROSSSLOT Keys in request don't hash to the same slot"), False),
        (redis.exceptions.NoScriptError("No matching script"), False),
        (redis.exceptions.NoPermissionError("this user has no permissions"), False),
        (redis.exceptions.OutOfMemoryError("command not allowed"), False),
    ],
)
def test_errors_that_say_elsewhere(error: redis.RedisError, elsewhere: bool) -> None:
    assert is_elsewhere(error) is elsewhere


@pytest.mark.redis
class TestOneServer:
    def test_connections_and_clients_lead_to_it(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        for url in (rpc_redis.url, f"redis+{rpc_redis.url}"):
            where = at(url)
            where.client("key").set("key", url)
            assert ask(where, "key", "GET", "key") == url.encode()

    def test_the_database_is_the_urls(self, rpc_redis: RedisServer, at: Callable[[Any], Servers]) -> None:
        at(rpc_redis.url.replace("/0", "/3")).client("key").set("only here", "1")
        assert ask(at(rpc_redis.url), "key", "EXISTS", "only here") == 0
        assert ask(at(f"redis://127.0.0.1:{rpc_redis.port}?db=3"), "key", "EXISTS", "only here") == 1

    @pytest.mark.parametrize(
        ("query", "shape"), [("", [b"f", b"v"]), ("?protocol=3", {b"f": b"v"}), ("?protocol=2", [b"f", b"v"])]
    )
    def test_the_protocol_is_2_unless_the_url_says_3(
        self, query: str, shape: Any, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        where = at(rpc_redis.url + query)
        where.client("hash").hset("hash", "f", "v")
        assert ask(where, "hash", "HGETALL", "hash") == shape
        assert where.client("hash").hgetall("hash") == {b"f": b"v"}

    def test_connections_are_named_limited_and_kept_alive(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        where = at(rpc_redis.url)
        connection = where.connection("key")
        mine = f"rpc:{socket.gethostname()}:{os.getpid()}"
        assert name_of(connection) == mine
        assert where.client("key").client_getname() in (mine, mine.encode())
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (3.0, 2.0)
        assert connection.retry._retries == 0
        tcp = connection._sock
        assert tcp.gettimeout() == 3.0
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in {"KEEPIDLE": 15, "KEEPINTVL": 5, "KEEPCNT": 3, "USER_TIMEOUT": 20_000}.items():
            if hasattr(socket, f"TCP_{name}"):
                assert tcp.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}")) == value
        connection.disconnect()

    def test_of_a_client_only_the_address_and_the_credentials_are_used(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        options: dict[str, Any] = {"socket_timeout": 60, "decode_responses": True, "max_connections": 1}
        with redis.Redis(port=rpc_redis.port, db=2, **options) as client:
            client.set("key", "value")
            where = at(client)
        connection = where.connection("key")
        assert (connection.socket_timeout, connection.db) == (3.0, 2)
        connection.disconnect()
        assert where.client("key").get("key") == b"value"

    def test_it_takes_no_end_of_connections(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        where = at(rpc_redis.url)
        where.client("key").connection_pool.max_connections = 1
        for _ in range(3):
            assert ask(where, "key", "PING") == b"PONG"
        assert where.client("key").ping()

    @pytest.mark.real_redis
    def test_nothing_waits_for_long_or_is_done_again(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_servers, "SOCKET_TIMEOUT", 0.2)
        where = at(rpc_redis.url)
        assert where.client("count").set("count", 0)
        with redis.Redis(port=rpc_redis.port) as admin:
            admin.client_pause(500)
            with pytest.raises(redis.TimeoutError):
                where.client("count").incr("count")
            assert int(admin.get("count") or 0) <= 1

    def test_after_moved_a_client_connects_again(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        where = at(rpc_redis.url)
        first = where.client("key").client_id()
        assert where.client("key").client_id() == first
        where.moved()
        assert where.client("key").client_id() != first

    def test_closing_gives_connections_back_and_may_be_repeated(
        self, rpc_redis: RedisServer, at: Callable[[Any], Servers]
    ) -> None:
        where = at(rpc_redis.url)
        mine = where.client("key").client_id()
        where.close()
        where.close()
        with redis.Redis(port=rpc_redis.port) as admin:
            assert str(mine) not in {client["id"] for client in admin.client_list()}
        assert where.client("key").ping()

    def test_a_forked_child_has_connections_and_a_name_of_its_own(self, rpc_redis: RedisServer) -> None:
        program = (
            "import os, sys; from rpc.backends.redis.servers import servers_of\n"
            "where = servers_of(sys.argv[1])\n"
            "mine = where.client('key').client_id()\n"
            "child = os.fork()\n"
            "connection = where.connection('key')\n"
            "connection.send_command('CLIENT', 'GETNAME')\n"
            "assert connection.read_response().endswith(b':%d' % os.getpid())\n"
            "same = where.client('key').client_id() == mine\n"
            "if not child: os._exit(0 if not same else 1)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and same\n"
            "connection.disconnect(); where.close()\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program, rpc_redis.url], env=environment, check=True
        )


@pytest.mark.real_redis
class TestSecured:
    def test_a_user_with_a_password(self, at: Callable[[Any], Servers]) -> None:
        with start_redis() as server, redis.Redis(port=server.port) as admin:
            rules = {
                "categories": ["+@all", "-@admin", "-@dangerous"],
                "commands": ["-client"],  # so it may not have a name
                "keys": ["rpc:*"],
                "passwords": ["+p/w:@%"],
            }
            admin.acl_setuser("caller", enabled=True, **rules)
            admin.acl_setuser("default", enabled=False)
            for source in (
                f"redis://caller:p%2Fw%3A%40%25@127.0.0.1:{server.port}",
                redis.Redis(port=server.port, username="caller", password="p/w:@%"),
            ):
                where = at(source)
                assert where.client("rpc:key").set("rpc:key", "value")
                assert ask(where, "rpc:key", "GET", "rpc:key") == b"value"
            for scheme, kind in (
                ("redis", redis.AuthenticationError),
                ("redis+cluster", redis.ConnectionError),
            ):
                where = at(f"{scheme}://caller:hush@127.0.0.1:{server.port}")
                with pytest.raises(kind) as caught:
                    where.connection("rpc:key")
                assert "hush" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("scheme", ["unix", "redis+unix"])
    def test_a_socket_file(self, scheme: str, tmp_path: Path, at: Callable[[Any], Servers]) -> None:
        file = tmp_path / "s"
        with start_redis(options={"unixsocket": str(file)}):
            where = at(f"{scheme}://{file}?db=1")
            assert where.client("key").set("key", "value")
            assert ask(where, "key", "GET", "key") == b"value"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Lines of a redis.conf for TLS, with a certificate for 127.0.0.1 that has signed itself."""
    openssl, folder = shutil.which("openssl"), tmp_path_factory.mktemp("tls")
    if openssl is None:
        pytest.skip("needs a real Redis with TLS, and openssl for its certificate")
    key, certificate = str(folder / "key"), str(folder / "certificate")
    made = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, *made, *subject], check=True, capture_output=True)
    lines = {"tls-key-file": key, "tls-cert-file": certificate, "tls-ca-cert-file": certificate}
    port = next(port for port in iter(lambda: _claimed(0), None) if port < 55_000)  # a cluster adds 10,000
    return {**lines, "tls-auth-clients": "no", "tls-port": str(port)}


@pytest.fixture
def tls(certificate: dict[str, str]) -> Callable[..., RedisServer]:
    """Starts a server that speaks TLS, too."""

    def start(**options: str) -> RedisServer:
        try:
            return start_redis(
                options={**certificate, **{name.replace("_", "-"): options[name] for name in options}}
            )
        except BackendUnavailable as error:
            if "tls-" not in str(error):
                raise
            pytest.skip("needs a real Redis with TLS")

    return start


@pytest.mark.real_redis
class TestTls:
    @pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")  # redis-py 5.0 forgets to close one
    def test_one_server(
        self, tls: Callable[..., RedisServer], certificate: dict[str, str], at: Callable[[Any], Servers]
    ) -> None:
        port, trusted = certificate["tls-port"], certificate["tls-cert-file"]
        with tls():
            for source in (
                f"rediss://127.0.0.1:{port}?ssl_ca_certs={trusted}",
                redis.Redis(port=int(port), host="127.0.0.1", ssl=True, ssl_ca_certs=trusted),
            ):
                where = at(source)
                assert where.client("key").set("key", "value")
                assert ask(where, "key", "GET", "key") == b"value"
            for untrusted in (
                f"rediss://127.0.0.1:{port}",
                f"rediss://127.0.0.1:{port}?ssl_ca_certs=/no/such",
            ):
                with pytest.raises(redis.ConnectionError):
                    at(untrusted).connection("key")
            gc.collect()

    @pytest.mark.slow
    @pytest.mark.xdist_group("topologies")
    def test_a_cluster(
        self, tls: Callable[..., RedisServer], certificate: dict[str, str], at: Callable[[Any], Servers]
    ) -> None:
        with tls(cluster_enabled="yes", tls_cluster="yes") as server:
            with redis.Redis(port=server.port, protocol=2) as admin:
                admin.execute_command("CLUSTER ADDSLOTS", *range(16384))
                while admin.cluster("info")["cluster_state"] != "ok":
                    time.sleep(0.05)
            options = f"ssl=true&ssl_ca_certs={certificate['tls-cert-file']}"
            where = at(f"redis+cluster://127.0.0.1:{certificate['tls-port']}?{options}")
            assert where.client("key").set("key", "value")
            assert ask(where, "key", "GET", "key") == b"value"

    @pytest.mark.slow
    @needs_redis_server
    @pytest.mark.xdist_group("topologies")
    def test_sentinels_with_a_user_of_their_own(
        self, tls: Callable[..., RedisServer], certificate: dict[str, str], at: Callable[[Any], Servers]
    ) -> None:
        port = str(_claimed(0))
        lines = {**certificate, "tls-port": port, "tls-replication": "yes"}
        watch = [f"sentinel monitor mymaster 127.0.0.1 {certificate['tls-port']} 1"]
        watch += [f"{name} {value}" for name, value in lines.items()]
        with (
            tls() as server,
            _Sentinel("redis-server", watch) as sentinel,
            redis.Redis(port=server.port) as admin,
        ):
            sentinel._start(0)
            admin.acl_setuser("caller", enabled=True, categories=["+@all"], keys=["*"], passwords=["+pw"])
            admin.acl_setuser("default", enabled=False)
            with redis.Redis(port=sentinel.port) as guard:
                guard.acl_setuser("guard", enabled=True, categories=["+@all"], passwords=["+hush"])
                guard.acl_setuser("default", enabled=False)
            url = f"redis+sentinel://caller:pw@127.0.0.1:{port}/mymaster?ssl=true&ssl_ca_certs={lines['tls-cert-file']}"
            where = at(f"{url}&sentinel_username=guard&sentinel_password=hush")
            assert where.client("key").set("key", "value")
            assert ask(where, "key", "GET", "key") == b"value"
            with pytest.raises(redis.ConnectionError):
                at(f"{url}&sentinel_username=guard&sentinel_password=wrong").connection("key")


@pytest.mark.slow
@pytest.mark.real_redis
@pytest.mark.xdist_group("topologies")
@needs_redis_server
class TestCluster:
    def test_each_key_is_found(self, cluster: Cluster, at: Callable[[Any], Servers]) -> None:
        where = at(cluster.url)
        for number in range(40):
            key = f"key{number}"
            assert where.client(key).set(key, number)
            assert ask(where, key, "GET", key) == b"%d" % number
            connection = where.connection(key)
            assert connection.port == cluster.owner(key).port
            connection.disconnect()

    def test_threads_that_come_first_all_find_it(
        self, cluster: Cluster, at: Callable[[Any], Servers]
    ) -> None:
        where = at(cluster.url)
        assert at_once(lambda: where.client("key").set("key", "value")) == [True] * 12
        where.moved()
        assert at_once(lambda: ask(where, "key", "GET", "key")) == [b"value"] * 12

    def test_a_client_of_the_cluster_shows_the_way(
        self, cluster: Cluster, at: Callable[[Any], Servers]
    ) -> None:
        with redis.RedisCluster("127.0.0.1", cluster.servers[0].port, socket_timeout=60) as client:
            where = at(client)
        connection = where.connection("key")
        assert (connection.port, connection.socket_timeout) == (cluster.owner("key").port, 3.0)
        assert name_of(connection).endswith(f":{os.getpid()}")
        connection.disconnect()

    def test_a_node_that_is_down_is_not_needed_to_find_the_others(
        self, cluster: Cluster, at: Callable[[Any], Servers]
    ) -> None:
        where = at(cluster.url.replace("://", "://127.0.0.1:1,"))
        assert persistently(where, lambda: where.client("key").set("key", "value"))

    def test_the_nodes_of_the_url_are_asked_again_when_all_others_have_gone(
        self, cluster: Cluster, at: Callable[[Any], Servers]
    ) -> None:
        where: Any = at(cluster.url)
        assert where.client("key").ping()
        where._here()._manager.startup_nodes.clear()
        where.moved()
        assert where.client("key").ping()

    def test_what_has_moved_is_found_again(self, cluster: Cluster, at: Callable[[Any], Servers]) -> None:
        where, source = at(cluster.url), cluster.owner("key")
        other = next(server for server in cluster.masters if server is not source)
        client, waiting = where.client("key"), where.connection("key")
        client.set("key", "value")
        waiting.send_command("XREAD", "BLOCK", 2500, "STREAMS", "{key}stream", "0")
        cluster.move("key", other)
        for action in (lambda: client.get("key"), waiting.read_response):
            with pytest.raises(ResponseError) as caught:
                action()
            assert is_elsewhere(caught.value)
        waiting.disconnect()
        where.moved()
        assert where.client("key").get("key") == b"value"
        assert ask(where, "key", "GET", "key") == b"value"
        cluster.move("key", source)

    def test_what_is_on_its_way_needs_patience(self, cluster: Cluster, at: Callable[[Any], Servers]) -> None:
        where, source = at(cluster.url), cluster.owner("key")
        other = next(server for server in cluster.masters if server is not source)
        where.moved()
        where.client("key").set("key", "value")
        with cluster.migrating("key", other):
            for command in (("GET", "{key}gone"), ("EVAL", "return 1", 2, "key", "{key}gone")):
                with pytest.raises(ResponseError) as caught:
                    ask(where, "key", *command)
                assert is_elsewhere(caught.value)
            assert ask(where, "key", "GET", "key") == b"value"
        assert persistently(where, lambda: ask(where, "key", "EVAL", "return 1", 2, "key", "{key}gone")) == 1
        cluster.move("key", source)

    def test_a_master_that_dies_is_followed_by_another(
        self, cluster: Cluster, at: Callable[[Any], Servers]
    ) -> None:
        where, unaware, master = at(cluster.url), at(cluster.url), cluster.owner("key")
        held = where.connection("key")
        assert unaware.client("key").ping()
        assert where.client("key").set("key", "1")
        failing = threading.Thread(target=cluster.failover, args=(master,))
        failing.start()
        while master.runs:
            time.sleep(0.01)
        with pytest.raises(redis.ConnectionError):
            held.read_response()
        assert persistently(where, lambda: ask(where, "key", "SET", "key", "2")) == b"OK"
        assert persistently(where, lambda: where.client("key").get("key")) == b"2"
        failing.join()
        with pytest.raises(redis.ConnectionError):
            unaware.connection("key")
        assert ask(unaware, "key", "GET", "key") == b"2"  # having failed to connect, it looks again by itself
        cluster.restart(master)


@pytest.mark.slow
@pytest.mark.real_redis
@pytest.mark.xdist_group("topologies")
@needs_redis_server
class TestSentinels:
    def test_the_master_is_found_and_the_database_is_the_urls(
        self, sentinels: Sentinels, at: Callable[[Any], Servers]
    ) -> None:
        where = at(sentinels.url.replace("/mymaster/0", "/mymaster/4"))
        connection = where.connection("key")
        assert (connection.port, connection.db) == (sentinels.master.port, 4)
        assert name_of(connection).endswith(f":{os.getpid()}")
        connection.disconnect()
        assert where.client("key").set("key", "value")
        assert ask(at(f"{sentinels.master.url[:-1]}4"), "key", "GET", "key") == b"value"

    def test_a_client_by_sentinel_shows_the_way(
        self, sentinels: Sentinels, at: Callable[[Any], Servers]
    ) -> None:
        source = Sentinel([("127.0.0.1", each.port) for each in sentinels.sentinels], socket_timeout=60)
        where = at(source.master_for("mymaster", db=4, socket_timeout=60))
        connection = where.connection("key")
        assert (connection.port, connection.db, connection.socket_timeout) == (sentinels.master.port, 4, 3.0)
        connection.disconnect()
        assert where.client("key").ping()

    def test_a_master_that_there_is_not_is_named(
        self, sentinels: Sentinels, at: Callable[[Any], Servers]
    ) -> None:
        with pytest.raises(redis.ConnectionError, match="no sentinel knows a master 'other'"):
            at(sentinels.url.replace("mymaster", "other")).connection("key")

    def test_sentinels_that_are_down_do_not_matter_if_one_is_up(
        self, sentinels: Sentinels, at: Callable[[Any], Servers]
    ) -> None:
        where = at(sentinels.url.replace("://", "://127.0.0.1:1,127.0.0.1:2,"))
        assert at_once(lambda: ask(where, "key", "PING")) == [b"PONG"] * 12

    def test_a_master_that_dies_is_followed_by_another(
        self, sentinels: Sentinels, at: Callable[[Any], Servers]
    ) -> None:
        where, master = at(sentinels.url), sentinels.master
        assert where.client("key").set("key", "1")
        failing = threading.Thread(target=sentinels.kill_master)
        failing.start()
        while master.runs:
            time.sleep(0.01)
        assert persistently(where, lambda: ask(where, "key", "SET", "key", "2")) == b"OK"
        assert persistently(where, lambda: where.client("key").get("key")) == b"2"
        failing.join()
        sentinels.restart(master)
        assert sentinels.master is not master
