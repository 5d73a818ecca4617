from collections.abc import Iterator
from uuid import uuid4

import pytest

from rpc.testing.conformance import Conformance, Site


class TestMemory(Conformance):
    asynchronous = False

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with Site(f"memory://{uuid4().hex}", asynchronous=self.asynchronous) as site:
            yield site


class TestMemoryInALoop(TestMemory):
    asynchronous = True
