from collections.abc import Iterator
from uuid import uuid4

import pytest

from rpc.testing.conformance import Conformance, Site


class TestMemory(Conformance):
    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with Site(f"memory://{uuid4().hex}") as site:
            yield site
