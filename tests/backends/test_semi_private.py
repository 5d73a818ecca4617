"""What redis-py, hiredis and rq do not promise, and what we lean on: each test says which, and fails when a
release changes it. `make test` takes the newest releases; CONTRIBUTING says how to take the oldest.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import rq
from redis import cluster, exceptions, sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry
from rq import SimpleWorker, worker_registration
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from rpc.backends._retry import time_in_the_kernel
from rpc.backends._serving import Connections
from rpc.backends.redis.servers import _NO_MAINTENANCE, is_elsewhere, servers_of
from rpc.backends.rq import PythonRqBackend
from rpc.backends.rq.records import EXECUTIONS, JOBS, RqOptions, job_for, job_key, message_in, worker_key
from rpc.backends.rq.worker import HORIZON, RqWorker
from rpc.testing import RedisServer, start_redis
from rpc.transport import Message, queue

pytestmark = pytest.mark.redis


@pytest.fixture
def connection(rpc_redis: RedisServer) -> Iterator[Any]:
    """One of redis-py's, as every backend on Redis gets it."""
    servers = servers_of(rpc_redis.url)
    connection = servers.connection("")
    yield connection
    connection.disconnect()
    servers.close()


def parameters(of: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(of).parameters)


# A connection of redis-py's that is driven without its client.


def test_a_connections_socket_is_under__sock(connection: Any) -> None:
    assert type(connection._sock) is socket.socket, "Connection._sock is no plain socket any more"
    assert connection._sock.getpeername()[1] == connection.port


def test_packed_commands_leave_as_they_are_and_answers_come_as_bytes(connection: Any) -> None:
    packed = connection.pack_command("PING", b"\xff")
    assert b"".join(packed) == b"*2\r\n$4\r\nPING\r\n$1\r\n\xff\r\n", "pack_command() makes no RESP of it"
    connection.send_packed_command([b"".join(packed) * 2], check_health=False)
    assert [connection.read_response(disable_decoding=True) for _ in range(2)] == [b"\xff"] * 2


def test_can_read_tells_whether_an_answer_is_there_and_waits_for_it(connection: Any) -> None:
    assert not connection.can_read(0), "something came that nobody asked for"
    connection.send_command("PING")
    assert connection.can_read(5.0)
    assert connection.read_response() in (b"PONG", "PONG")
    assert not connection.can_read(0)


def test_an_error_of_the_server_leaves_the_connection_usable(connection: Any) -> None:
    for command, error in (
        (("EVALSHA", "0" * 40, 0), exceptions.NoScriptError),
        (("HGET",), redis.ResponseError),
    ):
        connection.send_command(*command)
        with pytest.raises(error):
            connection.read_response(disable_decoding=True)
    connection.send_command("PING")
    assert connection.read_response(disable_decoding=True) == b"PONG"


def test_what_the_kernel_gives_up_is_told_from_a_broken_connection(connection: Any) -> None:
    """`Connection.read` says then that there was no answer in time."""
    time_in_the_kernel(connection._sock, 0.1, socket.SO_RCVTIMEO)
    connection.send_command("BLPOP", "nothing", 2)
    with pytest.raises(redis.RedisError) as caught:
        connection.read_response(disable_decoding=True)
    assert isinstance(caught.value.__context__, BlockingIOError), repr(caught.value.__context__)


def test_nothing_of_redis_py_repeats_a_command() -> None:
    attempts = []

    def fails() -> None:
        attempts.append(1)
        raise redis.ConnectionError

    with pytest.raises(redis.ConnectionError):
        Retry(NoBackoff(), 0).call_with_retry(fails, lambda error: None)
    assert len(attempts) == 1


@pytest.mark.real_redis
def test_connecting_sends_no_more_than_we_know() -> None:
    """A release that introduces itself in another way costs each connection a round trip."""
    with start_redis() as server, redis.Redis.from_url(server.url) as admin:
        admin.config_resetstat()
        servers_of(server.url).connection("").disconnect()
        asked = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    known = {"client|setname", "client|setinfo", "client", "select", "config|resetstat", "config", "info"}
    assert asked <= known, f"connecting also sends {sorted(asked - known)}"


