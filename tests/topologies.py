"""Redis servers that act as one, for tests of what happens when keys move: a cluster, or a master with
replicas and sentinels. Real servers on free ports of 127.0.0.1; what `servers` never does, this never does.

Only with `redis-server` on PATH. Starting takes 3 to 8 s, because the servers must find each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from rpc.errors import BackendUnavailable, Unsupported
from rpc.testing.servers import (
    _HOST,
    _PORTS_TO_TRY,
    RedisServer,
    _claimed,
    _executable,
    _PortTaken,
    start_redis,
)

_SECONDS_TO_SETTLE = 60.0
_SLOTS = 16384
_BUS = 10_000
"""Nodes of a cluster talk to each other on their port plus this number."""
_AT_ONCE = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
"""A replica counts once something was replicated, if only a ping."""

G = TypeVar("G", bound="_Group")


def start_cluster(nodes: int = 3, *, replicas: int = 0, node_timeout: float = 2.0) -> Cluster:
    """Start a Redis Cluster of so many masters, each with so many replicas; return once all agree on it.

    `node_timeout`: seconds without a sign after which a node is taken for dead. Raises Unsupported without
    redis-server, BackendUnavailable if it does not come about in a minute.
    """
    cluster = Cluster(_redis_server())
    with _closed_if_it_fails(cluster):
        cluster._form(nodes, replicas, node_timeout)
    return cluster


def start_sentinel(*, replicas: int = 1, sentinels: int = 3, down_after: float = 2.0) -> Sentinels:
    """Start a master (named "mymaster") with replicas, and sentinels that watch them; return once all know
    each other.

    `down_after`: seconds without an answer after which a master is taken for dead. Sentinels ask once a
    second: with less than 2, they may take one for dead that they have only just begun to ask. Raises
    Unsupported without redis-server, BackendUnavailable if it does not come about in a minute.
    """
    group = Sentinels(_redis_server())
    with _closed_if_it_fails(group):
        group._form(replicas, sentinels, down_after)
    return group


class _Group:
    """Servers that end together. Leaving its `with` block closes it. Not thread-safe."""

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._all = ExitStack()
        self.servers: list[RedisServer] = []

    def close(self) -> None:
        """End all of them, by force: a master would wait for its replicas."""
        for server in self.servers:
            server.kill()
        self._all.close()

    def __enter__(self: G) -> G:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running(self) -> list[RedisServer]:
        return [server for server in self.servers if server.runs]

    def _at(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)


class Cluster(_Group):
    """What `start_cluster()` returns. `servers` are the nodes, first those that began as masters."""

    @property
    def url(self) -> str:
        """The first node, by which clients find the others: "redis+cluster://127.0.0.1:PORT"."""
        return f"redis+cluster://{_HOST}:{self.servers[0].port}"

    @property
    def masters(self) -> list[RedisServer]:
        """The nodes that have slots, as the first running node knows it."""
        return [self._at(port) for port in sorted(set(_owners(self._running()[0]).values()))]

    def owner(self, key: str) -> RedisServer:
        """The master that has this key, as the first running node knows it."""
        return self._at(_owners(self._running()[0])[key_slot(key.encode())])

    def kill(self, server: RedisServer) -> None:
        """End a node as a crash would. The others notice it after `node_timeout`."""
        server.kill()

    def restart(self, server: RedisServer) -> None:
        """Start a node again, with its identity and without its data; return once it is one of them again."""
        server.restart()
        if len(self._running()) == len(self.servers):
            _until(self._agreed, "the cluster did not become whole again")

    def move(self, key: str, to: RedisServer) -> None:
        """Give the slot of this key, and all that is in it, to another master."""
        with self.migrating(key, to):
            pass

    @contextmanager
    def migrating(self, key: str, to: RedisServer) -> Iterator[None]:
        """Within the block the slot of this key is on its way: a key that is not there any more answers ASK,
        several of which some are there TRYAGAIN. After it, it has moved."""
        slot, source = key_slot(key.encode()), self.owner(key)
        others = [server for server in self._running() if server not in (source, to)]
        with _admin(source) as old, _admin(to) as new:
            old_id, new_id = old.execute_command("CLUSTER MYID"), new.execute_command("CLUSTER MYID")
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
            yield
            while keys := old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                old.execute_command("MIGRATE", _HOST, to.port, "", 0, 5000, "KEYS", *keys)
            for client in (new, old):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)
        _until(
            lambda: all(_owners(server)[slot] == to.port for server in others),
            f"slot {slot} did not move",
        )

    def failover(self, master: RedisServer) -> RedisServer:
        """Kill a master, and return the replica that has taken its place, once all know."""
        slot = next(slot for slot, port in _owners(master).items() if port == master.port)
        master.kill()

        def heirs() -> set[int]:
            return {_owners(server)[slot] for server in self._running()}

        _until(lambda: self._agreed() and master.port not in heirs(), "no replica took over")
        (heir,) = heirs()
        return self._at(heir)

    def _form(self, nodes: int, replicas: int, node_timeout: float) -> None:
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(round(node_timeout * 1000)),
            "cluster-replica-validity-factor": "0",
            **_AT_ONCE,
        }
        for _ in range(nodes * (1 + replicas)):
            self.servers.append(self._all.enter_context(_node(options)))
        with ExitStack() as stack:
            clients = [stack.enter_context(_admin(server)) for server in self.servers]
            for number, client in enumerate(clients):
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < nodes:
                    mine = range(_SLOTS * number // nodes, _SLOTS * (number + 1) // nodes)
                    client.execute_command("CLUSTER ADDSLOTS", *mine)
                for server in self.servers[:number]:
                    client.execute_command("CLUSTER MEET", _HOST, server.port)
            _until(lambda: all(_knows(client, len(clients)) for client in clients), "the nodes did not meet")
            for number, client in enumerate(clients[nodes:]):
                master = clients[number % nodes].execute_command("CLUSTER MYID")
                client.execute_command("CLUSTER REPLICATE", master)
        _until(self._agreed, "the nodes did not agree")

    def _agreed(self) -> bool:
        running = self._running()
        views = [_view(server) for server in running]
        return all(
            view is not None and view == views[0] and view >= {server.port for server in running}
            for view in views
        )


class Sentinels(_Group):
    """What `start_sentinel()` returns. `servers` are the master and its replicas, `sentinels` watch them."""

    def __init__(self, executable: str) -> None:
        super().__init__(executable)
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        """All sentinels, the master's name and a database: "redis+sentinel://127.0.0.1:P1,…/mymaster/0"."""
        hosts = ",".join(f"{_HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/mymaster/0"

    @property
    def master(self) -> RedisServer:
        """The master, as the first running sentinel knows it."""
        return self._at(next(port for port in self._masters() if port))

    def kill_master(self) -> RedisServer:
        """End the master as a crash would, and return the replica that has taken its place, once it is
        writable and every sentinel knows."""
        old = self.master
        old.kill()
        _until(lambda: self._follow_another_than(old), "no replica was promoted")
        return self.master

    def restart(self, server: RedisServer) -> None:
        """Start a server again, without its data; return once it is a replica of the master."""
        master = self.master
        server.restart()
        with _admin(server) as client:  # the sentinels would do it, but only after some 20 s
            client.replicaof(_HOST, master.port)
        _until(lambda: self._replicating(master) and self._settled(), "it did not become a replica")

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
        super().close()

    def _masters(self) -> set[int]:
        """The ports that the running sentinels call the master's; 0 for none."""
        found = set()
        for sentinel in self.sentinels:
            if sentinel.runs:
                with _admin(sentinel) as client:
                    address = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "mymaster")
                    found.add(int(address[1]) if address else 0)
        return found

    def _follow_another_than(self, old: RedisServer) -> bool:
        masters = self._masters()
        if len(masters) != 1 or masters & {old.port, 0}:
            return False
        with _admin(self.master) as client:
            return bool(client.info("replication")["role"] == "master")

    def _form(self, replicas: int, sentinels: int, down_after: float) -> None:
        for _ in range(1 + replicas):
            server = start_redis(kind="redis-server", options=_AT_ONCE)
            self.servers.append(self._all.enter_context(server))
        for server in self.servers[1:]:
            with _admin(server) as client:
                client.replicaof(_HOST, self.servers[0].port)
        watch = [
            f"sentinel monitor mymaster {_HOST} {self.servers[0].port} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds mymaster {round(down_after * 1000)}",
            "sentinel failover-timeout mymaster 5000",
        ]
        # One that asks before the replicas are connected asks again after 10 s only.
        _until(lambda: self._replicating(self.servers[0]), "the replicas did not connect")
        for _ in range(sentinels):
            sentinel = self._all.enter_context(_Sentinel(self._executable, watch))
            self.sentinels.append(sentinel)
            sentinel._start(0)
        _until(self._settled, "the sentinels did not find each other")

    def _replicating(self, master: RedisServer) -> bool:
        with _admin(master) as client:
            told = client.info("replication")
        states = [told[f"slave{number}"]["state"] for number in range(told["connected_slaves"])]
        return states == ["online"] * (len(self._running()) - 1)

    def _settled(self) -> bool:
        replicas, others = len(self._running()) - 1, len(self.sentinels) - 1
        for sentinel in self.sentinels:
            with _admin(sentinel) as client:
                master = client.sentinel_masters()["mymaster"]
                flags = [replica["flags"] for replica in client.sentinel_slaves("mymaster")]
            if (master["flags"], master["num-other-sentinels"]) != ("master", others):
                return False
            if flags.count("slave") != replicas:  # the others are "slave,s_down", or so
                return False
        return True


