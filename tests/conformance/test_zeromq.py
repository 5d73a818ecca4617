from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc.testing.conformance import Conformance, Site, eventually
from tests.zeromq import cut, tcp_url

MOST = 6
"""Workers at a time, at most, each at an endpoint of its own."""


class OnZeromq(Conformance):
    asynchronous = False

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def site(self, url: str) -> Iterator[Site]:
        with Site(f"{url}?lease=1", disrupt=cut, asynchronous=self.asynchronous) as site:
            yield site

    def test_it_tells_whether_it_is_connected(self, site: Site) -> None:
        """A worker that listens has nothing to be connected to."""
        told: list[bool] = []
        server, thread = site.serve(on_change=told.append)
        eventually(lambda: told == [True])
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        cut()
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        assert told == [True]
        server.stop()
        thread.join(site.patience)
        assert told == [True, False]


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