def test_pending_for_maintenance_can_be_switched_off() -> None:
    there = importlib.util.find_spec("redis.maint_notifications") is not None
    assert bool(_NO_MAINTENANCE) == there
    for name, config in _NO_MAINTENANCE.items():
        assert config.enabled is False
        assert name in parameters(redis.ConnectionPool.__init__) | parameters(
            redis.connection.AbstractConnection.__init__
        ) | parameters(redis.connection.MaintNotificationsAbstractConnection.__init__)


# Where the keys live.


@pytest.mark.parametrize(
    ("url", "kind", "has"),
    [
        (
            "redis://me:secret@there:1234/5",
            redis.Connection,
            {"host": "there", "port": 1234, "db": 5, "username": "me", "password": "secret"},
        ),
        (
            "rediss://there/?ssl_cert_reqs=none",
            redis.SSLConnection,
            {"host": "there", "ssl_cert_reqs": "none"},
        ),
        (
            "unix:///there.sock?db=3",
            redis.UnixDomainSocketConnection,
            {"path": "/there.sock", "db": 3},
        ),
    ],
)
def test_a_pool_tells_how_its_connections_are_made(url: str, kind: type, has: dict[str, Any]) -> None:
    pool: Any = redis.ConnectionPool.from_url(url)
    assert pool.connection_class is kind
    assert {name: pool.connection_kwargs.get(name) for name in has} == has


def test_a_connection_made_from_a_pools_arguments_is_not_the_pools(rpc_redis: RedisServer) -> None:
    client = servers_of(rpc_redis.url).client("")
    pool = client.connection_pool
    assert pool.connection_kwargs["socket_timeout"] == 3.0
    made = pool.connection_class(**pool.connection_kwargs)
    made.connect()
    assert (made.host, made.port) == ("127.0.0.1", rpc_redis.port)
    pool.disconnect(inuse_connections=False)
    made.send_command("PING")
    assert made.read_response() in (b"PONG", "PONG"), "the pool has closed what it did not make"
    made.disconnect()


def test_a_key_slot_is_what_redis_says() -> None:
    assert key_slot(b"foo") == 12182
    assert key_slot(b"a{foo}b") == 12182


def test_a_clusters_nodes_manager_takes_what_we_give_it() -> None:
    assert {"startup_nodes", "from_url", "address_remap"} <= parameters(cluster.NodesManager.__init__)
    for name in ("initialize", "get_node_from_slot"):
        assert hasattr(cluster.NodesManager, name), f"NodesManager.{name} is gone"
    assert hasattr(redis.RedisCluster, "get_redis_connection"), "RedisCluster.get_redis_connection is gone"
    node: Any = cluster.ClusterNode("there", 1)
    assert (node.name, node.host, node.port, node.redis_connection) == ("there:1", "there", 1, None)
    manager: Any = cluster.NodesManager
    with pytest.raises(exceptions.RedisClusterException):
        manager([cluster.ClusterNode("127.0.0.1", 1)], from_url=True, address_remap=None)


def test_a_sentinel_pool_asks_whoever_says_discover_master(rpc_redis: RedisServer) -> None:
    class Watch:
        def discover_master(self, name: str) -> tuple[str, int]:
            assert name == "mymaster"
            return "127.0.0.1", rpc_redis.port

    kind: Any = sentinel.SentinelConnectionPool
    pool = kind("mymaster", Watch(), **_NO_MAINTENANCE)
    assert (pool.is_master, pool.service_name) == (True, "mymaster")
    assert issubclass(pool.connection_class, sentinel.SentinelManagedConnection)
    connection = pool.connection_class(**pool.connection_kwargs)
    connection.connect()
    connection.send_command("PING")
    assert connection.read_response() in (b"PONG", "PONG")
    connection.disconnect()