class _Sentinel(RedisServer):
    def __init__(self, executable: str, watch: list[str]) -> None:
        super().__init__("redis-server", executable, None)
        self._watch = watch

    def _command(self) -> list[str]:
        # It writes down in this file what it learns, also who the master is.
        file = self._directory / "sentinel.conf"
        if not file.exists():
            lines = [f"bind {_HOST}", f"port {self.port}", f"dir {self._directory}", *self._watch]
            file.write_text("\n".join(lines) + "\n")
        return [self._executable, str(file), "--sentinel"]


@contextmanager
def _closed_if_it_fails(group: _Group) -> Iterator[None]:
    try:
        yield
    except BaseException:
        group.close()
        raise


def _redis_server() -> str:
    executable = _executable("redis-server")
    if executable is None:
        raise Unsupported("a cluster or sentinels: no redis-server found on PATH")
    return executable


def _node(options: dict[str, str]) -> RedisServer:
    """A server for a cluster, whose bus has a port, too."""
    for _ in range(_PORTS_TO_TRY * 4):
        port = _claimed(0)
        try:
            _claimed(port + _BUS)
            return start_redis(port, kind="redis-server", options=options)
        except (_PortTaken, OverflowError):
            continue
    raise BackendUnavailable(f"no free port on {_HOST} with another one {_BUS} above it")


