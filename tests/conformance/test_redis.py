from collections.abc import Iterator

import pytest
import redis

from rpc.testing import RedisServer
from rpc.testing.conformance import Conformance, Site


@pytest.mark.redis
class OnRedis(Conformance):
    scheme = ""
    asynchronous = False

    @pytest.fixture
    def site(self, rpc_redis: RedisServer) -> Iterator[Site]:
        with redis.Redis.from_url(rpc_redis.url) as admin:

            def disrupt() -> None:
                admin.client_kill_filter(_type="normal", skipme=True)

            url = f"{self.scheme}{rpc_redis.url}?lease=2"
            with Site(url, disrupt=disrupt, asynchronous=self.asynchronous) as site:
                yield site


class TestRedis(OnRedis):
    pass


class TestRedisInALoop(OnRedis):
    asynchronous = True


class TestRq(OnRedis):
    scheme = "rq+"


class TestRqInALoop(TestRq):
    asynchronous = True