def test_sentinels_can_be_given_as_clients_and_are_all_asked() -> None:
    asked: list[int] = []

    class Dead:
        def sentinel_masters(self, **_: Any) -> Any:
            asked.append(1)
            raise redis.ConnectionError

    group: Any = sentinel.Sentinel([])
    group.sentinels = [Dead(), Dead()]
    with pytest.raises(sentinel.MasterNotFoundError):
        group.discover_master("mymaster")
    assert len(asked) == 2


@pytest.mark.parametrize(
    "error",
    [
        exceptions.AskError("1 there:1"),
        exceptions.TryAgainError("TRYAGAIN"),
        exceptions.ClusterDownError("CLUSTERDOWN"),
        exceptions.ReadOnlyError("READONLY"),
        redis.ResponseError("UNBLOCKED force unblock from blocking operation"),
        redis.ConnectionError(),
        redis.TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_tells_that_a_key_has_moved(error: redis.RedisError) -> None:
    assert is_elsewhere(error)


# hiredis.


def test_hiredis_reads_and_writes_what_we_let_it() -> None:
    hiredis = pytest.importorskip("hiredis", reason="needs a real Redis client: hiredis")
    nothing = object()
    reader = hiredis.Reader(notEnoughData=nothing, replyError=redis.ResponseError)
    assert reader.gets() is nothing
    reader.feed(b"+OK\r\n*1\r\n$1\r\n\xff\r\n-ERR no\r\n")
    assert (reader.gets(), reader.gets()) == (b"OK", [b"\xff"])
    assert isinstance(reader.gets(), redis.ResponseError)
    assert reader.gets() is nothing
    assert hiredis.pack_command(("SET", b"k", 1)) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\n1\r\n"


# rq's records.


@pytest.fixture
def backend(rpc_redis: RedisServer) -> Iterator[PythonRqBackend]:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        admin.flushall()
    backend = PythonRqBackend(rpc_redis.url)
    yield backend
    backend.close()


def worker_of(backend: PythonRqBackend) -> RqWorker:
    never: Any = lambda *_: None  # noqa: E731
    return RqWorker(backend._records, ["default"], never, backend._options, lambda: True, Connections(never))


def test_rqs_keys_are_where_we_look(backend: PythonRqBackend) -> None:
    there = rq.Queue("q", connection=backend._client)
    prefix = JOBS.removesuffix("job:")
    assert prefix == getattr(rq.defaults, "RQ_KEY_PREFIX", "rq") + ":"
    assert (there.key, rq.Queue.redis_queues_keys) == (f"{prefix}queue:q", f"{prefix}queues")
    assert job_key("1") == Job.key_for("1")
    entry = SimpleWorker([there], name="w", connection=redis.Redis(), prepare_for_work=False)
    assert entry.key == worker_key("w")
    assert f"{worker_registration.WORKERS_BY_QUEUE_KEY % 'q'}" == f"{prefix}workers:q"
    assert SimpleWorker.redis_workers_keys == f"{prefix}workers"
    registries = (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry)
    keys = [registry("q", connection=backend._client).key for registry in registries]
    assert keys == [f"{prefix}wip:q", f"{prefix}finished:q", f"{prefix}failed:q"]


def test_rq_3_keeps_executions_where_we_write_them() -> None:
    executions: Any = rq.executions
    made = executions.Execution("worker", "job", connection=redis.Redis())
    if not EXECUTIONS:
        assert int(rq.version.VERSION.split(".")[0]) < 3, "rq no longer says where a worker's executions are"
        return
    assert made.key == f"{EXECUTIONS}job:worker"
    assert executions.WORKER_EXECUTIONS_KEY_TEMPLATE.format("w") == f"{worker_key('w')}:executions"
    made.restore({b"created_at": b"1764000000", b"last_heartbeat": b"1764000000"})


def test_rq_sees_what_a_worker_does_and_that_it_is_done(backend: PythonRqBackend) -> None:
    backend.send(queue("default"), Message(b"x", {"id": "a1"}))
    worker = worker_of(backend)
    worker._register()
    worker._handler = lambda delivery: seen.append(current())
    seen: list[str | None] = []

    def current() -> str | None:
        [there] = rq.Worker.all(connection=backend._client, serializer=JSONSerializer)
        return there.get_current_job_id()

    delivery = worker.claim()
    assert delivery
    worker.perform(delivery)
    assert (seen, current()) == (["a1"], None)
    assert not [key for key in backend._client.keys("*execution*") if backend._client.type(key) != b"none"]


def test_rq_itself_takes_over_what_nobody_recovers(backend: PythonRqBackend) -> None:
    """Its cleanup of started jobs has its own idea of which are abandoned: since rq 3, those that say so."""
    backend.send(queue("default"), Message(b"x", {"id": "a1"}))
    worker = worker_of(backend)
    worker._register()
    assert worker.claim()
    there = StartedJobRegistry("rpc.default", connection=backend._client, serializer=JSONSerializer)
    there.cleanup(time.time() + HORIZON - 60)
    assert there.get_job_ids(cleanup=False) == ["a1"]
    there.cleanup(time.time() + HORIZON + 60)
    assert there.get_job_ids(cleanup=False) == []
    assert backend._records.queue("default").job_ids == ["a1"]


def test_a_job_of_rqs_is_a_message_there_and_back(backend: PythonRqBackend) -> None:
    assert {"id", "origin", "description", "timeout", "result_ttl", "failure_ttl", "status"} <= parameters(
        Job.create
    )
    message = Message(b'{"a":1}', {"id": "a1", "name": "add"})
    job = job_for(message, backend._records.queue("default"), RqOptions(10.0, 3, 5.0, 30, 60))
    fields = job.to_dict()
    told = {name: fields[name] for name in ("origin", "status", "retries_left", "timeout", "result_ttl")}
    assert told == {
        "origin": "rpc.default",
        "status": JobStatus.QUEUED,
        "retries_left": 2,
        "timeout": 5,
        "result_ttl": 30,
    }
    assert zlib.decompress(fields["data"]).startswith(b'["rpc.backends.rq.perform"')
    back = message_in({name.encode(): value for name, value in fields.items() if isinstance(value, bytes)})
    assert (back.body, back.headers["name"]) == (message.body, "add")


def test_a_workers_record_has_what_rq_reads(backend: PythonRqBackend) -> None:
    worker = worker_of(backend)
    worker._register()
    record = backend._client.hgetall(worker.key)
    read = "birth last_heartbeat queues pid hostname ip_address version python_version state"
    assert {name.encode() for name in read.split()} <= set(record)
    assert worker_registration.get_keys(backend._records.queue("default")) == {worker.key}
    assert backend.is_served("default")
    backend._client.delete(worker.key)
    worker_registration.clean_worker_registry(backend._records.queue("default"))
    assert worker_registration.get_keys(backend._records.queue("default")) == set()


def test_rq_does_not_change_our_time_limits(backend: PythonRqBackend) -> None:
    """It makes the time limits of the connection that a worker is given longer, by minutes."""
    worker_of(backend)._register()
    assert backend._client.connection_pool.connection_kwargs["socket_timeout"] == 3.0


def test_rqs_own_prefix_of_keys_is_ours_too(backend: PythonRqBackend, rpc_redis: RedisServer) -> None:
    """RQ_KEY_PREFIX, since rq 3; before, it has no meaning."""
    program = f"""
import threading
from rpc import RpcClient, RpcReceiver
receiver = RpcReceiver(jobs={{"add": lambda a, b: a + b}}, backend="rq+{rpc_redis.url}", queues=["q"])
thread = threading.Thread(target=receiver.start)
thread.start()
with RpcClient(backend="rq+{rpc_redis.url}", queue="q") as client:
    assert client.call_and_wait("add", {{"a": 1, "b": 2}}, timeout=20).data == 3
receiver.stop()
thread.join()
"""
    environment = {**os.environ, "RQ_KEY_PREFIX": "{ours}:x"}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=50, check=True)
    keys = {key.decode() for key in backend._client.keys("*")}
    expected = "{ours}:x:" if EXECUTIONS else "rq:"
    assert {key for key in keys if not key.startswith("rpc:")}, "rq has no records"
    assert {key for key in keys if not key.startswith(("rpc:", expected))} == set()
