from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc.testing.conformance import Site
from tests.conformance.brokerless import Brokerless
from tests.zeromq import cut, tcp_url

MOST = 6
"""Workers at a time, at most, each at an endpoint of its own."""


class OnZeromq(Brokerless):
    asynchronous = False

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def site(self, url: str) -> Iterator[Site]:
        with Site(f"{url}?lease=1", disrupt=cut, asynchronous=self.asynchronous) as site:
            yield site


class TestTcp(OnZeromq):
    @pytest.fixture
    def url(self) -> str:
        return tcp_url(MOST)


class TestTcpInALoop(TestTcp):
    asynchronous = True


@pytest.mark.slow
class TestIpc(OnZeromq):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return "zmq+ipc://" + ",".join(str(tmp_path / f"{number}") for number in range(MOST))
