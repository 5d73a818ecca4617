from collections.abc import Iterator

import pytest

from rpc.testing.conformance import Conformance, Site
from tests.rabbit import rabbit


class TestAmqp(Conformance):
    asynchronous = False

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with (
            rabbit() as broker,
            Site(
                broker.url, disrupt=broker.proxy.cut, asynchronous=self.asynchronous, named=broker.declare
            ) as site,
        ):
            yield site


class TestAmqpInALoop(TestAmqp):
    asynchronous = True
    may_do_what_was_given_up = True  # calls of one event loop share a reply queue
