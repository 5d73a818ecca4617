import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rpc.testing.conformance import Conformance, Site, eventually
from tests.zeromq import cut, http_places

MOST = 6
"""Workers at a time, at most, each at a place of its own."""


class Listening(Site):
    """A site where whoever asks finds who serves: what is asked before that comes in any order."""

    def serve(self, *arguments: Any, on_change: Any = lambda connected: None, **options: Any) -> Any:
        listening = threading.Event()

        def change(connected: bool) -> None:
            on_change(connected)
            listening.set()

        served = super().serve(*arguments, on_change=change, **options)
        assert listening.wait(self.patience)
        return served


class OnHttp(Conformance):
    scheme = "http"
    asynchronous = False

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        url = f"{http_places(MOST, self.scheme)}?lease=1&retry_for=60"
        with Listening(url, disrupt=cut, asynchronous=self.asynchronous) as site:
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


class TestHttp(OnHttp):
    pass


class TestHttpInALoop(OnHttp):
    asynchronous = True
