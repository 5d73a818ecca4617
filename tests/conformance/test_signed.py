"""What a backend promises, it promises with signatures, too."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from rpc.testing import RedisServer
from rpc.testing.conformance import Conformance, Site
from tests.conformance import test_http
from tests.conformance.test_zeromq import MOST, OnZeromq
from tests.signed import SignedSite
from tests.zeromq import cut, http_places, tcp_url


class SignedListening(SignedSite, test_http.Listening):
    pass


class TestSignedMemory(Conformance):
    asynchronous = False

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with SignedSite(f"memory://{uuid4().hex}", asynchronous=self.asynchronous) as site:
            yield site


class TestSignedMemoryInALoop(TestSignedMemory):
    asynchronous = True


@pytest.mark.redis
class TestSignedRedis(Conformance):
    scheme = ""

    @pytest.fixture
    def site(self, rpc_redis: RedisServer) -> Iterator[Site]:
        with redis.Redis.from_url(rpc_redis.url) as admin:

            def disrupt() -> None:
                admin.client_kill_filter(_type="normal", skipme=True)

            with SignedSite(f"{self.scheme}{rpc_redis.url}?lease=2", disrupt=disrupt) as site:
                yield site


@pytest.mark.slow
class TestSignedRq(TestSignedRedis):
    scheme = "rq+"


@pytest.mark.slow
class TestSignedAmqp(Conformance):
    @pytest.fixture
    def site(self) -> Iterator[Site]:
        from tests.rabbit import rabbit

        with (
            rabbit() as broker,
            SignedSite(broker.url, disrupt=broker.proxy.cut, named=broker.declare) as site,
        ):
            yield site


@pytest.mark.slow
class TestSignedZeromq(OnZeromq):
    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with SignedSite(f"{tcp_url(MOST)}?lease=1", disrupt=cut) as site:
            yield site


@pytest.mark.slow
class TestSignedHttp(test_http.TestHttp):
    @pytest.fixture
    def site(self) -> Iterator[Site]:
        url = f"{http_places(test_http.MOST, self.scheme)}?lease=1&retry_for=60"
        with SignedListening(url, disrupt=cut) as site:
            yield site


@pytest.mark.slow
class TestSignedWebSocket(test_http.OnHttp):
    scheme = "ws"

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        url = f"{http_places(test_http.MOST, self.scheme)}?lease=1&retry_for=60"
        with SignedListening(url, disrupt=cut) as site:
            yield site
