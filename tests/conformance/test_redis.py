from collections.abc import Iterator

import pytest
import redis

from rpc.testing import RedisServer
from rpc.testing.conformance import Conformance, Site


@pytest.mark.redis
class TestRedis(Conformance):
    @pytest.fixture
    def site(self, rpc_redis: RedisServer) -> Iterator[Site]:
        with redis.Redis.from_url(rpc_redis.url) as admin:

            def disrupt() -> None:
                admin.client_kill_filter(_type="normal", skipme=True)

            with Site(f"{rpc_redis.url}?lease=2", disrupt=disrupt) as site:
                yield site
