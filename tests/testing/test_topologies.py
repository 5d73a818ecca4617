"""Clusters and sentinels of one's own, with real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from rpc.errors import BackendUnavailable, Unsupported
from rpc.testing import RedisServer, start_redis
from tests import topologies
from tests.topologies import Cluster, Sentinels, start_cluster, start_sentinel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_redis,
    pytest.mark.skipif(not shutil.which("redis-server"), reason="needs a real Redis: redis-server on PATH"),
    pytest.mark.xdist_group("topologies"),
]
KEY = "{slot}key"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_cluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with start_sentinel() as sentinels:
        yield sentinels


def client_of(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port, socket_timeout=5, protocol=2)


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
        time.sleep(0.02)
    return True


class TestOptions:
    def test_a_server_takes_lines_for_its_redis_conf(self) -> None:
        with (
            start_redis(kind="redis-server", options={"maxclients": "77"}) as server,
            client_of(server) as client,
        ):
            assert client.config_get("maxclients") == {"maxclients": "77"}

    def test_it_listens_where_it_says_whatever_they_say(self) -> None:
        options = {"port": "1", "bind": "0.0.0.0"}
        with start_redis(kind="redis-server", options=options) as server, client_of(server) as client:
            assert client.config_get("bind") == {"bind": "127.0.0.1"}

    def test_it_says_whether_it_runs(self) -> None:
        with start_redis(kind="redis-server") as server:
            assert server.runs
            os.kill(server.pid, 9)
            assert eventually(lambda: not server.runs)
        assert not server.runs


class TestCluster:
    def test_all_nodes_serve_all_slots_and_write_nothing_to_the_terminal(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with start_cluster() as cluster:
            for server in cluster.servers:
                with client_of(server) as client:
                    told = client.cluster("info")
                assert (told["cluster_state"], told["cluster_slots_ok"]) == ("ok", "16384")
                assert told["cluster_known_nodes"] == "3"
            assert cluster.url == f"redis+cluster://127.0.0.1:{cluster.servers[0].port}"
        assert capfd.readouterr() == ("", "")

    def test_the_owner_of_a_key_has_it_and_the_others_say_so(self, cluster: Cluster) -> None:
        owner = cluster.owner(KEY)
        for server in cluster.masters:
            with client_of(server) as client:
                if server is owner:
                    assert client.set(KEY, "value")
                else:
                    with pytest.raises(redis.ResponseError) as caught:
                        client.get(KEY)
                    assert f"127.0.0.1:{owner.port}" in str(caught.value)

    def test_a_slot_moves_with_what_is_in_it(self, cluster: Cluster) -> None:
        source = cluster.owner(KEY)
        other = next(server for server in cluster.masters if server is not source)
        with client_of(source) as client:
            client.set(KEY, "moves")
        cluster.move(KEY, other)
        assert cluster.owner(KEY) is other
        with client_of(other) as client:
            assert client.get(KEY) == b"moves"
        cluster.move(KEY, source)

    def test_a_slot_on_its_way_asks_for_patience(self, cluster: Cluster) -> None:
        source = cluster.owner(KEY)
        other = next(server for server in cluster.masters if server is not source)
        with client_of(source) as client:
            client.set(KEY, "here")
            with cluster.migrating(KEY, other):
                assert client.get(KEY) == b"here"
                with pytest.raises(redis.ResponseError, match=f"127.0.0.1:{other.port}"):
                    client.get("{slot}gone")
                with pytest.raises(redis.ResponseError, match="Multiple keys request"):
                    client.mget(KEY, "{slot}gone")
        cluster.move(KEY, source)

    def test_a_replica_takes_over_and_the_old_master_comes_back_as_one(self, cluster: Cluster) -> None:
        master = cluster.owner(KEY)
        heir = cluster.failover(master)
        assert heir is not master
        assert not exists(master.pid)
        assert cluster.owner(KEY) is heir
        with client_of(heir) as client:
            assert client.set(KEY, "again")
        port = master.port
        cluster.restart(master)
        assert master.port == port
        with client_of(master) as client:
            assert client.info("replication")["role"] == "slave"

    def test_without_replicas_a_node_that_returns_makes_it_whole(self) -> None:
        with start_cluster(node_timeout=0.5) as cluster:
            victim = cluster.owner(KEY)
            survivor = next(server for server in cluster.servers if server is not victim)
            cluster.kill(victim)
            with client_of(survivor) as client:
                assert eventually(lambda: client.cluster("info")["cluster_state"] == "fail")
                cluster.restart(victim)
                assert client.cluster("info")["cluster_state"] == "ok"


class TestSentinels:
    def test_they_know_each_other_and_the_master(self, sentinels: Sentinels) -> None:
        ports = [server.port for server in sentinels.sentinels]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        assert sentinels.url == f"redis+sentinel://{hosts}/mymaster/0"
        for server in sentinels.sentinels:
            with client_of(server) as client:
                told = client.sentinel_masters()["mymaster"]
            assert (told["port"], told["num-other-sentinels"]) == (sentinels.master.port, 2)

    def test_a_replica_is_promoted_and_the_old_master_follows_it(self, sentinels: Sentinels) -> None:
        for _ in range(2):
            old = sentinels.master
            new = sentinels.kill_master()
            assert new is not old
            assert sentinels.master is new
            with client_of(new) as client:
                assert client.set(KEY, "value")
                sentinels.restart(old)
                assert client.wait(1, 5000) == 1
            with client_of(old) as client:
                assert client.get(KEY) == b"value"


def start(kind: str) -> Cluster | Sentinels:
    return start_cluster() if kind == "cluster" else start_sentinel()


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
class TestEnd:
    def test_closing_leaves_nothing(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        group = start(kind)
        servers = [*group.servers, *getattr(group, "sentinels", [])]
        assert len(list(tmp_path.iterdir())) == len(servers)
        group.close()
        group.close()
        assert not any(exists(server.pid) for server in servers)
        assert not list(tmp_path.iterdir())

    def test_what_does_not_come_about_leaves_nothing(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(topologies, "_SECONDS_TO_SETTLE", 0)
        with pytest.raises(BackendUnavailable, match=r"did not .* in 0 s"):
            start(kind)
        assert not list(tmp_path.iterdir())

    def test_the_death_of_its_parent_ends_it(self, kind: str, tmp_path: Path) -> None:
        program = (
            f"import signal; from tests import topologies; group = topologies.start_{kind}()\n"
            "servers = [*group.servers, *getattr(group, 'sentinels', [])]\n"
            "print(*[server.pid for server in servers], flush=True)\n"
            "signal.pause()\n"
        )
        paths = os.pathsep.join(filter(None, sys.path))
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": paths},
        ) as parent:
            assert parent.stdout
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            parent.kill()
        assert pids
        assert eventually(lambda: not any(exists(pid) for pid in pids))

    def test_without_redis_server_one_line_says_so(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(Unsupported, match="no redis-server found on PATH"):
            start(kind)
