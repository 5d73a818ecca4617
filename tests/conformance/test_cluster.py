"""The same suite on a Redis Cluster of three nodes: each queue lives on one of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import redis

from rpc.testing.conformance import Conformance, Site
from tests.topologies import Cluster, start_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.redis,
    pytest.mark.skipif(not shutil.which("redis-server"), reason="needs a real Redis: redis-server on PATH"),
    pytest.mark.xdist_group("cluster"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_cluster() as cluster:
        yield cluster


class TestRedisCluster(Conformance):
    asynchronous = False

    @pytest.fixture
    def site(self, cluster: Cluster) -> Iterator[Site]:
        def disrupt() -> None:
            for server in cluster.servers:
                with redis.Redis.from_url(server.url) as admin:
                    admin.client_kill_filter(_type="normal", skipme=True)

        with Site(f"{cluster.url}?lease=2", disrupt=disrupt, asynchronous=self.asynchronous) as site:
            yield site


class TestRedisClusterInALoop(TestRedisCluster):
    asynchronous = True