@contextmanager
def _admin(server: RedisServer) -> Iterator[Any]:
    client = redis.Redis(_HOST, server.port, socket_timeout=5, protocol=2, retry=Retry(NoBackoff(), 0))
    with client:
        yield client


def _knows(client: Any, nodes: int) -> bool:
    told = client.execute_command("CLUSTER NODES")
    return len(told) == nodes and all(node["connected"] for node in told.values())


def _slots(server: RedisServer) -> list[Any]:
    with _admin(server) as client:
        ranges: Any = client.execute_command("CLUSTER SLOTS")
    return [(first, last, *[node[1] for node in nodes]) for first, last, *nodes in ranges]


def _owners(server: RedisServer) -> dict[int, int]:
    """Slot -> port of its master, as this node knows it."""
    return {slot: master for first, last, master, *_ in _slots(server) for slot in range(first, last + 1)}


def _view(server: RedisServer) -> set[Any] | None:
    """Ports, and who has which slots and replicas, as this node knows it; None if it does not serve them."""
    with _admin(server) as client:
        told = client.execute_command("CLUSTER INFO")
    if told["cluster_state"] != "ok" or int(told["cluster_slots_ok"]) != _SLOTS:
        return None
    view: set[Any] = set()
    for first, last, master, *replicas in _slots(server):
        view |= {(first, last, master, frozenset(replicas)), master, *replicas}
    return view


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _SECONDS_TO_SETTLE
    while True:
        try:
            if condition():
                return
        except redis.RedisError as error:  # a server that has just started, or lost its place
            last: object = error
        else:
            last = "no error"
        if time.monotonic() > deadline:
            raise BackendUnavailable(f"{otherwise} in {_SECONDS_TO_SETTLE:.0f} s ({last})")
        time.sleep(0.05)
