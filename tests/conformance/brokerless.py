"""The conformance suite of backends whose workers listen themselves."""

from rpc.testing.conformance import Conformance, Site, eventually
from tests.zeromq import cut


class Brokerless(Conformance):
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
